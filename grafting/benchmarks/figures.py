"""Drawings of the documents from the recorded measurements, as SVG.

python grafting/benchmarks/figures.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from grafting.cost import plan_cost
from grafting.files import write_text_atomic
from grafting.hosts import bundled_config
from grafting.plan import Plan
from grafting.report.figures import CONTROL, FAINT, HYBRID, INK, RULE, WIDTH, drawing, line, text, ticks
from grafting.report.heatmaps import heat_map
from grafting.report.search import drawings
from grafting.teachers import teacher_folder

HOME = Path(__file__).resolve().parents[1]
SIDES = range(16, 129, 8)
"""Tokens along a side, from 256 to 16,384 in all."""


def bounds() -> str:
    """FLOP bounds of DiT-XL/2's blocks over the number of tokens, and the stacks that were timed."""
    config, top, left, right, bottom = bundled_config("dit-xl-2-256"), 20.0, 46.0, 160.0, 330.0
    swaps = {
        "every core": (Plan.all(operator="hyena_x"), HYBRID),
        "half of the cores": (Plan.interleaved(operator="hyena_x"), CONTROL),
    }

    def at(tokens: float, speedup: float) -> tuple[float, float]:
        along = math.log(tokens / SIDES[0] ** 2) / math.log((SIDES[-1] / SIDES[0]) ** 2)
        return left + along * (WIDTH - left - right), bottom - (speedup - 1) / 2.5 * (bottom - top)

    parts = [text(0, 12, "speed-up of a forward pass", size=12, fill=FAINT)]
    for speedup in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5):
        height = at(256, speedup)[1]
        parts += [
            line(left, height, WIDTH - right, height, RULE),
            text(left - 8, height + 4, f"{speedup:g}x", anchor="end", size=12, fill=FAINT),
        ]
    for tokens in (256, 1024, 4096, 16384):
        parts.append(text(at(tokens, 1)[0], bottom + 18, f"{tokens:,}", anchor="middle", size=12, fill=FAINT))
    parts.append(text((left + WIDTH - right) / 2, bottom + 36, "latent tokens", anchor="middle", size=12, fill=FAINT))
    for name, (plan, colour) in swaps.items():
        curve = [at(side**2, plan_cost(plan, config, grid=(side, side)).flop_bound) for side in SIDES]
        parts += [line(*a, *b, colour, 2) for a, b in pairwise(curve)]
        parts.append(text(curve[-1][0] + 8, curve[-1][1] + 4, f"bound, {name}", size=12, fill=colour))
    for name, label, shift in (("stack", "DiT, measured", -10.0), ("pixart", "PixArt-Sigma, measured", 42.0)):
        found = measured(name)
        across, height = at(found["tokens"], found["speedup"])
        parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="5" fill="{INK}"/>')
        parts.append(text(across - 8, height + shift, f"{label}: {found['speedup']:.2f}x", anchor="end", size=12))
    return drawing(WIDTH, bottom + 44, "Speed-up against the number of tokens", parts)


def merged() -> str:
    """Speed of two blocks side by side over the same two one after the other."""
    rows: Sequence[dict[str, Any]] = measured("parallel")["rows"]
    left, step, low, high = 230.0, 26.0, 0.9, 1.3
    bottom = 20 + step * len(rows)

    def at(speedup: float) -> float:
        return left + (min(max(speedup, low), high) - low) / (high - low) * (WIDTH - left - 20)

    parts = []
    for tick in (0.9, 1.0, 1.1, 1.2, 1.3):
        parts.append(line(at(tick), 8, at(tick), bottom, INK if tick == 1 else RULE, 1.5 if tick == 1 else 1))
        parts.append(text(at(tick), bottom + 18, f"{tick:g}x", anchor="middle", size=12, fill=FAINT))
    for k, row in enumerate(rows):
        y = 22 + step * k
        label = f"width {row['width']:,}, batch {row['batch']}, {row['tokens']:,} tokens"
        scale, dense = (row["speedup"][name] for name in ("scale", "dense"))
        parts += [text(0, y + 5, label, size=13), line(at(dense), y, at(scale), y, RULE, 3)]
        parts.append(f'<circle cx="{at(scale):.1f}" cy="{y:.1f}" r="6" fill="{HYBRID}"/>')
        parts.append(f'<rect x="{at(dense) - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{CONTROL}"/>')
    parts.append(text(left, bottom + 38, "round: scale; square: dense combinations", size=12, fill=FAINT))
    return drawing(WIDTH, bottom + 46, "A merged pair over its two blocks in turn", parts)


