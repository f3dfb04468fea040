"""The HTML page of a table: one file, beside the published one, with what was reached and what limits the rest.

Its drawings lie beside it as files too: ``figures/NAME.svg``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from ..files import write_text_atomic
from . import published
from .figures import number
from .goals import GOALS, beats, summary, verdicts
from .heatmaps import heat_map
from .page import inline, template
from .pareto import Trace, scatter, traces
from .results import Figure, SpeedRow
from .table import HELD_OUT, RIGHT, TableResults, TableRow

SHARES = (50, 75, 100)
FID = "fid_minus_floor"
WRONG = "wrong"
COMPUTE = "compute, % of the teacher’s training"
PASS = "FLOPs of a pass, over the teacher’s"
LATENCY = "time of a pass, over the teacher’s"
DATA = "images learnt from"


class Drawing(NamedTuple):
    """``svg`` under a heading, with words beside it; ``name`` is its file's."""

    name: str
    title: str
    words: str
    svg: str


def write_table_page(path: Path, results: TableResults) -> None:
    """Write the page and its drawings, each atomically; grids are looked for beside it.

    Raises ValueError as :func:`render_table` does.
    """
    drawings = _drawings(results)
    page = _rendered(results, path.parent, drawings)
    for drawing in (drawing for _, shown in drawings for drawing in shown):
        write_text_atomic(path.parent / "figures" / f"{drawing.name}.svg", drawing.svg)
    write_text_atomic(path, page)


def render_table(results: TableResults, folder: Path) -> str:
    """HTML of ``results``, of whichever rows there are; the PNG grids that it names lie in ``folder``.

    Raises:
        ValueError: a grid is missing or outside the folder.
    """
    return _rendered(results, folder, _drawings(results))


def _drawings(results: TableResults) -> list[tuple[str, list[Drawing]]]:
    return [("Quality against compute and data", qualities(results)), ("Where the error is", errors(results))]


def _rendered(results: TableResults, folder: Path, drawings: list[tuple[str, list[Drawing]]]) -> str:
    from markupsafe import Markup

    again = trained_again(results)
    return template("table.html").render(
        r=results,
        sentences=summary(results),
        teacher=results.row("teacher"),
        beside=_beside(results),
        tables=_tables(results.rows),
        published=published,
        shares=SHARES,
        verdicts=verdicts(results),
        goals=GOALS,
        drawings=drawings,
        again=again,
        compared=[row for row in results.rows if row.over_other and row.seed is None],
        timed=timed_in(results),
        clocked=clocked,
        deviation=pooled(again),
        pictures=[(row, inline(folder, row.grid)) for row in results.rows if row.grid],
        missing=_by_reason(results),
        beats=beats,
        tasks=_tasks(results),
        held_out=any(HELD_OUT in row.figures for row in results.rows),
        number=number,
        markup=Markup,
    )


def _tasks(results: TableResults) -> list[str]:
    """The tasks whose prompts were judged; none where samples were compared with images."""
    judged = next((row.figures for row in results.rows if RIGHT in row.figures), {})
    return [name for name in judged if name not in (RIGHT, HELD_OUT)]


