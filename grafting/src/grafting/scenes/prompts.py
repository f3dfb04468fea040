"""Captions for scenes in GenEval's six tasks: endless training samples from a counter, prompts to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from ..random import generator
from ..tasks import TASKS
from .world import RELATIONS, Scene, World, draw_scene

DEFAULT = World()

PHRASINGS = {
    "single_object": ("{}", "a picture of {}", "there is {}"),
    "two_object": ("{} and {}", "a picture of {} and {}", "{} with {}"),
    "counting": ("{}", "a picture of {}", "there are {}"),
    "colors": ("{}", "a picture of {}", "there is {}"),
    "position": ("{} {} {}", "a picture of {} {} {}", "{} that is {} {}"),
    "color_attr": ("{} and {}", "a picture of {} and {}", "{} with {}"),
}
"""Phrasings of each task; evaluation uses the first, as GenEval uses one."""

NUMBERS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One clause of a prompt, as GenEval's metadata has it.

    count: things of ``shape`` at least; ``exact``: and no more. colour: all of them are of it. relation: they lie so to
    the things of the clause before this one.
    """

    shape: str
    count: int = 1
    exact: bool = False
    colour: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A caption and what its picture must show; ``task`` is one of :data:`grafting.scenes.TASKS`.

    A position prompt names first the thing whose place it tells; its clause comes last, as in GenEval.
    """

    task: str
    text: str
    wanted: tuple[Wanted, ...]


def training_sample(seed: int, index: int, *, world: World = DEFAULT) -> tuple[Scene, str]:
    """The scene and caption that only ``seed`` and ``index`` decide. No held-out combination is in either."""
    rng = _rng(seed, "scenes/training", index)
    weights = np.asarray(world.weights)
    task = TASKS[rng.choice(len(TASKS), p=weights / weights.sum())]
    pool = clauses(task, world)
    wanted = pool[rng.integers(len(pool))]
    phrasing = int(rng.integers(len(PHRASINGS[task])))
    return _scene(rng, wanted, world), caption(task, wanted, phrasing)


def evaluation_prompts(count: int, seed: int = 0, *, world: World = DEFAULT, held_out: bool = False) -> list[Prompt]:
    """``count`` prompts from a stream that training never draws from, the tasks in turn, so equal in number.

    held_out: prompts that each name a held-out combination, of the tasks that can, to be reported apart; without it
    none does. Of each task no prompt comes twice before all have come.

    Raises:
        ValueError: the world holds out nothing, and such prompts are wanted.
    """
    tasks = [task for task in TASKS if clauses(task, world, held_out=held_out)]
    if not tasks:
        raise ValueError("the world holds no combination out")
    prompts: list[Prompt] = []
    decks = {task: _deck(seed, task, world, held_out) for task in tasks}
    for index in range(count):
        task = tasks[index % len(tasks)]
        wanted = next(decks[task])
        prompts.append(Prompt(task, caption(task, wanted), wanted))
    return prompts


def scene_of(prompt: Prompt, seed: int, index: int, *, world: World = DEFAULT) -> Scene:
    """A random scene that is what ``prompt`` says, with nothing besides."""
    return _scene(_rng(seed, "scenes/true", index), prompt.wanted, world)


def distinct_captions(world: World = DEFAULT) -> tuple[str, ...]:
    """Every caption that training can draw, sorted: what embeddings are cached for."""
    return tuple(
        sorted(
            caption(task, wanted, phrasing)
            for task, weight in zip(TASKS, world.weights, strict=True)
            if weight
            for wanted in clauses(task, world)
            for phrasing in range(len(PHRASINGS[task]))
        )
    )


@lru_cache(maxsize=64)
def clauses(task: str, world: World, *, held_out: bool = False) -> tuple[tuple[Wanted, ...], ...]:
    """What the prompts of a task can ask for in a world: combinations of training, or those held out from it."""
    return tuple(wanted for wanted in _all(task, world) if is_held_out(wanted, world) == held_out)


def _all(task: str, world: World) -> Iterator[tuple[Wanted, ...]]:
    shapes, pairs = world.shapes, permutations(world.shapes, 2)
    if task == "single_object":
        yield from ((Wanted(shape=shape),) for shape in shapes)
    elif task == "two_object":
        yield from ((Wanted(shape=a), Wanted(shape=b)) for a, b in pairs)
    elif task == "counting":
        counts = range(2, world.most + 1)
        yield from ((Wanted(shape=shape, count=n, exact=True),) for shape, n in product(shapes, counts))
    elif task == "colors":
        yield from ((Wanted(shape=shape, colour=colour),) for shape, colour in product(shapes, world.colours))
    elif task == "position":
        for (a, b), relation in product(pairs, RELATIONS):
            yield Wanted(shape=b), Wanted(shape=a, relation=relation)
    else:
        for (a, b), (one, other) in product(pairs, permutations(world.colours, 2)):
            yield Wanted(shape=a, colour=one), Wanted(shape=b, colour=other)


def is_held_out(wanted: tuple[Wanted, ...], world: World = DEFAULT) -> bool:
    """Whether it names a combination that training never shows."""
    shapes = [clause.shape for clause in wanted]
    return any((clause.shape, clause.colour) in world.held_out_colours for clause in wanted) or (
        len(shapes) == 2 and world.holds_out_pair(*shapes)
    )


def caption(task: str, wanted: tuple[Wanted, ...], phrasing: int = 0) -> str:
    """The words for what is wanted."""
    names = [_name(clause) for clause in wanted]
    if task == "position":
        names = [names[1], str(wanted[1].relation), names[0]]
    return PHRASINGS[task][phrasing].format(*names)


def _name(clause: Wanted) -> str:
    colour = "" if clause.colour is None else f"{clause.colour} "
    if clause.count == 1:
        return f"a {colour}{clause.shape}"
    return f"{NUMBERS[clause.count]} {colour}{clause.shape}{'es' if clause.shape.endswith('s') else 's'}"


def _scene(rng: np.random.Generator, wanted: tuple[Wanted, ...], world: World) -> Scene:
    """A scene of exactly the things wanted; a colour left open is one that training shows the shape in."""
    kinds = [
        (clause.shape, clause.colour or str(rng.choice(world.colours_of(clause.shape))))
        for clause in reversed(wanted)
        for _ in range(clause.count)
    ]
    return draw_scene(rng, kinds, wanted[-1].relation, world=world)


def _deck(seed: int, task: str, world: World, held_out: bool) -> Iterator[tuple[Wanted, ...]]:
    """The clauses of a task, shuffled anew whenever all have come."""
    pool, turn = clauses(task, world, held_out=held_out), 0
    while True:
        for place in _rng(seed, f"scenes/evaluation/{task}", turn).permutation(len(pool)):
            yield pool[place]
        turn += 1


def _rng(seed: int, stream: str, index: int) -> np.random.Generator:
    return np.random.default_rng(generator(seed, stream, index).initial_seed())
