"""What a table will cost before it is run: FLOPs by formula, time by what finished rows or a short measurement say."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..conditions import count, rows
from ..diffusion import draw
from ..hosts.registry import schedule_of
from ..measure.speed import wait
from ..precision import autocast
from ..sampling import Pipeline
from .rows import Row
from .spending import PASSES
from .stages import denoiser
from .timing import place
from .whole import Table

FEW = 4
"""Steps of a walk that are timed in the place of all."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOP/s of training and of measuring (sampling and held-out losses), and where they are from."""

    train: float
    measure: float
    source: str

    def seconds(self, table: Table, row: Row) -> float:
        """How long a row takes."""
        return making_flops(table, row) / self.train + measuring_flops(table, row) / self.measure


def making_flops(table: Table, row: Row) -> float:
    """FLOPs of making a row, with the held-out losses that are looked at on the way."""
    if row.recipe is None or row.cost is None or not row.parts or not row.recipe.evaluate.stages:
        return row.flops
    looks = 1 if row.recipe.stages[0] is None else 2
    return row.flops + looks * row.recipe.evaluate.triples * row.cost.flops_after


def measuring_flops(table: Table, row: Row) -> float:
    """FLOPs of a row's samples and its held-out loss; of nothing, where the teacher's stand for it."""
    if row.recipe is None or (row.entry == "procedure" and not row.parts):
        return 0.0
    config = row.recipe.evaluate
    passes = config.measuring if row.samples else config.triples
    forward = table.training / (PASSES * table.samples)
    return passes * (forward if row.cost is None else row.cost.flops_after)


def rates(table: Table) -> Rates:
    """From the rows that were made in one go on this device with as many threads; else from a training step and a few
    steps of a batch of samples."""
    flops, took = {"train": 0.0, "measure": 0.0}, {"train": 0.0, "measure": 0.0}
    threads = torch.get_num_threads()
    here = threads, place(table.study.team.device, threads)
    for row in table.rows:
        path = table.out / "work" / row.name / "seconds.json"
        if row.parts and path.is_file() and table.done(row) is not None:
            seconds = json.loads(path.read_text())
            if (seconds.get("threads"), seconds.get("place")) != here:
                continue
            made = {"train": making_flops(table, row), "measure": measuring_flops(table, row)}
            flops = {key: flops[key] + made[key] for key in flops}
            took = {key: took[key] + seconds[key] for key in took}
    if min(took.values()) > 0:
        return Rates(**{key: flops[key] / took[key] for key in took}, source="finished rows")
    return Rates(train=_training_rate(table), measure=_sampling_rate(table), source="a step and a batch of samples")


def _training_rate(table: Table) -> float:
    """One step of stage 2 on a copy of the teacher, after one that warms up."""
    stage, model = table.recipe.finetune, copy.deepcopy(table.study.teacher).requires_grad_(True)
    batch, call = table.study.material.batches(stage.batch, table.recipe.seed)(0), denoiser(model)
    noise, t = draw(batch["z"].shape, schedule_of(model), table.recipe.seed, 0)
    device = next(model.parameters()).device
    took = []
    for _ in range(2):
        began = time.perf_counter()
        with autocast(device, stage.precision):
            output = call(noise, t, batch["y"])
        output.float().square().mean().backward()
        wait(device)
        took.append(time.perf_counter() - began)
    return table.training / table.samples * stage.batch / took[-1]


def _sampling_rate(table: Table) -> float:
    config, study = table.recipe.evaluate, table.study
    asked = rows(study.asked.condition, slice(config.batch))
    pipeline = Pipeline(study.teacher, study.model.autoencoder, null=study.asked.null)
    few = replace(config.sampling, steps=min(config.steps, FEW))
    began = time.perf_counter()
    z = pipeline.latents(asked, sampling=few, batch_size=config.batch)
    walked = time.perf_counter()
    pipeline.decode(z)
    took = (walked - began) * config.steps / few.steps + time.perf_counter() - walked
    passes = count(asked) * config.passes
    return table.training / (PASSES * table.samples) * passes / took


def dry_run(table: Table, chosen: Sequence[Row], found: Rates) -> str:
    """Rows, cost and time as people read them, before anything is run."""
    width = max(len(row.name) for row in chosen) + 2
    lines = [f"{'row':<{width}}{'state':<9}{'steps 1':>8}{'steps 2':>9}{'TFLOP':>9}{'of training':>13}{'minutes':>9}"]
    left = spent = 0.0
    for row in chosen:
        if row.problem:
            lines.append(f"{row.name:<{width}}not available: {row.problem}")
            continue
        seconds, done = found.seconds(table, row), table.done(row) is not None
        steps = [row.steps.get(stage, "–") for stage in ("stage 1", "stage 2")]
        share = row.flops / table.training
        lines.append(
            f"{row.name:<{width}}{'done' if done else 'to do':<9}{steps[0]:>8}{steps[1]:>9}"
            f"{row.flops / 1e12:>9.2f}{share:>12.2%} {seconds / 60:>8.1f}"
        )
        spent += share
        left += 0 if done else seconds
    threads = torch.get_num_threads()
    process = f"one process of {threads} thread{'s' if threads > 1 else ''}"
    lines.append(
        f"{len(chosen)} rows, {spent:.2f} times the teacher's training ({table.training / 1e12:.0f} TFLOP); "
        f"about {left / 3600:.1f} h left for {process}, by {found.source}"
    )
    return "\n".join(lines)
