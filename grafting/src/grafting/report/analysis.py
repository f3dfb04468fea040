"""What ``grafting analyze`` leaves: tables, pictures, suggested plans, and one page over all of them.

analysis.json          figures by block and site, and the ranking that plans by locality read; written last
locality.csv           L_k by block, timestep, head, distance and k; curves.csv: for every k, by block
activations.csv        moments and extremes by site, side and timestep
masses.safetensors     attention mass by distance and by offset, from which L_k of any k follows
figures/, plans/       heat maps and curves as SVG, attention maps as PNG; plans as YAML
analysis.html          the page
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..files import save_safetensors_atomic, write_bytes_atomic, write_json_atomic, write_text_atomic
from ..measure.activations import Spread
from ..measure.analysis import DISTANCES, SIDES, Analysis, Distance
from ..measure.locality import pairs
from ..measure.suggest import (
    FILE,
    Ranking,
    huber_corner,
    rank,
    risky_losses,
    suggested_by_kind,
    suggested_losses,
    suggested_plans,
)
from .figures import number
from .grid import grid_png
from .heatmaps import coloured, heat_map, locality_panels
from .page import template

SCHEMA = 1
MEASURES = ("mean", "variance", "skewness", "kurtosis", "low", "high", "extreme")


def write_analysis(
    out: Path,
    analysis: Analysis,
    *,
    reaches: Sequence[int] = (),
    distance: Distance = "raster",
    operator: str = "hyena_x",
) -> Path:
    """Write everything into the folder ``out``; returns the page's path.

    reaches: values of k, the first of which ranks the blocks; the paper's in proportion where empty. distance: that
    ranks, and that they are counted in. operator: of the suggested plans.

    Raises:
        AnalysisError: a k that is no distance between the model's tokens.
    """
    for k in reaches:
        analysis.local(distance, k)  # refuses a bad k before anything is written
    at = {other: [analysis.reach(other, k, of=distance) for k in reaches or (None,)] for other in DISTANCES}
    reach = {other: found[0] for other, found in at.items()}
    whole = len(analysis.blocks) == analysis.depth
    ranking = rank(analysis, distance, reach[distance]) if whole else None
    content = plain(analysis, reach, ranking)
    drawings, pictures = _drawings(analysis, reach), _pictures(analysis)
    plans = {} if ranking is None else suggested_plans(ranking, operator)
    write_text_atomic(out / "locality.csv", _csv(_locality(analysis, at)))
    write_text_atomic(out / "curves.csv", _csv(_curves(analysis)))
    write_text_atomic(out / "activations.csv", _csv(_activations(analysis)))
    masses = {"raster": analysis.raster, "grid": analysis.square, "offsets": analysis.maps}
    save_safetensors_atomic(out / "masses.safetensors", {name: x.float() for name, x in masses.items()})
    for name, svg in drawings.items():
        write_text_atomic(out / "figures" / f"{name}.svg", svg)
    for name, images in pictures.items():
        sheet = grid_png(images, columns=6, zoom=_zoom(images), gap=6)
        write_bytes_atomic(out / "figures" / f"{name}.png", sheet)
    for name, text in plans.items():
        write_text_atomic(out / "plans" / f"{name}.yaml", text)
    page = out / "analysis.html"
    write_text_atomic(page, _page(analysis, content, ranking, drawings, pictures, plans))
    write_json_atomic(out / FILE, content)
    return page


def plain(analysis: Analysis, reach: Mapping[Distance, int], ranking: Ranking | None) -> dict[str, Any]:
    """The content of ``analysis.json``; figures have six digits, and null where nothing varies."""
    local = {distance: analysis.local(distance, k) for distance, k in reach.items()}
    curves = {distance: analysis.curves(distance).mean((1, 2)) for distance in DISTANCES}
    losses = suggested_losses(analysis)
    blocks = [
        {"block": block}
        | {distance: _short(local[distance][place].mean()) for distance in DISTANCES}
        | {
            "heads": [_short(x) for x in local["raster"][place].mean(0)],
            "timesteps": [_short(x) for x in local["raster"][place].mean(1)],
        }
        | {f"{distance} curve": [_short(x) for x in curves[distance][place]] for distance in DISTANCES}
        for place, block in enumerate(analysis.blocks)
    ]
    sites: list[dict[str, Any]] = []
    for site in analysis.sites:
        sides: dict[str, Any] = {side: _moments(analysis.spread(site, side)) for side in SIDES}
        outputs = analysis.spread(site, "output")
        told = {"risky": list(risky_losses(outputs)), "huber corner": _short(huber_corner(outputs))}
        sites.append({"site": site.name, **sides, "loss": losses[site], **told})
    return {
        "schema": SCHEMA,
        "model": analysis.model,
        "protocol": {"sampling": analysis.protocol, "samples": analysis.samples, "seed": analysis.seed},
        "versions": {"grafting": __version__, "torch": torch.__version__},
        "depth": analysis.depth,
        "grid": list(analysis.grid),
        "timesteps": list(analysis.timesteps),
        "reach": dict(reach),
        "uniform": {distance: _short(analysis.uniform(distance)[reach[distance]]) for distance in DISTANCES},
        "ranking": None
        if ranking is None
        else {
            "model": ranking.model,
            "distance": ranking.distance,
            "reach": ranking.reach,
            "values": [_short(value) for value in ranking.values],
            "order": list(ranking.order),
        },
        "blocks": blocks,
        "sites": sites,
        "losses": suggested_by_kind(losses),
    }


def _short(value: Any) -> float | None:
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _moments(spread: Spread) -> dict[str, Any]:
    return {"count": spread.count} | {name: _short(getattr(spread, name)) for name in MEASURES}


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _locality(analysis: Analysis, at: Mapping[Distance, Sequence[int]]) -> Iterable[Sequence[Any]]:
    yield "block", "timestep", "head", "distance", "k", "locality"
    for distance, reaches in at.items():
        for k in dict.fromkeys(reaches):
            found = analysis.curves(distance)[..., k].tolist()
            for block, steps in zip(analysis.blocks, found, strict=True):
                for t, heads in zip(analysis.timesteps, steps, strict=True):
                    for head, value in enumerate(heads):
                        yield block, t, head, distance, k, f"{value:.6g}"


def _curves(analysis: Analysis) -> Iterable[Sequence[Any]]:
    yield "block", "distance", "k", "locality", "uniform"
    for distance in DISTANCES:
        even = analysis.uniform(distance).tolist()
        for block, values in zip(analysis.blocks, analysis.curves(distance).mean((1, 2)).tolist(), strict=True):
            for k, value in enumerate(values):
                yield block, distance, k, f"{value:.6g}", f"{even[k]:.6g}"


def _activations(analysis: Analysis) -> Iterable[Sequence[Any]]:
    yield "block", "site", "side", "timestep", "count", *MEASURES
    for (site, side), spreads in analysis.spreads.items():
        for t, spread in zip(analysis.timesteps, spreads, strict=True):
            yield site.block, site.kind, side, t, spread.count, *(f"{getattr(spread, m):.6g}" for m in MEASURES)


def _drawings(analysis: Analysis, at: Mapping[Distance, int]) -> dict[str, str]:
    """SVG by file name."""
    made: dict[str, str] = {}
    steps = [str(t) for t in analysis.timesteps]
    blocks = [str(block) for block in analysis.blocks]
    for distance, reach in at.items() if analysis.blocks else ():
        local = analysis.local(distance, reach)
        common: dict[str, Any] = {"rows": blocks, "down": "block"}
        made[f"locality-{distance}"] = heat_map(
            local.mean(2).tolist(), f"L_{reach} over the {distance}", columns=steps, across="timestep", **common
        )
        made[f"heads-{distance}"] = heat_map(
            local.mean(1).tolist(),
            f"L_{reach} over the {distance} by head",
            columns=[str(head) for head in range(local.shape[2])],
            across="head",
            **common,
        )
        made[f"curves-{distance}"] = locality_panels(
            analysis.curves(distance).mean((1, 2)).tolist(),
            analysis.uniform(distance).tolist(),
            analysis.blocks,
            reach,
            f"locality over the {distance}",
        )
    for measure, told in (("kurtosis", "excess kurtosis"), ("variance", "variance"), ("extreme", "largest deviation")):
        for kind in dict.fromkeys(site.kind for site in analysis.sites):
            sites = [site for site in analysis.sites if site.kind == kind]
            for side in SIDES:
                made[f"{measure}-{kind}-{side}"] = heat_map(
                    [[getattr(spread, measure) for spread in analysis.spreads[site, side]] for site in sites],
                    f"{told} of the {side} of {kind}",
                    rows=[str(site.block) for site in sites],
                    columns=steps,
                    down="block",
                    across="timestep",
                    logarithmic=True,
                )
    return {name: svg for name, svg in made.items() if svg}


def _pictures(analysis: Analysis) -> dict[str, torch.Tensor]:
    """(L, 3, …) colours by file name: attention by offset, and from token to token where N is small."""
    if not analysis.blocks:
        return {}
    n = analysis.tokens
    # The mean probability at an offset is its mass over the pairs that have it; 1 / N of them all is even.
    found = {"offsets": coloured(analysis.maps * n**2 / pairs(analysis.grid))}
    if analysis.whole is not None:
        found["attention"] = coloured(analysis.whole * n)
    return found


def _zoom(images: torch.Tensor) -> int:
    return max(1, 120 // images.shape[-1])


def _inline(image: torch.Tensor) -> str:
    png = grid_png(image[None], columns=1, zoom=_zoom(image))
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _page(
    analysis: Analysis,
    content: Mapping[str, Any],
    ranking: Ranking | None,
    drawings: Mapping[str, str],
    pictures: Mapping[str, torch.Tensor],
    plans: Mapping[str, str],
) -> str:
    from markupsafe import Markup

    places = {block: place for place, block in enumerate(analysis.blocks)}
    blocks = content["blocks"]
    if ranking is not None:
        blocks = [blocks[places[block]] for block in ranking.order]
    tiles = {name: [_inline(image) for image in images] for name, images in pictures.items()}
    return template("analysis.html").render(
        a=content,
        ranking=ranking,
        blocks=blocks,
        svg={name: Markup(text) for name, text in drawings.items()},
        tiles=[{"block": block, **{name: tiles[name][p] for name in tiles}} for block, p in places.items()],
        plans=plans,
        number=lambda value: "–" if value is None else number(value),
    )
