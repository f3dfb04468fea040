"""The best plan under a budget: ``search``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shared import MODEL, Verbs, data_option, progress

if TYPE_CHECKING:
    from ..search.find import Found


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
    made.add_argument("--side", type=int, metavar="N", help="tokens along a side that costs are of (default: its own)")
    made.add_argument("--batch", type=int, default=8, metavar="N", help="samples of one pass, for latency")
    made.add_argument("--triples", type=int, default=256, metavar="N", help="of the held-out loss (default 256)")
    made.add_argument("--points", type=int, default=20, metavar="N", help="budgets along the front (default 20)")
    made.add_argument("--out", type=Path, help="the folder for scores, front and plans (default: in out/)")
    made.add_argument("--json", action="store_true")
    data_option(made)


def search(arguments: argparse.Namespace) -> None:
    """Score every operator at every site once, then solve for the plan and the front."""
    from ..files import write_json_atomic, write_text_atomic
    from ..hosts.shapes import KINDS
    from ..search.candidates import DEFAULT, candidates
    from ..search.costs import Budget, counted, timed
    from ..search.find import best, pareto
    from ..search.scores import Scoring, score
    from ..store.models import open_model

    for name in ("side", "batch"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: at least 1")
    budget = Budget.parse(arguments.budget)
    kinds = KINDS if arguments.site == "both" else (arguments.site,)
    operators = candidates(arguments.operators or DEFAULT, kinds)
    model = open_model(arguments.model)
    out = arguments.out or Path("out") / f"{Path(arguments.model).name}-search"
    scoring = Scoring(triples=arguments.triples)
    scores = score(model, operators, out, scoring=scoring, data=arguments.data, progress=progress("score"))
    if budget.kind == "latency":
        costs = timed(model.transformer, operators, side=arguments.side, batch=arguments.batch)
    else:
        costs = counted(model.transformer, operators, side=arguments.side)[budget.kind]
    found = best(scores, operators, costs, budget, by=arguments.by)
    line = pareto(scores, operators, costs, budget.kind, by=arguments.by, points=arguments.points)
    write_json_atomic(out / "scores.json", [vars(one) for one in scores])
    for old in (out / "plans").glob("front-*.yaml"):  # of another budget
        old.unlink()
    for number, one in enumerate(line):
        write_text_atomic(out / "plans" / f"front-{number:02d}.yaml", one.to_yaml())
    write_text_atomic(out / "plans" / "best.yaml", found.to_yaml())
    content: dict[str, Any] = {"best": found.to_dict(), "front": [one.to_dict() for one in line]}
    write_json_atomic(out / "front.json", content)
    print(json.dumps(content, indent=2) if arguments.json else _table(found, line, out))


def _table(found: Found, line: list[Found], out: Path) -> str:
    lines = [f"{'plan':<12}{found.cost:>12}{'predicted ' + found.predictor:>20}"]
    for name, one in [(f"front-{number:02d}", one) for number, one in enumerate(line)] + [("best", found)]:
        lines.append(f"{name:<12}{one.share:>12.4f}{one.predicted:>+20.5f}")
    return "\n".join([*lines, "", str(out / "plans" / "best.yaml")])
