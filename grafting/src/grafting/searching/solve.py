"""The plan of least predicted loss under a budget, exactly, by scipy's mixed-integer solver.

Every site keeps its original or takes one option. Losses and costs add up over sites: costs do by nature, losses by
assumption, since each was found with one site swapped alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..hosts.shapes import Site

Array = npt.NDArray[np.float64]


class SearchError(ValueError):
    """A search that cannot be done as asked."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One candidate at one site: the loss that it adds, and the change of the cost; an original has 0 and 0."""

    site: Site
    candidate: str
    loss: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options taken, by site; ``loss`` and ``cost`` are their sums."""

    options: tuple[Option, ...]

    @property
    def loss(self) -> float:
        return sum(option.loss for option in self.options)

    @property
    def cost(self) -> float:
        return sum(option.cost for option in self.options)


def least_cost(options: Iterable[Option]) -> float:
    """The least change of the cost that any selection reaches; at most 0."""
    least: dict[Site, float] = {}
    for option in options:
        least[option.site] = min(least.get(option.site, 0.0), option.cost)
    return sum(least.values())


def choose(options: Sequence[Option], limit: float) -> Selection:
    """The selection of least loss whose change of the cost is at most ``limit``.

    Of equal losses the cheapest is taken, and the order in which options are given does not matter. Losses that differ
    by less than a millionth of the largest one count as equal.

    Raises:
        SearchError: none is so cheap, or a loss or cost is not finite.
    """
    ordered = sorted(options, key=lambda option: (option.site.block, option.site.kind, option.candidate))
    if not all(np.isfinite([option.loss for option in ordered]) & np.isfinite([option.cost for option in ordered])):
        bad = next(o for o in ordered if not np.isfinite(o.loss) or not np.isfinite(o.cost))
        raise SearchError(f"{bad.site.name} {bad.candidate}: loss {bad.loss} and cost {bad.cost} must be finite")
    least = least_cost(ordered)
    # Sums of floats: the very cheapest selection must be found within its own limit.
    slack = 1e-9 * (abs(limit) + sum(abs(option.cost) for option in ordered))
    if least > limit + slack:
        raise SearchError(f"a change of the cost of {limit:g} is out of reach: the least is {least:g}")
    if not ordered:
        return Selection(options=())
    losses, costs = (_scaled(values) for values in ([o.loss for o in ordered], [o.cost for o in ordered]))
    bound = (limit + slack) / max((abs(option.cost) for option in ordered), default=1.0) if any(costs) else np.inf
    taken = _solve(ordered, losses, [(costs, bound)])
    if any(costs):
        taken = _solve(ordered, costs, [(costs, bound), (losses, float(losses @ taken) + 1e-9)])
    return Selection(options=tuple(option for option, one in zip(ordered, taken, strict=True) if one))


def front(options: Sequence[Option], *, points: int = 20) -> list[Selection]:
    """Selections that no other one of ``points`` evenly spaced limits beats in both loss and cost, the cheapest first.

    Limits run from the least cost to that of the originals. Raises SearchError for fewer than two points.
    """
    if points < 2:
        raise SearchError(f"{points} points: a front needs at least 2")
    found = [choose(options, float(limit)) for limit in np.linspace(least_cost(options), 0.0, points)]
    return undominated(found)


def undominated(selections: Iterable[Selection]) -> list[Selection]:
    """Without those that another one equals or beats in both loss and cost; the cheapest first."""
    kept: list[Selection] = []
    for selection in sorted(selections, key=lambda s: (s.cost, s.loss)):
        if not kept or selection.loss < kept[-1].loss:
            kept.append(selection)
    return kept


def _scaled(values: Sequence[float]) -> Array:
    """Divided by the largest: the solver's tolerances are absolute."""
    array = np.asarray(values, dtype=float)
    largest = np.abs(array).max()
    return array / largest if largest > 0 else array


def _solve(ordered: Sequence[Option], aim: Array, limits: Sequence[tuple[Array, float]]) -> Array:
    """0 or 1 by option: at most one per site, each (row, bound) of ``limits`` kept, ``aim`` least."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    sites = sorted({option.site for option in ordered}, key=lambda site: (site.block, site.kind))
    one = np.array([[option.site == site for option in ordered] for site in sites], dtype=float)
    rows = [LinearConstraint(one, ub=np.ones(len(sites)))]
    rows += [LinearConstraint(row[None], ub=bound) for row, bound in limits if np.isfinite(bound)]
    found = milp(
        aim,
        integrality=np.ones(len(ordered)),
        bounds=Bounds(0, 1),
        constraints=rows,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise SearchError(f"the solver stopped: {found.message}")
    return np.asarray(found.x).round()
