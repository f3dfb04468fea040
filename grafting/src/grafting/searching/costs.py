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

from ..cost import host_flops, plan_cost
from ..hosts import Site, host_for, shape_of
from ..hosts.shapes import Kind
from ..initialise import make_stand_in
from ..measure.speed import latency
from ..switch import Nothing, Raster, Switch
from .candidates import Candidate
from .solve import SearchError

KINDS = ("flops", "parameters", "latency")
Side = int | tuple[int, int]
"""Tokens along a side of a square, or height and width."""
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """whole: of the pretrained model. changes: by site and candidate's name, what swapping this site adds."""

    whole: float
    changes: Mapping[tuple[Site, str], float]

    def change(self, one: Candidate) -> float:
        """Of a candidate, in the mean over its sites."""
        found = [change for (site, name), change in self.changes.items() if (site.kind, name) == (one.kind, one.name)]
        return found[0] if len(set(found)) == 1 else sum(found) / len(found)


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


def grid_of(side: Side | None) -> tuple[int, int] | None:
    """(height, width) in tokens; None where nothing is said."""
    return (side, side) if isinstance(side, int) else side


def counted(model: nn.Module, operators: Sequence[Candidate], *, side: Side | None = None) -> dict[str, Costs]:
    """``flops`` and ``parameters``; side: of the grid of tokens, the model's own where None."""
    grid = grid_of(side)
    sites = [(one.name, site) for one in operators for site in plan_cost(one.plan("all"), model, grid=grid).sites]
    return {
        "flops": Costs(
            whole=host_flops(shape_of(model).at(grid) if grid else shape_of(model)),
            changes={(site.site, name): site.flops_after - site.flops_before for name, site in sites},
        ),
        "parameters": Costs(
            whole=sum(p.numel() for p in model.parameters()),
            changes={(site.site, name): site.parameters_after - site.parameters_before for name, site in sites},
        ),
    }


def timed(
    model: nn.Module, operators: Sequence[Candidate], *, side: Side | None = None, batch: int = 8, rounds: int = 10
) -> Costs:
    """``latency``: minima of interleaved rounds of every operator in the first block of each kind that the model has,
    of the originals there, and of the model; what is found in one block holds for all of its kind.

    All are called as the model calls its site, with a text's tokens and on the grid where it does so. An operator that
    is bound to a number of tokens is made for this one.
    """
    host, shape = host_for(model), shape_of(model).at(grid_of(side) or shape_of(model).grid)
    whole, raster = whole_pass(model, shape.grid, batch), Raster(host, model)
    kinds = {one.kind for one in operators}
    first: dict[tuple[Kind, bool], Site] = {}
    alike: dict[Site, Site] = {}
    for site in host.sites(model):
        if site.kind in kinds:
            alike[site] = first.setdefault((site.kind, shape.is_single(site.block)), site)
    modules = {site: host.get(model, site) for site in first.values()}
    given: dict[Site, tuple[Any, Any]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, site=site: given.update({site: (args, kwargs)}),
            with_kwargs=True,
        )
        for site, module in modules.items()
    ]
    try:
        with torch.no_grad():
            whole()
    finally:
        raster.detach()
        for hook in hooks:
            hook.remove()
    calls: dict[str, Callable[[], object]] = {"whole": whole}
    for site, module in modules.items():
        args, kwargs = given[site]
        calls[site.name] = partial(module, *args, **kwargs)
        for one in operators:
            if one.kind == site.kind:
                (entry,) = one.plan([site.block]).resolve(model)
                made = make_stand_in(host, model, module, entry, "random", 0, tokens=shape.tokens).eval()
                if not isinstance(made, Nothing):
                    calls[f"{site.name} {one.name}"] = partial(Switch(None, made, raster).stand_in, *args, **kwargs)
    times = latency(calls, rounds=rounds, device=next(model.parameters()).device)
    seconds = {key: found.minimum for key, found in times.items()}
    changes = {
        (site, one.name): seconds.get(f"{like.name} {one.name}", 0.0) - seconds[like.name]
        for site, like in alike.items()
        for one in operators
        if one.kind == site.kind
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
