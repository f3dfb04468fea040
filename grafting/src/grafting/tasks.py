"""Scores by task as GenEval reports them (Ghosh et al. 2023, arXiv 2310.11513), with intervals, paired between models.

A task's score is the share of its pictures that are right; the overall score is the mean over tasks, which weighs a
task of few pictures as much as one of many. Intervals are 95 % percentiles of a bootstrap over the prompts of each
task: pictures of one prompt stand or fall together, so they are drawn together. Where every picture of a task is right,
or wrong, the bootstrap sees no spread and the interval is a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's own tags, in its order."""
OVERALL = "overall"
ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One picture, judged: the ``sample``-th of the ``prompt``-th prompt; both count from 0. text: of the prompt."""

    task: str
    prompt: int
    sample: int = 0
    correct: bool
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """``correct`` of ``n`` pictures of so many ``prompts``: their share, or the mean of shares in the overall score."""

    task: str
    value: float
    low: float
    high: float
    correct: int
    n: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class TaskDifference:
    """One model's score minus another's on the same prompts. gained, lost: pictures that only the first, only the
    second model has right."""

    task: str
    value: float
    low: float
    high: float
    gained: int
    lost: int
    n: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of the tasks that have pictures, in GenEval's order, and their mean."""

    tasks: tuple[TaskScore, ...]
    overall: TaskScore

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """As :class:`Scores`, of a paired difference."""

    tasks: tuple[TaskDifference, ...]
    overall: TaskDifference

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file."""
        return asdict(self)


def scores(verdicts: Sequence[Verdict], *, rounds: int = ROUNDS) -> Scores:
    """Scores of one model's pictures, from ``rounds`` of the bootstrap.

    Raises:
        ValueError: no verdicts, an unknown task, a prompt of two tasks, or a picture that is judged twice.
    """
    import numpy as np

    groups = _by_task(verdicts)
    made, draws = [], []
    for task, prompts in groups.items():
        right = np.array([sum(v.correct for v in group) for group in prompts], dtype=float)
        count = np.array([len(group) for group in prompts], dtype=float)
        drawn = _resampled(task, right, count, rounds)
        draws.append(drawn)
        low, high = _interval(drawn)
        made.append(
            TaskScore(
                task=task,
                value=float(right.sum() / count.sum()),
                low=low,
                high=high,
                correct=int(right.sum()),
                n=int(count.sum()),
                prompts=len(prompts),
            )
        )
    low, high = _interval(np.mean(draws, axis=0))
    overall = TaskScore(
        task=OVERALL,
        value=float(np.mean([score.value for score in made])),
        low=low,
        high=high,
        correct=sum(score.correct for score in made),
        n=sum(score.n for score in made),
        prompts=sum(score.prompts for score in made),
    )
    return Scores(tasks=tuple(made), overall=overall)


def differences(a: Sequence[Verdict], b: Sequence[Verdict], *, rounds: int = ROUNDS) -> Differences:
    """Scores of ``a`` minus scores of ``b``, both resampled by the same prompts: what a prompt does to both cancels.

    Raises:
        ValueError: as in :func:`scores`, or the two were not judged on the same pictures of the same prompts.
    """
    import numpy as np

    mine, theirs = _by_task(a), _by_task(b)
    _same_pictures(a, b)
    made, draws = [], []
    for task, prompts in mine.items():
        pairs = [list(zip(x, y, strict=True)) for x, y in zip(prompts, theirs[task], strict=True)]
        change = np.array([sum(x.correct - y.correct for x, y in pair) for pair in pairs], dtype=float)
        count = np.array([len(pair) for pair in pairs], dtype=float)
        drawn = _resampled(task, change, count, rounds)
        draws.append(drawn)
        low, high = _interval(drawn)
        flat = [both for pair in pairs for both in pair]
        made.append(
            TaskDifference(
                task=task,
                value=float(change.sum() / count.sum()),
                low=low,
                high=high,
                gained=sum(x.correct and not y.correct for x, y in flat),
                lost=sum(y.correct and not x.correct for x, y in flat),
                n=len(flat),
            )
        )
    low, high = _interval(np.mean(draws, axis=0))
    overall = TaskDifference(
        task=OVERALL,
        value=float(np.mean([difference.value for difference in made])),
        low=low,
        high=high,
        gained=sum(difference.gained for difference in made),
        lost=sum(difference.lost for difference in made),
        n=sum(difference.n for difference in made),
    )
    return Differences(tasks=tuple(made), overall=overall)


def table(models: Mapping[str, Scores], difference: Differences | None = None) -> str:
    """The scores of one model or several as text, in per cent, and beside them a paired difference, in points.

    difference: of the first of ``models`` minus the second.
    """
    names = list(models)
    heads = ["task", *(f"{name}" for name in names)] + ([f"{names[0]} minus {names[1]}"] if difference else [])
    columns = [[score.task for score in _rows(models[names[0]])]]
    columns += [[_share(score) for score in _rows(models[name])] for name in names]
    if difference:
        columns.append([_points(change) for change in (*difference.tasks, difference.overall)])
    widths = [max(len(head), *map(len, column)) for head, column in zip(heads, columns, strict=True)]
    rows = [heads, *zip(*columns, strict=True)]
    lines = ["   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"overall: the mean of {len(columns[0]) - 1} of GenEval's {len(TASKS)} tasks"])


def _rows(found: Scores) -> tuple[TaskScore, ...]:
    return (*found.tasks, found.overall)


def _share(score: TaskScore) -> str:
    interval = f"({100 * score.low:.2f} … {100 * score.high:.2f})"
    return f"{100 * score.value:.2f} % {interval}, {score.correct}/{score.n}"


def _points(change: TaskDifference) -> str:
    interval = f"({100 * change.low:+.2f} … {100 * change.high:+.2f})"
    return f"{100 * change.value:+.2f} {interval}, {change.gained} gained, {change.lost} lost"


def _by_task(verdicts: Sequence[Verdict]) -> dict[str, list[list[Verdict]]]:
    """By task, in GenEval's order, the verdicts of each prompt in the order of samples."""
    if not verdicts:
        raise ValueError("no pictures were judged: there is nothing to score")
    task_of: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    for verdict in verdicts:
        if verdict.task not in TASKS:
            raise ValueError(f"task {verdict.task!r} is not one of {', '.join(TASKS)}")
        if task_of.setdefault(verdict.prompt, verdict.task) != verdict.task:
            raise ValueError(f"prompt {verdict.prompt} is of {task_of[verdict.prompt]} and of {verdict.task}")
        if (verdict.prompt, verdict.sample) in seen:
            raise ValueError(f"sample {verdict.sample} of prompt {verdict.prompt} is judged twice")
        seen.add((verdict.prompt, verdict.sample))
    found: dict[str, dict[int, list[Verdict]]] = {task: {} for task in TASKS if task in task_of.values()}
    for verdict in sorted(verdicts, key=lambda v: (v.prompt, v.sample)):
        found[verdict.task].setdefault(verdict.prompt, []).append(verdict)
    return {task: list(prompts.values()) for task, prompts in found.items()}


