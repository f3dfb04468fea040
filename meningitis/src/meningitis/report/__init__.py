"""The report: figures, the page that holds them, and files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PAGE = "report.html"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write beside `path`, sync and rename, so that a reader sees the old file or the new one and never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """The same data for JSON: arrays to lists, dates to ISO text, numbers that JSON lacks to None."""
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
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def to_json(value: Any) -> str:
    """Indented JSON of anything that `plain` knows."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def show(value: Any) -> str:
    """A table's cell: four significant figures, no trailing noise, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) or hasattr(value, "dtype"):
        number = float(value)
        if not math.isfinite(number):
            return "–"
        if number == 0 or 1e-3 <= abs(number) < 1e6:
            digits = max(0, 3 - math.floor(math.log10(abs(number)))) if number else 0
            text = f"{number:,.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
        return f"{number:.3e}".replace("-", "−")
    return str(value)


@dataclass(kw_only=True)
class Report:
    """Sections of text, claims, tables and figures, each file written as it is added; the page comes last."""

    out: Path
    title: str
    lead: str
    sections: list[dict[str, Any]] = field(default_factory=list)
    figures: int = 0
    tables: int = 0

    def section(self, title: str) -> None:
        """Begin a section; all that is added next belongs to it."""
        self.sections.append({"title": title, "blocks": []})

    def _add(self, **block: Any) -> None:
        self.sections[-1]["blocks"].append(block)

    def text(self, words: str) -> None:
        """Add a paragraph."""
        self._add(kind="text", text=words)

    def code(self, words: str) -> None:
        """Add text whose spaces and line breaks matter."""
        self._add(kind="code", text=words)

    def claim(self, said: str, *, holds: bool, verdict: str, conditions: str) -> None:
        """Add a claim of the paper with our verdict and the conditions under which it was reached."""
        self._add(kind="claim", said=said, holds=holds, verdict=verdict, conditions=conditions)

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Write NAME.svg and NAME.pdf and add the figure to the page."""
        from meningitis.report.style import styled, to_pdf, to_svg

        with styled():
            svg = to_svg(figure, name)
            write_atomically(self.out / "figures" / f"{name}.pdf", to_pdf(figure))
        write_atomically(self.out / "figures" / f"{name}.svg", svg)
        self.figures += 1
        inline = svg[svg.index("<svg") :]
        self._add(kind="figure", name=name, svg=inline, caption=caption, number=self.figures)

    def table(self, name: str, frame: pd.DataFrame, caption: str) -> None:
        """Write NAME.csv (all digits) and add the table, rounded, to the page."""
        from pandas.api.types import is_numeric_dtype

        write_atomically(self.out / "tables" / f"{name}.csv", frame.to_csv(index=False))
        self.tables += 1
        heads = [{"text": str(c).replace("_", " "), "number": bool(is_numeric_dtype(frame[c]))} for c in frame.columns]
        rows = [[show(cell) for cell in row] for row in frame.itertuples(index=False)]
        self._add(kind="table", name=name, heads=heads, rows=rows, caption=caption, number=self.tables)

    def write(self, results: dict[str, Any]) -> Path:
        """Write results.json and then, last, the self-contained page. Returns the page's path."""
        from jinja2 import Environment

        write_atomically(self.out / "results.json", to_json(results))
        source = resources.files("meningitis.report").joinpath("page.html").read_text(encoding="utf-8")
        template = Environment(autoescape=True).from_string(source)
        page = template.render(title=self.title, lead=self.lead, sections=self.sections)
        write_atomically(self.out / PAGE, page)
        return self.out / PAGE
