"""Whether rows of a table reach what was aimed at, and what limits those that do not; from their figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose
from typing import Literal, get_args

from .results import Figure
from .table import RIGHT, TableResults, TableRow

METRICS = {"kid": "KID", "fid_minus_floor": "FID − floor"}
PAIRED = {"kid": "kid", "fid_minus_floor": "fid"}
"""Under which name a row's paired difference to the teacher stands; the floor is one for all."""
ALIVE = ("recognised", "precision", "recall")
"""A model has collapsed where one of these is less than half of the teacher's."""
STRETCH = 0.02
"""The budget that goals stretch to."""
Reached = Literal["yes", "not told apart", "no"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Of hybrids at ``share`` percent: metrics at most ``within`` of the teacher above it; None asks for no collapse.

    budget: that they learnt with, a share of the teacher's training; None: the table's own. interval: whether it is
    enough that the paired difference to the teacher holds zero in its 95 % interval. The teacher's own interval is no
    such measure: it holds the noise of the images that every row shares.
    """

    share: int
    budget: float | None = None
    within: float | None = None
    interval: bool = False

    @property
    def of(self) -> str:
        """Which rows it is for."""
        stretch = "" if self.budget is None else f" at {100 * self.budget:g} % of the training (stretch)"
        return f"{self.share} %{stretch}"

    @property
    def text(self) -> str:
        """In words."""
        if self.within is None:
            alive = f"{', '.join(ALIVE)} at least half of the teacher's"
            return f"{self.of}: no collapse ({alive}; of a hybrid, a loss below none's beyond the interval)"
        inside = ", or not told apart from them by the paired difference" if self.interval else ""
        return f"{self.of}: KID and FID − floor at most {100 * self.within:g} % above the teacher's{inside}"


GOALS = (
    Goal(share=50, within=0.05, interval=True),
    Goal(share=50, within=0.05, interval=True, budget=STRETCH),
    Goal(share=75, within=0.20),
    Goal(share=100),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One row against its goal: ``found`` says how it stands, by the paired loss and then per metric; ``limits`` what a
    miss may come from. control: *none*, judged by the same rule, for which no goal is meant."""

    row: str
    goal: Goal
    reached: Reached
    found: tuple[str, ...]
    limits: str = ""
    control: bool = False


def verdicts(results: TableResults) -> tuple[Verdict, ...]:
    """Of every hybrid that a goal is for and that learnt from all images, and of *none* at its share; empty without a
    measured teacher, and where prompts are judged, which the published table does not."""
    teacher = results.row("teacher")
    if teacher is None or RIGHT in teacher.figures:
        return ()
    found = []
    for goal in GOALS:
        controls = {row.none for row in results.rows if row.role == "hybrid"}
        rows = [row for row in results.rows if row.role == "hybrid" or row.name in controls]
        found += [judge(row, teacher, goal) for row in rows if _asked(row, goal)]
    return tuple(found)


def _asked(row: TableRow, goal: Goal) -> bool:
    return bool(row.figures) and _meant(row, goal)


def _meant(row: TableRow, goal: Goal) -> bool:
    """Whether the goal is for such a row, be it judged by samples or by the loss alone."""
    if row.share != goal.share or row.images is not None or row.seed is not None or row.changed:
        return False
    if goal.budget is None or row.budget is None:
        return goal.budget is None and not row.variant
    return row.variant and isclose(row.budget, goal.budget)  # where all rows have it, it is no stretch


def judge(row: TableRow, teacher: TableRow, goal: Goal) -> Verdict:
    """One row against one goal; a metric that either lacks is not met."""
    told: list[tuple[Reached, str]]
    if goal.within is None:
        told = [_alive(row, teacher, name) for name in ALIVE]
        if row.role == "hybrid" and row.over_none:
            told.append(_worth(row))
    else:
        told = [_near(row, teacher, name, goal) for name in METRICS]
    reached = max((stands for stands, _ in told), key=get_args(Reached).index)
    return Verdict(
        row=row.name,
        goal=goal,
        reached=reached,
        found=(_loss(row), *(text for _, text in told)),
        limits="" if reached == "yes" else limits(row),
        control=row.role == "control",
    )


def _loss(row: TableRow) -> str:
    apart = row.differences.get("loss")
    if apart is None:
        return "loss was not compared"
    return f"loss {apart.value:+.4f}{_interval(apart, 4)}"


def _interval(figure: Figure, digits: int) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f" ({figure.low:+.{digits}f} … {figure.high:+.{digits}f})"


def _near(row: TableRow, teacher: TableRow, name: str, goal: Goal) -> tuple[Reached, str]:
    mine, theirs, title = row.figures.get(name), teacher.figures.get(name), METRICS[name]
    if mine is None or theirs is None or goal.within is None:
        return "no", f"{title} was not measured"
    told, paired = f"{title} {_more(mine, theirs)}", row.differences.get(PAIRED[name])
    margin = goal.within * abs(theirs.value)
    near = mine.value <= theirs.value + margin
    if paired is None or paired.low is None or paired.high is None:
        return "yes" if near else "no", told
    told += f", paired {paired.value:+.5f}{_interval(paired, 5)}"
    if near:
        return "yes", told if paired.high <= margin else f"{told}, which reaches beyond the goal"
    return "not told apart" if goal.interval and paired.low <= 0 else "no", told


def _more(mine: Figure, theirs: Figure) -> str:
    if theirs.value <= 0:
        return f"{mine.value - theirs.value:+.2g} from the teacher's {theirs.value:.2g}"
    return f"{mine.value / theirs.value - 1:+.0%}"


def _alive(row: TableRow, teacher: TableRow, name: str) -> tuple[Reached, str]:
    mine, theirs = row.figures.get(name), teacher.figures.get(name)
    if mine is None or theirs is None:
        return "no", f"{name} was not measured"
    alive: Reached = "yes" if mine.value >= 0.5 * theirs.value else "no"
    return alive, f"{name} {mine.value:.0%} (the teacher's {theirs.value:.0%})"


def _worth(row: TableRow) -> tuple[Reached, str]:
    """Whether its operators are worth anything: figures of pictures alone stay half of the teacher's without any."""
    apart = row.over_none.get("loss")
    if apart is None:
        return "no", "loss was not compared with none's"
    return "yes" if beats(row.over_none) else "no", f"loss {apart.value:+.4f}{_interval(apart, 4)} over none's"


def limits(row: TableRow) -> str:
    """Where a row's error sits: the blocks at which what is left unexplained of their outputs grows most, and where in
    the noise schedule its loss is highest."""
    told = []
    if row.left:
        blocks = sorted(row.left, key=int)
        grown = {block: row.left[block] - row.left.get(before, 0.0) for before, block in pairwise(["", *blocks])}
        worst = sorted(grown, key=lambda block: -grown[block])[:3]
        told.append(
            f"unexplained at the last block {row.left[blocks[-1]]:.3f}, growing most in "
            + ", ".join(f"{block} ({grown[block]:+.3f})" for block in worst)
        )
    if row.by_timestep:
        step = 1000 // len(row.by_timestep)
        total = sum(max(figure.value, 0.0) for figure in row.by_timestep)
        place = max(range(len(row.by_timestep)), key=lambda k: row.by_timestep[k].value)
        if total > 0:
            share = row.by_timestep[place].value / total
            told.append(f"{share:.0%} of the added loss at t = {place * step} to {(place + 1) * step - 1}")
    return "; ".join(told)


def beats(over: Mapping[str, Figure], by: str = "loss") -> bool | None:
    """Whether a paired difference ``over`` a control is better than zero beyond the interval: the loss below it, the
    share of prompts that is right above. None where there is no control."""
    figure = over.get(by)
    if figure is None or figure.low is None or figure.high is None:
        return None
    return figure.low > 0 if by == RIGHT else figure.high < 0


def _counted(found: Sequence[Verdict]) -> str:
    met, unsure = (sum(verdict.reached == how for verdict in found) for how in ("yes", "not told apart"))
    return f"{met} of {len(found)} reach it" + (f", {unsure} more are not told apart." if unsure else ".")


def summary(results: TableResults) -> tuple[str, ...]:
    """What a table says, in sentences."""
    found = verdicts(results)
    told = []
    for goal in GOALS:
        mine = [verdict for verdict in found if verdict.goal is goal]
        if mine:
            told.append(f"{goal.text}: {_counted([verdict for verdict in mine if not verdict.control])}")
            unseen = sum(row.role == "hybrid" and _meant(row, goal) and not row.figures for row in results.rows)
            told[-1] += f" {unseen} more were judged by the loss alone." if unseen else ""
            if bare := [verdict for verdict in mine if verdict.control]:
                told[-1] += f" The control none by the same rule: {_counted(bare)}"
    plain = [row for row in results.rows if not row.variant]
    for by, words in (("loss", "held-out loss"), (RIGHT, "share of prompts that is right")):
        for control in ("none", "untrained"):
            better = {row.name: beats(row.over_none if control == "none" else row.over_untrained, by) for row in plain}
            compared = [name for name, wins in better.items() if wins is not None]
            missed = [name for name in compared if not better[name]]
            if compared:
                told.append(
                    f"By the paired {words} {len(compared) - len(missed)} of {len(compared)} rows beat the control "
                    f"{control} of their site and share beyond the interval"
                    + (f"; {', '.join(missed)} do not." if missed else ".")
                )
    if results.missing:
        told.append(f"Rows missing: {len(results.missing)}.")
    return tuple(told)