def _same_pictures(a: Sequence[Verdict], b: Sequence[Verdict]) -> None:
    mine, theirs = ({(v.prompt, v.sample): (v.task, v.text) for v in side} for side in (a, b))
    for prompt, sample in sorted(mine.keys() ^ theirs.keys()):
        which = "first" if (prompt, sample) in mine else "second"
        raise ValueError(f"sample {sample} of prompt {prompt} is judged in the {which} only: a pair needs both")
    for key in sorted(mine):
        if mine[key] != theirs[key]:
            told = " and ".join(f"{text!r} of {task}" for task, text in (mine[key], theirs[key]))
            raise ValueError(f"prompt {key[0]} differs between the two: {told}")


def _resampled(
    task: str, amounts: NDArray[np.float64], counts: NDArray[np.float64], rounds: int
) -> NDArray[np.float64]:
    """(rounds,) shares of prompts (P,) drawn anew; of one task the same prompts whatever the amounts."""
    import torch

    from .random import generator

    if rounds < 2:
        raise ValueError(f"{rounds} rounds of the bootstrap: at least 2 are needed for an interval")
    source = generator(0, f"bootstrap {task}")
    rows = torch.randint(0, len(amounts), (rounds, len(amounts)), generator=source).numpy()
    shares: NDArray[np.float64] = amounts[rows].sum(axis=1) / counts[rows].sum(axis=1)
    return shares


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
