"""What may stand at a site: an operator with its options, or the control *none*."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..hosts.shapes import KINDS, HostShape, Kind, Site
from ..operators import arithmetic
from ..plan import Edit, Plan, named_operator
from .solve import SearchError

DEFAULT = ("hyena_x", "hyena_x_2d", "swa", "local_mean", "linear", "mlp:ratio=3", "none")
LINEAR = ("hyena_x_2d", "local_mean", "mix_ffn:ratio=1.25", "mix_ffn:ratio=2", "mlp:ratio=2.5", "none")
"""Of a host whose attention is linear already: what there is to spare is in its MLP."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An operator for sites of one kind."""

    kind: Kind
    operator: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As given, ``mlp:ratio=3``."""
        return ":".join([self.operator, *(f"{key}={value}" for key, value in self.options.items())])

    def plan(self, blocks: Sequence[int] | str) -> Plan:
        """This operator in these blocks."""
        taken = blocks if isinstance(blocks, str) else tuple(blocks)
        return Plan(edits=(Edit(site=self.kind, blocks=taken, operator=self.operator, options=self.options),))


def usual(shape: HostShape) -> tuple[str, ...]:
    """What is tried at a host's sites where nothing is named."""
    return LINEAR if shape.linear else DEFAULT


def candidates(names: Iterable[str] = DEFAULT, kinds: Sequence[Kind] = KINDS) -> tuple[Candidate, ...]:
    """Operators by name, ``operator:option=value``, for the sites that they fit and ``kinds`` has; *none* fits both.

    Raises:
        SearchError, OperatorError, PlanError: none is left, one is named twice, an unknown operator, or an option
            without a value.
    """
    made: list[Candidate] = []
    for name in names:
        operator, options = named_operator(name)
        fits: Sequence[Kind] = KINDS if operator == "none" else (KINDS[arithmetic(operator).kind == "channel"],)
        made += [Candidate(kind=kind, operator=operator, options=options) for kind in fits if kind in kinds]
    seen = [(one.kind, one.name) for one in made]
    if not made or len(set(seen)) < len(seen):
        what = "an operator is named twice" if made else f"no operator for {' or '.join(kinds)} sites"
        raise SearchError(f"operators {', '.join(names)}: {what}")
    return tuple(made)


def plan_of(taken: Mapping[Site, Candidate], name: str) -> Plan:
    """The plan with these operators at these sites, one edit for each operator."""
    edits: list[Edit] = []
    for kind, label in sorted({(one.kind, one.name) for one in taken.values()}):
        sites = sorted(s for s, one in taken.items() if (one.kind, one.name) == (kind, label))
        edits += taken[sites[0]].plan([site.block for site in sites]).edits
    return Plan(edits=tuple(edits), name=name)
