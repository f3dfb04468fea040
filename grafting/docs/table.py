"""Ship a table: its rows beside the bundled teacher, and its figures into docs/findings.md.

    python grafting/docs/table.py out/table

What is shipped is all but ``work``, so that the table goes on from a copy of it, and ``figures``, which the page holds.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from grafting.files import write_bytes_atomic, write_text_atomic
from grafting.report.results import Figure, SpeedRow
from grafting.report.table import TableResults, TableRow, read_table, write_table
from grafting.report.table_page import FID, clocked, pooled, qualities, render_table, timed_in, trained_again

HOME = Path(__file__).resolve().parents[1]
PAGE = HOME / "docs" / "findings.md"
PICTURE, SHOWN = PAGE.with_name("table.svg"), "front-pass-loss"
"""The drawing that stands on the page, and what it is called among the table's."""
SHIPPED = HOME / "src" / "grafting" / "assets" / "fashion" / "runs" / "table"


def ship(out: Path) -> None:
    """Copy what is finished and write the page again. Raises ValueError where ``out`` holds no table."""
    results = read_table(out / "table.json")
    # Why a row failed is of the machine where it did, as the files are that say so and are left out below.
    results = replace(results, missing=dict.fromkeys(results.missing, "not run yet"))
    shutil.rmtree(SHIPPED / "rows", ignore_errors=True)
    made = {row.name for row in results.rows}
    for path in sorted((out / "rows").iterdir()):
        if path.name.split(".")[0] in made and not path.name.endswith(".failed.json"):
            write_bytes_atomic(SHIPPED / "rows" / path.name, path.read_bytes())
    write_bytes_atomic(SHIPPED / "losses.safetensors", (out / "losses.safetensors").read_bytes())
    write_table(SHIPPED / "table.json", results)
    write_text_atomic(SHIPPED / "report.html", render_table(results, SHIPPED))
    write_text_atomic(PICTURE, picture(results))
    write_text_atomic(PAGE, told(results, PAGE.read_text(encoding="utf-8")))


def picture(results: TableResults) -> str:
    """The page's drawing, SVG."""
    return next(drawing.svg for drawing in qualities(results) if drawing.name == SHOWN)


Made = tuple[Sequence[str], list[list[str]]]
"""Heads of the columns, and cells by row."""


def told(results: TableResults, page: str) -> str:
    """The page with every table below its marker, and how many of all rows there are."""
    page = re.sub(r"\d+ of \d+ rows", f"{len(results.rows)} of {len(results.rows) + len(results.missing)} rows", page)
    for name, made in TABLES.items():
        mark = f"<!-- {name} -->\n"
        before, after = page.split(mark)
        page = before + mark + markdown(*made(results)) + re.sub(r"\A(\|.*\n)*", "", after)
    return page


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, minus signs as such."""
    rule = "|---" * len(head) + "|\n"
    lines = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    return (lines[0] + rule + "".join(lines[1:])).replace("| -", "| −").replace(" -0", " −0").replace("(-", "(−")


def proper(results: TableResults) -> Made:
    """All that is of the table's own budget, images, seed and settings."""
    head = ["row", "steps of stage 1 + 2", "loss, minus the teacher's", "minus *none*'s", "FID, minus the teacher's"]
    head += ["FID − floor, above the teacher's", "KID, minus the teacher's"]
    rows = []
    for row in results.rows:
        if not row.variant and row.role != "teacher":
            apart, over = row.differences, row.over_none
            cells = [interval(apart.get("loss"), 4), interval(over.get("loss"), 4), interval(apart.get("fid"), 3)]
            steps = " + ".join(str(row.steps.get(f"stage {k}", 0)) for k in (1, 2)) if row.steps else "–"
            rows.append([f"`{row.name}`", steps, *cells, above(results, row), interval(apart.get("kid"), 4)])
    return head, rows


HALVES = {
    "least-local": "the least local",
    "searched-loss": "searched by `loss`",
    "searched-carried": "searched by `carried`",
    "first": "the first",
    "interleaved": "interleaved",
    "last": "the last",
    "most-local": "the most local",
}
"""By their rows: which blocks, from what can best be left out to what is missed most."""


