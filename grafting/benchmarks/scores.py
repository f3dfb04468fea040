"""Which score foretells finetuned quality: the change of the held-out loss, or the error carried to the stream.

    python grafting/benchmarks/scores.py fashion --plans 12 --steps 60 --out grafting/benchmarks/results/scores.json

Each plan swaps half of the sites, half of the attention and half of the MLPs, chosen at random, with operators drawn at
random: every plan has as many swaps as any other. It starts solved, is finetuned on the teacher's output, and is judged
by its held-out loss minus the teacher's on triples of another seed than the scores'. A prediction is the sum of the
plan's scores. Shown are Spearman's rank correlations of both predictions with the measured losses, with bootstrap
intervals over plans, at the start and after finetuning. A finished plan is kept in ``--out``, and the same command goes
on with the next one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from grafting.files import write_json_atomic
from grafting.graft import ungraft
from grafting.hosts import Site
from grafting.initialise import start_versions
from grafting.measure.denoising import Triples, denoising_losses, paired_difference
from grafting.plan import Plan
from grafting.random import generator
from grafting.searching.candidates import Candidate, candidates, plan_of
from grafting.searching.find import PREDICTORS, predicted
from grafting.searching.scores import Score, Scoring, score
from grafting.store.models import Model, open_model
from grafting.study.recipe import FinetuneStage
from grafting.study.stages import Material, begin, denoiser, stage_two

OPERATORS = ("hyena_x", "swa", "local_mean", "linear", "mlp:ratio=3")
STAGES = ("start", "finetuned")
JUDGED_BY = 1
"""The seed of the triples that plans are judged by; the scores' is 0."""


def random_plan(operators: Sequence[Candidate], depth: int, number: int) -> Plan:
    """Half of the sites of each kind that ``operators`` fit, drawn from the counter ``number`` alone."""
    source = generator(number, "plan")
    taken: dict[Site, Candidate] = {}
    for kind in sorted({one.kind for one in operators}):
        fitting = [one for one in operators if one.kind == kind]
        blocks = torch.randperm(depth, generator=source)[: depth // 2].tolist()
        picks = torch.randint(len(fitting), (len(blocks),), generator=source).tolist()
        taken |= {Site(block, kind): fitting[pick] for block, pick in zip(sorted(blocks), picks, strict=True)}
    return plan_of(taken, f"random {number}")


def learn(model: Model, plan: Plan, stage: FinetuneStage, held: Triples, calibration: int) -> dict[str, Any]:
    """The held-out loss minus the teacher's, at the solved start and after finetuning; the model is as before."""
    material, network, began = Material(model), model.transformer, time.perf_counter()
    teacher = denoising_losses(denoiser(network), held)
    handle = begin(network, plan, material, init="solve", seed=0, calibration=calibration)
    try:
        start = denoising_losses(denoiser(network), held)
        trained, _ = stage_two(handle, stage, material, seed=0, out=None)
        finetuned = denoising_losses(denoiser(trained.model), held)  # type: ignore[arg-type]
    finally:
        ungraft(network)
    return {
        "plan": plan.to_dict(),
        "start": asdict(paired_difference(start, teacher, held.image)),
        "finetuned": asdict(paired_difference(finetuned, teacher, held.image)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def correlations(rows: Sequence[Mapping[str, Any]], rounds: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """By stage, Spearman's correlation of each prediction with the measured loss, and ``loss``'s minus ``carried``'s.

    Intervals are percentiles of a bootstrap over plans, the same draws for all; a draw of one plan alone has none.
    """
    from scipy.stats import rankdata

    def spearman(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, b = (rankdata(v, axis=-1) for v in (x, y))
        a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            found: np.ndarray[Any, Any] = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
        return found

    draws = np.random.default_rng(seed).integers(len(rows), size=(rounds, len(rows)))
    found: dict[str, Any] = {}
    for stage in STAGES:
        measured = np.array([row[stage]["value"] for row in rows])
        sides = {}
        for by in PREDICTORS:
            told = np.array([row["predicted"][by] for row in rows])
            sides[by] = spearman(told, measured), spearman(told[draws], measured[draws])
        sides["loss minus carried"] = tuple(a - b for a, b in zip(sides["loss"], sides["carried"], strict=True))
        found[stage] = {
            name: {"value": float(value), "low": float(low), "high": float(high)}
            for name, (value, drawn) in sides.items()
            for low, high in [np.nanpercentile(drawn, (2.5, 97.5))]
        }
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", nargs="?", default="fashion")
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS))
    parser.add_argument("--plans", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--triples", type=int, default=512, help="that plans are judged by")
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--scores", type=Path, help="a folder that keeps the scores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    stage = FinetuneStage(
        steps=arguments.steps, batch=arguments.batch, lr=2e-4, warmup=0.2, precision=arguments.precision
    )
    depends = ("teacher", "operators", "steps", "batch", "precision", "triples", "calibration")
    settings = {key: getattr(arguments, key) for key in depends}
    settings |= start_versions(candidates(arguments.operators), "solve")
    rows: list[dict[str, Any]] = []
    if arguments.out and arguments.out.is_file():
        before = json.loads(arguments.out.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{arguments.out} was measured with {before['settings']}, this is {settings}")
        rows = before["rows"]
    model, operators = open_model(arguments.teacher), candidates(arguments.operators)
    material = Material(model)
    z, y = material.latents(train=False), material.images(train=False).labels
    held = Triples.draw(z, y, n=arguments.triples, seed=JUDGED_BY)
    depth = len(model.transformer.transformer_blocks)  # type: ignore[arg-type]
    for number in range(len(rows), arguments.plans):
        row = learn(model, random_plan(operators, depth, number), stage, held, arguments.calibration)
        rows.append(row)
        print(f"plan {number}: " + ", ".join(f"{s} {row[s]['value']:+.5f}" for s in STAGES), flush=True)
        if arguments.out:
            write_json_atomic(arguments.out, {"settings": settings, "rows": rows})
    scoring = Scoring(calibration=arguments.calibration)
    with TemporaryDirectory() as scratch:
        scores: list[Score] = score(model, operators, arguments.scores or Path(scratch), scoring=scoring)
    for row in rows:
        plan = Plan.from_dict(row["plan"])
        row["predicted"] = {by: predicted(plan, model.transformer, scores, by=by) for by in PREDICTORS}
    content = {"settings": settings, "rows": rows, "spearman": correlations(rows)}
    for of, sides in content["spearman"].items():
        told = ", ".join(f"{name} {s['value']:+.2f} ({s['low']:+.2f} … {s['high']:+.2f})" for name, s in sides.items())
        print(f"{of:<10}{told}")
    if arguments.out:
        write_json_atomic(arguments.out, content)


if __name__ == "__main__":
    main()
