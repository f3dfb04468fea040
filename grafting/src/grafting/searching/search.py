"""The whole search in one call: scores, costs, and the front of plans that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import __version__
from ..hosts import host_for, shape_of
from ..hosts.shapes import KINDS, Kind
from ..initialise import start_versions
from ..precision import in_half
from ..progress import Progress
from ..store.models import Model, open_model
from ..training.team import Team
from .candidates import Candidate, candidates, usual
from .check import checked, spread
from .costs import KINDS as COSTS
from .costs import Budget, Costs, Side, counted, grid_of, timed
from .find import PREDICTORS, Found, best, pareto
from .scores import Score, Scoring, score
from .solve import SearchError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Front:
    """Plans that no other one of the searched budgets beats in both cost and predicted loss, the cheapest first.

    model: its name, with ``depth`` blocks. cost: ``flops``, ``parameters`` or ``latency``, told by ``protocol``.
    by: the predictor, ``loss`` or ``carried``. operators, scores, costs: what all plans follow from. scoring: of
    what draws the scores are.
    """

    model: str
    depth: int
    cost: str
    protocol: str
    by: str
    plans: tuple[Found, ...]
    operators: tuple[Candidate, ...]
    scores: tuple[Score, ...]
    costs: Costs
    scoring: Scoring

    def under(self, budget: Budget | str) -> Found:
        """The plan of least predicted loss under a budget of this cost, such as ``flops=0.9``; solved anew, exactly.

        Raises SearchError for a budget of another cost, one out of reach, or one that asks for no swap.
        """
        budget = Budget.parse(budget) if isinstance(budget, str) else budget
        if budget.kind != self.cost:
            raise SearchError(
                f"budget of {budget.kind}: this front is one of {self.cost}; search with cost={budget.kind}"
            )
        return best(self.scores, self.operators, self.costs, budget, by=self.by)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``search.json`` holds it; costs are shares of the pretrained model's."""
        swaps = [
            {"kind": one.kind, "operator": one.name, "cost": self.costs.change(one) / self.costs.whole}
            for one in self.operators
        ]
        return {
            "schema": SCHEMA,
            "model": self.model,
            "depth": self.depth,
            "cost": self.cost,
            "protocol": self.protocol,
            "by": self.by,
            "scoring": {key: value for key, value in asdict(self.scoring).items() if key != "batch"},
            "whole": self.costs.whole,
            "version": __version__,
            "swaps": swaps,
            "scores": [asdict(one) for one in self.scores],
            "front": [one.to_dict() for one in self.plans],
            **start_versions(self.operators, "solve"),
        }


