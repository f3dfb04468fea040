"""The HTML page of a table: one file, beside the published one, with what was reached and what limits the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text_atomic
from . import published
from .figures import number
from .goals import beats_none, summary, verdicts
from .page import inline, template
from .pareto import Trace, traces
from .results import Figure
from .table import TableResults, TableRow

SHARES = (50, 75, 100)
FID = "fid_minus_floor"
COMPUTE = "compute, % of the teacher’s training"
DATA = "images learnt from"


def write_table_page(path: Path, results: TableResults) -> None:
    """Write the page atomically; grids are looked for beside it. Raises ValueError as :func:`render_table` does."""
    write_text_atomic(path, render_table(results, path.parent))


def render_table(results: TableResults, folder: Path) -> str:
    """HTML of ``results``, of whichever rows there are; the PNG grids that it names lie in ``folder``.

    Raises:
        ValueError: a grid is missing or outside the folder.
    """
    from markupsafe import Markup

    teacher = results.row("teacher")
    plain = [row for row in results.rows if not row.variant and row.role != "teacher"]
    drawings = [(title, words, Markup(svg)) for title, words, svg in _drawings(results.rows, teacher) if svg]
    return template("table.html").render(
        r=results,
        sentences=summary(results),
        teacher=teacher,
        beside=_beside(plain),
        tables=_tables(results.rows),
        published=published,
        shares=SHARES,
        verdicts=verdicts(results),
        drawings=drawings,
        pictures=[(row, inline(folder, row.grid)) for row in results.rows if row.grid],
        missing=_by_reason(results),
        beats_none=beats_none,
        number=number,
    )


def _by_reason(results: TableResults) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in results.missing.items():
        found.setdefault(reason, []).append(name)
    return found


def _beside(plain: Sequence[TableRow]) -> list[dict[str, Any]]:
    """One line per operator: our rows by share beside the published FID by share."""
    lines = []
    for label in dict.fromkeys([*published.ROWS, *(row.label for row in plain)]):
        mine = [row for row in plain if row.label == label]
        cells = {row.share if row.share is not None else SHARES[0]: row for row in mine}
        site = mine[0].site if mine else ""
        role = mine[0].role if mine else "control" if label.startswith("self") else "hybrid"
        lines.append({"label": label, "site": site, "role": role, "cells": cells, "fid": published.ROWS.get(label, {})})
    return lines


def _tables(rows: Sequence[TableRow]) -> list[tuple[str, list[TableRow]]]:
    """Every figure of every row: by share, then what has none, then what varies budget, data or protocol."""
    first = [row for row in rows if row.role == "teacher" and not row.variant]
    plain = [row for row in rows if not row.variant and row.role != "teacher"]
    found = [(f"{share} % of the sites", [row for row in plain if row.share == share]) for share in SHARES]
    known = {row.name for _, kept in found for row in kept}
    found.append(("Other rows", [row for row in plain if row.name not in known]))
    found.append(("Other budgets, data and steps", [row for row in rows if row.variant]))
    return [(name, [*first, *kept]) for name, kept in found if kept]


def _drawings(rows: Sequence[TableRow], teacher: TableRow | None) -> list[tuple[str, str, str]]:
    """Quality against compute and against data, for the rows that vary them."""
    varied = {row.budget for row in rows if row.images is not None}
    by_compute = _series(rows, lambda row: None if row.images is not None else 100 * (row.budget or 0.0))
    by_data = _series(rows, lambda row: float(row.learnt_from) if row.budget in varied else None)
    paired, dashed = "The paired difference to the teacher's loss.", "Dashed: the teacher, with its interval."
    found = []
    for what, lines, x in (("compute", by_compute, COMPUTE), ("data", by_data, DATA)):
        loss = [Trace(name=name, points=_points(line, "loss")) for name, line in lines.items()]
        distance = [Trace(name=name, points=_points(line, FID)) for name, line in lines.items()]
        reference = None if teacher is None else teacher.figures.get(FID)
        title = f"Loss against {what}"
        found.append((title, paired, traces(loss, title, x=x, y="loss − teacher’s")))
        title = f"FID − floor against {what}"
        found.append((title, dashed, traces(distance, title, x=x, y="FID − floor", reference=reference)))
    return found


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
    pairs = [(where, row.differences.get("loss") if key == "loss" else row.figures.get(key)) for where, row in line]
    return tuple((where, figure) for where, figure in pairs if figure is not None)
