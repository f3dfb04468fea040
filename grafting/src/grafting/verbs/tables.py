"""A whole table of operators, row by row: ``study``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .recipes import recipe_source
from .shared import Verbs, alone, device_option


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("study", study, "a whole table: every operator, share and budget of a recipe", resume="")
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one, such as table")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; dots go down")
    made.add_argument("--out", type=Path, help="the table's folder (default: out/ and the recipe's name); continued")
    made.add_argument(
        "--rows", action="append", default=[], metavar="PATTERN", help="such as 'hyena*-50'; several add up"
    )
    made.add_argument("--dry-run", action="store_true", help="show rows, cost and time, and run nothing")
    device_option(made)


def study(arguments: argparse.Namespace) -> None:
    """Run the rows of a table, or say what they would cost."""
    text = recipe_source(arguments.recipe)
    from ..study.forecast import dry_run, rates
    from ..study.making import run_rows
    from ..study.parts import StudyError
    from ..study.publish import publish
    from ..study.rows import matching
    from ..study.table import TableRecipe
    from ..study.whole import Table

    recipe = TableRecipe.from_yaml(text, arguments.set, arguments.recipe)
    out = arguments.out or Path("out") / Path(arguments.recipe).stem
    table = Table(recipe, out, lambda line: print(line, flush=True), alone(arguments))
    chosen = matching(table.rows, arguments.rows)
    if arguments.dry_run:
        print(dry_run(table, chosen, rates(table)))
        return
    failed = run_rows(table, chosen, lambda: publish(table))
    publish(table)
    print(f"the page: {out / 'table.html'}")
    broken = [name for name in failed if table.named(name).recipe is not None]
    if broken:
        raise StudyError(f"rows {', '.join(broken)} failed: {failed[broken[0]]}")
