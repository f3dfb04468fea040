"""A plan says which sites get which operator: frozen data, YAML in and out, checked as a whole before anything runs.

    edits:
      - {site: attn, blocks: interleaved 50%, operator: hyena_x}
      - {site: mlp, blocks: [0, 1, 2], operator: mlp, options: {ratio: 3}}

``blocks`` is a list of indices or a pattern over the blocks that have the site, nearly always all: ``interleaved 50%``
(every second: 1, 3, …), ``interleaved 75%`` (three of four), ``first 50%``, ``last 50%``, ``all``. ``most local 50%``
and ``least local 50%`` name blocks once the locality of their attention is given: :meth:`Plan.located`. ``restructure``
merges, drops, reorders and shares blocks (:mod:`grafting.restructure`); edits go on naming blocks by their numbers in
the pretrained model.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import restructure as steps
from .hosts.shapes import KINDS, HostShape, Kind, Site, shape_of
from .restructure import Layout, Step
from .settings import Frozen, SettingsError, read_yaml, yaml_source

if TYPE_CHECKING:
    from .hosts.shapes import Source

CONTROLS = ("none", "identity")
"""Not operators but controls: a site whose output is zero, and a copy of the original."""

PATTERNS = ("interleaved", "first", "last", "most local", "least local")
PATTERN = re.compile(rf"({'|'.join(PATTERNS)}) +(\d+(?:\.\d+)?) *%|all")


class PlanError(ValueError):
    """Every problem of a plan, at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


