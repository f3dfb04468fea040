"""What ``grafting search`` leaves: plans, the figures that they follow from, and one page over all of them.

plans/best.yaml        the plan under the budget; plans/front-NN.yaml: the front, the cheapest first
search.json            scores, costs, the front and the plan under the budget; written last
search.html            the page, drawn from search.json alone
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import read_json, write_json_atomic, write_text_atomic
from ..hosts.shapes import KINDS
from ..searching.costs import Budget
from ..searching.find import Found
from ..searching.search import SCHEMA, Front
from .figures import number
from .frontier import Layout, front_line, operator_map
from .heatmaps import heat_map
from .page import template

FILE = "search.json"
PREDICTORS = {"loss": "change of the held-out loss", "carried": "error carried into the residual stream"}
"""What the scores are, in words."""


def write_search(out: Path, front: Front, budget: Budget, best: Found | str) -> Path:
    """Write everything into the folder ``out``; plans of an earlier budget go. Returns the page's path.

    best: the plan under the budget, or why there is none.
    """
    for old in (*(out / "plans").glob("front-*.yaml"), out / "plans" / "best.yaml"):
        old.unlink(missing_ok=True)
    for place, one in enumerate(front.plans):
        write_text_atomic(out / "plans" / f"{plan_name(place)}.yaml", one.to_yaml())
    content = front.to_dict() | {"budget": budget.text}
    if isinstance(best, str):
        content |= {"best": None, "refused": best}
    else:
        write_text_atomic(out / "plans" / "best.yaml", best.to_yaml())
        content |= {"best": best.to_dict()}
    page = out / "search.html"
    write_search_page(page, content)
    write_json_atomic(out / FILE, content)
    return page


def plan_name(place: int) -> str:
    """Of the plan at a place of the front."""
    return f"front-{place:02d}"


def read_search(path: Path) -> dict[str, Any]:
    """The content of a ``search.json``. Raises ValueError for a file that is none of this version."""
    content = read_json(path, ("schema", "model", "depth", "scores", "front", "best"))
    if content["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema {content['schema']!r}, this version reads {SCHEMA}")
    return content


def write_search_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a ``search.json``'s content, atomically."""
    from markupsafe import Markup

    plans, best = content["front"], content["best"]
    rows = [
        {
            "name": plan_name(place),
            "share": one["share"],
            "predicted": one["predicted"],
            "swapped": sum(len(edit["blocks"]) for edit in one["plan"]["edits"]),
            "operators": _counts(one["plan"]),
            "measured": one.get("measured"),
        }
        for place, one in enumerate(plans)
    ]
    text = template("search.html").render(
        s=content,
        rows=rows,
        seen=any(one.get("measured") for one in (*plans, best or {})),
        best=best,
        operators="" if best is None else _counts(best["plan"]),
        swapped=0 if best is None else sum(len(edit["blocks"]) for edit in best["plan"]["edits"]),
        svg={name: Markup(svg) for name, svg in drawings(content).items()},
        maps=[(heading, Markup(svg)) for heading, svg in score_maps(content)],
        plan=path.with_name("plans") / "best.yaml",
        words=PREDICTORS,
        number=number,
    )
    write_text_atomic(path, text)


def drawings(content: Mapping[str, Any]) -> dict[str, str]:
    """``front``, ``map`` and ``best`` of a ``search.json``, SVG: loss against cost, which operator stands where along
    the front, and in the plan under the budget."""
    plans, chosen = content["front"], [] if content["best"] is None else [content["best"]]
    points = [(one["share"], one["predicted"]) for one in (*plans, *chosen)]
    # Losses stand beside losses alone, and times where they were taken.
    whole = [(one, one["measured"]) for one in (*plans, *chosen) if one.get("measured")]
    seen = [(found["share"] or one["share"], *(found[key] for key in ("value", "low", "high"))) for one, found in whole]
    kinds = [kind for kind in KINDS if any(swap["kind"] == kind for swap in content["swaps"])]

    def mapped(listed: Sequence[Mapping[str, Any]], title: str) -> str:
        layouts = [(f"{one['share']:.3f}", layout(one["plan"], kinds, content["depth"])) for one in listed]
        return operator_map(layouts, title, down=content["cost"])

    return {
        "front": front_line(
            points,
            "the front",
            x=f"{content['cost']}, share of the pretrained model's",
            y=f"predicted {content['by']}",
            marked=len(plans) if chosen else None,
            seen=seen if content["by"] == "loss" else (),
        ),
        "map": mapped(plans[::-1], "which operator stands where"),
        "best": mapped(chosen, "the plan under the budget"),
    }


def layout(plan: Mapping[str, Any], kinds: Sequence[str], depth: int) -> Layout:
    """By kind of site, the operator of every block of a searched plan, whose edits name their blocks."""
    sites: dict[str, list[str | None]] = {kind: [None] * depth for kind in kinds}
    for edit in plan["edits"]:
        for block in edit["blocks"]:
            sites[edit["site"]][block] = _label(edit)
    return sites


def score_maps(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(heading, SVG) of every predictor at every kind of site: blocks down, operators across; empty where a block has
    no such site."""
    found = []
    for by, words in PREDICTORS.items():
        for kind in KINDS:
            scores = {(s["block"], s["candidate"]): s[by] for s in content["scores"] if s["kind"] == kind}
            names = list(dict.fromkeys(name for _, name in scores))
            if not names:
                continue
            blocks = range(content["depth"])
            heading = f"{kind}: {words}"
            svg = heat_map(
                [[scores.get((block, name), math.nan) for name in names] for block in blocks],
                heading,
                rows=[str(block) for block in blocks],
                columns=names,
                down="block",
                across="operator",
                logarithmic=True,
            )
            found.append((heading, svg))
    return found


def _label(edit: Mapping[str, Any]) -> str:
    return ":".join([edit["operator"], *(f"{key}={value}" for key, value in edit.get("options", {}).items())])


def _counts(plan: Mapping[str, Any]) -> str:
    """``attn: hyena_x × 3; mlp: mlp:ratio=3 × 5, none × 1``."""
    edits: Sequence[Mapping[str, Any]] = plan["edits"]
    by_kind = {kind: [e for e in edits if e["site"] == kind] for kind in KINDS}
    told = {kind: ", ".join(f"{_label(e)} × {len(e['blocks'])}" for e in mine) for kind, mine in by_kind.items()}
    return "; ".join(f"{kind}: {words}" for kind, words in told.items() if words)
