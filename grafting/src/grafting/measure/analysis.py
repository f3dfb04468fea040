"""What a pretrained model does inside while it samples: how local its attention is, how its activations are spread.

Everything is measured along the model's own walk from noise to samples, one pass per step over all sites, and streamed:
no attention matrix of more than :data:`WHOLE` tokens is ever held, and no activation is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..activations import Streams, as_tokens, visit_spans
from ..conditions import Condition, lengths, rows
from ..hosts import Host, Site, host_for
from ..sampling import Pipeline, Sampling, draw_labels
from ..switch import Switch
from .activations import Spread, merged
from .locality import by_grid, by_raster, curve, default_reach, offset_mass, square_within, uniform_mass, window_of

Distance = Literal["raster", "grid"]
Side = Literal["input", "output"]
DISTANCES: tuple[Distance, ...] = ("raster", "grid")
SIDES: tuple[Side, ...] = ("input", "output")
WHOLE = 1024
"""Tokens up to which the mean attention of a block is kept as a matrix, for a picture."""


class AnalysisError(ValueError):
    """A model that cannot be analysed, or an analysis that cannot be read or does not fit."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What :func:`analyze` found; L blocks with attention of the host's own, T steps, N = H x W tokens.

    blocks: the L blocks' indices (a grafted site has no attention to look at). timesteps: in the order of the walk.
    raster (L, T, heads, N) and square (L, T, heads, max(H, W)): attention mass by distance. maps (L, 2H - 1, 2W - 1):
    mass by offset, mean over heads and steps. whole (L, N, N): mean attention, where N is small. spreads: by site and
    side, one per step.
    """

    model: str
    protocol: str
    samples: int
    seed: int
    depth: int
    grid: tuple[int, int]
    timesteps: tuple[int, ...]
    blocks: tuple[int, ...]
    raster: torch.Tensor
    square: torch.Tensor
    maps: torch.Tensor
    whole: torch.Tensor | None
    spreads: Mapping[tuple[Site, Side], tuple[Spread, ...]]

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def reach(self, distance: Distance, k: int | None = None, *, of: Distance = "raster") -> int:
        """What ``k``, counted over ``of``, is over ``distance``; without k the paper's reach, in proportion to N.

        Beside a raster window stands the largest square of no more tokens, beside a square the window of as many.
        """
        if k is None:
            k, of = default_reach(self.tokens), "raster"
        if distance == of:
            return k
        return min(square_within(k), max(self.grid) - 1) if of == "raster" else min(window_of(k), self.tokens - 1)

    def curves(self, distance: Distance) -> torch.Tensor:
        """(L, T, heads, distances) float64: L_k for every k."""
        return curve(self.raster if distance == "raster" else self.square)

    def local(self, distance: Distance, k: int | None = None) -> torch.Tensor:
        """(L, T, heads): L_k. Raises AnalysisError for a k that is no distance here."""
        found, k = self.curves(distance), self.reach(distance, k, of=distance)
        check_reach(k, found.shape[-1])
        return found[..., k]

    def uniform(self, distance: Distance) -> torch.Tensor:
        """(distances,): L_k of attention that is the same on all keys."""
        mass = uniform_mass(self.grid)
        return curve(by_raster(mass, self.grid) if distance == "raster" else by_grid(mass, self.grid))

    def spread(self, site: Site, side: Side) -> Spread:
        """Over all steps together."""
        return merged(self.spreads[site, side])

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, block by block."""
        return tuple(dict.fromkeys(site for site, _ in self.spreads))


def check_reach(k: int, distances: int) -> None:
    """Raises AnalysisError for a k that is none of so many distances."""
    if not 0 <= k < distances:
        raise AnalysisError(f"k {k}: distances are 0 to {distances - 1}")


