"""What an operator costs beside the original at one resolution, and budgets of it.

FLOPs and parameters by formula, per sample; latency (s per batch) by measurement, all operators in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..cost import plan_cost
from ..hosts import Site, host_for, shape_of
from ..initialise import make_stand_in
from ..measure.speed import latency
from ..switch import Nothing, Raster, Switch
from .candidates import Candidate
from .solve import SearchError

KINDS = ("flops", "parameters", "latency")
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """whole: of the pretrained model. changes: by candidate (site kind and name), what one swapped site adds."""

    whole: float
    changes: Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """At most ``value`` of a cost: a ``share`` of the pretrained model's, or in its own unit. text: as it was given."""

    kind: str
    value: float
    share: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``flops=0.9`` is a share, as any value up to 1 is; ``latency=12ms`` and ``parameters=20e6`` are absolute.

        Raises SearchError for another kind, or a value that is no positive number.
        """
        kind, _, value = text.partition("=")
        unit = next((u for u in ("ms", "us", "s") if kind == "latency" and value.endswith(u)), "")
        try:
            number = float(value.removesuffix(unit)) * UNITS.get(unit, 1.0)
        except ValueError:
            number = 0.0
        if kind not in KINDS or not 0 < number < float("inf"):
            raise SearchError(f"budget {text!r}: {', '.join(KINDS)} = a share such as 0.9, or a value such as 12ms")
        if kind == "latency" and not unit and number > 1:
            raise SearchError(f"budget {text!r}: a latency above 1 needs its unit: s, ms or us")
        return cls(kind=kind, value=number, share=not unit and number <= 1, text=text)

    def limit(self, whole: float) -> float:
        """The change of the cost that it allows."""
        return (self.value * whole if self.share else self.value) - whole


def counted(model: nn.Module, operators: Sequence[Candidate], *, side: int | None = None) -> dict[str, Costs]:
    """``flops`` and ``parameters``; side: tokens along a side of a square grid, the model's own where None."""
    grid = (side, side) if side else None
    costs = {(one.kind, one.name): plan_cost(one.plan([0]), model, grid=grid) for one in operators}
    sites = {key: cost.sites[0] for key, cost in costs.items()}
    before = next(iter(costs.values())).flops_before if costs else 0
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "flops": Costs(whole=before, changes={k: s.flops_after - s.flops_before for k, s in sites.items()}),
        "parameters": Costs(
            whole=parameters, changes={k: s.parameters_after - s.parameters_before for k, s in sites.items()}
        ),
    }


def timed(
    model: nn.Module, operators: Sequence[Candidate], *, side: int | None = None, batch: int = 8, rounds: int = 10
) -> Costs:
    """``latency``: minima of interleaved rounds of every operator at block 0's sites, of the originals and the model.

    All are called as the model calls its site, with a text's tokens and on the grid where it does so. An operator that
    is bound to a number of tokens is made for this one.
    """
    host, shape = host_for(model), shape_of(model).at((side, side) if side else shape_of(model).grid)
    whole, raster = whole_pass(model, shape.grid, batch), Raster(host, model)
    sites = {kind: host.get(model, Site(0, kind)) for kind in sorted({one.kind for one in operators})}
    given: dict[str, tuple[Any, Any]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, kind=kind: given.update({kind: (args, kwargs)}),
            with_kwargs=True,
        )
        for kind, module in sites.items()
    ]
    try:
        with torch.no_grad():
            whole()
    finally:
        raster.detach()
        for hook in hooks:
            hook.remove()
    calls: dict[str, Callable[[], object]] = {}
    for kind, module in sites.items():
        calls[f"original {kind}"] = partial(module, *given[kind][0], **given[kind][1])
    for one in operators:
        (entry,) = one.plan([0]).resolve(model)
        made = make_stand_in(host, model, sites[one.kind], entry, "random", 0, tokens=shape.tokens).eval()
        if not isinstance(made, Nothing):
            args, kwargs = given[one.kind]
            calls[f"{one.kind} {one.name}"] = partial(Switch(None, made, raster).stand_in, *args, **kwargs)
    calls["whole"] = whole
    seconds = {name: found.minimum for name, found in latency(calls, rounds=rounds).items()}
    changes: dict[tuple[str, str], float] = {
        (one.kind, one.name): seconds.get(f"{one.kind} {one.name}", 0.0) - seconds[f"original {one.kind}"]
        for one in operators
    }
    return Costs(whole=seconds["whole"], changes=changes)


def whole_pass(model: nn.Module, grid: tuple[int, int], batch: int) -> Callable[[], object]:
    """One pass of a model over ``batch`` random samples of ``grid`` tokens, each time that it is called."""
    host, device = host_for(model), next(model.parameters()).device
    shape = shape_of(model).at(grid)
    z = torch.randn(batch, shape.channels, *shape.latents, device=device)
    t = torch.full((batch,), 500, device=device)
    y = host.example(model, batch)
    return lambda: host.call(model, z, t, y)
