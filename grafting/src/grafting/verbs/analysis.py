"""What a model does inside: ``analyze``."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ..progress import progress_line
from .shared import (
    MODEL,
    Verbs,
    alone,
    at_least,
    base_option,
    device_option,
    folder_of,
    integers,
    sampling_of,
    sampling_options,
    weights_option,
)


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("analyze", analyze, "how local attention is in each block, and how activations are spread")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--out", type=Path, help="the folder for tables, figures, plans and the page (default: in out/)")
    made.add_argument(
        "--samples", type=at_least(1), default=256, metavar="N", help="drawn while watching (default 256)"
    )
    made.add_argument("--batch", type=at_least(1), default=64, metavar="N", help="samples of one pass (default 64)")
    made.add_argument(
        "--data", metavar="FOLDER", help="of grafting encode: whose held-out captions a model of text is watched on"
    )
    made.add_argument("--k", type=integers, default=[], metavar="K,K,…", help="reaches; the first one ranks the blocks")
    made.add_argument("--distance", default="raster", help="what K counts and blocks are ranked by: raster or grid")
    made.add_argument("--operator", default="hyena_x", help="of the suggested plans, by its name alone")
    made.add_argument("--json", action="store_true")
    base_option(made)
    weights_option(made)
    sampling_options(made)
    device_option(made)
    made.set_defaults(steps=10)


def analyze(arguments: argparse.Namespace) -> None:
    """Watch a model while it samples; write tables, figures, suggested plans and a page."""
    from ..hosts import host_for
    from ..measure.analysis import DISTANCES, check_reach
    from ..measure.analysis import analyze as watch
    from ..operators import get
    from ..report.analysis import write_analysis
    from ..store.models import open_model
    from ..study.material import Material

    if arguments.distance not in DISTANCES:
        raise ValueError(f"--distance {arguments.distance!r}: {' or '.join(DISTANCES)}")
    if arguments.batch < 1:
        raise ValueError(f"--batch {arguments.batch}: at least 1")
    if (kind := get(arguments.operator).kind) != "mixer":  # an unknown one is refused here too, before the work
        raise ValueError(f"--operator {arguments.operator}: a {kind} operator, attention takes a mixer")
    model = open_model(arguments.model, base=arguments.base, weights=arguments.weights).to(alone(arguments).device)
    host, conditions = host_for(model.transformer), None
    grid = host.grid_of(model.transformer)
    for k in arguments.k:
        check_reach(k, max(grid) if arguments.distance == "grid" else math.prod(grid))
    if host.condition == "labels" and arguments.data is not None:
        raise ValueError(f"--data {arguments.data}: is for models of text; this one is walked over its classes")
    if host.condition == "captions":
        conditions = Material(model, arguments.data).conditions(train=False)
    out = arguments.out or folder_of(arguments.model, "analysis")
    found = watch(
        model.transformer,
        name=arguments.model,
        samples=arguments.samples,
        sampling=sampling_of(arguments),
        seed=arguments.seed,
        batch=arguments.batch,
        conditions=conditions,
        progress=progress_line("analyze"),
    )
    page = write_analysis(out, found, reaches=arguments.k, distance=arguments.distance, operator=arguments.operator)
    content: dict[str, Any] = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    print(json.dumps(content, indent=2) if arguments.json else _table(content, page))


def _table(content: dict[str, Any], page: Path) -> str:
    """Blocks, the most local first, with the losses that their sites ask for."""
    sites = {site["site"]: site for site in content["sites"]}
    blocks = {entry["block"]: entry for entry in content["blocks"]}
    ranking, reach = content["ranking"], content["reach"]
    order = ranking["order"] if ranking else list(blocks)
    heads = ("block", f"L_{reach['raster']} raster", f"L_{reach['grid']} grid", "attn", "mlp")
    lines = ["{:<7}{:>13}{:>13}   {:<24}{:<24}".format(*heads)]
    for block in order:
        tails = []
        for kind in ("attn", "mlp"):
            site = sites.get(f"blocks.{block}.{kind}")
            if site is None:  # not every block has both
                tails.append("–")
                continue
            kurtosis = site["output"]["kurtosis"]
            tails.append(f"{site['loss']} (tails {'–' if kurtosis is None else format(kurtosis, '.3g')})")
        entry = blocks[block]
        lines.append(
            f"{block:<7}{entry['raster']:>13.3f}{entry['grid']:>13.3f}   {tails[0]:<24}{tails[1]:<24}".rstrip()
        )
    even = content["uniform"]
    lines += [f"{'even':<7}{even['raster']:>13.3f}{even['grid']:>13.3f}", "", str(page)]
    return "\n".join(lines)
