"""Which score foretells finetuned quality: the change of the held-out loss, or the error carried to the stream.

    python grafting/benchmarks/scores.py --out grafting/benchmarks/results/scores.json

Asked of the rows of the whole table that ship beside the bundled teacher, each taught in both stages at one cost and
judged on 2,000 triples of another seed than the scores'. A prediction is the sum of the scores of a row's sites, all
found before any training. Counted are rows of the table's own budget, data, seed and settings whose operators were
scored. Shown are Spearman's rank correlations of both predictions with the measured losses, at the start and after both
stages, of all rows, of hybrids alone, and of half of the attention alone, with bootstrap intervals over rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from grafting.files import write_json_atomic
from grafting.report.table import TableResults, read_table
from grafting.searching.find import PREDICTORS, predicted
from grafting.searching.scores import Score
from grafting.searching.solve import SearchError
from grafting.store.configs import config_of
from grafting.study.rows import Row, rows
from grafting.study.table import TableRecipe
from grafting.teachers import teacher_folder

TEACHER = "fashion"
STAGES = ("start", "finetuned")
GROUPS = ("all rows", "hybrids", "half of the attention")


def shipped_scores() -> list[Score]:
    """Of the default operators, as they lie beside the teacher."""
    folder = teacher_folder(TEACHER) / "scores"
    return [
        Score(**entry)
        for path in sorted(folder.iterdir())
        for entry in json.loads(path.read_text())["outcome"]["scores"]
    ]


def plain(recipe: TableRecipe, row: Row) -> bool:
    """Whether a row is of the settings that most have, so that rows differ by their plans alone."""
    groups = (group for group in recipe.rows if group.start in ("copied", "solved"))
    usual = {group.name for group in groups if not group.finetune and group.stage_one is None}
    return row.label in usual and row.budget == recipe.budget and row.images is None and row.seed is None


def compared(results: TableResults, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A dictionary for every such row that is made: its name, predictions and measured losses above the teacher's."""
    recipe = TableRecipe.from_yaml((files("grafting") / "recipes" / "table.yaml").read_text())
    found: list[dict[str, Any]] = []
    config = config_of(TEACHER)
    for row in rows(recipe, config, trained_on()):
        made = results.row(row.name)
        if made is None or row.recipe is None or not plain(recipe, row) or "start" not in made.stages:
            continue
        plan = row.recipe.plans[row.name]
        try:
            told = {by: predicted(plan, config, scores, by=by) for by in PREDICTORS}
        except SearchError:  # an operator that was not scored, or depth
            continue
        groups = [GROUPS[0], *([GROUPS[1]] if row.role == "hybrid" else [])]
        kinds = {edit.site for edit in plan.edits}
        groups += [GROUPS[2]] if row.share == 50 and kinds == {"attn"} else []
        ends = {"start": asdict(made.stages["start"]), "finetuned": asdict(made.differences["loss"])}
        found.append({"row": row.name, "groups": groups, "predicted": told, **ends})
    return found


def trained_on() -> int:
    """Samples that the teacher's training took, by its card."""
    card = json.loads((teacher_folder(TEACHER) / "teacher.json").read_text())
    return int(card["training"]["samples"])


def correlations(found: Sequence[Mapping[str, Any]], rounds: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """By stage, Spearman's correlation of each prediction with the measured loss, and ``loss``'s minus ``carried``'s.

    Intervals are percentiles of a bootstrap over rows, the same draws for all; a draw of one row alone has none.
    """
    from scipy.stats import rankdata

    def spearman(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, b = (rankdata(v, axis=-1) for v in (x, y))
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            both: np.ndarray[Any, Any] = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
        return both

    draws = np.random.default_rng(seed).integers(len(found), size=(rounds, len(found)))
    told: dict[str, Any] = {}
    for stage in STAGES:
        measured = np.array([row[stage]["value"] for row in found])
        sides = {}
        for by in PREDICTORS:
            said = np.array([row["predicted"][by] for row in found])
            sides[by] = spearman(said, measured), spearman(said[draws], measured[draws])
        sides["loss minus carried"] = tuple(a - b for a, b in zip(sides["loss"], sides["carried"], strict=True))
        told[stage] = {
            name: {"value": float(value), "low": float(low), "high": float(high)}
            for name, (value, drawn) in sides.items()
            for low, high in [np.nanpercentile(drawn, (2.5, 97.5))]
        }
    return told


def main(given: Sequence[str] | None = None) -> None:
    """Compare, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = teacher_folder(TEACHER) / "runs" / "table" / "table.json"
    parser.add_argument("table", nargs="?", type=Path, default=shipped, help="a table.json of the shipped recipe")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    found = compared(read_table(arguments.table), shipped_scores())
    content: dict[str, Any] = {"rows": found, "spearman": {}}
    for group in GROUPS:
        mine = [row for row in found if group in row["groups"]]
        content["spearman"][group] = {"rows": len(mine), **correlations(mine)}
        print(f"{group}: {len(mine)} rows")
        for stage in STAGES:
            sides = content["spearman"][group][stage].items()
            told = (f"{name} {s['value']:+.2f} ({s['low']:+.2f} … {s['high']:+.2f})" for name, s in sides)
            print(f"  {stage:<10}{', '.join(told)}")
    if arguments.out:
        write_json_atomic(arguments.out, content)


if __name__ == "__main__":
    main()