def search(
    model: Model | Path | str,
    operators: Iterable[str] = (),
    *,
    kinds: Sequence[Kind] = KINDS,
    cost: str = "flops",
    by: str = "loss",
    points: int = 20,
    check: int = 0,
    side: Side | None = None,
    batch: int = 8,
    scoring: Scoring | None = None,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> Front:
    """Score every operator at every site before any training, and solve for the front of plans.

        front = grafting.search("fashion", ["swa", "mlp:ratio=3"], out=Path("out/search"))
        front.plans[0].plan, front.under("flops=0.9").plan

    Args:
        model: as :func:`grafting.open_model` takes or returns it; a pretrained one, which is the same afterwards.
        operators: ``name`` or ``name:option=value``; each stands at the sites that it fits. Some of
            each kind, where none is named.
        kinds: of sites, ``attn`` and ``mlp``.
        cost: ``flops`` and ``parameters`` by formula per sample, ``latency`` by measurement of ``batch`` samples.
        by: what predicts quality, ``loss`` or ``carried``: see :mod:`grafting.searching.scores`.
        points: budgets along the front, evenly spaced from the least cost to the pretrained model's.
        check: plans along the front that are measured whole at their solved start (``measured``).
        side: tokens along a side of the square that costs are of, or (height, width); the model's own by default.
        scoring: what the scores depend on. data: a folder of :func:`grafting.encode` or an npz of images,
            where the model brings none.
        device: where a model that is named runs; None: the GPU where there is one, as :func:`grafting.run` chooses. One
            that is given stays where it is.
        out: a folder that keeps scores and checks, so that another cost, budget or predictor takes seconds.
        progress: called with (done, total) operators, then checks.

    Raises:
        SearchError: what is asked for is none of these, the model is grafted, or given beside a device.
        HostError: a side that the model cannot draw.
        ModelError, OperatorError: no images, or an operator that is unknown or does not fit.
    """
    if cost not in COSTS:
        raise SearchError(f"cost {cost!r}: {', '.join(COSTS)}")
    if by not in PREDICTORS:
        raise SearchError(f"predictor {by!r}: {' or '.join(PREDICTORS)}")
    grid = grid_of(side)
    for name, value, least in (
        ("side", grid and min(grid), 1),
        ("batch", batch, 1),
        ("points", points, 2),
        ("check", check, 0),
    ):
        if value is not None and value < least:
            raise SearchError(f"{name} {value}: at least {least}")
    names = tuple(operators)
    if names:
        candidates(names, kinds)  # refused before the model is read
    if isinstance(model, Model):
        if device is not None:
            raise SearchError(
                f"device {device}: the model that is given stays where it is; move it with model.to(device)"
            )
        opened = model
    else:
        opened = open_model(model).to(Team.current().device if device is None else torch.device(device))
    if in_half(opened.transformer):
        raise SearchError("a search measures in float32: open the model with weights fp32")
    if grid is not None:
        shape_of(opened.transformer).at(grid)  # refused before all that takes time
    chosen = candidates(names or usual(shape_of(opened.transformer)), kinds)
    scoring = scoring or Scoring()
    with ExitStack() as stack:
        home = Path(out or stack.enter_context(TemporaryDirectory()))
        scores = score(opened, chosen, home, scoring=scoring, data=data, progress=progress)
        network = opened.transformer
        if cost == "latency":
            costs = timed(network, chosen, side=side, batch=batch)
        else:
            costs = counted(network, chosen, side=side)[cost]
        host, device = host_for(network), next(network.parameters()).device
        front = Front(
            model=opened.name,
            depth=len(host.blocks(network)),
            cost=cost,
            protocol=_protocol(cost, grid or host.grid_of(network), batch, device),
            by=by,
            plans=tuple(pareto(scores, chosen, costs, cost, by=by, points=points)),
            operators=chosen,
            scores=tuple(scores),
            costs=costs,
            scoring=scoring,
        )
        front, _ = looked_at(opened, front, check, home, data=data, side=side, batch=batch, progress=progress)
    return front


def looked_at(
    model: Model,
    front: Front,
    count: int,
    out: Path,
    *,
    more: Sequence[Found] = (),
    data: Path | str | None = None,
    side: Side | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> tuple[Front, list[Found]]:
    """``front`` with ``count`` plans along it measured whole, and ``more`` plans that were; kept in ``out``.

    The rest as :func:`~grafting.searching.check.checked` has it.
    """
    places = spread(front.plans, count)
    asked = [*(front.plans[place] for place in places), *more]
    how: dict[str, Any] = {"scoring": front.scoring, "data": data, "side": side, "batch": batch}
    seen = checked(model, asked, out, progress=progress, **how)
    found = dict(zip(places, seen, strict=False))
    plans = tuple(found.get(place, one) for place, one in enumerate(front.plans))
    return replace(front, plans=plans), seen[len(places) :]


def _protocol(cost: str, grid: tuple[int, int], batch: int, device: torch.device) -> str:
    """What a cost was counted or measured at, in words."""
    if cost == "parameters":
        return "parameters of the transformer"
    tokens = f"{grid[0]} x {grid[1]} tokens"
    if cost == "flops":
        return f"FLOPs of one sample, {tokens}"
    where = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"seconds of a batch of {batch}, {tokens}{where}"