def predictors() -> str:
    """What hybrids lose after both stages over what either predictor said before any training, row by row."""
    content = measured("scores")
    rows = [row for row in content["rows"] if "hybrids" in row["groups"]]
    told = content["spearman"]["hybrids"]["finetuned"]
    top, bottom, gap, edge = 30.0, 250.0, 40.0, 52.0
    panel = (WIDTH - edge - gap) / 2
    lost = [row["finetuned"][key] for row in rows for key in ("low", "high")]
    parts = [text(0, 12, "loss above the teacher’s, after both stages", size=12, fill=FAINT)]
    for number, by in enumerate(("loss", "carried")):
        left, said = edge + number * (panel + gap), [row["predicted"][by] for row in rows]

        def at(x: float, y: float, left: float = left, most: float = max(said)) -> tuple[float, float]:
            return left + 0.95 * x / most * panel, bottom - y / max(lost) * (bottom - top)

        for tick in ticks(0.0, max(lost)):
            parts.append(line(left, at(0, tick)[1], left + panel, at(0, tick)[1], RULE))
            parts += [text(left - 6, at(0, tick)[1] + 4, f"{tick:g}", anchor="end", size=12, fill=FAINT)][number:]
        for tick in ticks(0.0, max(said), 4):
            parts.append(text(at(tick, 0)[0], bottom + 18, f"{tick:g}", anchor="middle", size=12, fill=FAINT))
        for row, x in zip(rows, said, strict=True):
            (across, height), found = at(x, row["finetuned"]["value"]), row["finetuned"]
            parts.append(line(across, at(x, found["low"])[1], across, at(x, found["high"])[1], HYBRID, 1.5))
            parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="4.5" fill="{HYBRID}"/>')
        rank = f"predicted by {by}: rank correlation {told[by]['value']:.2f}"
        parts.append(text(left + panel / 2, bottom + 38, rank, anchor="middle", size=12, fill=FAINT))
    return drawing(WIDTH, bottom + 46, "Finetuned loss over either prediction, a dot for each hybrid", parts)


def locality() -> str:
    """How near the bundled teacher's attention looks, by block and timestep, out of the analysis that ships with it."""
    found = json.loads((teacher_folder("fashion") / "analysis.json").read_text(encoding="utf-8"))
    return heat_map(
        [entry["timesteps"] for entry in found["blocks"]],
        f"L_{found['reach']['raster']} over the raster",
        rows=[str(entry["block"]) for entry in found["blocks"]],
        columns=[str(t) for t in found["timesteps"]],
        down="block",
        across="timestep",
    )


def measured(name: str) -> Any:
    """A recorded benchmark."""
    return json.loads((HOME / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def drawn() -> dict[str, str]:
    """All of them by the name of their file."""
    searched = drawings(measured("search-front"))
    return {
        "what-to-expect": bounds(),
        "locality": locality(),
        "restructure": merged(),
        "predictors": predictors(),
        "search-front": searched["front"],
        "search-map": searched["map"],
    }


def main() -> None:
    """Write them."""
    for name, svg in drawn().items():
        write_text_atomic(HOME / "docs" / f"{name}.svg", svg + "\n")
        print(HOME / "docs" / f"{name}.svg")


if __name__ == "__main__":
    main()
