"""Inline SVG figures of a report, from plain data; the loss curves have a file of their own.

Colours are those of Okabe & Ito, which colour-blind readers tell apart; nothing is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from .results import Cost, ModelResult, SiteMap, SpeedRow

# The page's variables, which differ in light, in dark and in print; a drawing taken out of it falls back to the light.
INK, FAINT, RULE, UNTOUCHED, HYBRID, CONTROL, TIME = (
    f"var(--{name},{colour})"
    for name, colour in (
        ("ink", "#1f2933"),
        ("faint", "#5f6c7b"),
        ("rule", "#d9dee5"),
        ("untouched", "#e6eaef"),
        ("hybrid", "#0072b2"),
        ("control", "#c04f00"),
        ("time", "#00795a"),
    )
)
COLOURS = ("#0072b2", "#c04f00", "#00795a", "#a6518a", "#8a6100", "#2b7fb3")
"""Okabe & Ito, darkened until white text can be read on all of them."""
ROLE_COLOURS = {"teacher": INK, "hybrid": HYBRID, "control": CONTROL}
WIDTH, _LABEL = 720, 190


def drawing(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", size: int = 14, fill: str = INK) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{stroke}" stroke-width="{width:g}"{dashed}/>'


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can read it."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= about)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def root(v: float) -> float:
    """A place on an axis of square roots, on which small differences are not pressed together by large ones."""
    return math.copysign(math.sqrt(abs(v)), v)


def root_ticks(low: float, high: float, at: Callable[[float], float], apart: float) -> list[float]:
    """Ticks of such an axis, between two values: zero, then steps of 1, 2 and 5 from the largest down, each only where
    ``at`` puts it more than ``apart`` from those that are there."""
    steps = sorted((m * 10.0**k for k in range(-6, 6) for m in (1, 2, 5)), reverse=True)
    found: list[float] = []
    for tick in (0.0, *(sign * step for step in steps for sign in (1, -1))):
        if low <= tick <= high and all(abs(at(tick) - at(other)) > apart for other in found):
            found.append(tick)
    return found


def intervals(models: Sequence[ModelResult], title: str) -> str:
    """Paired loss differences to the teacher as marks with 95 % intervals; the further left the better.

    Distances from zero are drawn as square roots, so that an untrained control does not press the others together.
    """
    shown = [(m, m.denoising_difference) for m in models if m.denoising_difference is not None]
    values = [0.0] + [x for _, d in shown for x in (d.value, d.low, d.high) if x is not None]
    ends = [root(f(values)) for f in (min, max)]
    spread = ends[1] - ends[0] or 1.0
    low, high = ends[0] - 0.06 * spread, ends[1] + 0.1 * spread
    height = 34 * len(shown) + 44

    def at(v: float) -> float:
        return _LABEL + (root(v) - low) / (high - low) * (WIDTH - _LABEL - 10)

    bottom = height - 30
    parts = []
    for tick in root_ticks(min(values), max(values), at, 62):
        parts.append(line(at(tick), 4, at(tick), bottom, INK if tick == 0 else RULE, 1.5 if tick == 0 else 1))
        mark = f"{tick:+.4g}" if tick else "0"
        parts.append(text(at(tick), bottom + 18, mark, anchor="middle", size=12, fill=FAINT))
    for row, (model, d) in enumerate(shown):
        y, colour = 22 + 34 * row, ROLE_COLOURS[model.role]
        parts.append(text(0, y + 5, model.name))
        if d.low is not None and d.high is not None:
            parts.append(line(at(d.low), y, at(d.high), y, colour, 3))
        shape = (
            f'<circle cx="{at(d.value):.1f}" cy="{y}" r="6" fill="{colour}"/>'
            if model.role == "hybrid"
            else f'<rect x="{at(d.value) - 5:.1f}" y="{y - 5}" width="10" height="10" fill="{colour}"/>'
        )
        parts += [shape, text(at(d.value), y - 9, f"{d.value:+.2g}", anchor="middle", size=11, fill=FAINT)]
    return drawing(WIDTH, height, title, parts)


def site_map(layout: SiteMap, title: str) -> str:
    """Blocks from left to right, one row per kind of site; a grafted site is coloured and numbered in the legend."""
    names = sorted({op for row in layout.sites.values() for op in row if op is not None})
    depth = max((len(row) for row in layout.sites.values()), default=1)
    left = 50
    cell = (WIDTH - left) / depth
    parts = [
        text(left + (k + 0.5) * cell, 12, str(k), anchor="middle", size=11, fill=FAINT)
        for k in range(depth)
        if depth <= 30 or k % 5 == 0
    ]
    for row, (kind, operators) in enumerate(layout.sites.items()):
        y = 20 + 40 * row
        parts.append(text(0, y + 22, kind))
        for k, op in enumerate(operators):
            colour = UNTOUCHED if op is None else COLOURS[names.index(op) % len(COLOURS)]
            parts.append(
                f'<rect x="{left + k * cell + 1:.1f}" y="{y}" width="{cell - 2:.1f}" height="34" rx="4" '
                f'fill="{colour}"><title>block {k}, {kind}: {escape(op or "untouched")}</title></rect>'
            )
            if op is not None:
                middle = left + (k + 0.5) * cell
                parts.append(text(middle, y + 22, str(names.index(op) + 1), anchor="middle", fill="#fff"))
    y, x = 20 + 40 * len(layout.sites) + 8, float(left)
    for k, name in enumerate([*names, "untouched"]):
        colour = UNTOUCHED if k == len(names) else COLOURS[k % len(COLOURS)]
        label = name if k == len(names) else f"{k + 1}  {name}"
        parts += [f'<rect x="{x:.1f}" y="{y}" width="14" height="14" rx="3" fill="{colour}"/>']
        parts += [text(x + 20, y + 12, label, size=13)]
        x += 44 + 8 * len(label)
    return drawing(WIDTH, y + 22, title, parts)


def speed(rows: Sequence[SpeedRow], title: str) -> str:
    """Speed-ups as bars; the FLOP bound is a dashed line, the time bound a solid one."""
    top = (
        max([1.0] + [x for r in rows for x in (r.speedup, r.high, r.flop_bound, r.time_bound) if x is not None]) * 1.12
    )
    height = 56 * len(rows) + 34

    def at(v: float) -> float:
        return v / top * (WIDTH - 60)

    bottom = height - 26
    parts = []
    for tick in ticks(0, top):
        parts += [line(at(tick), 4, at(tick), bottom, RULE)]
        parts += [text(at(tick), bottom + 18, f"{tick:g}×", anchor="middle" if tick else "start", size=12, fill=FAINT)]
    parts.append(line(at(1), 4, at(1), bottom, FAINT, 1.5))
    for k, row in enumerate(rows):
        y = 24 + 56 * k
        parts.append(text(0, y - 6, f"{row.model} · {row.setting}", size=13))
        parts.append(f'<rect x="0" y="{y}" width="{at(row.speedup):.1f}" height="22" rx="3" fill="{COLOURS[0]}"/>')
        parts.append(text(6, y + 16, f"{row.speedup:.2f}×", size=13, fill="#fff"))
        if row.low is not None and row.high is not None:
            parts.append(line(at(row.low), y + 11, at(row.high), y + 11, INK, 2))
        if row.flop_bound is not None:
            parts.append(line(at(row.flop_bound), y - 4, at(row.flop_bound), y + 26, CONTROL, 3, "5 3"))
        if row.time_bound is not None:
            parts.append(line(at(row.time_bound), y - 4, at(row.time_bound), y + 26, TIME, 3))
    return drawing(WIDTH, height, title, parts)


def cost(entry: Cost, title: str) -> str:
    """The share of the teacher's training, part by part, on a bar that ends at the whole of it."""
    parts = [f'<rect x="0" y="2" width="{WIDTH}" height="26" rx="4" fill="{UNTOUCHED}"/>']
    x, legend = 0.0, 0.0
    for k, (name, flops) in enumerate(entry.parts.items()):
        width = min(flops / entry.teacher_training, 1) * WIDTH
        colour = COLOURS[k % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="2" width="{max(width, 1.5):.1f}" height="26" fill="{colour}"/>')
        label = f"{name} {flops / entry.teacher_training:.1%}"
        parts += [f'<rect x="{legend:.1f}" y="38" width="14" height="14" rx="3" fill="{colour}"/>']
        parts += [text(legend + 20, 50, label, size=13)]
        x, legend = x + width, legend + 48 + 7.5 * len(label)
    return drawing(WIDTH, 58, title, parts)
