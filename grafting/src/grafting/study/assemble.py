"""From the parts of a study to the figures of its page."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .. import __version__
from ..cost import plan_cost
from ..files import write_bytes_atomic
from ..hosts import shape_of
from ..measure.denoising import mean_loss, paired_difference
from ..measure.quality import Estimate
from ..plan import Plan
from ..report import PAIRS, Cost, Curve, Figure, ModelResult, Results, SiteMap, SpeedRow, TaskScores, figures_of
from ..store.folder import annotate
from ..tasks import OVERALL, TaskDifference, differences
from .bench import Study
from .entries import Entry, summary
from .parts import kept
from .recipe import RunRecipe
from .spending import part_flops, training_flops

ALIKE = 0.95
"""Of a hybrid's training a control's is this share or more where nothing is said of it."""

PARTS = ("scenes", "held_out")
"""What the prompts of scenes are reported as."""


def beside(results: Results, other: Results, source: Path, out: Path, name: str, apart: Sequence[str] = ()) -> Results:
    """``results`` with the models, speeds and costs of a finished run, whose grids are copied from ``source``.

    apart: sentences of :func:`paired_with`.
    """
    models = []
    for model in other.models:
        grid = None
        if model.grid is not None:
            grid = f"beside/{name}/{model.grid}"
            write_bytes_atomic(out / grid, (source / model.grid).read_bytes())
        models.append(replace(model, run=f"{name}: {model.run}", grid=grid))
    speed = tuple(replace(row, run=f"{name}: {row.run}") for row in other.speed)
    costs = tuple(replace(cost, run=f"{name}: {cost.run}") for cost in other.costs)
    note = f"Figures labelled “{name}” come from a run of its own: {other.summary}"
    return replace(
        results,
        models=(*results.models, *models),
        speed=(*results.speed, *speed),
        costs=(*results.costs, *costs),
        notes=(note, *apart, *results.notes),
    )


def paired_with(study: Study, folder: Path) -> list[str]:
    """How each hybrid stands against the one of its name in a finished run, where both were judged on the same triples
    and that run's folder still holds the losses."""
    if not _same_triples(study, folder):
        return []
    told = []
    for entry in study.entries:
        path = folder / entry.name / "losses.safetensors"
        if entry.role == "hybrid" and path.is_file():
            apart = paired_difference(study.denoise(entry), load_file(path)["losses"], study.image)
            told.append(
                f"{entry.name}: held-out loss {apart.value:+.4f} ({apart.low:+.4f} … {apart.high:+.4f}) against its "
                f"own in “{folder.name}”, paired."
            )
    return told


def _same_triples(study: Study, folder: Path) -> bool:
    """Whether a finished run judged on this study's triples: by the hash of its teacher, data and draw that lies with
    the teacher's losses; where a run was shipped without, by what its recipe names."""
    noted = folder / "teacher" / "denoise.json"
    if noted.is_file():
        return kept(noted, study.judged_on(study.entries[0])) is not None
    try:
        theirs, mine = RunRecipe.from_yaml(folder / "recipe.yaml"), study.recipe
    except (OSError, ValueError):
        return False

    def named(recipe: RunRecipe) -> tuple[Any, ...]:
        return recipe.teacher, recipe.data, recipe.pairs, recipe.seed, recipe.evaluate.triples

    return named(theirs) == named(mine)


def assemble(study: Study) -> Results:
    """Everything that was measured, under one label; nothing is measured here that is on disk already."""
    recipe, teacher = study.recipe, study.entries[0]
    run = label(recipe)
    losses = {entry.name: study.denoise(entry) for entry in study.entries}
    learnt = {entry.name: study.train(entry) for entry in study.entries}
    models = []
    for entry in study.entries:
        quality, judged = study.judge(entry), study.score(entry) or {}
        scenes, held_out = (TaskScores.from_dict(judged[key]) if judged.get(key) else None for key in PARTS)
        theirs, image = losses[teacher.name], study.image
        difference = paired_difference(losses[entry.name], theirs, image)
        looks = {moment: paired_difference(then, theirs, image) for moment, then in study.looks(entry).items()}
        models.append(
            ModelResult(
                name=entry.name,
                role=entry.role,
                run=run,
                description=_description(entry, learnt[entry.name]),
                figures=figures_of(quality) if quality else {},
                protocol=quality["protocol"]["text"] if quality else "",
                denoising=_figure(mean_loss(losses[entry.name], study.image)),
                denoising_difference=None if entry is teacher else _figure(difference),
                stages={moment: _figure(apart) for moment, apart in looks.items()},
                scenes=scenes,
                held_out=held_out,
                grid=f"{study.subject(entry).name}/grid.png" if recipe.evaluate.grid else None,
            )
        )
    hybrids = [entry for entry in study.entries if entry.role == "hybrid"]
    speed = [SpeedRow(model=entry.name, run=run, **row) for entry in hybrids for row in study.time(entry)]
    plans = [summary(plan) for plan in recipe.plans.values()]
    spent = {entry.name: _spent(study, entry, learnt[entry.name]) for entry in study.entries}
    return Results(
        title=recipe.title or f"{recipe.teacher}: {' | '.join(plans)}",
        run=run,
        summary=" ".join(verdict(study, entry, losses, spent) for entry in hybrids),
        models=tuple(models),
        curves=tuple(curve for entry in study.entries for curve in _curves(entry, learnt[entry.name], run)),
        maps=tuple(_map(study, entry, run) for entry in hybrids),
        speed=tuple(speed),
        costs=_costs(study, spent, run),
        notes=_notes(study, learnt, spent),
        provenance=_provenance(study),
    )