def analyze(
    model: nn.Module,
    *,
    name: str = "model",
    samples: int = 256,
    sampling: Sampling | None = None,
    seed: int = 0,
    batch: int = 64,
    conditions: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Watch every site of ``model`` while it draws ``samples`` over its classes in turn.

    sampling: 10 DDIM steps by default. conditions: of a model that takes no classes, what its host's ``call`` takes,
    tensors with one row per condition; the samples go through the rows in turn. batch: samples of one pass; neither it
    nor the order of anything changes the figures beyond rounding. progress: called with passes done and in all.

    Raises:
        AnalysisError: fewer than one sample, conditions that are missing, unequal or cannot be guided, or an activation
            that is not finite.
    """
    if samples < 1:
        raise AnalysisError(f"{samples} samples: at least 1")
    sampling = sampling or Sampling(steps=10)
    pipeline, labels = _walk(model, conditions, sampling, samples)
    host = host_for(model)
    recorder = _Recorder(model, host)
    watched = {site: host.get(model, site) for site in host.sites(model)}
    heard = model.register_forward_pre_hook(recorder.hear, with_kwargs=True)
    try:
        with visit_spans({site: ((module, module),) for site, module in watched.items()}, recorder, host.streams):
            pipeline.latents(labels, sampling=sampling, seed=seed, batch_size=batch, progress=progress)
    finally:
        heard.remove()
    return recorder.finish(model=name, protocol=sampling.describe(), samples=samples, seed=seed)


class _Recorder:
    """Adds up what the sites show, by timestep."""

    def __init__(self, model: nn.Module, host: Host) -> None:
        self.model, self.host, self.grid = model, host, host.grid_of(model)
        self.now, self.seen = -1, dict[int, int]()
        self.spreads: dict[tuple[Site, Side, int], Spread] = {}
        self.mass: dict[tuple[int, int], list[torch.Tensor]] = {}
        self.maps: dict[int, torch.Tensor] = {}
        self.whole: dict[int, torch.Tensor] = {}

    def hear(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass of the model: which step it is of."""
        z, t = args[0] if args else kwargs["hidden_states"], kwargs["timestep"]
        self.now = self.host.level(t)
        self.seen[self.now] = self.seen.get(self.now, 0) + len(z)

    def __call__(self, site: Site, inputs: torch.Tensor, outputs: Streams, call: Mapping[str, Any]) -> None:
        picture = slice(-math.prod(self.grid), None)  # of the tokens, where text comes with them
        both: dict[Side, torch.Tensor] = {"input": as_tokens(inputs)[:, picture], "output": outputs[0][:, picture]}
        for side, x in both.items():
            key = (site, side, self.now)
            try:
                self.spreads[key] = self.spreads.get(key, Spread()) + Spread.of(x)
            except ValueError as error:
                raise AnalysisError(f"{site.name}, {side}, timestep {self.now}: {error}") from None
        module = self.host.get(self.model, site)
        if site.kind == "attn" and not isinstance(module, Switch):
            self._attention(site.block, module, both["input"], call)

    @torch.no_grad()
    def _attention(self, block: int, module: nn.Module, x: torch.Tensor, call: Mapping[str, Any]) -> None:
        n = x.shape[1]
        if n <= WHOLE and block not in self.whole:
            self.whole[block] = torch.zeros(n, n, dtype=torch.float64, device=x.device)
        q, k = self.host.queries_keys(module, x, call)
        mass = len(x) * offset_mass(q, k, self.grid, whole=self.whole.get(block), weighed=self.host.weighed)
        found = [by_raster(mass, self.grid), by_grid(mass, self.grid)]
        before = self.mass.get((block, self.now))
        self.mass[block, self.now] = found if before is None else [a + b for a, b in zip(before, found, strict=True)]
        self.maps[block] = self.maps.get(block, torch.zeros_like(mass[0])) + mass.sum(0)

    def finish(self, **of: Any) -> Analysis:
        steps, blocks = tuple(self.seen), tuple(sorted(self.maps))
        shape, passes = self.host.shape(dict(self.model.config)), sum(self.seen.values())  # type: ignore[arg-type]
        height, width = self.grid

        def stacked(which: int, distances: int) -> torch.Tensor:
            if not blocks:
                return torch.zeros(0, len(steps), shape.heads, distances, dtype=torch.float64)
            return torch.stack(
                [torch.stack([self.mass[b, t][which] / self.seen[t] for t in steps]) for b in blocks]
            ).cpu()

        def mean(sums: Mapping[int, torch.Tensor]) -> torch.Tensor:
            return torch.stack([sums[b] / (passes * shape.heads) for b in blocks]).cpu()

        sites: list[tuple[Site, Side]] = [(site, side) for site in self.host.sites(self.model) for side in SIDES]
        return Analysis(
            depth=shape.depth,
            grid=self.grid,
            timesteps=steps,
            blocks=blocks,
            raster=stacked(0, height * width),
            square=stacked(1, max(self.grid)),
            maps=mean(self.maps) if blocks else torch.zeros(0, 2 * height - 1, 2 * width - 1, dtype=torch.float64),
            whole=mean(self.whole) if self.whole else None,
            spreads={key: tuple(self.spreads[(*key, t)] for t in steps) for key in sites},
            **of,
        )


def _walk(
    model: nn.Module, conditions: Mapping[str, Any] | None, sampling: Sampling, samples: int
) -> tuple[Pipeline, Condition]:
    if host_for(model).condition == "labels":
        if conditions is not None:
            raise AnalysisError("conditions are for models that take no classes: a DiT goes through its classes")
        pipeline = Pipeline(model)
        return pipeline, draw_labels(samples, pipeline.null_class)
    found = lengths(conditions or {})
    if len(found) != 1 or 0 in found:
        told = f"tensors of {sorted(found)} rows" if found else "none"
        raise AnalysisError(f"{type(model).__name__} needs conditions, one row of every tensor for each; given {told}")
    if sampling.guidance != 1:
        raise AnalysisError(f"guidance {sampling.guidance:g}: a model of given conditions is walked without, at 1")
    return Pipeline(model), rows(conditions or {}, torch.arange(samples) % found.pop())
