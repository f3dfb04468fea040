"""Quality against what it cost: lines over a logarithmic axis, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .figures import COLOURS, FAINT, INK, RULE, WIDTH, drawing, line, number, text
from .results import Figure

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 58, 150, 12, 44


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
    first, last = math.log(places[0]), math.log(places[-1])
    wide = last - first or 1.0

    def at(place: float, value: float) -> tuple[float, float]:
        along = (math.log(place) - first) / wide if last > first else 0.5
        return LEFT + along * (WIDTH - LEFT - RIGHT), TOP + (high - value) / spread * (HEIGHT - TOP - BOTTOM)

    parts = []
    for k in range(5):
        value = low + spread * k / 4
        height = at(places[0], value)[1]
        parts.append(line(LEFT, height, WIDTH - RIGHT, height, RULE))
        parts.append(text(LEFT - 6, height + 4, number(value), anchor="end", size=12, fill=FAINT))
    for place in places:
        across = at(place, low)[0]
        parts.append(text(across, HEIGHT - 26, _place(place), anchor="middle", size=12, fill=FAINT))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x, anchor="middle", size=12, fill=FAINT))
    parts.append(text(0, TOP + 2, y, size=12, fill=FAINT))
    ends = []
    if reference is not None:
        height = at(places[0], reference.value)[1]
        if reference.high is not None:
            top = at(places[0], reference.high)[1]
            box = f'x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height - top:.1f}"'
            parts.append(f'<rect {box} fill="{INK}" opacity="0.08"/>')
        parts.append(line(LEFT, height, WIDTH - RIGHT, height, INK, 1.5, "5 3"))
        ends.append((height, "teacher", INK))
    for k, trace in enumerate(lines):
        colour = COLOURS[k % len(COLOURS)]
        dash = "" if k < len(COLOURS) else "4 3"
        where = [at(place, figure.value) for place, figure in sorted(trace.points, key=lambda point: point[0])]
        parts += [line(*a, *b, colour, 2, dash) for a, b in pairwise(where)]
        for place, figure in trace.points:
            across, height = at(place, figure.value)
            if figure.low is not None and figure.high is not None:
                parts.append(line(across, at(place, figure.low)[1], across, at(place, figure.high)[1], colour, 1.5))
            parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="4" fill="{colour}"/>')
        if where:
            ends.append((where[-1][1], trace.name, colour))
    height = -math.inf
    for end, name, colour in sorted(ends):
        height = max(end, height + 15)
        parts.append(text(WIDTH - RIGHT + 8, height + 4, name, size=12, fill=colour))
    return drawing(WIDTH, max(HEIGHT, height + 10), title, parts)


def _place(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
