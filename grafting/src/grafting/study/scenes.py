"""Models of text judged by the scene world's exact scorer: its prompts, what they are turned into, and the scores.

The prompts are the same for every model and seed; their noise is that of the samples' counter, so differences between
models are paired by prompt and noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..conditions import as_row, each, together
from ..data.encoders import encoders_of
from ..report.results import Figure, TaskScores
from ..sampling import pixels
from ..scenes import Prompt, World, evaluation_prompts, verdicts
from ..scenes.world import UNITS
from ..settings import build
from ..store.configs import ModelError
from ..store.models import Model
from ..tasks import Differences, Scores, Verdict, differences, scores
from .judging import pictures_of


def scene_prompts(model: Model, count: int, held_out: int = 0) -> tuple[Prompt, ...]:
    """``count`` evaluation prompts of the model's world, the tasks in turn, then ``held_out`` of combinations that its
    training never shows.

    Raises:
        ModelError: the model draws no pictures that the scorer sees, or its world is none, or holds nothing out.
    """
    channels, side = pictures_of(model)
    if channels != 3 or side % UNITS:
        raise ModelError(
            f"{model.name} draws {side} x {side} pictures of {channels} channel{'s' if channels > 1 else ''}: "
            f"the judge of scenes sees RGB whose side is a multiple of {UNITS}"
        )
    world = world_of(model)
    prompts = evaluation_prompts(count, world=world)
    try:
        return (*prompts, *evaluation_prompts(held_out, world=world, held_out=True)) if held_out else tuple(prompts)
    except ValueError as error:
        raise ModelError(f"held out {held_out}: {error}") from None


def world_of(model: Model) -> World:
    """The world that a model was taught: what ``world`` in its bundle's card says, else the default one.

    Raises ModelError where the card's is none.
    """
    problems: list[str] = []
    world = build(World, model.card.get("world", {}), f"the card of {model.name}: world", problems)
    if world is None:
        raise ModelError("; ".join(problems))
    return world


def embedded(
    name: str, texts: Sequence[str], device: torch.device, *, text: str | None = None, tokens: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The condition of ``texts``, a row each, and that of the empty prompt, as MODEL ``name`` has them.

    The encoder is loaded where the states do not lie beside the model, and let go of: it can be larger than the model.
    Every text is embedded alone, for what is padded could differ in rounding. text, tokens: as in
    :func:`grafting.data.encoders.encoders_of`.

    Raises:
        ModelError: the model is conditioned on classes, or nothing there embeds text.
    """
    encoders = encoders_of(name, vae=None, text=text, tokens=tokens)
    if encoders.condition == "labels":
        raise ModelError(f"{name} is conditioned on classes: prompts are for models of text")
    embed = encoders.text(device)
    found = {line: each(as_row(embed([line])[0][0]), torch.Tensor.float) for line in dict.fromkeys(["", *texts])}
    return together([found[line] for line in texts]), together([found[""]])


def judged(prompts: Sequence[Prompt], pictures: Iterable[torch.Tensor]) -> list[Verdict]:
    """The scorer's verdicts on pictures (n, 3, side, side) in about [-1, 1], one of each prompt, in batches."""
    return verdicts(prompts, (picture for batch in pictures for picture in pixels(batch)))


def from_text(prompts: Sequence[Prompt], kept: str) -> list[Verdict]:
    """The verdicts that :func:`outcome` wrote as a 1 or a 0 each."""
    return [
        Verdict(task=prompt.task, prompt=place, correct=mark == "1", text=prompt.text)
        for place, (prompt, mark) in enumerate(zip(prompts, kept, strict=True))
    ]


def outcome(mine: Sequence[Verdict], theirs: Sequence[Verdict] | None, count: int, protocol: str) -> dict[str, Any]:
    """One model's verdicts as plain data: ``correct``, a 1 or a 0 of each prompt; ``scenes``, the scores of the first
    ``count``; ``held_out``, those of the others, or None.

    theirs: the teacher's verdicts, for paired differences; None for the teacher itself. protocol: how they were drawn.
    """
    found: dict[str, Any] = {"correct": "".join("01"[verdict.correct] for verdict in mine)}
    for name, of in (("scenes", slice(count)), ("held_out", slice(count, None))):
        scored = task_scores(mine[of], theirs and theirs[of], protocol) if mine[of] else None
        found[name] = scored and asdict(scored)
    return found


def task_scores(mine: Sequence[Verdict], theirs: Sequence[Verdict] | None, protocol: str) -> TaskScores:
    """Scores by task and overall, and their differences to a teacher's verdicts, paired."""
    found, apart = scores(mine), differences(mine, theirs) if theirs else None
    return TaskScores(
        n=len(mine),
        protocol=f"{len(mine):,} prompts, {protocol}",
        scores=_figures(found),
        differences=_figures(apart) if apart else {},
    )


def _figures(found: Scores | Differences) -> dict[str, Figure]:
    return {task.task: Figure(value=task.value, low=task.low, high=task.high) for task in (*found.tasks, found.overall)}
