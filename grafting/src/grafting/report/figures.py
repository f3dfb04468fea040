"""Inline SVG figures of a report, from plain data; colours of Okabe & Ito, which colour-blind readers tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .results import Cost, Curve, ModelResult, SiteMap, SpeedRow

INK, FAINT, RULE, UNTOUCHED = "#1f2933", "#5f6c7b", "#d9dee5", "#e6eaef"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
ROLE_COLOURS = {"teacher": INK, "hybrid": "#0072b2", "control": "#d55e00"}
_WIDTH, _LABEL = 720, 190


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 14, fill: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{stroke}" stroke-width="{width:g}"{dashed}/>'


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can read it."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= about)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def intervals(models: Sequence[ModelResult], title: str) -> str:
    """Paired loss differences to the teacher as dots with 95 % intervals; the further left the better."""
    shown = [(m, m.denoising_difference) for m in models if m.denoising_difference is not None]
    values = [0.0] + [x for _, d in shown for x in (d.value, d.low, d.high) if x is not None]
    spread = max(values) - min(values) or 1.0
    low, high = min(values) - 0.06 * spread, max(values) + 0.14 * spread
    height = 34 * len(shown) + 44

    def at(v: float) -> float:
        return _LABEL + (v - low) / (high - low) * (_WIDTH - _LABEL - 10)

    bottom = height - 30
    parts = []
    for tick in _ticks(low, high):
        parts += [_line(at(tick), 4, at(tick), bottom, RULE)]
        parts += [_text(at(tick), bottom + 18, f"{tick:+.4g}" if tick else "0", anchor="middle", size=12, fill=FAINT)]
    parts.append(_line(at(0), 4, at(0), bottom, INK, 1.5))
    for row, (model, d) in enumerate(shown):
        y, colour = 22 + 34 * row, ROLE_COLOURS[model.role]
        parts.append(_text(0, y + 5, model.name))
        if d.low is not None and d.high is not None:
            parts.append(_line(at(d.low), y, at(d.high), y, colour, 3))
        shape = (
            f'<circle cx="{at(d.value):.1f}" cy="{y}" r="6" fill="{colour}"/>'
            if model.role == "hybrid"
            else f'<rect x="{at(d.value) - 5:.1f}" y="{y - 5}" width="10" height="10" fill="{colour}"/>'
        )
        parts += [shape, _text(at(d.value), y - 9, f"{d.value:+.2g}", anchor="middle", size=11, fill=FAINT)]
    return _svg(_WIDTH, height, title, parts)


def curves(lines: Sequence[Curve], title: str) -> str:
    """Losses over steps on a logarithmic axis; colours run from the first to the last site."""
    height, left, right = 300, 56, 118
    points = [(s, v) for c in lines for s, v in zip(c.steps, c.losses, strict=True) if v > 0]
    if not points:
        return ""
    last = max(s for s, _ in points) or 1
    low, high = (math.log10(f(v for _, v in points)) for f in (min, max))
    low, high = (low, high) if high - low > 0.1 else (low - 0.05, high + 0.05)

    def at(step: float, value: float) -> tuple[float, float]:
        x = left + step / last * (_WIDTH - left - right)
        return x, 10 + (high - math.log10(value)) / (high - low) * (height - 50)

    parts = []
    for k in range(5):
        value = 10 ** (low + (high - low) * k / 4)
        y = at(0, value)[1]
        parts += [_line(left, y, _WIDTH - right, y, RULE), _text(left - 6, y + 4, number(value), anchor="end", size=12)]
        x = left + k / 4 * (_WIDTH - left - right)
        parts.append(_text(x, height - 18, f"{round(last * k / 4):,}", anchor="middle", size=12, fill=FAINT))
    parts.append(_text((left + _WIDTH - right) / 2, height - 2, "step", anchor="middle", size=12, fill=FAINT))
    ends = []
    for k, curve in enumerate(lines):
        colour = _along(k / max(len(lines) - 1, 1))
        path = "L".join(
            "{:.1f} {:.1f}".format(*at(s, v)) for s, v in zip(curve.steps, curve.losses, strict=True) if v > 0
        )
        if path:
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            ends.append((float(path.rsplit(" ", 1)[1]), curve.name, colour))
    gap, places = min(15.0, (height - 50) / max(len(ends), 1)), list[float]()
    for y, _, _ in sorted(ends):
        places.append(max(y, places[-1] + gap) if places else y)
    lift = max(0.0, places[-1] - (height - 40)) if places else 0.0  # labels pushed apart must not leave the drawing
    for place, (_, name, colour) in zip(places, sorted(ends), strict=True):
        parts.append(_text(_WIDTH - right + 6, place - lift + 4, name, size=11, fill=colour))
    return _svg(_WIDTH, height, title, parts)


def _along(share: float) -> str:
    """A colour between blue, purple and orange, monotone in lightness."""
    stops = [(20, 60, 130), (150, 60, 140), (215, 95, 20)]
    place = share * 2
    a, b = (stops[0], stops[1]) if place < 1 else (stops[1], stops[2])
    mix = [round(p + (q - p) * (place % 1 if place < 2 else 1)) for p, q in zip(a, b, strict=True)]
    return f"rgb({mix[0]},{mix[1]},{mix[2]})"


def site_map(layout: SiteMap, title: str) -> str:
    """Blocks from left to right, one row per kind of site; a grafted site is coloured and numbered in the legend."""
    names = sorted({op for row in layout.sites.values() for op in row if op is not None})
    depth = max((len(row) for row in layout.sites.values()), default=1)
    left = 50
    cell = (_WIDTH - left) / depth
    parts = [
        _text(left + (k + 0.5) * cell, 12, str(k), anchor="middle", size=11, fill=FAINT)
        for k in range(depth)
        if depth <= 30 or k % 5 == 0
    ]
    for row, (kind, operators) in enumerate(layout.sites.items()):
        y = 20 + 40 * row
        parts.append(_text(0, y + 22, kind))
        for k, op in enumerate(operators):
            colour = UNTOUCHED if op is None else COLOURS[names.index(op) % len(COLOURS)]
            parts.append(
                f'<rect x="{left + k * cell + 1:.1f}" y="{y}" width="{cell - 2:.1f}" height="34" rx="4" '
                f'fill="{colour}"><title>block {k}, {kind}: {escape(op or "untouched")}</title></rect>'
            )
            if op is not None:
                middle = left + (k + 0.5) * cell
                parts.append(_text(middle, y + 22, str(names.index(op) + 1), anchor="middle", fill="#fff"))
    y, x = 20 + 40 * len(layout.sites) + 8, float(left)
    for k, name in enumerate([*names, "untouched"]):
        colour = UNTOUCHED if k == len(names) else COLOURS[k % len(COLOURS)]
        label = name if k == len(names) else f"{k + 1}  {name}"
        parts += [f'<rect x="{x:.1f}" y="{y}" width="14" height="14" rx="3" fill="{colour}"/>']
        parts += [_text(x + 20, y + 12, label, size=13)]
        x += 44 + 8 * len(label)
    return _svg(_WIDTH, y + 22, title, parts)


def speed(rows: Sequence[SpeedRow], title: str) -> str:
    """Speed-ups as bars; the FLOP bound is a dashed line, the time bound a solid one."""
    top = (
        max([1.0] + [x for r in rows for x in (r.speedup, r.high, r.flop_bound, r.time_bound) if x is not None]) * 1.12
    )
    height = 56 * len(rows) + 34

    def at(v: float) -> float:
        return v / top * (_WIDTH - 60)

    bottom = height - 26
    parts = []
    for tick in _ticks(0, top):
        parts += [_line(at(tick), 4, at(tick), bottom, RULE)]
        parts += [_text(at(tick), bottom + 18, f"{tick:g}×", anchor="middle" if tick else "start", size=12, fill=FAINT)]
    parts.append(_line(at(1), 4, at(1), bottom, FAINT, 1.5))
    for k, row in enumerate(rows):
        y = 24 + 56 * k
        parts.append(_text(0, y - 6, f"{row.model} · {row.setting}", size=13))
        parts.append(f'<rect x="0" y="{y}" width="{at(row.speedup):.1f}" height="22" rx="3" fill="{COLOURS[0]}"/>')
        parts.append(_text(6, y + 16, f"{row.speedup:.2f}×", size=13, fill="#fff"))
        if row.low is not None and row.high is not None:
            parts.append(_line(at(row.low), y + 11, at(row.high), y + 11, INK, 2))
        if row.flop_bound is not None:
            parts.append(_line(at(row.flop_bound), y - 4, at(row.flop_bound), y + 26, COLOURS[1], 3, "5 3"))
        if row.time_bound is not None:
            parts.append(_line(at(row.time_bound), y - 4, at(row.time_bound), y + 26, COLOURS[2], 3))
    return _svg(_WIDTH, height, title, parts)


def cost(entry: Cost, title: str) -> str:
    """The share of the teacher's training, part by part, on a bar that ends at the whole of it."""
    parts = [f'<rect x="0" y="2" width="{_WIDTH}" height="26" rx="4" fill="{UNTOUCHED}"/>']
    x, legend = 0.0, 0.0
    for k, (name, flops) in enumerate(entry.parts.items()):
        width = min(flops / entry.teacher_training, 1) * _WIDTH
        colour = COLOURS[k % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="2" width="{max(width, 1.5):.1f}" height="26" fill="{colour}"/>')
        label = f"{name} {flops / entry.teacher_training:.1%}"
        parts += [f'<rect x="{legend:.1f}" y="38" width="14" height="14" rx="3" fill="{colour}"/>']
        parts += [_text(legend + 20, 50, label, size=13)]
        x, legend = x + width, legend + 48 + 7.5 * len(label)
    return _svg(_WIDTH, 58, title, parts)
