"""The schema of a table's results, ``table.json``: every row as plain data. Needs neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .results import ROLES, Figure, SpeedRow, built, read_plain, write_plain

SCHEMA = 1
RIGHT, HELD_OUT = "right", "held_out"
"""Figures of a row whose pictures are judged by prompts: the share that is right, beside those of the tasks; and that
of combinations which training never showed."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One model. share: percent of the sites. budget: as asked, a share of the teacher's training; None untrained.

    images: learnt from as asked, None for all; ``learnt_from``: how many that is. seed: of start and training, None for
    the table's. variant: of another budget, data, seed or setting than the table's own; changed: of another setting.
    Where no samples were drawn there are neither figures nor a protocol, and the loss alone judges.
    parts: FLOPs of making it; ``teacher_training``: of the teacher. flops: of a forward pass, over the teacher's;
    parameters: the same, None where they were not counted; speed: of a pass, timed in turn with the teacher.
    differences: minus the teacher's, paired (``loss``; ``fid`` and ``kid``, or ``right``). over_none: the same minus
    the control *none* of equal site, share and budget, the row ``none``; over_untrained: minus the row ``untrained``,
    of equal site and share, and of the same operator where there is one; over_other: minus the row ``other``. stages:
    the difference of the loss before the end: at the ``start``, after ``stage 1``. by_timestep: paired loss differences
    to the teacher in equal parts of the noise schedule, from no noise up. left: by block, the share of what the
    teacher's returns that is left unexplained at the end. explained: variance explained by site: after stage 1 held
    out, without it that of the start on the images it was solved from. figures: as in
    :class:`~grafting.report.results.ModelResult`, or :data:`RIGHT` and its like. grid: a PNG beside the results file.
    """

    name: str
    label: str
    role: str
    description: str = ""
    site: str = ""
    operator: str = ""
    share: int | None = None
    budget: float | None = None
    images: int | None = None
    learnt_from: int = 0
    seed: int | None = None
    variant: bool = False
    changed: bool = False
    steps: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    teacher_training: float = 0.0
    flops: float = 1.0
    parameters: float | None = None
    speed: tuple[SpeedRow, ...] = ()
    loss: Figure | None = None
    differences: Mapping[str, Figure] = field(default_factory=dict)
    over_none: Mapping[str, Figure] = field(default_factory=dict)
    none: str = ""
    over_untrained: Mapping[str, Figure] = field(default_factory=dict)
    untrained: str = ""
    over_other: Mapping[str, Figure] = field(default_factory=dict)
    other: str = ""
    stages: Mapping[str, Figure] = field(default_factory=dict)
    by_timestep: tuple[Figure, ...] = ()
    left: Mapping[str, float] = field(default_factory=dict)
    explained: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    protocol: str = ""
    grid: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} of row {self.name!r} is not one of {', '.join(ROLES)}")

    @property
    def spent(self) -> float:
        """Share of the teacher's training that making it took."""
        return sum(self.parts.values()) / self.teacher_training if self.teacher_training else 0.0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TableRow:
        """Check and convert plain data. Raises ValueError for an unknown or a missing key."""
        data = dict(raw)
        for key in ("differences", "over_none", "over_untrained", "over_other", "stages", "figures"):
            data[key] = {name: built(Figure, figure) for name, figure in raw.get(key, {}).items()}
        data["speed"] = tuple(built(SpeedRow, timed) for timed in raw.get("speed", ()))
        data["by_timestep"] = tuple(built(Figure, figure) for figure in raw.get("by_timestep", ()))
        if raw.get("loss") is not None:
            data["loss"] = built(Figure, raw["loss"])
        return built(cls, data)


@dataclass(frozen=True, kw_only=True)
class TableResults:
    """All rows that there are.

    teacher: what it is called. features: of which extractor FID and KID are, and what they must not be taken for; or
    what judged prompts.
    missing: by name, why a row is not there. provenance: free text by name.
    """

    title: str
    teacher: str = ""
    features: str = ""
    schema: int = SCHEMA
    rows: tuple[TableRow, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TableResults:
        """Check and convert plain data. Raises ValueError: another schema version, an unknown or a missing key."""
        if raw.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"a table of schema {raw['schema']}: this version reads schema {SCHEMA}")
        rows = tuple(TableRow.from_dict(row) for row in raw.get("rows", ()))
        return built(cls, {**raw, "rows": rows, "notes": tuple(raw.get("notes", ()))})

    def row(self, name: str) -> TableRow | None:
        """The row of that name, if it is there."""
        return next((row for row in self.rows if row.name == name), None)


def write_table(path: Path, results: TableResults) -> None:
    """Write ``table.json`` atomically. Raises ValueError: a number that is not finite, which JSON cannot hold."""
    write_plain(path, asdict(results))


def read_table(path: Path) -> TableResults:
    """Read what :func:`write_table` wrote; raises ValueError as :meth:`TableResults.from_dict` does."""
    return TableResults.from_dict(read_plain(path, "table"))
