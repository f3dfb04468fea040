"""How good a model is: ``evaluate``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import progress_line
from .shared import (
    MODEL,
    STEPS,
    Verbs,
    alone,
    at_least,
    base_option,
    data_option,
    device_option,
    interval,
    opened,
    sampling_of,
    sampling_options,
    vae_option,
    weights_option,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..measure.quality import Features
    from ..store.models import Model
    from ..study.judging import Judge

TRIPLES = 1000
"""Of the held-out loss, where nothing else is asked for."""
BATCH = 64
"""Triples, samples or prompts of a pass, where nothing else is asked for."""


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("evaluate", evaluate, "held-out loss, FID, KID and recognition of samples; or scores by task")
    made.add_argument("model", nargs="*", metavar="MODEL", help=f"{MODEL}; one, or several with --scenes")
    made.add_argument(
        "--geneval",
        nargs="+",
        type=Path,
        metavar="JSONL",
        help="instead of a MODEL: results of GenEval's scorer, of one model or of two, whose difference is paired",
    )
    made.add_argument(
        "--scenes",
        type=at_least(1),
        metavar="N",
        help="instead of losses: N prompts of the scene world drawn and judged exactly, with scores by task",
    )
    made.add_argument(
        "--held-out", type=at_least(0), default=0, metavar="N", help="with --scenes: and N of combinations held out"
    )
    made.add_argument("--against", metavar="MODEL", help="for the paired difference; a graft's own teacher by default")
    made.add_argument("--triples", type=at_least(2), metavar="N", help=f"of the held-out loss (default {TRIPLES:,})")
    made.add_argument("--samples", type=at_least(0), metavar="N", help="drawn and judged (default 0)")
    made.add_argument("--batch", type=at_least(1), metavar="N", help=f"of a pass (default {BATCH})")
    made.add_argument("--extractor", help="classifier (default), inception, inception:FILE or python:module:attribute")
    made.add_argument("--reference", metavar="PATH", help="real images, or ADM's statistics; else the training images")
    made.add_argument("--floor", metavar="PATH", help="held-out real images; else those of the data")
    made.add_argument(
        "--labels", choices=("balanced", "uniform"), help="of samples: the classes in turn (default), or drawn"
    )
    made.add_argument("--bootstraps", type=at_least(0), metavar="N", help="rounds of FID's intervals (default 100)")
    data_option(made)
    made.add_argument("--json", action="store_true")
    base_option(made)
    vae_option(made)
    weights_option(made)
    sampling_options(made)
    device_option(made)


def evaluate(arguments: argparse.Namespace) -> None:
    """Held-out denoising loss beside the teacher's, and FID, KID and recognition of samples; or scores by task."""
    if arguments.geneval and arguments.scenes:
        raise ValueError("--geneval reads what was judged elsewhere, --scenes draws and judges: give one of them")
    if arguments.held_out and not arguments.scenes:
        raise ValueError(f"--held-out {arguments.held_out} goes with --scenes")
    if arguments.geneval and arguments.batch is not None:
        raise ValueError(f"--batch {arguments.batch}: --geneval draws nothing")
    arguments.batch = arguments.batch or BATCH
    other = "--geneval" if arguments.geneval else "--scenes" if arguments.scenes else None
    judging = ("extractor", "reference", "floor", "bootstraps", "labels")
    for name in ("triples", "samples", *judging, "data"):
        if other and getattr(arguments, name) is not None:
            raise ValueError(f"--{name} is about held-out losses and samples, which {other} does not measure")
    for name in judging:
        if not other and getattr(arguments, name) is not None and not arguments.samples:
            raise ValueError(f"--{name} is about samples, and none are asked for: give --samples N too")
    if arguments.geneval:
        _geneval(arguments)
        return
    _refuse_idle_walk(arguments)
    if arguments.scenes:
        from .scenes import evaluate as judge_scenes

        judge_scenes(arguments)
        return
    if len(arguments.model) != 1:
        raise ValueError("name a MODEL to evaluate, several with --scenes, or results of GenEval's scorer --geneval")
    (arguments.model,) = arguments.model
    from dataclasses import asdict

    from ..measure.quality.extractors import ExtractorConfig
    from ..store.models import open_model
    from ..study.asked import problems as unanswerable
    from ..study.asked import reads_text
    from ..study.judging import Judge
    from ..study.material import Material
    from ..study.recipe import EvaluateStage

    device = alone(arguments).device
    model = opened(arguments).to(device)
    material = Material(model, arguments.data)
    config = EvaluateStage(
        **asdict(sampling_of(arguments)),
        samples=arguments.samples or 0,
        grid=0,
        extractor=ExtractorConfig.parse(arguments.extractor or "classifier"),
        reference=arguments.reference,
        floor=arguments.floor,
        **{name: given for name in ("bootstraps", "labels") if (given := getattr(arguments, name)) is not None},
    )
    at = next(model.transformer.parameters()).device
    judge = Judge(config, model, material, None, at)
    if arguments.labels is not None and reads_text(model):
        raise ValueError(
            f"--labels {arguments.labels}: {arguments.model} takes text, and is asked for held-out captions"
        )
    if problems := unanswerable(config, model) or judge.problems():
        raise ValueError("; ".join(f"--{problem}" for problem in problems))
    against = None
    if arguments.against is not None:
        against = open_model(arguments.against, weights=arguments.weights).to(device).transformer
    losses = _denoising(model, against, material, arguments)
    found: dict[str, Any] = {"model": arguments.model, "held-out loss": losses}
    if arguments.samples:
        found["quality"] = _quality(model, against, judge, arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, figure in found["held-out loss"].items():
        print(f"{name:<24}{interval(figure)}")
    if "quality" in found:
        for name, figure in found["quality"]["figures"].items():
            floor = found["quality"]["floors"].get(name)
            print(f"{name:<24}{interval(figure)}{'' if floor is None else f'   floor {floor:.5g}'}")
        print(found["quality"]["protocol"]["text"])


def _refuse_idle_walk(arguments: argparse.Namespace) -> None:
    """Raises ValueError where it is said how samples are drawn and none are."""
    from ..precision import WEIGHTS
    from ..sampling import Sampling

    if arguments.weights not in WEIGHTS:
        return  # told where the model is opened
    if not (arguments.samples or arguments.scenes) and sampling_of(arguments) != Sampling(
        steps=STEPS, precision=arguments.weights
    ):
        raise ValueError(
            "--scheduler, --steps, --spacing, --guidance, --guided-channels, --clip and --precision are about samples, "
            "and none are asked for: give --samples N too"
        )


def _geneval(arguments: argparse.Namespace) -> None:
    """Six task scores and their mean, from the results of GenEval's scorer."""
    from ..measure.geneval import read_results
    from ..tasks import differences, scores, table

    if arguments.model:
        named = " ".join(arguments.model)
        raise ValueError(f"--geneval reads results that are there already: leave out the model {named}")
    files = [str(path) for path in arguments.geneval]
    if len(set(files)) != len(files) or len(files) > 2:
        raise ValueError(f"--geneval {' '.join(files)}: give one file, or two of different models")
    verdicts = [read_results(path) for path in arguments.geneval]
    found = {name: scores(judged) for name, judged in zip(files, verdicts, strict=True)}
    paired = differences(*verdicts) if len(files) == 2 else None
    if arguments.json:
        plain = {name: of.to_dict() for name, of in found.items()}
        print(json.dumps({"scores": plain, "difference": paired and paired.to_dict()}, indent=2))
        return
    print(table(found, paired))


@contextmanager
def _other(model: Model, against: nn.Module | None, arguments: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """What a model is compared with, and its name: ``--against``, a graft's own teacher, or (None, "")."""
    if against is not None:
        yield against, arguments.against
    elif model.own_teacher is not None:
        with model.own_teacher.teacher() as network:
            yield network, "teacher"
    else:
        yield None, ""


def _denoising(model: Model, against: nn.Module | None, material: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from ..hosts.registry import schedule_of
    from ..measure.denoising import Triples, denoising_losses, mean_loss, paired_difference
    from ..study.stages import denoiser

    z, y = material.latents(train=False), material.conditions(train=False)
    schedule = schedule_of(model.transformer)
    triples = Triples.draw(z, y, n=arguments.triples or TRIPLES, seed=arguments.seed, schedule=schedule)

    def losses(network: Any, name: str) -> torch.Tensor:
        show = progress_line(f"held-out loss of {name}")
        return denoising_losses(denoiser(network), triples, batch_size=arguments.batch, progress=show)

    mine = losses(model.transformer, "the model")
    found = {"loss": asdict(mean_loss(mine, triples.image))}
    with _other(model, against, arguments) as (network, name):
        other = None if network is None else losses(network, name)
    if other is not None:
        found[f"of {name}"] = asdict(mean_loss(other, triples.image))
        found[f"minus {name}"] = asdict(paired_difference(mine, other, triples.image))
    return found


def _quality(model: Model, against: nn.Module | None, judge: Judge, arguments: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from ..conditions import rows
    from ..measure.quality import collect
    from ..sampling import Pipeline
    from ..study.asked import Asked

    n, batch, sampling = arguments.samples, arguments.batch, judge.config.sampling
    asked = Asked(judge.config, model, judge.material, arguments.seed, judge.device)

    def features(network: Any, name: str) -> Features:
        pipeline, show = Pipeline(network, model.autoencoder, null=asked.null), progress_line(f"samples of {name}")

        def drawn(start: int) -> torch.Tensor:
            part = rows(asked.condition, slice(start, min(start + batch, n)))
            return pipeline(part, sampling=sampling, seed=arguments.seed, first_index=start, batch_size=batch)

        return collect(judge.extractor, map(drawn, range(0, n, batch)), progress=lambda done, _: show(done, n))

    mine = features(model.transformer, "the model")
    found = judge.quality(mine, asked.classes, arguments.seed)
    with _other(model, against, arguments) as (network, name):
        if network is not None:
            theirs = judge.minus(mine, features(network, name), arguments.seed)
            found["figures"] |= {f"{key} minus {name}": asdict(apart) for key, apart in theirs.items()}
    return found
