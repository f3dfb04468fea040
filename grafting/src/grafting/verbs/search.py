"""The best plan under a budget: ``search``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import progress_line
from .shared import (
    MODEL,
    Verbs,
    alone,
    at_least,
    data_option,
    device_option,
    folder_of,
    side_option,
    text_tokens_option,
)

if TYPE_CHECKING:
    from ..searching.find import Found
    from ..searching.search import Front


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("search", search, "the plans of least predicted loss under a budget, and their front", resume="")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--operators", nargs="+", metavar="NAME", help="such as swa mlp:ratio=3 none (default: seven)")
    made.add_argument("--site", choices=("attn", "mlp", "both"), default="both")
    made.add_argument(
        "--budget", default="flops=0.9", metavar="KIND=VALUE", help="flops, parameters or latency; a share, or 12ms"
    )
    made.add_argument("--by", choices=("loss", "carried"), default="loss", help="what predicts quality")
    side_option(made)
    text_tokens_option(made)
    made.add_argument("--batch", type=at_least(1), default=8, metavar="N", help="samples of one pass, for latency")
    made.add_argument(
        "--triples", type=at_least(2), default=256, metavar="N", help="of the held-out loss (default 256)"
    )
    made.add_argument(
        "--points", type=at_least(2), default=20, metavar="N", help="budgets along the front, evenly apart (default 20)"
    )
    made.add_argument(
        "--check", type=at_least(0), default=4, metavar="N", help="plans measured whole along the front (default 4)"
    )
    made.add_argument("--out", type=Path, help="the folder for scores, front and plans (default: in out/)")
    made.add_argument("--json", action="store_true")
    data_option(made)
    device_option(made)


def search(arguments: argparse.Namespace) -> None:
    """Score every operator at every site once, then solve for the plan and the front."""
    from ..hosts.shapes import KINDS, set_text_tokens
    from ..report.search import FILE, write_search
    from ..searching.costs import Budget
    from ..searching.scores import Scoring
    from ..searching.search import looked_at
    from ..searching.search import search as find
    from ..searching.solve import SearchError
    from ..store.models import open_model

    budget = Budget.parse(arguments.budget)
    model = open_model(arguments.model).to(alone(arguments).device)
    if arguments.text_tokens is not None:
        set_text_tokens(model.transformer, arguments.text_tokens)
    out = arguments.out or folder_of(arguments.model, "search")
    how: dict[str, Any] = {"side": arguments.side, "batch": arguments.batch, "data": arguments.data}
    front = find(
        model,
        arguments.operators or (),
        kinds=KINDS if arguments.site == "both" else (arguments.site,),
        cost=budget.kind,
        by=arguments.by,
        points=arguments.points,
        scoring=Scoring(triples=arguments.triples),
        out=out,
        progress=progress_line("score"),
        **how,
    )
    best: Found | str
    try:
        best = front.under(budget)
    except SearchError as error:  # the front, which is what took the time, is kept
        best = str(error)
    page = write_search(out, front, budget, best)
    if arguments.check:
        more = () if isinstance(best, str) else (best,)
        front, seen = looked_at(model, front, arguments.check, out, more=more, progress=progress_line("check"), **how)
        best = seen[0] if seen else best
        page = write_search(out, front, budget, best)
    print((out / FILE).read_text(encoding="utf-8") if arguments.json else _table(front, best, page))
    if isinstance(best, str):
        raise SearchError(f"{best}; the front is in {page}")


def _table(front: Front, best: Found | str, page: Path) -> str:
    from ..report.search import plan_name

    timed = front.cost == "latency"
    lines = [f"{'plan':<12}{front.cost:>12}{'predicted ' + front.by:>20}{'   at its start' + ', timed' * timed}"]
    named = [(plan_name(place), one) for place, one in enumerate(front.plans)]
    chosen = [] if isinstance(best, str) else [("best", best)]
    lines += [
        f"{name:<12}{one.share:>12.4f}{one.predicted:>+20.5f}{_measured(one)}".rstrip()
        for name, one in [*named, *chosen]
    ]
    paths = [str(page.parent / "plans" / "best.yaml")] if chosen else []
    return "\n".join([*lines, "", *paths, str(page)])


def _measured(one: Found) -> str:
    """What was found of a plan as a whole: its loss minus the pretrained model's, and its time over that one's."""
    found = one.measured
    if found is None:
        return ""
    interval = "" if found.low is None else f" ({found.low:+.5f} … {found.high:+.5f})"
    return f"   {found.value:+.5f}{interval}" + ("" if found.share is None else f", {found.share:.4f}")
