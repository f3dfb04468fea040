"""The judge of pictures: GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) on the things that a picture shows.

GenEval looks for each clause among the things of its class, the most certain first: there must be as many as it asks
for; those first ones must all have its colour; and each must lie as it says to each of those of an earlier clause. For
counting there must be no more either. Whatever else a picture holds does not count. GenEval's detector is a network,
surer for counting (0.9) than elsewhere (0.3); here one threshold on the match with the renderer's masks does for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..tasks import Verdict
from .finding import find
from .prompts import DEFAULT, Prompt, is_held_out
from .world import Image, Thing, World

SCORER = 1
"""The version of this judge, to be raised when its verdicts change: a study judges anew what another one judged."""

MARGIN = 0.1
"""Share of both things' widths by which a centre must be beyond another's before it is to any side of it."""

STEEPNESS = 0.5
"""Share of the distance between centres that the rest must exceed, along an axis, for that axis' relation to hold."""


def relations(one: Thing, other: Thing) -> frozenset[str]:
    """How the first thing lies to the second: none, one or two (near a diagonal) of left of, right of, above, below."""
    offset = np.array([one.x - other.x, one.y - other.y])
    distance = float(np.hypot(*offset))
    beyond = np.maximum(np.abs(offset) - MARGIN * (one.size + other.size), 0) * np.sign(offset)
    if distance == 0:
        return frozenset()
    across, down = beyond / distance
    told = {"left of": -across, "right of": across, "above": -down, "below": down}
    return frozenset(name for name, share in told.items() if share > STEEPNESS)


def judge(prompt: Prompt, things: Sequence[Thing]) -> bool:
    """Whether ``things``, the surest first, are what the prompt asks for."""
    before: list[Thing] = []
    for clause in prompt.wanted:
        all_of_shape = [thing for thing in things if thing.shape == clause.shape]
        first = all_of_shape[: clause.count]
        if len(first) < clause.count or (clause.exact and len(all_of_shape) > clause.count):
            return False
        if clause.colour is not None and any(thing.colour != clause.colour for thing in first):
            return False
        if clause.relation is not None and not all(clause.relation in relations(a, b) for a in first for b in before):
            return False
        before = first
    return True


def verdicts(prompts: Sequence[Prompt], pictures: Iterable[Image]) -> list[Verdict]:
    """One picture (side, side, 3) of each prompt judged, in order, for :func:`grafting.tasks.scores` and, between
    models, :func:`grafting.tasks.differences`.

    Raises:
        ValueError: not as many pictures as prompts; a picture that :func:`find` refuses.
    """
    found = [find(picture) for picture in pictures]
    if len(found) != len(prompts):
        raise ValueError(f"{len(found)} pictures of {len(prompts)} prompts: give one of each")
    return [
        Verdict(task=prompt.task, prompt=place, correct=judge(prompt, things), text=prompt.text)
        for place, (prompt, things) in enumerate(zip(prompts, found, strict=True))
    ]


def apart(
    prompts: Sequence[Prompt], judged: Sequence[Verdict], *, world: World = DEFAULT
) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts on prompts whose combinations training has shown, and on those that it has not: two scores."""
    held_out = [is_held_out(prompt.wanted, world) for prompt in prompts]
    return [v for v in judged if not held_out[v.prompt]], [v for v in judged if held_out[v.prompt]]
