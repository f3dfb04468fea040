"""Loss curves as inline SVG: one small drawing per site, all on the same axes, or a few models on one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .figures import FAINT, HYBRID, INK, RULE, WIDTH, drawing, line, number, text
from .results import Curve

_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_COLUMNS, _GAP, _HEIGHT = 4, 14, 92


class _Axes:
    """Steps from left to right, losses upwards on a logarithmic axis; every curve of a drawing shares the range."""

    def __init__(self, lines: Sequence[Curve]) -> None:
        points = [p for c in lines for p in (*zip(c.steps, c.losses, strict=True), *c.held_out) if p[1] > 0]
        self.empty = not points
        if self.empty:
            return
        self.last = max(s for s, _ in points) or 1
        low, high = (math.log10(f(v for _, v in points)) for f in (min, max))
        self.low, self.high = (low, high) if high - low > 0.1 else (low - 0.05, high + 0.05)

    def path(self, points: Sequence[tuple[int, float]], x: float, y: float, width: float, height: float) -> list[str]:
        """``X Y`` in a box, one per loss above zero."""
        rise = height / (self.high - self.low)
        return [
            f"{x + step / self.last * width:.1f} {y + (self.high - math.log10(v)) * rise:.1f}"
            for step, v in points
            if v > 0
        ]

    def level(self, share: float) -> float:
        """The loss at a share of the axis, from 0 at the bottom."""
        return float(10 ** (self.low + (self.high - self.low) * share))


def site_curves(lines: Sequence[Curve], title: str) -> str:
    """One panel per site: the batches' loss as a thin line, the held-out error as dots on a thick one.

    The last held-out error (the last loss where there is none) stands beside the site's name.
    """
    axes, parts = _Axes(lines), list[str]()
    if axes.empty:
        return ""
    columns = min(_COLUMNS, len(lines))
    left, step = 48, (WIDTH - 48 + _GAP) / columns
    width, row = step - _GAP, _HEIGHT + 36
    for k, curve in enumerate(lines):
        x, y = left + k % columns * step, 22 + k // columns * row
        if k % columns == 0:
            for share in (0.0, 1.0):
                parts.append(
                    text(x - 6, y + (1 - share) * _HEIGHT + 4, number(axes.level(share)), anchor="end", size=11)
                )
        parts += [line(x, y + _HEIGHT, x + width, y + _HEIGHT, RULE), line(x, y, x, y + _HEIGHT, RULE)]
        last = curve.held_out[-1][1] if curve.held_out else curve.losses[-1] if curve.losses else None
        parts.append(text(x, y - 7, curve.name, size=12))
        if last is not None:
            parts.append(text(x + width, y - 7, number(last), anchor="end", size=12, fill=FAINT))
        box = (x, y, width, _HEIGHT)
        trained = axes.path(list(zip(curve.steps, curve.losses, strict=True)), *box)
        judged = axes.path(curve.held_out, *box)
        if trained:
            stroke, thick = (FAINT, 1.0) if judged else (HYBRID, 1.6)
            parts.append(f'<path d="M{"L".join(trained)}" fill="none" stroke="{stroke}" stroke-width="{thick}"/>')
        if judged:
            parts.append(f'<path d="M{"L".join(judged)}" fill="none" stroke="{HYBRID}" stroke-width="2.4"/>')
            spots = (point.split() for point in judged)
            parts += [f'<circle cx="{a}" cy="{b}" r="3.2" fill="{HYBRID}"/>' for a, b in spots]
    bottom = 22 + ((len(lines) - 1) // columns + 1) * row - 18
    parts.append(text(left, bottom, "step 0", size=11, fill=FAINT))
    parts.append(text(left + width, bottom, f"{axes.last:,}", anchor="end", size=11, fill=FAINT))
    return drawing(WIDTH, bottom + 8, title, parts)


def model_curves(lines: Sequence[Curve], title: str) -> str:
    """Losses of a few models on one pair of axes, told apart by dashes and by the name at the end of each line."""
    axes, parts = _Axes(lines), list[str]()
    if axes.empty:
        return ""
    left, right, top, height = 56, 150, 10, 210
    width = WIDTH - left - right
    for k in range(5):
        y, x = top + (1 - k / 4) * height, left + k / 4 * width
        parts += [
            line(left, y, left + width, y, RULE),
            text(left - 6, y + 4, number(axes.level(k / 4)), anchor="end", size=12),
        ]
        parts.append(text(x, top + height + 18, f"{round(axes.last * k / 4):,}", anchor="middle", size=12, fill=FAINT))
    parts.append(text(left + width / 2, top + height + 34, "step", anchor="middle", size=12, fill=FAINT))
    ends = []
    for k, curve in enumerate(lines):
        path = axes.path(list(zip(curve.steps, curve.losses, strict=True)), left, top, width, height)
        if path:
            dash = f' stroke-dasharray="{_DASHES[k % len(_DASHES)]}"' if k % len(_DASHES) else ""
            stroke = HYBRID if k == 0 else INK
            parts.append(f'<path d="M{"L".join(path)}" fill="none" stroke="{stroke}" stroke-width="1.8"{dash}/>')
            ends.append((float(path[-1].split()[1]), curve.name))
    places = list[float]()
    for y, _ in sorted(ends):
        places.append(max(y, places[-1] + 15) if places else y)
    lift = max(0.0, places[-1] - (top + height)) if places else 0.0  # names pushed apart must not leave the drawing
    for place, (y, name) in zip(places, sorted(ends), strict=True):
        parts.append(line(left + width + 2, y, left + width + 12, place - lift, FAINT))
        parts.append(text(left + width + 15, place - lift + 4, name, size=12))
    return drawing(WIDTH, top + height + 42, title, parts)
