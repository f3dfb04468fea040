"""The HTML page of a run: one file, nothing loaded from elsewhere, readable on a phone and in print."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text_atomic
from . import figures
from .results import ModelResult, Results

if TYPE_CHECKING:
    import torch

# Name, heading, and whether less is better, in the order of the table's columns.
METRICS = (
    ("fid", "FID", True),
    ("fid_minus_floor", "FID − floor", True),
    ("sfid", "sFID", True),
    ("kid", "KID", True),
    ("inception_score", "IS", False),
    ("precision", "precision", False),
    ("recall", "recall", False),
    ("recognised", "recognised", False),
)


def grid_png(images: torch.Tensor, *, columns: int, gap: int = 2, zoom: int = 2) -> bytes:
    """A PNG of (N, 1 or 3, H, W) images in [-1, 1], row by row, enlarged by whole pixels.

    Raises:
        ValueError: no images, or neither one nor three channels.
    """
    import numpy as np
    from PIL import Image

    if len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)}: a grid takes (N, 1 or 3, H, W) with N at least 1")
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    pixels = pixels.repeat(3 // pixels.shape[3], axis=3).repeat(zoom, axis=1).repeat(zoom, axis=2)
    n, height, width, _ = pixels.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for k, picture in enumerate(pixels):
        y, x = k // columns * (height + gap), k % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def render(results: Results | Mapping[str, Any], folder: Path) -> str:
    """HTML of ``results`` (or of its plain data); the PNG grids that it names lie in ``folder``.

    Raises:
        ValueError: the data does not fit the schema, or a grid is missing or outside the folder.
    """
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    if not isinstance(results, Results):
        results = Results.from_dict(results)
    stages = [
        {"title": f"{stage} · {run}", "run": run, "svg": Markup(figures.curves(list(lines), f"{stage}, {run}"))}
        for (stage, run), lines in groupby(results.curves, key=lambda c: (c.stage, c.run))
    ]
    titled = f"speed-up over the teacher, {results.run}"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("grafting.report") / "page.html").read_text(encoding="utf-8"))
    return template.render(
        r=results,
        pictures=[(m, _inline(folder, m.grid)) for m in results.models if m.grid],
        tables=_tables(results.models),
        losses=_losses(results.models),
        maps=[(m, Markup(figures.site_map(m, f"sites of {m.model}"))) for m in results.maps],
        stages=stages,
        speed=Markup(figures.speed(results.speed, titled)) if results.speed else None,
        speed_runs=", ".join(dict.fromkeys(row.run for row in results.speed)),
        costs=[(c, Markup(figures.cost(c, f"cost of {c.model}"))) for c in results.costs],
        number=figures.number,
    )


def write_page(path: Path, results: Results) -> None:
    """Write the page atomically; grids are looked for beside it. Raises ValueError as :func:`render` does."""
    write_text_atomic(path, render(results, path.parent))


def _inline(folder: Path, name: str | None) -> str:
    root = folder.resolve()
    path = (root / (name or "")).resolve()
    if root not in path.parents or not path.is_file():
        raise ValueError(f"grid {name!r} named by the results is not a file inside their folder")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _tables(models: tuple[ModelResult, ...]) -> list[dict[str, Any]]:
    """One table per run and protocol: figures under different protocols must not share one."""
    tables = []
    measured = [m for m in models if m.figures]
    keys = dict.fromkeys((m.run, m.protocol) for m in measured)
    for run, protocol in keys:
        rows = [m for m in measured if (m.run, m.protocol) == (run, protocol)]
        present = {name for m in rows for name in m.figures}
        columns = [c for c in METRICS if c[0] in present]
        columns += [(name, name, True) for name in sorted(present - {c[0] for c in METRICS})]
        floors = {c[0]: m.figures[c[0]].floor for m in reversed(rows) for c in columns if c[0] in m.figures}
        tables.append({"run": run, "protocol": protocol, "columns": columns, "rows": rows, "floors": floors})
    return tables


def _losses(models: tuple[ModelResult, ...]) -> list[dict[str, Any]]:
    """Held-out denoising losses by run, with the drawing of the paired differences."""
    from markupsafe import Markup

    measured = [m for m in models if m.denoising is not None or m.denoising_difference is not None]
    blocks = []
    for run in dict.fromkeys(m.run for m in measured):
        rows = [m for m in measured if m.run == run]
        drawn = any(m.denoising_difference is not None for m in rows)
        title = f"held-out denoising loss minus the teacher's, {run}"
        blocks.append({"run": run, "rows": rows, "svg": Markup(figures.intervals(rows, title)) if drawn else None})
    return blocks
