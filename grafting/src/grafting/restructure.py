"""Restructuring steps of a plan: merge consecutive blocks into parallel branches, drop, reorder and share blocks.

    restructure:
      - {merge: pairs, combine: scale}        # or merge: [[0, 1], [2, 3, 4]], combine: dense
      - {drop: [5]}
      - {share: [[8, 9]]}
      - {reorder: [0, 2, 1, 3, ...]}

All steps speak of blocks by their numbers in the pretrained model and are resolved together, whatever their order. What
comes out is a row of places, each with the :class:`Group` that runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .settings import near

COMBINATIONS = ("scale", "dense")
"""How branches are weighed: a learned scale per channel, or a learned matrix; both start at identity."""
TRAINED = ("all", "combine")
"""What stage 1 teaches of a merged group: its branches and their combination, or the combination alone."""

Blocks = tuple[tuple[int, ...], ...]
Indices = Callable[[str, int], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Consecutive blocks as parallel branches. groups: lists of blocks, or ``pairs`` of neighbours."""

    verb: ClassVar[str] = "merge"
    groups: Blocks | str = "pairs"
    combine: str = "scale"
    train: str = "all"


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Blocks left out; what each added is learnt by the neighbour before it. blocks: a list, or a pattern of edits."""

    verb: ClassVar[str] = "drop"
    blocks: tuple[int, ...] | str


@dataclass(frozen=True, kw_only=True)
class Share:
    """Blocks that run with one set of weights, those of the first. groups: lists of blocks, or ``pairs``."""

    verb: ClassVar[str] = "share"
    groups: Blocks | str = "pairs"


@dataclass(frozen=True, kw_only=True)
class Reorder:
    """Every block that stays, in its new order; blocks of a merged group stay together."""

    verb: ClassVar[str] = "reorder"
    order: tuple[int, ...]


Step = Merge | Drop | Share | Reorder
STEPS: tuple[type[Step], ...] = (Merge, Drop, Reorder, Share)
VERBS = tuple(step.verb for step in STEPS)


@dataclass(frozen=True, kw_only=True)
class Group:
    """What runs in one place, or, shared, in several.

    kind: ``keep`` (the pretrained block itself), ``merge``, ``drop`` (a block that learns its dropped neighbours' part)
    or ``share``. branches: the blocks it starts from. spans: by place, the first and the last of the pretrained blocks
    whose common update it stands for.
    """

    kind: Literal["keep", "merge", "drop", "share"]
    branches: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    combine: str | None = None
    train: str = "all"

    @property
    def name(self) -> str:
        """As printed and stored: ``blocks.0-1.merge``, ``blocks.3+4.share``."""
        spans = "+".join(str(a) if a == b else f"{a}-{b}" for a, b in self.spans)
        return f"blocks.{spans}.{self.kind}"

    @property
    def replaced(self) -> int:
        """How many pretrained blocks it stands for."""
        return sum(b - a + 1 for a, b in self.spans)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of a restructured model, in the order in which they run; a shared group has several.

    owner: by pretrained block that still runs, the group that runs it. dropped, borrowed: blocks that run no longer,
    and blocks that run with another's weights, by the other.
    """

    places: tuple[Group, ...]
    owner: Mapping[int, Group]
    dropped: frozenset[int]
    borrowed: Mapping[int, int]

    @property
    def groups(self) -> tuple[Group, ...]:
        """All but kept blocks, each once."""
        return tuple(dict.fromkeys(group for group in self.places if group.kind != "keep"))

    @property
    def meetings(self) -> tuple[tuple[int, int], ...]:
        """(place, pretrained block) after which both models have been through the same blocks, in order."""
        found: list[tuple[int, int]] = []
        passed: set[int] = set()
        visits = dict.fromkeys(self.places, 0)
        for place, group in enumerate(self.places):
            first, last = group.spans[visits[group]]
            visits[group] += 1
            passed |= set(range(first, last + 1))
            if len(passed) == max(passed) + 1:
                found.append((place, max(passed)))
        return tuple(found)


def resolve(steps: Sequence[Step], depth: int, pattern: Indices) -> tuple[Layout | None, list[str]]:
    """The layout of ``steps`` on a model of ``depth`` blocks, or None and every problem in words.

    pattern: blocks of a pattern over the depth; may raise an error with ``problems``.
    """
    return _Resolution(steps, depth, pattern).finish()


class _Resolution:
    def __init__(self, steps: Sequence[Step], depth: int, pattern: Indices) -> None:
        self.steps, self.depth, self.pattern = steps, depth, pattern
        self.problems: list[str] = []
        self.taken: dict[int, int] = {}  # by block, the step that speaks of it
        self.dropped: set[int] = set()
        self.members: list[tuple[Merge | Share, tuple[int, ...]]] = []
        self.order: list[int] = []

    def finish(self) -> tuple[Layout | None, list[str]]:
        for number, step in enumerate(self.steps):
            if isinstance(step, Drop):
                self._drop(step, self._where(number, step), number)
        self.kept = [block for block in range(self.depth) if block not in self.dropped]
        if not self.kept:
            self.problems.append("restructure: drops every block, at least one must stay")
        for number, step in enumerate(self.steps):
            if isinstance(step, Merge | Share):
                self._gather(step, self._where(number, step), number)
        reorders = [(number, step) for number, step in enumerate(self.steps) if isinstance(step, Reorder)]
        self.order = self.kept
        for number, step in reorders[:1]:
            self._reorder(step, self._where(number, step))
        self.problems += [
            f"{self._where(number, step)}: the blocks are reordered by step {reorders[0][0]} already"
            for number, step in reorders[1:]
        ]
        return (None if self.problems else self._layout()), self.problems

    def _where(self, number: int, step: Step) -> str:
        return f"restructure {number} ({step.verb})"

    def _take(self, block: Any, where: str, number: int) -> bool:
        """Whether a block exists and is free; it is then this step's."""
        if type(block) is not int or not 0 <= block < self.depth:
            self.problems.append(f"{where}: block {block!r}; the model has 0 to {self.depth - 1}")
            return False
        if block in self.taken:
            done = {"merge": "merged", "drop": "dropped", "share": "shared"}[self.steps[self.taken[block]].verb]
            self.problems.append(f"{where}: block {block} is {done} by step {self.taken[block]} already")
            return False
        self.taken[block] = number
        return True

    def _drop(self, step: Drop, where: str, number: int) -> None:
        blocks = step.blocks
        if isinstance(blocks, str):
            try:
                blocks = self.pattern(blocks, self.depth)
            except ValueError as error:
                self.problems += [f"{where}: {text}" for text in getattr(error, "problems", (str(error),))]
                return
        if not blocks:
            self.problems.append(f"{where}: no blocks")
        self.dropped |= {block for block in blocks if self._take(block, where, number)}

    def _gather(self, step: Merge | Share, where: str, number: int) -> None:
        if isinstance(step, Merge):
            for name, value, allowed in (("combine", step.combine, COMBINATIONS), ("train", step.train, TRAINED)):
                if value not in allowed:
                    self.problems.append(f"{where}: {name} {value!r}; one of {', '.join(allowed)}")
        if isinstance(step.groups, str):
            if step.groups != "pairs":
                self.problems.append(f"{where}: {step.groups!r}; 'pairs' or lists of blocks")
                return
            left = [block for block in self.kept if block not in self.taken]
            groups: Blocks = tuple(zip(left[::2], left[1::2], strict=False))
        else:
            groups = step.groups
        if not groups:
            self.problems.append(f"{where}: no groups of blocks")
        for group in groups:
            if len(group) < 2:
                self.problems.append(f"{where}: group {list(group)}; at least two blocks")
                continue
            free = [self._take(block, where, number) for block in group]  # all are told, not the first alone
            if not all(free):
                continue
            places = [self.kept.index(block) for block in group]
            if isinstance(step, Merge) and places != list(range(places[0], places[0] + len(places))):
                self.problems.append(f"{where}: group {list(group)}; blocks that follow each other, in their order")
                continue
            self.members.append((step, tuple(group)))

    def _reorder(self, step: Reorder, where: str) -> None:
        if sorted(step.order, key=str) != sorted(self.kept, key=str):
            self.problems.append(
                f"{where}: order {list(step.order)}; each of the blocks {', '.join(map(str, self.kept))} once"
            )
            return
        self.order = list(step.order)
        for merge, group in self.members:
            start = self.order.index(group[0])
            if isinstance(merge, Merge) and tuple(self.order[start : start + len(group)]) != group:
                self.problems.append(f"{where}: the merged blocks {list(group)} do not stay together")

    def _layout(self) -> Layout:
        lead = {block: group[0] for step, group in self.members if isinstance(step, Merge) for block in group}
        last = {group[0]: group[-1] for step, group in self.members if isinstance(step, Merge)}
        # By the block that leads a place, the pretrained blocks that the place stands for, its dropped ones included.
        spans = {block: [block, last.get(block, block)] for block in self.kept if lead.get(block, block) == block}
        before = None
        for block in range(self.depth):
            if block in self.dropped:
                if before is not None:
                    spans[before][1] = max(spans[before][1], block)
            else:
                head = lead.get(block, block)
                if before is None:
                    spans[head][0] = 0
                before = head
        groups: dict[int, Group] = {}
        borrowed: dict[int, int] = {}
        for step, group in self.members:
            if isinstance(step, Merge):
                made = Group(
                    kind="merge",
                    branches=group,
                    spans=(_span(spans[group[0]]),),
                    combine=step.combine,
                    train=step.train,
                )
            else:
                made = Group(kind="share", branches=group[:1], spans=tuple(_span(spans[block]) for block in group))
                borrowed |= dict.fromkeys(group[1:], group[0])
            groups |= dict.fromkeys(group, made)
        for block in self.kept:
            if block not in groups:
                span = _span(spans[block])
                groups[block] = Group(
                    kind="keep" if span == (block, block) else "drop", branches=(block,), spans=(span,)
                )
        return Layout(
            places=tuple(groups[block] for block in self.order if block in spans),
            owner=groups,
            dropped=frozenset(self.dropped),
            borrowed=borrowed,
        )


def _span(ends: Sequence[int]) -> tuple[int, int]:
    first, last = ends
    return first, last


def to_dict(step: Step) -> dict[str, Any]:
    """One step as in YAML."""
    if isinstance(step, Drop):
        return {"drop": step.blocks if isinstance(step.blocks, str) else list(step.blocks)}
    if isinstance(step, Reorder):
        return {"reorder": list(step.order)}
    groups = step.groups if isinstance(step.groups, str) else [list(group) for group in step.groups]
    if isinstance(step, Share):
        return {"share": groups}
    return {"merge": groups, "combine": step.combine} | ({} if step.train == "all" else {"train": step.train})


def from_dict(content: Any, where: str) -> tuple[Step | None, list[str]]:
    """One step from plain data, or None and every problem in words."""
    if not isinstance(content, Mapping):
        return None, [f"{where}: {content!r} is no mapping with one of {', '.join(VERBS)}"]
    named = [verb for verb in VERBS if verb in content]
    known = [*named, *(("combine", "train") if named == ["merge"] else ())]
    problems = [f"{where}: unknown key {key!r}: {near(key, known or VERBS)}" for key in content if key not in known]
    if len(named) != 1:
        problems.append(f"{where}: {' and '.join(named) or 'no step'} in one entry; exactly one of {', '.join(VERBS)}")
        return None, problems
    (verb,) = named
    value, flat = content[verb], verb in ("drop", "reorder")
    text = isinstance(value, str) and verb != "reorder"
    if not text and not (_blocks(value) if flat else _lists(value) and all(_blocks(group) for group in value)):
        wanted = {
            "drop": "a list of blocks or a pattern",
            "reorder": "a list of blocks",
            "merge": "'pairs' or lists of blocks",
            "share": "'pairs' or lists of blocks",
        }
        problems.append(f"{where}: {verb} {value!r}; {wanted[verb]}")
    problems += [f"{where}: {key} {content[key]!r}; a name" for key in known[1:] if not _name(content.get(key, ""))]
    if problems:
        return None, problems
    taken: Any = value if text else tuple(value) if flat else tuple(tuple(group) for group in value)
    if verb == "drop":
        return Drop(blocks=taken), []
    if verb == "reorder":
        return Reorder(order=taken), []
    if verb == "share":
        return Share(groups=taken), []
    return Merge(groups=taken, **{key: content[key] for key in known[1:] if key in content}), []


def _lists(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _blocks(value: Any) -> bool:
    return _lists(value) and all(type(block) is int for block in value)


def _name(value: Any) -> bool:
    return isinstance(value, str)
