"""The HTML page of a run: one file, nothing loaded from elsewhere, readable on a phone and in print."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text_atomic
from ..tasks import OVERALL
from . import figures
from .curves import model_curves, site_curves
from .results import PAIRS, Cost, Curve, ModelResult, Results, TaskScores

if TYPE_CHECKING:
    from jinja2 import Template

# Name, heading, and whether less is better, in the order of the columns; a table wider than a window is two tables.
CLOSENESS = (
    ("fid", "FID", True),
    ("fid_minus_floor", "FID − floor", True),
    ("FID − teacher's", "FID − teacher’s", True),
    ("kid", "KID", True),
    ("KID − teacher's", "KID − teacher’s", True),
    ("recognised", "recognised", False),
)
FURTHER = (
    ("sfid", "sFID", True),
    ("sfid_minus_floor", "sFID − floor", True),
    ("precision", "precision", False),
    ("recall", "recall", False),
    ("inception_score", "IS", False),
)
FIRST = 4
"""Pictures on the first screen: the teacher and its hybrids."""


def template(name: str) -> Template:
    """A template of this folder; the look that all pages share is ``style.html``."""
    from importlib.resources import files

    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(lambda found: (files("grafting.report") / found).read_text(encoding="utf-8"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def render(results: Results | Mapping[str, Any], folder: Path) -> str:
    """HTML of ``results`` (or of its plain data); the PNG grids that it names lie in ``folder``.

    Raises:
        ValueError: the data does not fit the schema, or a grid is missing or outside the folder.
    """
    from markupsafe import Markup

    if not isinstance(results, Results):
        results = Results.from_dict(results)
    titled = f"speed-up over the teacher, {results.run}"
    pictures = [(m, inline(folder, m.grid)) for m in results.models if m.grid]
    first = [(m, data) for m, data in pictures if m.role != "control" and m.run == results.run][:FIRST]
    return template("page.html").render(
        r=results,
        verdict=_sentences(results),
        first=first,
        others=[(m, data) for m, data in pictures if all(m is not shown for shown, _ in first)],
        keys=_keys(results),
        tables=_tables(results.models),
        losses=_losses(results.models),
        tasks=_tasks(results.models),
        maps=[(m, Markup(figures.site_map(m, f"sites of {m.model}"))) for m in results.maps],
        stages=_stages(results.curves),
        speed=Markup(figures.speed(results.speed, titled)) if results.speed else None,
        speed_runs=", ".join(dict.fromkeys(row.run for row in results.speed)),
        costs=[(c, Markup(figures.cost(c, f"cost of {c.model}"))) for c in results.costs],
        number=figures.number,
        percent=percent,
        points=points,
    )


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * difference:+.1f}"


def write_page(path: Path | str, results: Results) -> None:
    """Write the page atomically; grids are looked for beside it. Raises ValueError as :func:`render` does."""
    path = Path(path)
    write_text_atomic(path, render(results, path.parent))


def inline(folder: Path, name: str | None) -> str:
    root = folder.resolve()
    path = (root / (name or "")).resolve()
    if root not in path.parents or not path.is_file():
        raise ValueError(f"grid {name!r} named by the results is not a file inside their folder")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _sentences(results: Results) -> list[str]:
    """The summary, one sentence per hybrid, each on a line of its own."""
    names = "|".join(re.escape(m.name) for m in results.models if m.role == "hybrid")
    return re.split(rf"(?<=\.) (?=(?:{names}) \()", results.summary) if names else [results.summary]


def _keys(results: Results) -> list[dict[str, Any]]:
    """The numbers that a hybrid of this run is judged by first, each with what it must be read beside."""
    teachers = {m.run: m for m in results.models if m.role == "teacher"}
    found = []
    for model in results.models:
        teacher = teachers.get(model.run)
        if model.role != "hybrid" or model.run != results.run or teacher is None:
            continue
        items: list[tuple[str, str, str]] = []
        if model.denoising is not None and teacher.denoising is not None:
            note = f"teacher’s {teacher.denoising.value:.4f}"
            if (d := model.denoising_difference) is not None and d.low is not None and d.high is not None:
                note += f", by {d.low:+.4f} … {d.high:+.4f}"
            items.append(("held-out loss", f"{model.denoising.value:.4f}", note))
        for name, heading, _ in (CLOSENESS[1], CLOSENESS[3]):
            if name in model.figures and name in teacher.figures:
                label = "; not Inception" if "not Inception" in model.protocol else ""
                beside = f"teacher’s {figures.number(teacher.figures[name].value)}{label}"
                items.append((heading, figures.number(model.figures[name].value), beside))
        if model.scenes is not None and teacher.scenes is not None:
            items.append(("scenes right", *_overall(model.scenes, teacher.scenes)))
        rows = [row for row in results.speed if (row.model, row.run) == (model.name, model.run)]
        if rows:
            best = max(rows, key=lambda row: row.speedup)
            bounds = [("FLOP", best.flop_bound), ("time", best.time_bound)]
            told = ", ".join(f"{name} bound {bound:.2f}×" for name, bound in bounds if bound is not None)
            items.append(("speed-up", f"{best.speedup:.2f}×", f"{best.setting.split(', ')[0]}; {told}"))
        items += [
            ("cost", *_spent(cost)) for cost in results.costs if (cost.model, cost.run) == (model.name, model.run)
        ]
        if items:
            found.append({"name": model.name, "description": model.description, "items": items})
    return found


def _overall(mine: TaskScores, theirs: TaskScores) -> tuple[str, str]:
    """The overall score, and what it must be read beside."""
    found, apart = (scored.get(OVERALL) for scored in (mine.scores, mine.differences))
    note = f"teacher’s {percent(theirs.scores[OVERALL].value)} %"
    if apart is not None and apart.low is not None and apart.high is not None:
        note += f", by {points(apart.low)} … {points(apart.high)} points"
    return "–" if found is None else f"{percent(found.value)} %", note


def _spent(cost: Cost) -> tuple[str, str]:
    """What teaching took, and beside it what drawing the pairs did: these are drawn once, however many learn from
    them."""
    pairs = cost.parts.get(PAIRS, 0.0) / cost.teacher_training
    more = f", and {pairs * 100:.2g} % to draw the pairs" if pairs else ""
    return f"{(cost.share - pairs) * 100:.2g} %", f"of the teacher’s training{more}"


def _stages(curves: tuple[Curve, ...]) -> list[dict[str, Any]]:
    """Drawings of a run's curves: the sites of a stage in panels, the models of a stage on one pair of axes."""
    from markupsafe import Markup

    groups: dict[tuple[str, str, bool], list[Curve]] = {}
    for curve in curves:
        of_site = curve.name.startswith("blocks.")
        stage = curve.stage if of_site else curve.stage.rpartition(": ")[2]
        groups.setdefault((curve.run, stage, of_site), []).append(curve)
    drawings = []
    for (run, stage, of_site), lines in sorted(groups.items(), key=lambda group: not group[0][2]):
        svg = (site_curves if of_site else model_curves)(lines, f"{stage}, {run}")
        judged = any(curve.held_out for curve in lines)
        drawings.append({"title": stage, "run": run, "sites": of_site, "judged": judged, "svg": Markup(svg)})
    return drawings


