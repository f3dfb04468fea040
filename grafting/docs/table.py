"""Ship a table: its rows beside the bundled teacher, and its figures into docs/findings.md.

    python grafting/docs/table.py out/table

What is shipped is all but ``work``, so that the table goes on from a copy of it, and ``figures``, which the page holds.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from grafting.files import write_bytes_atomic, write_text_atomic
from grafting.report.results import Figure
from grafting.report.table import TableResults, TableRow, read_table, write_table
from grafting.report.table_page import qualities, render_table

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


def told(results: TableResults, page: str) -> str:
    """The page with a line for every row of the table proper, and how many of all rows there are."""
    teacher = results.row("teacher")
    assert teacher is not None
    floor = teacher.figures["fid_minus_floor"].value
    lines = [line(row, floor) for row in results.rows if not row.variant and row is not teacher]
    head, rule, rest = re.split(r"(\| row \| loss, minus.*\n\|[-|]+\|\n)", page, maxsplit=1)
    after = re.sub(r"\A(\|.*\n)*", "", rest)
    count = f"{len(results.rows)} of {len(results.rows) + len(results.missing)} rows"
    return re.sub(r"\d+ of \d+ rows", count, head) + rule + "".join(lines) + after


def line(row: TableRow, floor: float) -> str:
    """One row of the page's table. floor: the teacher's FID minus its floor."""
    apart, over = row.differences, row.over_none
    more = f"{row.figures['fid_minus_floor'].value / floor - 1:+.0%}"
    cells = [interval(apart.get("loss"), 4), interval(over.get("loss"), 4), interval(apart.get("fid"), 3), more]
    cells.append(interval(apart.get("kid"), 4))
    return f"| `{row.name}` | {' | '.join(cells).replace('-', '−')} |\n"


def interval(figure: Figure | None, digits: int) -> str:
    """A figure and its interval."""
    if figure is None or figure.low is None or figure.high is None:
        return "–"
    return f"{figure.value:+.{digits}f} ({figure.low:+.{digits}f} to {figure.high:+.{digits}f})"


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
