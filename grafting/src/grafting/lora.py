"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) beside the weights that a graft keeps, made by peft.

    y = W x + (alpha / rank) B A x,    A (rank, in) at random, B (out, rank) zero at the start

    handle = graft(model, plan)              # or Plan() for a teacher without edits
    add_lora(handle, Lora(rank=16))
    with handle.teacher(): ...               # adapters off, the pretrained model to the bit
    handle.own_copy()                        # a copy with the adapters merged into its weights
    ungraft(model)                           # adapters gone, the very same tensors as before

New operators, and restructured blocks that learn as a whole, train in full and so get no adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .hosts.shapes import ROLES, Site
from .settings import SettingsError, near

if TYPE_CHECKING:
    from .graft import Grafted

NAME = "default"
"""What peft calls our adapter."""


class LoraError(ValueError):
    """Adapters that cannot be had; the model is as it was."""


MISSING = "LoRA needs the package peft: pip install peft"
"""What is said where adapters are asked for and it is not there."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """rank: of every adapter. alpha: its scale times the rank; the rank itself, so a scale of 1, where None.

    targets: of which projections, by role: ``attn`` (self-attention, and joint attention's of picture and text),
    ``cross`` (cross-attention), ``mlp``; all that the host has where None.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.rank < 1:
            problems.append(f"rank {self.rank}: at least 1")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            problems.append(f"alpha {self.alpha}: above 0")
        if self.targets is not None:
            problems += [f"target {role!r}: {near(role, ROLES)}" for role in self.targets if role not in ROLES]
            if not self.targets or len(set(self.targets)) < len(self.targets):
                problems.append(f"targets {list(self.targets)}: name at least one of {', '.join(ROLES)}, each once")
        if problems:
            raise SettingsError(problems)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The adapters of a model. blocks: that run in it, by their numbers in the pretrained model.

    names: of the adapted layers, by block and path in it, such as ``3.attn1.to_q``.
    """

    settings: Lora
    blocks: Mapping[int, nn.Module]
    names: tuple[str, ...]

    @cached_property
    def layers(self) -> dict[str, Any]:
        """peft's layers by name; each holds the pretrained one as ``base_layer``."""
        return {name: _place(self.blocks, name)[0].get_submodule(name.rpartition(".")[2]) for name in self.names}

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the adapters learn, by name: ``blocks.3.attn1.to_q.lora_A.weight`` (rank, in) and ``lora_B``."""
        return {
            f"blocks.{name}.{part}.weight": getattr(layer, part)[NAME].weight
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }

    @property
    def enabled(self) -> bool:
        """Whether they take part in a forward pass."""
        return not next(iter(self.layers.values())).disable_adapters

    @contextmanager
    def switched(self, enabled: bool) -> Iterator[None]:
        """While open, adapters take part or not."""
        before = self.enabled
        self._switch(enabled)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, enabled: bool) -> None:
        if enabled == self.enabled:
            return
        # peft's switch decides too what requires a gradient, which is none of its business here.
        with _same_gradients(self.layers.values()):
            for layer in self.layers.values():
                layer.enable_adapters(enabled)

    def remove(self) -> None:
        """Put the pretrained layers back, the very same objects."""
        for name, layer in self.layers.items():
            parent, child = _place(self.blocks, name)
            setattr(parent, child, layer.base_layer)

    def merge(self) -> None:
        """Add every adapter to its layer's weight, in place, and remove it. Equal but for the rounding of the sum."""
        for layer in self.layers.values():
            layer.merge()
        self.remove()

    def copied(self, memo: Mapping[int, Any]) -> Adapters:
        """The adapters of a deep copy of the model, by the memo that it left."""
        blocks = {number: memo[id(block)] for number, block in self.blocks.items()}
        return Adapters(settings=self.settings, blocks=blocks, names=self.names)


def add_lora(handle: Grafted, settings: Lora, *, seed: int = 0, dtype: torch.dtype | None = None) -> Adapters:
    """Put adapters into the student of ``handle``, in place; it computes what it did before, until they learn.

    What requires a gradient stays as it was, the adapters' own weights do. seed: of the random A.
    dtype: of the adapters, that of the adapted weights by default.

    Raises:
        LoraError: peft is missing, the model has adapters, the host has not a role that is named, nothing is left to
            adapt, the rank is more than a layer's width, or layers share a weight. The model is then as it was.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise LoraError(MISSING) from None
    blocks = handle.running()
    if handle.adapters is not None or any(
        isinstance(m, BaseTunerLayer) for part in handle.parts() for m in part.modules()
    ):
        raise LoraError("this model has adapters already: merge them into a copy (own_copy) or take them out first")
    chosen = _chosen(handle, blocks, settings)
    _refuse(handle, chosen, settings)
    carrier = nn.ModuleDict({str(number): block for number, block in blocks.items()})
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank * settings.scale,
        target_modules="|".join(map(re.escape, chosen)),
        lora_dropout=0.0,
        bias="none",
    )
    modes = {name: layer.training for name, layer in chosen.items()}
    # peft freezes whatever it is given: what trains is for the stage to say.
    with _same_gradients([carrier]), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set a GPU's too
        inject_adapter_in_model(config, carrier, NAME)
    adapters = Adapters(settings=settings, blocks=blocks, names=tuple(chosen))
    for name, layer in adapters.layers.items():
        layer.train(modes[name])
        for part in (layer.lora_A, layer.lora_B):
            part.to(dtype=dtype)
    handle.adapters = adapters
    return adapters


def _chosen(handle: Grafted, blocks: Mapping[int, nn.Module], settings: Lora) -> dict[str, Any]:
    """The layers to adapt by name: projections of the asked roles that do not train in full."""
    host = handle.host
    there = [role for role in ROLES if host.projections(role)]
    if missing := [role for role in settings.targets or () if role not in there]:
        raise LoraError(f"targets {', '.join(missing)}: the blocks of a {host.family} have {', '.join(there)}")
    full = {id(parameter) for part in handle.learnable().values() for parameter in part.values()}
    chosen: dict[str, Any] = {}
    for number, block in blocks.items():
        for role in settings.targets or there:
            swapped = role != "cross" and Site(number, role) in handle.switches  # type: ignore[arg-type]
            for path in host.projections(role, block):  # type: ignore[arg-type]
                if swapped and path.startswith(f"{host.module_of[role]}."):  # type: ignore[index]
                    continue
                layer = block.get_submodule(path)
                if not isinstance(layer, nn.Linear):
                    raise LoraError(f"blocks.{number}.{path} is {type(layer).__name__}, and adapters are for nn.Linear")
                if not any(id(parameter) in full for parameter in layer.parameters()):
                    chosen[f"{number}.{path}"] = layer
    if not chosen:
        named = ", ".join(settings.targets or there)
        raise LoraError(f"targets {named}: all of these train in full already, and nothing is left to adapt")
    return chosen


def _refuse(handle: Grafted, chosen: Mapping[str, Any], settings: Lora) -> None:
    """Raise LoraError for layers that an adapter does not fit."""
    # Of the layer and not of its weight, which packed in four bits has another shape.
    widths = {name: min(layer.in_features, layer.out_features) for name, layer in chosen.items()}
    name = min(widths, key=widths.__getitem__)
    if settings.rank > (narrow := widths[name]):
        raise LoraError(f"rank {settings.rank}: blocks.{name} has {narrow} channels, and a higher rank adds nothing")
    modules = {id(module): module for part in handle.parts() for module in part.modules()}
    owners: dict[int, int] = {}
    for module in modules.values():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for layer in chosen.values():  # one module in several places
        owners[id(layer.weight)] += 1
    shared = [f"blocks.{name}" for name, layer in chosen.items() if owners[id(layer.weight)] > 2]
    if shared:
        raise LoraError(
            f"{', '.join(shared[:4])}{' …' if len(shared) > 4 else ''}: the weight is shared with another layer, which "
            "would change too where the adapter is merged; leave this role out of targets"
        )


def _place(blocks: Mapping[int, nn.Module], name: str) -> tuple[nn.Module, str]:
    """The module that holds a layer, and the layer's name there."""
    number, _, path = name.partition(".")
    parent, _, child = path.rpartition(".")
    return blocks[int(number)].get_submodule(parent), child


@contextmanager
def _same_gradients(modules: Any) -> Iterator[None]:
    """Whatever happens meanwhile, the parameters that there were require gradients as they did."""
    before = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
