"""A recipe from end to end and its page: ``run`` and ``report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .recipes import recipe_source
from .shared import Verbs, device_option, team_of

if TYPE_CHECKING:
    from ..study import RunRecipe


def add(verbs: Verbs) -> None:
    """Declare them."""
    made = verbs.add(
        "run", run, "a recipe from end to end: graft, distil, finetune, measure, report", resume="--resume"
    )
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; dots go down")
    made.add_argument("--budget", type=float, help="multiplies the steps of both stages; 0 solves the start only")
    made.add_argument("--out", type=Path, help="the run's folder (default: out/ and the recipe's name)")
    made.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    made.add_argument("--dry-run", action="store_true", help="show models, cost and time, and run nothing")
    made.add_argument("--tflops", type=float, metavar="N", help="TFLOP/s that --dry-run reckons with")
    device_option(made)

    made = verbs.add("report", report, "write the page of a finished run, table or search again")
    made.add_argument("out", type=Path, metavar="OUT", help="its folder")


def run(arguments: argparse.Namespace) -> None:
    """A recipe from end to end."""
    text = recipe_source(arguments.recipe)
    from ..study import RunRecipe
    from ..study import run as run_recipe

    changes = [*arguments.set, *([f"budget={arguments.budget}"] if arguments.budget is not None else [])]
    recipe = RunRecipe.from_yaml(text, changes, arguments.recipe)
    if arguments.dry_run:
        print(_outlook(recipe, arguments.tflops))
        return
    if arguments.tflops is not None:
        raise ValueError(f"--tflops {arguments.tflops:g} is what --dry-run reckons with: a run takes what it takes")
    out = arguments.out or Path("out") / Path(arguments.recipe).stem
    if (out / "recipe.yaml").is_file() and not arguments.resume:
        kind = "a finished run" if (out / "results.json").is_file() else "a run that is not finished"
        raise ValueError(f"{out} holds {kind}: go on with it by --resume, or name another folder with --out")
    team = team_of(arguments)
    run_recipe(recipe, out, resume=arguments.resume, say=lambda line: print(line, flush=True), team=team)


def _outlook(recipe: RunRecipe, tflops: float | None) -> str:
    """What the recipe takes, from the teacher's configuration alone."""
    from ..expect import STATED_RATE, stated
    from ..hosts import shape_of
    from ..store.configs import config_of
    from ..study.outlook import outlook

    rate = stated(STATED_RATE if tflops is None else tflops * 1e12)
    return outlook(recipe, shape_of(config_of(recipe.teacher)), rate)


def report(arguments: argparse.Namespace) -> None:
    """The page of a run, a table or a search again, from its ``results.json``, ``table.json`` or ``search.json``."""
    from ..report import read_results, write_page
    from ..report.search import FILE, read_search, write_search_page
    from ..report.table import read_table
    from ..report.table_page import write_table_page

    path = arguments.out / "table.json"
    if path.is_file():
        write_table_page(arguments.out / "table.html", read_table(path))
        print(arguments.out / "table.html")
        return
    path = arguments.out / FILE
    if path.is_file():
        write_search_page(arguments.out / "search.html", read_search(path))
        print(arguments.out / "search.html")
        return
    path = arguments.out / "results.json"
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; give the folder of a finished run, study or search, which writes "
            "results.json, table.json or search.json"
        )
    write_page(arguments.out / "report.html", read_results(path))
    print(arguments.out / "report.html")