def halves(results: TableResults) -> Made:
    """What each half of the attention is worth: left out, and replaced."""
    rows = []
    for half, words in HALVES.items():
        names = [f"{half}-none", half, "searched-2d" if half == "searched-loss" else f"{half}-2d"]
        if half == "interleaved":
            names = ["none-attn-50", "hyena_x-50", "hyena_x_2d-50"]
        rows.append([words, *(ended(results, name) for name in names)])
    return ["loss minus the teacher's", "left out: *none*", "`hyena_x`", "`hyena_x_2d`"], rows


CHOICES = {
    "hyena_x_2d-random-50": "random start, as published",
    "hyena_x_2d-random-one-stage-50": "random start, no stage 1",
    "hyena_x_2d-random-one-stage-100": "random start, no stage 1",
    "swa-random-50": "random start",
    "hyena_x-random-50": "random start",
    "hyena_x_2d-one-stage-50": "no stage 1, all of the budget in stage 2",
    "hyena_x_2d-long-stage-one-50": "half of the budget in stage 1",
    "hyena_x_2d-fast-stage-one-50": "stage 1 at the released rate, five times as high",
    "hyena_x_2d-l2-50": "squared errors in stage 1, not absolute ones",
    "mlp_r3-l1-50": "absolute errors in stage 1, not squared ones",
    "hyena_x_2d-outputs-50": "no weight on what blocks return in stage 2",
    "hyena_x_2d-noise-50": "the noise as target of stage 2",
    "none-attn-noise-50": "the noise as target of stage 2",
    "hyena_x_2d-low-noise-50": "levels of little noise drawn more often in stage 2",
    "none-attn-low-noise-50": "levels of little noise drawn more often in stage 2",
    "hyena_x_2d-low-noise-75": "levels of little noise drawn more often in stage 2",
    "none-attn-low-noise-75": "levels of little noise drawn more often in stage 2",
    "hyena_x_2d-middle-75": "levels in the middle drawn more often in stage 2",
    "hyena_x_2d-fade-50": "replaced step by step, over half of stage 2",
    "none-attn-fade-50": "left out step by step, over half of stage 2",
    "hyena_x_2d-7-50": "filters of 7 x 7",
    "depth-dense": "combined by matrices",
    "depth-shared": "one block's weights for both",
    "depth-halved-mlp_r3": "narrower MLPs too",
}
"""Rows that are other than a row of the table proper in one choice."""


def choices(results: TableResults) -> Made:
    """What each choice is worth, at equal cost."""
    head = ["row", "what is other", "loss at the start", "after stage 1", "at the end", "minus the row without it"]
    head += ["FID − floor, above the teacher's"]
    rows = []
    for name, words in CHOICES.items():
        if (row := results.row(name)) is not None:
            early = [value(row.stages.get(moment)) for moment in ("start", "stage 1")]
            over = f"{interval(row.over_other['loss'], 4)}, `{row.other}`"
            drawn = above(results, row) if "fid" in row.differences else "–"
            rows.append([f"`{name}`", words, *early, value(row.differences["loss"]), over, drawn])
    return head, rows


def compute(results: TableResults) -> Made:
    """What was trained for more than one budget."""
    whole = [row for row in results.rows if row.images is None]
    return varied(whole, lambda row: row.budget, lambda budget: f"at {budget:.0%}", results)


def data(results: TableResults) -> Made:
    """What learnt from fewer images too, for the table's own budget."""
    fewer = {row.budget for row in results.rows if row.images is not None}
    rows = [row for row in results.rows if row.budget in fewer]
    return varied(rows, lambda row: row.learnt_from, lambda count: f"{count:,} images", results)


def varied(
    rows: Iterable[TableRow], place: Callable[[TableRow], Any], called: Callable[[Any], str], results: TableResults
) -> Made:
    """Rows of one operator and share that stand at more than one place; beside the loss, FID − floor where drawn."""
    lines: dict[str, dict[Any, str]] = {}
    for row in rows:
        if row.parts and not row.changed and row.seed is None:
            line = lines.setdefault(re.sub(r"-(b|n)\d+", "", row.name), {})
            told = value(row.differences["loss"])
            line[place(row)] = f"{told} ({above(results, row)})" if "fid" in row.differences else told
    several = {name: line for name, line in lines.items() if len(line) > 1}
    places = sorted({where for line in several.values() for where in line})
    cells = [[f"`{name}`", *(line.get(where, "–") for where in places)] for name, line in several.items()]
    return ["loss minus the teacher's", *map(called, places)], cells


