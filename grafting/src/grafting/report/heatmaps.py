"""Drawings of an analysis: heat maps with their numbers, curves of locality in panels, and attention maps as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .figures import FAINT, HYBRID, INK, RULE, WIDTH, drawing, line, number, text

if TYPE_CHECKING:
    import torch

_STOPS = ((247, 250, 253), (120, 184, 226), (10, 88, 150), (6, 30, 66))
_NUMBERED = 16
"""Columns up to which a cell has room for its number."""
_POINTS = 128
_DOUBLINGS = (-2.0, 4.0)
"""An attention map's colours run from a quarter of uniform attention to sixteen times it."""


def ramp(share: float) -> tuple[int, int, int]:
    """A colour from near white (0) over blue to near black (1), ever darker, so that it survives a grey print."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    at = min(int(place), len(_STOPS) - 2)
    r, g, b = (round(p + (q - p) * (place - at)) for p, q in zip(_STOPS[at], _STOPS[at + 1], strict=True))
    return r, g, b


def heat_map(
    values: Sequence[Sequence[float]],
    title: str,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    down: str,
    across: str,
    logarithmic: bool = False,
) -> str:
    """Cells coloured from the least to the largest value, with their numbers where there is room.

    logarithmic: of the colours alone, where every value is above zero. A value that is not a number stays empty.
    """
    finite = [v for row in values for v in row if math.isfinite(v)]
    if not finite:
        return ""
    logarithmic = logarithmic and min(finite) > 0
    low, high = (math.log(f(finite)) if logarithmic else f(finite) for f in (min, max))
    left, top, cell = max(58.0, 14 + 6.6 * max(map(len, rows))), 34, 24
    wide = (WIDTH - left) / len(columns)
    parts = [text(left, 12, f"{across} →", size=12, fill=FAINT), text(0, top - 8, f"{down} ↓", size=12, fill=FAINT)]
    every = max(1, -(-len(columns) // _NUMBERED))
    parts += [
        text(left + (k + 0.5) * wide, top - 8, label, anchor="middle", size=12, fill=FAINT)
        for k, label in enumerate(columns)
        if k % every == 0
    ]
    for r, (label, row) in enumerate(zip(rows, values, strict=True)):
        y = top + r * cell
        parts.append(text(left - 8, y + 16, label, anchor="end", size=12))
        for c, value in enumerate(row):
            if not math.isfinite(value):
                continue
            share = ((math.log(value) if logarithmic else value) - low) / (high - low) if high > low else 0.5
            r_, g_, b_ = ramp(share)
            told = f"<title>{down} {label}, {across} {columns[c]}: {number(value)}</title>"
            box = f'x="{left + c * wide:.1f}" y="{y}" width="{wide - 1:.1f}" height="{cell - 1}"'
            parts.append(f'<rect {box} fill="rgb({r_},{g_},{b_})">{told}</rect>')
            if len(columns) <= _NUMBERED:
                ink = "#fff" if share > 0.45 else "#1f2933"
                parts.append(text(left + (c + 0.5) * wide, y + 16, number(value), anchor="middle", size=11, fill=ink))
    return drawing(WIDTH, top + len(rows) * cell + 4, title, parts)


def locality_panels(
    curves: Sequence[Sequence[float]], uniform: Sequence[float], blocks: Sequence[int], reach: int, title: str
) -> str:
    """One panel per block: L_k over k, beside uniform attention (dashed); the value at ``reach`` is marked and told."""
    columns, gap, high = 4, 18, 96
    step = (WIDTH + gap) / columns
    wide, row, last = step - gap, high + 34, max(len(uniform) - 1, 1)
    kept = sorted({round(i * last / _POINTS) for i in range(_POINTS + 1)} | {min(reach, last)})
    parts: list[str] = []
    for place, (block, curve) in enumerate(zip(blocks, curves, strict=True)):
        x, y = place % columns * step, 20 + place // columns * row

        def path(values: Sequence[float], x: float = x, y: float = y) -> str:
            return "L".join(f"{x + k / last * wide:.1f} {y + (1 - values[k]) * high:.1f}" for k in kept)

        parts += [line(x, y + high, x + wide, y + high, RULE), line(x, y, x, y + high, RULE)]
        parts.append(
            f'<path d="M{path(uniform)}" fill="none" stroke="{FAINT}" stroke-width="1.2" stroke-dasharray="5 4"/>'
        )
        parts.append(f'<path d="M{path(curve)}" fill="none" stroke="{HYBRID}" stroke-width="2"/>')
        at = (x + reach / last * wide, y + (1 - curve[reach]) * high)
        parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.5" fill="{HYBRID}"/>')
        parts.append(text(x, y - 6, f"block {block}", size=12, fill=INK))
        parts.append(text(x + wide, y - 6, f"{curve[reach]:.2f}", anchor="end", size=12, fill=FAINT))
    bottom = 20 + ((len(blocks) - 1) // columns + 1) * row - 18
    parts += [
        text(0, bottom, "k = 0", size=11, fill=FAINT),
        text(wide, bottom, f"{last}", anchor="end", size=11, fill=FAINT),
    ]
    return drawing(WIDTH, bottom + 6, title, parts)


def coloured(ratios: torch.Tensor) -> torch.Tensor:
    """(n, H, W) ratios to uniform attention to (n, 3, H, W) colours in [-1, 1], by doublings."""
    import torch

    low, high = _DOUBLINGS
    shares = ((ratios.clamp(min=1e-9).log2() - low) / (high - low)).clamp(0, 1)
    table = torch.tensor([ramp(i / 255) for i in range(256)], dtype=torch.float32) / 127.5 - 1
    return table[(shares * 255).round().long()].permute(0, 3, 1, 2)
