"""From the rows of a table to its results file, page and drawings."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace

import torch

from .. import __version__
from ..claims import locked
from ..report import Figure
from ..report.table import TableResults, write_table
from ..report.table_page import write_table_page
from .recipe import LATER, DistillStage, FinetuneStage, depended_on
from .rows import Row, against_of, none_of, untrained_of
from .timing import place
from .whole import Table


def collect(table: Table) -> TableResults:
    """All rows that there are, each beside its controls *none* and *untrained*; and why the others are missing."""
    made, missing = [], {}
    for row in table.rows:
        found = table.done(row)
        if found is None:
            missing[row.name] = table.failed(row) or "not run yet"
            continue
        over_none, over_bare, over_other = table.over_none(row), table.over_untrained(row), table.over_other(row)
        made.append(
            replace(
                found,
                over_none=over_none,
                none=_name(over_none, none_of(row, table.rows)),
                over_untrained=over_bare,
                untrained=_name(over_bare, untrained_of(row, table.rows)),
                over_other=over_other,
                other=_name(over_other, against_of(row, table.rows)),
                speed=table.timed(row),
            )
        )
    teacher, judge = table.study.model.name, "the scorer of scenes"
    if not table.recipe.evaluate.prompts:
        judge = f"{table.study.judging.extractor.name} ({table.study.judging.extractor.label})"
    return TableResults(
        title=table.recipe.title or f"Every operator on {teacher}",
        teacher=teacher,
        features=judge,
        rows=tuple(made),
        missing=missing,
        notes=_notes(table),
        provenance=_provenance(table),
    )


def _name(apart: Mapping[str, Figure], other: Row | None) -> str:
    return other.name if apart and other is not None else ""


def publish(table: Table) -> TableResults:
    """Write ``table.json``, ``losses.safetensors``, ``table.html`` and ``figures/`` from what is there; returns what
    the first holds.

    One process at a time, so that what was collected first is not written last.
    """
    with locked(table.out / "work" / "publish.lock", wait=True):
        results = collect(table)
        write_table(table.out / "table.json", results)
        table.publish_losses()
        write_table_page(table.out / "table.html", results)
    return results


def _notes(table: Table) -> tuple[str, ...]:
    recipe = table.recipe
    starts = "; ".join(
        f"{name}: {start.init}, stage 1 at {start.distill.attn.lr:g} (attn, {start.distill.attn.loss}) and "
        f"{start.distill.mlp.lr:g} (mlp, {start.distill.mlp.loss}){_else(start.distill)}"
        for name, start in recipe.starts.items()
    )
    fine = recipe.finetune
    return (
        f"Every row spends {recipe.budget:.0%} of the teacher's training unless it says otherwise: start, stage 1 "
        f"(at most {recipe.stage_one:.0%} of that) and stage 2, all passes counted. Steps follow from it.",
        f"One setting for all rows. Starts: {starts}. Stage 2: batch {fine.batch}, rate {fine.lr:g}, target "
        f"{fine.target}, weight {fine.features:g} on what the blocks return, {fine.precision}{_else(fine)}.",
        *recipe.notes,
    )


def _else(stage: DistillStage | FinetuneStage) -> str:
    """What else of a stage is not as a recipe that says nothing has it."""
    told = {name: value for name, value in depended_on(stage).items() if name in (*LATER, "train")}
    if told.get("train") == "all":
        del told["train"]
    return "".join(f", {name} {value}" for name, value in told.items())


def _provenance(table: Table) -> dict[str, str]:
    import diffusers

    study, device = table.study, table.study.team.device
    return {
        "teacher": f"{table.recipe.teacher}, tensors' SHA-256 {study.source[:16]}",
        "images": f"{study.material.path.name}, SHA-256 {(study.material.identity['images'] or '')[:16]}",
        "versions": f"grafting {__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}",
        "machine": f"{platform.machine()}, {place(device, torch.get_num_threads())}",
    }
