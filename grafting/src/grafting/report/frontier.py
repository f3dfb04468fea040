"""Drawings of a search: predicted loss against cost, and which operator stands where as the budget grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from .figures import (
    COLOURS,
    CONTROL,
    FAINT,
    HYBRID,
    INK,
    RULE,
    UNTOUCHED,
    WIDTH,
    drawing,
    line,
    root,
    root_ticks,
    text,
    ticks,
)

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 66, 16, 14, 46, 320

Layout = Mapping[str, Sequence[str | None]]
"""By kind of site, the operator of every block; None where the original stays."""


Seen = tuple[float, float, float, float]
"""Share of the cost, loss, and the ends of its interval."""


def front_line(
    points: Sequence[tuple[float, float]],
    title: str,
    *,
    x: str,
    y: str,
    marked: int | None = None,
    seen: Sequence[Seen] = (),
) -> str:
    """(share of the cost, predicted loss) of plans, joined as steps: between two plans a budget buys the cheaper one.

    The pretrained model is the square at (1, 0); ``marked`` is the plan that was asked for. seen: of plans that were
    measured whole, as rings with their intervals. Losses are drawn as square roots. x, y: what the axes hold.
    """
    xs = [*(p[0] for p in points), *(s[0] for s in seen), 1.0]
    ys = [*(p[1] for p in points), *(v for s in seen for v in s[1:]), 0.0]
    low, high = root(min(ys)), root(max(ys))
    left, right = min(xs), max(xs)
    tall, wide = high - low or 1.0, right - left or 1.0
    low, high = low - 0.06 * tall, high + 0.06 * tall
    left, right = left - 0.03 * wide, right + 0.03 * wide

    def at(share: float, loss: float) -> tuple[float, float]:
        across = _LEFT + (share - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (high - root(loss)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    bottom = _HEIGHT - _BOTTOM
    parts = []
    for tick in root_ticks(min(ys), max(ys), lambda tick: at(left, tick)[1], 22):
        level = at(left, tick)[1]
        parts.append(line(_LEFT, level, WIDTH - _RIGHT, level, FAINT if tick == 0 else RULE))
        parts.append(text(_LEFT - 6, level + 4, f"{tick:g}", anchor="end", size=12, fill=FAINT))
    for tick in ticks(left, right, 7):
        across = at(tick, 0.0)[0]
        parts.append(line(across, bottom, across, bottom + 5, FAINT))
        parts.append(text(across, bottom + 18, f"{tick:g}", anchor="middle", size=12, fill=FAINT))
    parts.append(text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, x, anchor="middle", size=12, fill=FAINT))
    parts.append(text(0, _TOP - 2, y, size=12, fill=FAINT))
    whole = (1.0, 0.0)
    ordered = sorted(points)
    for (share, loss), (following, lower) in pairwise([*ordered, *([whole] if ordered and ordered[-1][0] < 1 else [])]):
        a, corner, b = at(share, loss), at(following, loss), at(following, lower)
        parts += [line(*a, *corner, HYBRID, 2), line(*corner, *b, HYBRID, 2)]
    for k, point in enumerate(points):
        across, level = at(*point)
        colour, size = (CONTROL, 7) if k == marked else (HYBRID, 4.5)
        told = f"<title>plan {k}: {point[0]:.4f}, {point[1]:+.5f}</title>"
        parts.append(f'<circle cx="{across:.1f}" cy="{level:.1f}" r="{size}" fill="{colour}">{told}</circle>')
        if k == marked:
            # Above the name of the pretrained model, which may be near.
            side, shift = ("start", 10) if across < WIDTH - 130 else ("end", -10)
            parts.append(text(across + shift, level - 24, "under the budget", anchor=side, size=12, fill=CONTROL))
    for share, loss, least, most in seen:
        (across, level), (_, top), (_, foot) = at(share, loss), at(share, most), at(share, least)
        parts.append(line(across, top, across, foot, INK, 1.5))
        told = f"<title>measured: {share:.4f}, {loss:+.5f}</title>"
        ring = f'r="5" fill="#fff" stroke="{INK}" stroke-width="1.5"'
        parts.append(f'<circle cx="{across:.1f}" cy="{level:.1f}" {ring}>{told}</circle>')
    across, level = at(*whole)
    told = "<title>the pretrained model</title>"
    parts.append(f'<rect x="{across - 5:.1f}" y="{level - 5:.1f}" width="10" height="10" fill="{INK}">{told}</rect>')
    parts.append(text(across - 10, level - 8, "pretrained", anchor="end", size=12))
    return drawing(WIDTH, _HEIGHT, title, parts)


def operator_map(layouts: Sequence[tuple[str, Layout]], title: str, *, down: str) -> str:
    """A line for each (label, layout): its operators from the first block to the last, numbered in the legend."""
    names = sorted({op for _, layout in layouts for row in layout.values() for op in row if op is not None})
    kinds = list(layouts[0][1]) if layouts else []
    if not kinds:
        return ""
    left, gap, tall = 62, 14, 24
    depth = max(len(row) for row in layouts[0][1].values())
    panel = (WIDTH - left - gap * (len(kinds) - 1)) / len(kinds)
    cell = panel / depth
    parts = [text(0, 34, f"{down} ↓", size=12, fill=FAINT)]
    for k, kind in enumerate(kinds):
        x = left + k * (panel + gap)
        parts.append(text(x, 12, f"{kind}, block →", size=12, fill=FAINT))
        every = 1 if cell >= 16 else 5
        parts += [
            text(x + (b + 0.5) * cell, 34, str(b), anchor="middle", size=11, fill=FAINT) for b in range(0, depth, every)
        ]
    for r, (label, layout) in enumerate(layouts):
        y = 42 + r * tall
        parts.append(text(left - 8, y + 16, label, anchor="end", size=12))
        for k, (kind, row) in enumerate(layout.items()):
            for block, op in enumerate(row):
                x = left + k * (panel + gap) + block * cell
                colour = UNTOUCHED if op is None else COLOURS[names.index(op) % len(COLOURS)]
                told = f"<title>{label}, block {block}, {kind}: {escape(op or 'untouched')}</title>"
                box = f'x="{x + 0.5:.1f}" y="{y}" width="{cell - 1:.1f}" height="{tall - 2}"'
                parts.append(f'<rect {box} fill="{colour}">{told}</rect>')
                if op is not None and cell >= 12:
                    number_ = str(names.index(op) + 1)
                    parts.append(text(x + cell / 2, y + 15, number_, anchor="middle", size=12, fill="#fff"))
    y, x = 42 + tall * len(layouts) + 10, float(left)
    for k, name in enumerate([*names, "untouched"]):
        label = name if k == len(names) else f"{k + 1}  {name}"
        wide = 44 + 7.5 * len(label)
        if x + wide > WIDTH:
            x, y = float(left), y + 22
        colour = UNTOUCHED if k == len(names) else COLOURS[k % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="14" height="14" rx="3" fill="{colour}"/>')
        parts.append(text(x + 20, y + 12, label, size=13))
        x += wide
    return drawing(WIDTH, y + 22, title, parts)
