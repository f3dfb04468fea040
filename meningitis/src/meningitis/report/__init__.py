"""The report: figures, tables, and the page that holds them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meningitis.files import remove_listed, write_atomically, write_manifest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAGE, RESULTS = "report.html", "results.json"
NUMBER = re.compile(r"[−+]?[\d.,]+(e[−+]?\d+)?|[–·]|−?∞|≈ 0")
"""A cell that is set flush right where all of its column are such."""


def plain(value: Any) -> Any:
    """The same data for JSON: arrays to lists, dates to ISO text, what is not known (NaN) to None.

    Infinite numbers, which JSON lacks, become the texts "Infinity" and "-Infinity", as protobuf writes them: JavaScript
    and Python read both back as numbers.
    """
    if hasattr(value, "to_dict") and not hasattr(value, "columns"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def to_json(value: Any) -> str:
    """Indented JSON of anything that `plain` knows."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def show(value: Any) -> str:
    """A table's cell: four significant figures, no trailing noise, a dash for nothing."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool":
        return "yes" if value else "no"
    if isinstance(value, float) or hasattr(value, "dtype"):
        number = float(value)
        if math.isinf(number):
            return "∞" if number > 0 else "−∞"
        if number == 0 or 1e-3 <= abs(number) < 1e6:
            digits = max(0, 3 - math.floor(math.log10(abs(number)))) if number else 0
            text = f"{number:,.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
        return f"{number:.3e}".replace("-", "−")
    return str(value)


@dataclass(kw_only=True)
class Report:
    """Sections of text, claims, tables and figures, each file written as it is added; page and manifest come last."""

    out: Path
    title: str
    lead: str
    sections: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    figures: int = 0
    tables: int = 0
    written: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Make the folder, and remove the report that is in it, so that no two are mixed; other files stay.

        Raises: OSError where that cannot be done, ValueError where it is a file or has a manifest of something else.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file: a report needs a folder, so name another")
        self.out.mkdir(parents=True, exist_ok=True)
        remove_listed(self.out, first=(PAGE, RESULTS))

    def discard(self) -> None:
        """Remove what was written: without its page a report is none."""
        for name in self.written:
            (self.out / name).unlink(missing_ok=True)

    def file(self, name: str, data: str | bytes) -> None:
        """Write a file by its name under the folder."""
        write_atomically(self.out / name, data)
        self.written.append(name)

    def section(self, title: str) -> None:
        """Begin a section; all that is added next belongs to it."""
        self.sections.append({"title": title, "blocks": []})

    def _add(self, **block: Any) -> None:
        self.sections[-1]["blocks"].append(block)

    def text(self, words: str) -> None:
        """Add a paragraph."""
        self._add(kind="text", text=words)

    def formulas(self, rows: Sequence[tuple[str, str]], caption: str) -> None:
        """Add equations, each a left and a right side as the inside of a MathML element.

        A left side that ends in a relation of its own, such as <, gets no equals sign.
        """
        relations = ("<mo>&lt;</mo>", "<mo>&gt;</mo>")
        equations = [left + ("" if left.endswith(relations) else "<mo>=</mo>") + right for left, right in rows]
        self._add(kind="formulas", equations=equations, caption=caption)

    def claim(self, said: str, *, holds: bool | None, verdict: str, condition: str) -> None:
        """Add a claim of the paper with our verdict (None: it depends) and the condition; the page begins with all."""
        claim = {"said": said, "verdict": verdict, "condition": condition, "section": len(self.sections)}
        claim["mark"] = {True: "yes", False: "no", None: "mixed"}[holds]
        self.claims.append(claim)
        self._add(kind="claim", claim=claim)

    def figure(self, name: str, figure: Figure, caption: str, data: pd.DataFrame | None = None) -> None:
        """Write NAME.svg and NAME.pdf and add the figure to the page.

        `data`: what is drawn, written to NAME.csv beside the tables; None where a table has it.
        """
        from meningitis.report.style import styled, to_pdf, to_svg

        with styled():
            svg = to_svg(figure, name)
            self.file(f"figures/{name}.pdf", to_pdf(figure))
        self.file(f"figures/{name}.svg", svg)
        if data is not None:
            self.file(f"tables/{name}.csv", data.to_csv(index=False))
        self.figures += 1
        inline = svg[svg.index("<svg") :]
        points = float(re.search(r'width="([\d.]+)pt"', inline)[1])  # type: ignore[index]
        # A quarter larger than on paper where the screen is wide enough, so that small figures stay small.
        width = f"{1.25 * points / 72:.2f}in"
        self._add(
            kind="figure", name=name, svg=inline, caption=caption, number=self.figures, width=width,
            data=data is not None,
        )  # fmt: skip

    def table(self, name: str, frame: pd.DataFrame, caption: str, shown: pd.DataFrame | None = None) -> None:
        """Write NAME.csv (all digits) and add the table, rounded, to the page; `shown` there in its stead."""
        self.file(f"tables/{name}.csv", frame.to_csv(index=False))
        self.tables += 1
        shown = frame if shown is None else shown
        rows = [[show(cell) for cell in row] for row in shown.itertuples(index=False)]
        heads = [
            {"text": str(c).replace("_", " "), "number": all(NUMBER.fullmatch(row[k]) for row in rows)}
            for k, c in enumerate(shown.columns)
        ]
        self._add(kind="table", name=name, heads=heads, rows=rows, caption=caption, number=self.tables)

    def write(self, results: dict[str, Any]) -> Path:
        """Write results.json, the self-contained page and, last, the manifest of all files. Returns the page's path."""
        from jinja2 import Environment

        self.file(RESULTS, to_json(results))
        source = resources.files("meningitis.report").joinpath("page.html").read_text(encoding="utf-8")
        template = Environment(autoescape=True).from_string(source)
        page = template.render(title=self.title, lead=self.lead, claims=self.claims, sections=self.sections)
        self.file(PAGE, page)
        write_manifest(self.out, self.written)
        return self.out / PAGE
