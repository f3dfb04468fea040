"""Quality against what it cost, over a logarithmic axis: lines of rows that vary it, and all rows with their front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from .figures import COLOURS, FAINT, HYBRID, INK, RULE, WIDTH, drawing, line, number, root, root_ticks, text
from .results import Figure

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330, 58, 150, 26, 44
TALL = 460
"""Of a scatter, whose points have names."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One line: ``points`` are (x, figure), x above 0."""

    name: str
    points: tuple[tuple[float, Figure], ...]


def traces(lines: Sequence[Trace], title: str, *, x: str, y: str, reference: Figure | None = None) -> str:
    """Figures over a logarithmic x; ``reference`` is a horizontal line with its interval. Empty without points.

    x, y: what the axes hold.
    """
    points = [point for trace in lines for point in trace.points]
    if not points:
        return ""
    places = sorted({place for place, _ in points})
    values = [v for _, f in points for v in (f.value, f.low, f.high) if v is not None]
    if reference is not None:
        values += [v for v in (reference.value, reference.high) if v is not None]
    low, high = min(0.0, *values), max(values)
    spread = high - low or 1.0
    along = _along(places[0], places[-1])

    def level(value: float) -> float:
        return TOP + (high - value) / spread * (HEIGHT - TOP - BOTTOM)

    parts = []
    for k in range(5):
        value = low + spread * k / 4
        parts += _rule(level(value), number(value))
    for place in places:
        parts.append(text(along(place), HEIGHT - 26, _place(place), anchor="middle", size=12, fill=FAINT))
    parts += _axes(x, y, HEIGHT)
    ends = []
    if reference is not None:
        parts += _reference(reference, level)
        ends.append((level(reference.value), "teacher", INK))
    for k, trace in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        dash = "" if k < len(COLOURS) else "4 3"
        where = [(along(place), level(f.value)) for place, f in sorted(trace.points, key=lambda point: point[0])]
        parts += [line(*a, *b, colour, 2, dash) for a, b in pairwise(where)]
        for place, figure in trace.points:
            parts += _point(along(place), figure, level, colour)
        if where:
            ends.append((where[-1][1], trace.name, colour))
    height = -math.inf
    for end, name, colour in sorted(ends):
        height = max(end, height + 15)
        parts.append(text(WIDTH - RIGHT + 8, height + 4, name, size=12, fill=colour))
    return drawing(WIDTH, max(HEIGHT, height + 10), title, parts)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, error) no other one beats: none is as low in both and lower in one. By cost; equal ones all."""
    kept: list[int] = []
    for k in sorted(range(len(points)), key=lambda k: points[k]):
        if not kept or points[k][1] < points[kept[-1]][1] or points[k] == points[kept[-1]]:
            kept.append(k)
    return kept


def scatter(
    points: Sequence[tuple[str, float, Figure]], title: str, *, x: str, y: str, reference: Figure | None = None
) -> str:
    """(name, x above 0, figure) over a logarithmic x; the front joined, named and with its intervals.

    The others are small and grey, and named where there is room. Heights are square roots, so that the worst do not
    press the best together. x, y, reference: as in :func:`traces`. Empty without points.
    """
    if not points:
        return ""
    kept = front([(place, figure.value) for _, place, figure in points])
    values = [figure.value for _, _, figure in points]
    values += [v for k in kept for v in (points[k][2].low, points[k][2].high) if v is not None]
    if reference is not None:
        values += [v for v in (reference.value, reference.high) if v is not None]
    low, high = root(min(values)), root(max(values))
    spread = high - low or 1.0
    places = sorted({place for _, place, _ in points})
    along = _along(places[0] * 0.95, places[-1] * 1.05)

    def level(value: float) -> float:
        return TOP + 8 + (high - root(value)) / spread * (TALL - TOP - BOTTOM - 16)

    parts = _axes(x, y, TALL)
    for tick in root_ticks(min(values), max(values), level, 24):
        parts += _rule(level(tick), f"{tick:g}")
    last = -math.inf
    for place in places:
        if along(place) > last + 44:
            last = along(place)
            parts.append(text(last, TALL - 26, _place(place), anchor="middle", size=12, fill=FAINT))
    where = [(along(place), level(figure.value)) for _, place, figure in points]
    boxes = [(across - 4, height - 4, across + 4, height + 4) for across, height in where]
    if reference is not None:
        height = level(reference.value)
        parts += [*_reference(reference, level), text(WIDTH - RIGHT + 8, height + 4, "teacher", size=12)]
        boxes.append((WIDTH - RIGHT, height - 8, WIDTH, height + 8))
    parts += [line(*where[a], *where[b], HYBRID, 2) for a, b in pairwise(kept)]
    others = sorted(set(range(len(points))) - set(kept), key=lambda k: where[k][1])
    for k in (*kept, *others):  # the front's names take their places first
        (name, place, figure), (across, height), best = points[k], where[k], k in kept
        told = f"{name}: {_place(place)}, {number(figure.value)}"
        if best:
            parts += _point(across, figure, level, HYBRID, told)
        else:
            parts += _point(across, Figure(value=figure.value), level, FAINT, told, radius=2.5)
        spots = _beside(name, across, height, (11, 0, -11) if best else (0, -11, 11))  # nothing is below the front
        free = [spot for spot in spots if not any(_meet(spot[2], box) for box in boxes)]
        if free or (best and spots):
            anchor, start, box = (free or spots)[0]
            boxes.append(box)
            parts.append(text(start, box[3] - 3, name, anchor=anchor, size=11, fill=INK if best else FAINT))
    return drawing(WIDTH, TALL, title, parts)


def _along(low: float, high: float) -> Callable[[float], float]:
    """Where a value stands on the logarithmic axis from ``low`` to ``high``."""
    first, wide = math.log(low), math.log(high) - math.log(low)

    def at(place: float) -> float:
        return LEFT + ((math.log(place) - first) / wide if wide else 0.5) * (WIDTH - LEFT - RIGHT)

    return at


def _rule(height: float, label: str) -> list[str]:
    told = text(LEFT - 6, height + 4, label, anchor="end", size=12, fill=FAINT)
    return [line(LEFT, height, WIDTH - RIGHT, height, RULE), told]


def _axes(x: str, y: str, height: float) -> list[str]:
    across = text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, anchor="middle", size=12, fill=FAINT)
    return [across, text(0, 12, y, size=12, fill=FAINT)]


def _reference(figure: Figure, level: Callable[[float], float]) -> list[str]:
    """A dashed line, and the upper half of its interval as a band."""
    parts, height = [], level(figure.value)
    if figure.high is not None:
        top = level(figure.high)
        box = f'x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height - top:.1f}"'
        parts.append(f'<rect {box} fill="{INK}" opacity="0.08"/>')
    return [*parts, line(LEFT, height, WIDTH - RIGHT, height, INK, 1.5, "5 3")]


def _point(
    across: float, figure: Figure, level: Callable[[float], float], colour: str, told: str = "", radius: float = 4
) -> list[str]:
    parts = []
    if figure.low is not None and figure.high is not None:
        parts.append(line(across, level(figure.low), across, level(figure.high), colour, 1.5))
    inner = f"><title>{escape(told)}</title></circle>" if told else "/>"
    circle = f'<circle cx="{across:.1f}" cy="{level(figure.value):.1f}" r="{radius:g}" fill="{colour}"'
    return [*parts, f"{circle}{inner}"]


def _beside(name: str, across: float, height: float, shifts: Sequence[float]) -> list[tuple[str, float, Box]]:
    """Where a name may stand beside its point, by ``shifts`` down: (anchor, x, the box that it fills)."""
    wide, spots = 6.1 * len(name), []
    for shift in shifts:
        top = height - 7 + shift
        if across - 8 - wide >= LEFT:
            spots.append(("end", across - 8, (across - 8 - wide, top, across - 8, top + 13)))
        if across + 8 + wide <= WIDTH:
            spots.append(("start", across + 8, (across + 8, top, across + 8 + wide, top + 13)))
    return spots


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _place(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