def note_results(study: Study, results: Results) -> None:
    """Write the figures of every hybrid into its own manifest and card."""
    for entry in study.entries:
        if entry.role != "hybrid":
            continue
        (found,) = (model for model in results.models if model.name == entry.name)
        figures: dict[str, Any] = {name: figure.value for name, figure in found.figures.items()}
        if found.denoising_difference is not None:
            figures["held-out loss minus the teacher's"] = found.denoising_difference.value
        protocol = {"recipe": study.recipe.to_dict(), "samples": found.protocol}
        if found.scenes is not None:
            figures["scenes right"] = found.scenes.scores[OVERALL].value
            if OVERALL in found.scenes.differences:
                figures["scenes right minus the teacher's"] = found.scenes.differences[OVERALL].value
            protocol["samples"] = found.scenes.protocol
        annotate(study.out / entry.name / "model", protocol=protocol, results=figures)


def label(recipe: RunRecipe) -> str:
    """What a run is called wherever one of its figures is shown."""
    one, two = recipe.stages
    steps = [f"{stage.steps} steps of stage {k}" for k, stage in ((1, one), (2, two)) if stage is not None]
    return f"{', '.join(steps) or 'solved start alone'}, seed {recipe.seed}"


def verdict(
    study: Study, entry: Entry, losses: Mapping[str, torch.Tensor], spent: Mapping[str, Mapping[str, float]]
) -> str:
    """One sentence: what the hybrid lost, and whether it beats *none* and *untrained* beyond their paired intervals.

    spent: by model, FLOPs by part of what made it.
    """
    taught = {name: sum(parts.values()) - parts.get(PAIRS, 0.0) for name, parts in spent.items()}  # pairs are for all
    mine = paired_difference(losses[entry.name], losses["teacher"], study.image)
    text = f"{entry.name} ({entry.description}): held-out loss {mine.value:+.4f} against the teacher's"
    told = []
    for name in _rivals(entry, losses):
        apart = paired_difference(losses[entry.name], losses[name], study.image)
        assert apart.high is not None and apart.low is not None
        # A hybrid may owe its lead to what it was taught for, which of *none* is less at equal steps.
        share = taught[name] / taught[entry.name] if taught[entry.name] else 1.0
        rival = f"{name}, taught for {share:.0%} of the FLOPs," if 0 < share < ALIKE else name
        if apart.high < 0:
            told.append(f"it beats {rival} by {-apart.value:.4f} ({-apart.high:.4f} … {-apart.low:.4f})")
        else:
            told.append(f"it does not beat {rival} beyond the interval ({apart.low:+.4f} … {apart.high:+.4f})")
    if (other := study.recipe.against) not in (None, entry.name):
        apart = paired_difference(losses[entry.name], losses[str(other)], study.image)
        told.append(f"{apart.value:+.4f} ({apart.low:+.4f} … {apart.high:+.4f}) against {other}")
    return "; ".join([text, *told]) + "." + _of_scenes(study, entry)


def _rivals(entry: Entry, there: Mapping[str, Any]) -> list[str]:
    """The controls that a hybrid must beat: *none* and *untrained*, its own where the run has several plans."""
    names = [name for control in ("none", "untrained") for name in (control, f"{entry.name}-{control}")]
    return [name for name in names if name in there]


def _of_scenes(study: Study, entry: Entry) -> str:
    """A second sentence where prompts of scenes were drawn: the same of the pictures that are right."""
    count = study.recipe.evaluate.prompts
    if not count:
        return ""
    judged = {other.name: study.verdicts(other)[:count] for other in study.entries}

    def minus(name: str) -> TaskDifference:
        return differences(judged[entry.name], judged[name]).overall

    right = study.score(entry) or {}
    share = right["scenes"]["scores"][OVERALL]["value"]
    told = [f" Of {count:,} scenes {100 * share:.1f} % are right, {_points(minus('teacher'))} against the teacher’s"]
    for name in _rivals(entry, judged):
        apart = minus(name)
        beats = "it beats" if apart.low > 0 else "beyond the interval it does not beat"
        told.append(f"{beats} {name}: {_points(apart)}")
    if (against := study.recipe.against) not in (None, entry.name):
        told.append(f"{_points(minus(str(against)))} against {against}")
    return "; ".join(told) + "."


def _points(apart: TaskDifference) -> str:
    return f"{100 * apart.value:+.1f} points ({100 * apart.low:+.1f} … {100 * apart.high:+.1f})"


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.value, low=estimate.low, high=estimate.high)