def seeds(results: TableResults) -> Made:
    """What was trained again, and how far the seeds are apart."""
    again = trained_again(results)
    most = max((len(row.apart) for row in again), default=0)
    head = ["loss minus the teacher's", *("the table's seed", "another", "a third")[:most], "standard deviation"]
    rows = []
    for row in again:
        told = [value(figure) for figure in row.apart] + ["–"] * (most - len(row.apart))
        rows.append([f"`{row.name}`", *told, f"{row.deviation:.5f}"])
    return head, [*rows, ["pooled", *[""] * most, f"{pooled(again):.5f}"]] if rows else rows


def walk(results: TableResults) -> Made:
    """By tenth of the walk: how much of the loss attention's rows of the table proper add there, and whether FID ranks
    them alike."""
    head, columns = ["t"], []
    for share, words in ((50, "half"), (75, "three quarters"), (100, "every block")):
        rows = [row for row in results.rows if row.site == "attn" and row.share == share and row.steps]
        rows = [row for row in rows if not row.variant and "fid" in row.differences]
        fid = [row.differences["fid"].value for row in rows]
        added = np.array([[figure.value for figure in row.by_timestep] for row in rows])
        shares = np.median(added / added.sum(1, keepdims=True), 0)
        ranks = [f"{spearmanr(tenth, fid).statistic:.2f}" for tenth in (*added.T, added.sum(1))]
        columns += [[*(f"{part:.1%}" for part in shares), ""], ranks]
        head += [f"{words}: share of the added loss", f"rank correlation with FID, {len(rows)} rows"]
    tenths = [*(f"{100 * k} to {100 * k + 99}" for k in range(len(columns[0]) - 1)), "all"]
    return head, [list(cells) for cells in zip(tenths, *columns, strict=True)]


def times(results: TableResults) -> Made:
    """Speed-ups of the rows that were timed, beside what their FLOPs and their attention cores allow."""
    settings = timed_in(results)
    head = [
        "row",
        *(word for setting in settings for word in (setting.split(", batch")[0], "FLOP bound", "time bound")),
    ]
    rows = []
    for row in results.rows:
        if found := clocked(row):
            cells = [cell for setting in settings for cell in beside_bounds(found.get(setting))]
            rows.append([f"`{row.name}`", *cells])
    return head, rows


def beside_bounds(timed: SpeedRow | None) -> list[str]:
    """A speed-up with its range, and its two bounds."""
    if timed is None:
        return ["–"] * 3
    spread = "" if timed.low is None or timed.high is None else f" ({timed.low:.2f} to {timed.high:.2f})"
    bounds = ["–" if bound is None else f"{bound:.2f}x" for bound in (timed.flop_bound, timed.time_bound)]
    return [f"{timed.speedup:.2f}x{spread}", *bounds]


TABLES = {
    "rows": proper,
    "halves": halves,
    "choices": choices,
    "compute": compute,
    "data": data,
    "seeds": seeds,
    "walk": walk,
    "times": times,
}
"""By the marker that each stands below."""


def above(results: TableResults, row: TableRow) -> str:
    """FID minus its floor over the teacher's, of a row with samples."""
    teacher = results.row("teacher")
    assert teacher is not None
    return f"{row.figures[FID].value / teacher.figures[FID].value - 1:+.0%}"


def ended(results: TableResults, name: str) -> str:
    """The loss minus the teacher's of a row, where there is one."""
    row = results.row(name)
    return "–" if row is None else interval(row.differences["loss"], 4)


def value(figure: Figure | None) -> str:
    """A figure without its interval."""
    return "–" if figure is None else f"{figure.value:+.4f}"


def interval(figure: Figure | None, digits: int) -> str:
    """A figure and its interval."""
    if figure is None or figure.low is None or figure.high is None:
        return "–"
    return f"{figure.value:+.{digits}f} ({figure.low:+.{digits}f} to {figure.high:+.{digits}f})"


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
