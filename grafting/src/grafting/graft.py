"""Grafting: put new operators into a pretrained model, beside the ones they replace, and take them out again.

    handle = graft(model, plan, init="solve", calibration=batches)
    with handle.teacher():
        model(...)                 # the untouched pretrained model
    model(...)                     # the hybrid
    ungraft(model)                 # the very same modules as before

Every check runs before the first edit, so a refusal leaves the model as it was. Teacher and student share one copy of
all weights that are not grafted.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .activations import visit
from .diffusion import Diffusion, draw
from .hosts import Host, Site, host_for
from .initialise import STARTS, SolveAll
from .operators import Operator, build
from .plan import Plan

Batches = Callable[[int], Mapping[str, torch.Tensor]]


class GraftError(ValueError):
    """A graft, or its removal, that cannot be done; the model is as it was."""


class Nothing(nn.Module):
    """The control *none*: the site's output is zero."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Zeros of the input's shape (B, N, D), still on the graph of the input."""
        return hidden_states * 0


class Switch(nn.Module):
    """A site that holds the original and its stand-in, and runs one of them.

    original: the pretrained module, never copied; None once the student has its own copy of the model.
    operator: an :class:`~grafting.operators.Operator`, or a control that is called as the original is.
    """

    def __init__(self, original: nn.Module | None, operator: nn.Module, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.original = original
        self.operator = operator
        self.grid = grid
        self.grafted = True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, N, D) to (B, N, D) through the chosen side; further arguments reach modules of the host's own kind."""
        if not self.grafted:
            assert self.original is not None
            result: torch.Tensor = self.original(hidden_states, *args, **kwargs)
            return result
        return self.stand_in(hidden_states, *args, **kwargs)

    def stand_in(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The new operator's output, whatever the switch says."""
        if isinstance(self.operator, Operator):
            # Another size than the model's own has another grid, which square hosts need not be told.
            height, width = self.grid[-2:]
            grid = self.grid if height * width == hidden_states.shape[1] else None
            result: torch.Tensor = self.operator(hidden_states, grid=grid)
        else:
            result = self.operator(hidden_states, *args, **kwargs)
        return result


@dataclass(kw_only=True)
class Grafted:
    """A grafted model: its plan, its switches by site, and how it was started.

    source_hash: of the pretrained tensors. explained: by site, the share of the original's output variance on the
    calibration activations that the start explains (empty where nothing was solved). private: the student has its own
    copy of every weight, so there is no teacher inside and nothing to take out. required: by name, whether each
    parameter of the pretrained model required a gradient.
    """

    model: nn.Module
    plan: Plan
    host: Host
    switches: dict[Site, Switch]
    init: str
    seed: int
    source_hash: str
    explained: dict[Site, float] = field(default_factory=dict)
    private: bool = False
    required: dict[str, bool] = field(default_factory=dict)

    @contextmanager
    def teacher(self) -> Iterator[nn.Module]:
        """While open, the model is the pretrained one. Raises GraftError where the graft has its own copy."""
        if self.private:
            raise GraftError(
                f"there is no teacher in this model, whose weights are its own: load the model of hash "
                f"{self.source_hash[:12]}"
            )
        with self._set(grafted=False) as model:
            yield model

    @contextmanager
    def student(self) -> Iterator[nn.Module]:
        """While open, the model is the hybrid (its state outside of both contexts)."""
        with self._set(grafted=True) as model:
            yield model

    @contextmanager
    def _set(self, *, grafted: bool) -> Iterator[nn.Module]:
        before = {site: switch.grafted for site, switch in self.switches.items()}
        for switch in self.switches.values():
            switch.grafted = grafted
        try:
            yield self.model
        finally:
            for site, switch in self.switches.items():
                switch.grafted = before[site]

    def operators(self) -> dict[Site, nn.Module]:
        """The new modules by site."""
        return {site: switch.operator for site, switch in self.switches.items()}

    def train_grafted(self) -> None:
        """Let only the new operators require gradients."""
        self.model.requires_grad_(False)
        for switch in self.switches.values():
            switch.operator.requires_grad_(True)

    def own_copy(self) -> Grafted:
        """A hybrid whose every weight is its own and trains, without the teacher: what full finetuning edits."""
        # Neither the originals nor this handle are copied: the memo says that they are nothing.
        left_out = [self, *(switch.original for switch in self.switches.values())]
        model = copy.deepcopy(self.model, {id(thing): None for thing in left_out})
        model.requires_grad_(True)
        switches: dict[Site, Switch] = {}
        for site in self.switches:
            switch = self.host.get(model, site)
            assert isinstance(switch, Switch)
            switch.original, switch.grafted = None, True
            switches[site] = switch
        mine = Grafted(
            model=model,
            plan=self.plan,
            host=self.host,
            switches=switches,
            init=self.init,
            seed=self.seed,
            source_hash=self.source_hash,
            explained=dict(self.explained),
            private=True,
        )
        remember(mine)
        return mine


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def remember(handle: Grafted) -> None:
    """Keep the handle beside its model, as a plain attribute that no state dict sees."""
    object.__setattr__(handle.model, "_grafted", handle)


def handle_of(model: nn.Module) -> Grafted | None:
    """The handle of a grafted model, None of a plain one."""
    handle = model.__dict__.get("_grafted")
    return handle if isinstance(handle, Grafted) and handle.model is model else None


def graft(
    model: nn.Module,
    plan: Plan,
    *,
    init: str = "default",
    seed: int = 0,
    calibration: Batches | None = None,
    calibration_batches: int = 4,
    diffusion: Diffusion | None = None,
) -> Grafted:
    """Put the operators of ``plan`` into ``model``, in place.

    Args:
        init: ``random`` (the paper's; per-site seed = ``seed`` + block), ``copy``, ``solve``, or ``default``: solve
            where there is calibration, copy elsewhere. What cannot be copied stays random.
        calibration: batch(step) giving ``z`` (B, C, H, W) clean latents and ``y`` (B,) labels; ``calibration_batches``
            of them are noised by ``diffusion`` and shown to the teacher once for all sites together.

    Raises:
        GraftError, ValueError: the plan does not fit the model, the model is grafted already, an unknown ``init``, or
            ``solve`` without calibration. The model is then as it was.
    """
    if init not in STARTS:
        raise GraftError(f"init {init!r}: one of {', '.join(STARTS)}")
    if init == "solve" and calibration is None:
        raise GraftError("init 'solve' needs calibration: batch(step) with z and y; or take init 'copy'")
    if handle_of(model) is not None:
        raise GraftError("this model is grafted already: ungraft(model) first")
    plan.check(model).raise_if_any()
    host = host_for(model)
    chosen = plan.resolve(model)
    originals = {entry.site: host.get(model, entry.site) for entry in chosen}
    stand_ins = {entry.site: _make(host, model, originals[entry.site], entry, init, seed) for entry in chosen}
    explained: dict[Site, float] = {}
    if calibration is not None and init in ("default", "solve"):
        explained = _solve(
            host, model, originals, stand_ins, calibration, calibration_batches, seed, diffusion or Diffusion()
        )
    source_hash = tensors_hash(model.state_dict())
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    grid = tuple(host.grid_of(model))
    switches = {site: Switch(originals[site], stand_ins[site], grid) for site in originals}
    for site, switch in switches.items():
        switch.train(originals[site].training)
        host.set(model, site, switch)
    handle = Grafted(
        model=model,
        plan=plan,
        host=host,
        switches=switches,
        init=init,
        seed=seed,
        source_hash=source_hash,
        explained=explained,
        required=required,
    )
    remember(handle)
    return handle


def ungraft(model: nn.Module) -> nn.Module:
    """Put the original modules back, the very same objects; parameters require gradients as they did before.

    Raises GraftError where there is nothing to put back.
    """
    handle = handle_of(model)
    if handle is None:
        raise GraftError("this model is not grafted")
    if handle.private:
        raise GraftError(
            "this model was finetuned as a whole and holds no original weights: load the model of hash "
            f"{handle.source_hash[:12]} again"
        )
    for site, switch in handle.switches.items():
        assert switch.original is not None
        handle.host.set(model, site, switch.original)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(handle.required.get(name, parameter.requires_grad))
    del model.__dict__["_grafted"]
    return model


def _make(host: Host, model: nn.Module, original: nn.Module, entry: Any, init: str, seed: int) -> nn.Module:
    """One stand-in, on the original's device and in its type, copied from it where ``init`` asks for that."""
    if entry.operator == "none":
        return Nothing()
    if entry.operator == "identity":
        return copy.deepcopy(original)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + entry.site.block)
        operator = build(
            entry.operator,
            width=host.width(model),
            heads=host.heads(model),
            tokens=host.tokens(model),
            **entry.options,
        )
    if init != "random":
        if entry.site.kind == "attn":
            (wq, bq, wk, bk, wv, bv), out = host.attention_weights(original)
            operator.copy_from_attention((wq, bq, wk, bk, wv, bv), out)
        else:
            operator.copy_from_mlp(*host.mlp_weights(original))
    like = next(original.parameters())
    return operator.to(device=like.device, dtype=like.dtype)


@torch.no_grad()
def _solve(
    host: Host,
    model: nn.Module,
    originals: dict[Site, nn.Module],
    stand_ins: dict[Site, nn.Module],
    calibration: Batches,
    count: int,
    seed: int,
    diffusion: Diffusion,
) -> dict[Site, float]:
    """Solve every operator's last layer from one teacher pass per batch over all sites."""
    operators = {site: operator for site, operator in stand_ins.items() if isinstance(operator, Operator)}
    if not operators:
        return {}
    solver = SolveAll(operators, tuple(host.grid_of(model)))
    device = next(model.parameters()).device
    with visit({site: originals[site] for site in operators}, solver):
        for index in range(count):
            batch = calibration(index)
            # Negative counters: draws that no training step uses.
            noise, t = draw(batch["z"].shape, diffusion.steps, seed, -1 - index)
            z, y, noise, t = (tensor.to(device) for tensor in (batch["z"], batch["y"], noise, t))
            host.call(model, diffusion.add_noise(z, t, noise), t, y)
    return solver.finish()
