"""From scores and costs to plans: the best one under a budget, and a front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..plan import Plan
from .candidates import Candidate, plan_of
from .costs import Budget, Costs
from .scores import Score
from .solve import Option, SearchError, Selection, choose, front, least_cost

PREDICTORS = ("loss", "carried")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A plan as a whole at its solved start. value: its held-out loss minus the pretrained model's, with the 95 %
    interval; share: its time over the pretrained model's, where that is the cost."""

    value: float
    low: float | None = None
    high: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A plan; ``predicted``: the sum of its sites' scores; ``share``: its cost over the pretrained model's; measured:
    where it was looked at whole."""

    plan: Plan
    cost: str
    share: float
    predicted: float
    predictor: str
    measured: Measured | None = None

    def to_yaml(self) -> str:
        """As ``grafting run`` and ``--plan`` take it, with what was predicted above it."""
        told = f"{self.share:.4f} of the {self.cost}, predicted {self.predictor} {self.predicted:+.5f} before training"
        return f"# {told}\n{self.plan.to_yaml()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "plan": self.plan.to_dict(),
            "cost": self.cost,
            "share": self.share,
            "predicted": self.predicted,
            "predictor": self.predictor,
            "measured": self.measured and asdict(self.measured),
        }


def worth(score: Score, by: str) -> float:
    """What a swap is predicted to lose. A loss below zero whose interval holds zero is none: the solver would look for
    the noise of such swaps, and find it."""
    value = float(getattr(score, by))
    return 0.0 if by == "loss" and value < 0 <= score.high else value


def options(scores: Sequence[Score], costs: Costs, *, by: str = "loss") -> list[Option]:
    """What the solver chooses from. Raises SearchError for another predictor than ``loss`` and ``carried``."""
    if by not in PREDICTORS:
        raise SearchError(f"predictor {by!r}: {' or '.join(PREDICTORS)}")
    return [
        Option(
            site=score.site,
            candidate=score.candidate,
            loss=worth(score, by),
            cost=costs.changes[score.site, score.candidate],
        )
        for score in scores
    ]


def best(
    scores: Sequence[Score], operators: Sequence[Candidate], costs: Costs, budget: Budget, *, by: str = "loss"
) -> Found:
    """The plan of least predicted loss under ``budget``.

    Raises SearchError where no plan is so cheap, naming the least that is reached; or where nothing need be swapped.
    """
    listed = options(scores, costs, by=by)
    limit, least = budget.limit(costs.whole), least_cost(listed)
    if least > limit + 1e-9 * costs.whole:
        asked, reached = (limit + costs.whole) / costs.whole, (least + costs.whole) / costs.whole
        raise SearchError(
            f"budget {budget.kind}: {asked:.4g} of the pretrained model's is out of reach: with these operators the "
            f"least is {reached:.4g}"
        )
    selection = choose(listed, limit)
    if not selection.options:
        raise SearchError(
            f"budget {budget.kind}: the pretrained model keeps it as it is, and no swap is predicted better"
        )
    return _found(selection, operators, costs, budget.kind, by)


def pareto(
    scores: Sequence[Score],
    operators: Sequence[Candidate],
    costs: Costs,
    kind: str,
    *,
    by: str = "loss",
    points: int = 20,
) -> list[Found]:
    """Plans that no other one beats in both the cost ``kind`` and the predicted loss, the cheapest first."""
    selections = front(options(scores, costs, by=by), points=points)
    return [_found(s, operators, costs, kind, by) for s in selections if s.options]


def _found(selection: Selection, operators: Sequence[Candidate], costs: Costs, kind: str, by: str) -> Found:
    known = {(one.kind, one.name): one for one in operators}
    taken = {o.site: known[o.site.kind, o.candidate] for o in selection.options}
    share = (costs.whole + selection.cost) / costs.whole
    name = f"searched: {share:.4f} of the {kind}, predicted {by} {selection.loss:+.5f}"
    return Found(plan=plan_of(taken, name), cost=kind, share=share, predicted=selection.loss, predictor=by)


def predicted(plan: Plan, source: Any, scores: Sequence[Score], *, by: str = "loss") -> float:
    """The sum of a plan's scores. Raises SearchError where one of its sites has none, or it is restructured."""
    if plan.restructure:
        raise SearchError("a restructured plan has no scores by site")
    known = {(score.site, score.candidate): worth(score, by) for score in scores}
    total = 0.0
    for entry in plan.resolve(source):
        one = Candidate(kind=entry.site.kind, operator=entry.operator, options=entry.options)
        if (entry.site, one.name) not in known:
            raise SearchError(f"{entry.site.name} {one.name}: not scored")
        total += known[entry.site, one.name]
    return total