class Again(NamedTuple):
    """One row trained from several seeds: its losses minus the teacher's, the table's own seed first."""

    name: str
    apart: tuple[Figure, ...]

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds."""
        return stdev(figure.value for figure in self.apart)


def trained_again(results: TableResults) -> list[Again]:
    """The rows that were trained from more than one seed."""
    found: dict[str, list[Figure]] = {}
    for row in results.rows:
        first = results.row(row.other) if row.seed is not None else None
        if first is not None and first.label == row.label and "loss" in first.differences:
            found.setdefault(first.name, [first.differences["loss"]]).append(row.differences["loss"])
    return [Again(name, tuple(apart)) for name, apart in found.items()]


def pooled(rows: Sequence[Again]) -> float:
    """Standard deviation over seeds of all rows together, each about its own mean; 0 without rows."""
    squares = [(figure.value - mean(f.value for f in row.apart)) ** 2 for row in rows for figure in row.apart]
    free = len(squares) - len(rows)
    return math.sqrt(sum(squares) / free) if free else 0.0


def timed_in(results: TableResults) -> list[str]:
    """The settings that rows were timed in."""
    return list(dict.fromkeys(timed.setting for row in results.rows for timed in row.speed))


def clocked(row: TableRow) -> dict[str, SpeedRow]:
    """How a row was timed, by setting."""
    return {timed.setting: timed for timed in row.speed}


def _by_reason(results: TableResults) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in results.missing.items():
        found.setdefault(reason, []).append(name)
    return found


def _beside(results: TableResults) -> list[dict[str, Any]]:
    """One line per operator: our rows by share beside the published FID by share; none without a published operator.

    Of the published ones those that the table has, made or missing.
    """
    plain = [row for row in results.rows if not row.variant and row.role != "teacher"]
    labels = [] if _tasks(results) else [row.label for row in plain]
    if not set(labels) & set(published.ROWS):
        return []
    named = [*labels, *(re.sub(r"-\d+$", "", name) for name in results.missing)]
    lines = []
    for label in dict.fromkeys([*(label for label in published.ROWS if label in named), *labels]):
        mine = [row for row in plain if row.label == label]
        cells = {row.share if row.share is not None else SHARES[0]: row for row in mine}
        role = mine[0].role if mine else "control" if label.startswith("self") else "hybrid"
        fid, best = published.ROWS.get(label, {}), {SHARES[0]: published.BEST.get(label)}
        lines.append({"label": label, "role": role, "cells": cells, "fid": fid, "best": best})
    return lines


def _tables(rows: Sequence[TableRow]) -> list[tuple[str, list[TableRow]]]:
    """Every figure of every row: by share, then what has none, then what varies budget, data, seed or a setting."""
    first = [row for row in rows if row.role == "teacher"]
    plain = [row for row in rows if not row.variant and row.role != "teacher"]
    found = [(f"{share} %", [row for row in plain if row.share == share]) for share in SHARES]
    known = {row.name for _, kept in found for row in kept}
    found.append(("Other rows", [row for row in plain if row.name not in known]))
    found.append(("Other budgets, data, seeds and settings", [row for row in rows if row.variant]))
    return [(name, [*first, *kept]) for name, kept in found if kept]


def qualities(results: TableResults) -> list[Drawing]:
    """All rows by what they cost, with their front, and lines of the rows that vary compute or data; none empty."""
    rows, teacher = [row for row in results.rows if row.seed is None], results.row("teacher")
    varied = {row.budget for row in rows if row.images is not None}
    by_compute = _series(rows, lambda row: None if row.images is not None else 100 * (row.budget or 0.0))
    by_data = _series(rows, lambda row: float(row.learnt_from) if row.budget in varied else None)
    # Budgets are spent up to a step: by two digits rows of one budget stand at one place, and none wins by that step.
    spent = [(float(f"{100 * row.spent:.2g}"), row) for row in rows if row.parts]
    proper = [row for row in rows if row.parts and not row.variant]
    timed = {
        f"latency-{number}": (
            f"latency: {setting}",
            [(1 / clocked(row)[setting].speedup, row) for row in proper if setting in clocked(row)],
            LATENCY,
        )
        for number, setting in enumerate(timed_in(results), 1)
    }
    found = []
    judged = (WRONG, "Wrong", "share of prompts wrong") if _tasks(results) else (FID, "FID − floor", "FID − floor")
    for key, head, y in (("loss", "Loss", "loss − teacher’s"), judged):
        level = Figure(value=0.0) if key == "loss" else None if teacher is None else _figure(teacher, key)
        words = "The paired difference; dashed: the teacher." if key == "loss" else "Dashed: the teacher, its interval."
        fronts = {
            "compute": ("compute: all rows", spent, COMPUTE),
            "pass": ("FLOPs of a pass: one budget", [(row.flops, row) for row in proper], PASS),
            **timed,
        }
        for name, (against, points, x) in fronts.items():
            title = f"{head} against {against}"
            named = [(row.name, place, figure) for place, row in points if (figure := _figure(row, key)) is not None]
            told = f"{words} Joined: rows that no other beats in both."
            svg = scatter(named, title, x=x, y=y, reference=level)
            found.append(Drawing(f"front-{name}-{key}", title, told, svg))
        for name, lines, x in (("compute", by_compute, COMPUTE), ("data", by_data, DATA)):
            title = f"{head} against {name}"
            drawn = [Trace(name=label, points=_points(line, key)) for label, line in lines.items()]
            drawn = [trace for trace in drawn if len(trace.points) > 1]  # rows of a line may have no samples
            svg = traces(drawn, title, x=x, y=y, reference=level)
            found.append(Drawing(f"{name}-{key}", title, words, svg))
    return [drawing for drawing in found if drawing.svg]


def errors(results: TableResults) -> list[Drawing]:
    """Heat maps of the trained rows: their added loss by noise level, what their blocks leave unexplained at the end,
    and what the start and stage 1 left by site."""
    rows = [row for row in results.rows if row.parts and not row.variant]
    added = {row.name: [max(figure.value, 0.0) for figure in row.by_timestep] for row in rows}
    shares = {name: [round(value / sum(bins), 3) for value in bins] for name, bins in added.items() if sum(bins)}
    found = []
    if shares:
        parts = max(map(len, shares.values()))
        columns = [str(k * 1000 // parts) for k in range(parts)]
        title, words = "By noise level", "Shares of each row’s added loss, in equal parts of the schedule."
        svg = heat_map(list(shares.values()), title, rows=list(shares), columns=columns, down="row", across="from t =")
        found.append(Drawing("error-by-timestep", title, words, svg))
    words = "Shares of the teacher’s outputs of a block left unexplained, held out."
    found += _places("error-by-block", "By block, at the end", words, {row.name: row.left for row in rows})
    for kind in sorted({_site(name)[0] for row in rows for name in row.explained}):
        early = {
            row.name: {_site(name)[1]: 1 - share for name, share in row.explained.items() if _site(name)[0] == kind}
            for row in rows
        }
        words = "Variance left unexplained after stage 1, held out; without a stage 1 by the start, on what it saw."
        found += _places(f"error-by-site-{kind}", f"By site, before stage 2: {kind}", words, early)
    return found


def _places(name: str, title: str, words: str, left: Mapping[str, Mapping[str, float]]) -> list[Drawing]:
    """A heat map of figures by row and block; none without figures."""
    shown = {row: places for row, places in left.items() if places}
    if not shown:
        return []
    columns = sorted({place for places in shown.values() for place in places}, key=_numbers)
    values = [[places.get(column, math.nan) for column in columns] for places in shown.values()]
    svg = heat_map(values, title, rows=list(shown), columns=columns, down="row", across="block")
    return [Drawing(name, title, words, svg)]


def _site(name: str) -> tuple[str, str]:
    """Kind and place of ``blocks.3.attn``, or of a group such as ``blocks.0-1.merge``."""
    place, _, kind = name.removeprefix("blocks.").rpartition(".")
    return kind, place


def _numbers(place: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", place)]


def _series(
    rows: Sequence[TableRow], place: Callable[[TableRow], float | None]
) -> dict[str, list[tuple[float, TableRow]]]:
    """Trained rows of one operator and share that stand at more than one place."""
    lines: dict[str, list[tuple[float, TableRow]]] = {}
    for row in rows:
        where = place(row)
        if where and row.parts:
            lines.setdefault(row.label if row.share is None else f"{row.label}, {row.share} %", []).append((where, row))
    return {name: line for name, line in lines.items() if len({where for where, _ in line}) > 1}


def _points(line: Sequence[tuple[float, TableRow]], key: str) -> tuple[tuple[float, Figure], ...]:
    return tuple((where, figure) for where, row in line if (figure := _figure(row, key)) is not None)


def _figure(row: TableRow, key: str) -> Figure | None:
    if key == WRONG:  # lower is better, as of all else that is drawn
        right = row.figures.get(RIGHT)
        return right and Figure(value=1 - right.value, low=_left(right.high), high=_left(right.low))
    return row.differences.get(key) if key == "loss" else row.figures.get(key)


def _left(share: float | None) -> float | None:
    return None if share is None else 1 - share