def pattern_blocks(pattern: str, depth: int, locality: Sequence[float] | None = None) -> tuple[int, ...]:
    """Indices of the blocks that ``pattern`` picks of ``depth``; locality: of each block's attention.

    Interleaved picks block i when the count of picks, ratio x (i + 1) rounded down, grows there: 50 % gives 1, 3, 5, …,
    75 % gives 1, 2, 3, 5, 6, 7, …. Raises PlanError for another pattern, a share that picks nothing, or a pattern of
    locality without one figure per block.
    """
    match = PATTERN.fullmatch(pattern.strip())
    if not match:
        raise PlanError([f"blocks {pattern!r}: a list of indices, 'all', or '{'|'.join(PATTERNS)} P%'"])
    if match[0] == "all":
        return tuple(range(depth))
    share = (Fraction(match[2]) / 100).limit_denominator(10**6)  # 83.33333333333333 % is five of six
    if not 0 < share <= 1:
        raise PlanError([f"blocks {pattern!r}: the share must be above 0 % and at most 100 %"])
    count = int(share * depth)
    if count == 0:
        raise PlanError([f"blocks {pattern!r}: picks none of {depth} blocks"])
    if match[1].endswith("local"):
        if locality is None or len(locality) != depth:
            told = "none is given" if locality is None else f"it is of {len(locality)}"
            raise PlanError(
                [f"blocks {pattern!r}: needs the measured locality of {depth} blocks, {told}; grafting analyze tells"]
            )
        sign = -1 if match[1].startswith("most") else 1
        return tuple(sorted(sorted(range(depth), key=lambda i: sign * locality[i])[:count]))
    if match[1] == "first":
        return tuple(range(count))
    if match[1] == "last":
        return tuple(range(depth - count, depth))
    return tuple(i for i in range(depth) if int(share * (i + 1)) > int(share * i))


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One operator for the ``site`` (``attn`` or ``mlp``) of some blocks."""

    site: Kind
    blocks: tuple[int, ...] | str
    operator: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Frozen(self.options))
        if not isinstance(self.blocks, str):
            object.__setattr__(self, "blocks", tuple(self.blocks))

    @property
    def by_locality(self) -> bool:
        """Whether the blocks are named by a measurement that is still to be given."""
        return isinstance(self.blocks, str) and "local" in self.blocks

    def located(self, locality: Sequence[float]) -> Edit:
        """With a list of blocks where they were named by locality; one figure per block."""
        if not (isinstance(self.blocks, str) and self.by_locality):
            return self
        return replace(self, blocks=pattern_blocks(self.blocks, len(locality), locality))

    def indices(self, depth: int) -> tuple[int, ...]:
        """The blocks of a model of ``depth`` blocks."""
        return pattern_blocks(self.blocks, depth) if isinstance(self.blocks, str) else self.blocks


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """One site with what it gets."""

    site: Site
    operator: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What is wrong with a plan on a model; empty when it fits."""

    problems: tuple[str, ...]

    def raise_if_any(self) -> None:
        """Raise PlanError with all problems, if there are any."""
        if self.problems:
            raise PlanError(self.problems)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Edits in order, of which no two may meet at a site, and the steps that change what blocks there are."""

    edits: tuple[Edit, ...] = ()
    name: str = ""
    restructure: tuple[Step, ...] = ()

    @classmethod
    def interleaved(cls, *, site: str = "attn", operator: str, share: float = 0.5, **options: Any) -> Plan:
        """Every second block, three of four, … : a ``share`` spread evenly."""
        return cls._patterned("interleaved", site, operator, share, options)

    @classmethod
    def first(cls, *, site: str = "attn", operator: str, share: float = 0.5, **options: Any) -> Plan:
        """The first ``share`` of the blocks."""
        return cls._patterned("first", site, operator, share, options)

    @classmethod
    def last(cls, *, site: str = "attn", operator: str, share: float = 0.5, **options: Any) -> Plan:
        """The last ``share`` of the blocks."""
        return cls._patterned("last", site, operator, share, options)

    @classmethod
    def most_local(
        cls, locality: Sequence[float], *, site: str = "attn", operator: str, share: float = 0.5, **options: Any
    ) -> Plan:
        """The ``share`` of the blocks whose attention is most local, as a list; one figure per block with the site."""
        return cls._patterned("most local", site, operator, share, options).located(locality)

    @classmethod
    def least_local(
        cls, locality: Sequence[float], *, site: str = "attn", operator: str, share: float = 0.5, **options: Any
    ) -> Plan:
        """The ``share`` of the blocks whose attention is least local."""
        return cls._patterned("least local", site, operator, share, options).located(locality)

    @classmethod
    def all(cls, *, site: str = "attn", operator: str, **options: Any) -> Plan:
        """Every block."""
        return cls(edits=(Edit(site=_kind(site), blocks="all", operator=operator, options=options),))

    @classmethod
    def explicit(cls, *, site: str = "attn", operator: str, blocks: Sequence[int], **options: Any) -> Plan:
        """The blocks listed."""
        return cls(edits=(Edit(site=_kind(site), blocks=tuple(blocks), operator=operator, options=options),))

    @classmethod
    def _patterned(cls, pattern: str, site: str, operator: str, share: float, options: Mapping[str, Any]) -> Plan:
        percent = Fraction(share).limit_denominator(10_000) * 100
        text = str(int(percent)) if percent.denominator == 1 else repr(float(percent))
        return cls(edits=(Edit(site=_kind(site), blocks=f"{pattern} {text}%", operator=operator, options=options),))

    def __add__(self, other: Plan) -> Plan:
        """Both plans' edits and steps."""
        return Plan(
            edits=self.edits + other.edits,
            name=self.name or other.name,
            restructure=self.restructure + other.restructure,
        )

    @property
    def by_locality(self) -> bool:
        """Whether any edit waits for the locality of the blocks."""
        return any(edit.by_locality for edit in self.edits)

    def located(self, locality: Sequence[float], source: Source | None = None) -> Plan:
        """The same plan with ``most local P%`` and ``least local P%`` as lists of blocks; locality: one per block.

        source: the model, where not every block has every site.
        """
        shape = None if source is None else shape_of(source)

        def having(edit: Edit) -> Sequence[float]:
            return locality if shape is None else locality[: shape.having(edit.site)]

        return replace(self, edits=tuple(edit.located(having(edit)) for edit in self.edits))

    def resolve(self, source: Source) -> list[Resolved]:
        """Sites in the model's order with what they get. Raises PlanError where a pattern or a block does not fit."""
        shape = shape_of(source)
        problems = self._block_problems(shape)
        if problems:
            raise PlanError(problems)
        entries = [
            Resolved(site=Site(block, edit.site), operator=edit.operator, options=edit.options)
            for edit in self.edits
            for block in edit.indices(shape.having(edit.site))
        ]
        return sorted(entries, key=lambda entry: (entry.site.block, KINDS.index(entry.site.kind)))

    @property
    def bare(self) -> bool:
        """Whether it changes nothing: no hybrid, but a pretrained model that adapters may be put into."""
        return not self.edits and not self.restructure

    def layout(self, source: Source) -> Layout | None:
        """What blocks there are after the restructuring; None where there is none. Raises PlanError."""
        if not self.restructure:
            return None
        found, problems = steps.resolve(self.restructure, shape_of(source).depth, pattern_blocks)
        if found is None:
            raise PlanError(problems)
        return found

    def _block_problems(self, shape: HostShape) -> list[str]:
        problems: list[str] = []
        taken: dict[Site, int] = {}
        layout, found = steps.resolve(self.restructure, shape.depth, pattern_blocks)
        problems += found
        if self.restructure and shape.joint:
            problems.append(
                f"restructure: blocks of {shape.family} carry text beside the picture and are not rearranged"
            )
        for number, edit in enumerate(self.edits):
            where = f"edit {number} ({edit.site}, {edit.operator})"
            try:
                blocks = edit.indices(shape.having(edit.site))
            except PlanError as error:
                problems += [f"{where}: {text}" for text in error.problems]
                continue
            if not blocks:
                problems.append(f"{where}: no blocks")
            for block in blocks:
                if type(block) is not int or not 0 <= block < shape.depth:
                    problems.append(f"{where}: block {block!r}; the model has 0 to {shape.depth - 1}")
                    continue
                if block >= shape.having(edit.site):
                    problems.append(
                        f"{where}: block {block}: its MLP shares a projection with attention and is no site"
                    )
                    continue
                site = Site(block, edit.site)
                if site in taken:
                    problems.append(f"{where}: {site.name} is edited by edit {taken[site]} already")
                taken.setdefault(site, number)
                if layout is not None and block in layout.dropped:
                    problems.append(f"{where}: block {block} is dropped by the restructuring")
                if layout is not None and block in layout.borrowed:
                    lender = layout.borrowed[block]
                    problems.append(f"{where}: block {block} runs with the weights of block {lender}: edit that one")
        return problems

    def check(self, source: Source) -> CheckReport:
        """Everything that is wrong with this plan on a live model, a configuration or sizes."""
        from .operators import OperatorError, arithmetic

        shape = shape_of(source)
        problems = self._block_problems(shape)
        if self.bare:
            problems.append("a plan without edits changes nothing: give at least one")
        for number, edit in enumerate(self.edits):
            where = f"edit {number} ({edit.site}, {edit.operator})"
            if edit.operator in CONTROLS:
                if edit.options:
                    problems.append(f"{where}: the control takes no options, given {', '.join(edit.options)}")
                continue
            if sizes := [key for key in edit.options if key in ("width", "heads", "tokens")]:
                problems.append(f"{where}: {', '.join(sizes)} is the model's, no option of an operator")
                continue
            try:
                operator = arithmetic(edit.operator)
                operator.resolve(width=shape.width, heads=shape.heads, tokens=shape.tokens, **edit.options)
            except OperatorError as error:
                problems.append(f"{where}: {error}")
                continue
            wanted = "channel" if edit.site == "mlp" else "mixer"
            if operator.kind != wanted:
                problems.append(
                    f"{where}: {edit.operator} is a {operator.kind} operator, {edit.site} sites take a {wanted}"
                )
        return CheckReport(problems=tuple(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in YAML."""
        edits = []
        for edit in self.edits:
            blocks = edit.blocks if isinstance(edit.blocks, str) else list(edit.blocks)
            entry: dict[str, Any] = {"site": edit.site, "blocks": blocks, "operator": edit.operator}
            edits.append(entry | ({"options": dict(edit.options)} if edit.options else {}))
        restructured = {"restructure": [steps.to_dict(step) for step in self.restructure]} if self.restructure else {}
        return ({"name": self.name} if self.name else {}) | {"edits": edits} | restructured

    def to_yaml(self) -> str:
        """The plan as YAML text."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's YAML."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    @classmethod
    def from_dict(cls, content: Any, where: str = "plan") -> Plan:
        """From plain data. Raises PlanError naming every unknown key and bad value."""
        if not isinstance(content, Mapping):
            raise PlanError([f"{where}: {content!r} is no mapping with edits"])
        problems = _unknown(content, ("name", "edits", "restructure"), where)
        listed = content.get("restructure", [])
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            problems.append(f"{where}: restructure is {listed!r}, must be a list of steps")
            listed = []
        read = [steps.from_dict(entry, f"{where}: restructure {number}") for number, entry in enumerate(listed)]
        problems += [problem for _, found in read for problem in found]
        edits = content.get("edits", [] if listed else None)
        if not isinstance(edits, Sequence) or isinstance(edits, str):
            raise PlanError([*problems, f"{where}: edits is {edits!r}, must be a list of edits"])
        made = []
        for number, entry in enumerate(edits):
            place = f"{where}: edit {number}"
            if not isinstance(entry, Mapping):
                problems.append(f"{place}: {entry!r} is no mapping")
                continue
            bad = _unknown(entry, ("site", "blocks", "operator", "options"), place)
            bad += [f"{place}: {key} is missing" for key in ("site", "blocks", "operator") if key not in entry]
            if "site" in entry and entry["site"] not in KINDS:
                bad.append(f"{place}: site {entry['site']!r}; one of {', '.join(KINDS)}")
            blocks = entry.get("blocks", "all")
            if not isinstance(blocks, str) and not (
                isinstance(blocks, Sequence) and all(type(b) is int for b in blocks)
            ):
                bad.append(f"{place}: blocks {blocks!r}; a list of indices or a pattern")
            if not isinstance(entry.get("operator", ""), str):
                bad.append(f"{place}: operator {entry['operator']!r}; a name")
            options = entry.get("options") or {}
            if not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
                bad.append(f"{place}: options {options!r}; a mapping from names")
            if bad:
                problems += bad
            else:
                taken = blocks if isinstance(blocks, str) else tuple(blocks)
                made.append(Edit(site=entry["site"], blocks=taken, operator=entry["operator"], options=options))
        if problems:
            raise PlanError(problems)
        restructure = tuple(step for step, _ in read if step is not None)
        return cls(edits=tuple(made), name=str(content.get("name", "")), restructure=restructure)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Plan:
        """From a YAML file (a Path, or one line that ends in ``.yaml`` or ``.yml``) or YAML text.

        Raises PlanError where the file is not there, or what is read is no YAML or no plan.
        """
        source = yaml_source(source)
        where = str(source) if isinstance(source, Path) else "plan"
        try:
            content = read_yaml(source, where)
        except SettingsError as error:
            raise PlanError(error.problems) from None
        return cls.from_dict(content, where)


def named_operator(name: str) -> tuple[str, dict[str, Any]]:
    """An operator and its options, as a command line names them: ``mlp:ratio=3``, ``hyena_x``, ``python:mine:Shift``.

    Raises PlanError for an option without a value, or with one that is no YAML.
    """
    from .operators.arithmetic import OWN

    operator, *pairs = name.split(":")
    if name.startswith(OWN):
        operator, pairs = ":".join([operator, *pairs[:2]]), pairs[2:]
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise PlanError([f"operator {name!r}: {bad[0]!r} is no option=value"])
    try:
        return operator, {key: read_yaml(value, key) for key, value in (pair.split("=", 1) for pair in pairs)}
    except SettingsError as error:
        raise PlanError([f"operator {name!r}: {error}"]) from None


def _kind(site: str) -> Kind:
    if site not in KINDS:
        raise PlanError([f"site {site!r}; one of {', '.join(KINDS)}"])
    return site


def _unknown(given: Mapping[Any, Any], known: Sequence[str], where: str) -> list[str]:
    problems = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.0)
            problems.append(f"{where}: unknown key {key!r}: did you mean {near[0]!r}?")
    return problems