def _tables(models: tuple[ModelResult, ...]) -> list[dict[str, Any]]:
    """One block per run and protocol: figures under different protocols must not share a table."""
    blocks = []
    measured = [m for m in models if m.figures]
    named = {name for name, _, _ in (*CLOSENESS, *FURTHER)}
    for run, protocol in dict.fromkeys((m.run, m.protocol) for m in measured):
        rows = [m for m in measured if (m.run, m.protocol) == (run, protocol)]
        present = {name for m in rows for name in m.figures}
        parts = [[c for c in columns if c[0] in present] for columns in (CLOSENESS, FURTHER)]
        parts[1] += [(name, name, True) for name in sorted(present - named)]
        floors = {name: m.figures[name].floor for m in reversed(rows) for name in m.figures}
        parts = [columns for columns in parts if columns]
        floored = {name for name, floor in floors.items() if floor is not None}
        blocks.append({"run": run, "protocol": protocol, "parts": parts, "rows": rows, "floors": floors})
        blocks[-1] |= {"floored": floored, "width": _widths(rows[0])}
    return blocks


def _widths(model: ModelResult) -> str:
    """How far the intervals of one model reach, in words."""
    told = [
        f"{heading} ±{figures.number((f.high - f.low) / 2)}"
        for name, heading, _ in CLOSENESS
        if (f := model.figures.get(name)) is not None and f.low is not None and f.high is not None
    ]
    return f"95 % intervals of {model.name} reach {', '.join(told)}: smaller differences say nothing." if told else ""


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


def _tasks(models: tuple[ModelResult, ...]) -> list[dict[str, Any]]:
    """One block per run and protocol of the scores by task, those of held-out combinations after the others."""
    blocks = []
    for title, pick in (("", lambda m: m.scenes), ("Combinations that training never showed", lambda m: m.held_out)):
        found = [(m, scored) for m in models if (scored := pick(m)) is not None]
        for run, protocol in dict.fromkeys((m.run, scored.protocol) for m, scored in found):
            rows = [(m, scored) for m, scored in found if (m.run, scored.protocol) == (run, protocol)]
            tasks = list(dict.fromkeys(task for _, scored in rows for task in scored.scores))
            blocks.append({"run": run, "protocol": protocol, "title": title, "rows": rows, "tasks": tasks})
    return blocks