def _description(entry: Entry, learnt: Mapping[str, Any]) -> str:
    if learnt.get("same"):
        return f"{entry.description}; on its own output as target that is the teacher, bit for bit"
    return entry.description


def _curves(entry: Entry, learnt: Mapping[str, Any], run: str) -> list[Curve]:
    judged = {
        ("stage 1", name): tuple(zip(points["steps"], points["losses"], strict=True))
        for name, points in learnt.get("held out", {}).items()
    }
    return [
        Curve(
            name=name,
            run=run,
            stage=f"{entry.name}: {stage}",
            steps=tuple(points["steps"]),
            losses=tuple(points["losses"]),
            held_out=judged.get((stage, name), ()),
        )
        for stage, lines in learnt.get("curves", {}).items()
        for name, points in lines.items()
    ]


def _map(study: Study, entry: Entry, run: str) -> SiteMap:
    assert entry.plan is not None
    depth = shape_of(study.teacher).depth
    sites: dict[str, list[str | None]] = {"attn": [None] * depth, "mlp": [None] * depth}
    for found in entry.plan.resolve(study.teacher):
        sites[found.site.kind][found.site.block] = found.operator
    return SiteMap(model=entry.name, run=run, sites={kind: tuple(row) for kind, row in sites.items()})


def _costs(study: Study, spent: Mapping[str, Mapping[str, float]], run: str) -> tuple[Cost, ...]:
    """Of all that was taught, where the teacher's card says how many samples it was trained on."""
    if (samples := trained_on(study)) is None:
        return ()
    whole = training_flops(study.teacher, samples)
    return tuple(
        Cost(model=name, run=run, parts=parts, teacher_training=whole) for name, parts in spent.items() if parts
    )


def _spent(study: Study, entry: Entry, learnt: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs by part of what made a model.

    Pairs that this teacher drew are a part of their own, all of them, however few were learnt from.
    """
    if not entry.learns or learnt.get("same"):
        return {}
    cost = plan_cost(entry.plan or Plan(), study.teacher)
    one, two = study.recipe.stages
    parts = part_flops(
        cost,
        calibration=study.recipe.calibration if learnt["started"] else 0,
        one=one if "stage 1" in learnt["curves"] else None,
        two=two if learnt["finetuned"] else None,
    )
    if two is not None and two.adapters is not None and "stage 2" in parts:
        parts["LoRA"] = parts.pop("stage 2")
    if parts and (pairs := _pairs(study)):
        parts = {PAIRS: pairs * cost.flops_before, **parts}
    return parts


def _pairs(study: Study) -> int:
    """Passes of the teacher that drew what the study learns from; 0 for pictures, or what another model drew."""
    encoded = study.material.encoded
    settings = {} if encoded is None else encoded.manifest["settings"]
    if encoded is None or "sampling" not in settings or settings["model"] != study.source:
        return 0
    walk = settings["sampling"]
    return len(encoded) * int(walk["steps"]) * (1 if walk["guidance"] == 1 else 2)


def trained_on(study: Study) -> int | None:
    """Samples that the teacher's transformer was trained on, by the recipe or the teacher's card."""
    if study.recipe.trained_on is not None:
        return study.recipe.trained_on
    samples = study.model.card.get("training", {}).get("samples")
    return samples if isinstance(samples, int) else None


def _notes(
    study: Study, learnt: Mapping[str, Mapping[str, Any]], spent: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    notes = []
    for name, outcome in learnt.items():
        # Two samples: what the solution was fitted to flatters it, so the two figures are no before and after.
        if outcome.get("started"):
            fitted = "at the solved start, on the images it was solved from (not held out)"
            notes.append(f"{name}, variance explained {fitted}: {_shares(outcome['started'])}.")
        if outcome.get("explained"):
            judged = "after stage 1, on held-out images and the noise levels that it drew"
            notes.append(f"{name}, variance explained {judged}: {_shares(outcome['explained'])}.")
    if "procedure" in study.recipe.controls and "procedure" not in learnt:
        notes.append("The control procedure is left out: there is no stage 2 at this budget.")
    if trained_on(study) is None:
        for name, parts in spent.items():
            if parts:
                told = ", ".join(f"{part} {flops:.2e}" for part, flops in parts.items())
                notes.append(f"{name} took {sum(parts.values()):.2e} FLOPs: {told}.")
        notes.append(
            "The teacher's card does not say how many samples it was trained on, nor does trained_on in the recipe: "
            "no share of cost is shown."
        )
    return tuple(notes)


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{site} {share:.3f}" for site, share in shares.items())


def _provenance(study: Study) -> dict[str, str]:
    import diffusers
    import yaml

    return {
        "teacher": f"{study.recipe.teacher}, tensors' SHA-256 {study.source[:16]}",
        "images": f"{study.material.path.name}, SHA-256 {study.material.identity['images'] or ''}"[:60],
        "versions": f"grafting {__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "recipe": yaml.safe_dump(study.recipe.to_dict(), default_flow_style=True, width=10**6, sort_keys=False),
    }
