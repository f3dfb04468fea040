"""The schema of ``results.json``: everything that a report shows, as plain data. Needs neither torch nor diffusers.

Every entry names the ``run`` that it comes from, for one page may show a quick run beside a committed full one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_text_atomic

SCHEMA = 1
ROLES = ("teacher", "hybrid", "control")
PAIRS = "pairs"
"""The part of a cost that drew what is learnt from."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its 95 % interval and its floor (the same number for held-out real images), where they exist."""

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Shares of ``n`` pictures that are what their prompt says, by task and overall, drawn under ``protocol``.

    differences: the same minus the teacher's, paired by prompt and noise; empty for the teacher.
    """

    n: int
    protocol: str
    scores: Mapping[str, Figure]
    differences: Mapping[str, Figure] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TaskScores:
        """Check and convert plain data. Raises ValueError for an unknown or a missing key."""
        figures = {
            key: {task: built(Figure, figure) for task, figure in raw.get(key, {}).items()}
            for key in ("scores", "differences")
        }
        return built(cls, {**raw, **figures})


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One column of pictures and one row of figures.

    role: ``teacher``, ``hybrid`` or ``control``. figures: by metric name (``fid``, ``kid``, ``precision`` …), under the
    sampling ``protocol``. denoising: held-out loss; denoising_difference: paired, minus the teacher's;
    stages: the same at the ``start`` and after ``stage 1``, where it was asked for. scenes: what the
    judge of scenes says of its pictures; held_out: the same of combinations that training never showed.
    grid: a PNG of samples, its path relative to the results file; grids of one report share their seeds.
    """

    name: str
    role: str
    run: str
    description: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    protocol: str = ""
    denoising: Figure | None = None
    denoising_difference: Figure | None = None
    stages: Mapping[str, Figure] = field(default_factory=dict)
    scenes: TaskScores | None = None
    held_out: TaskScores | None = None
    grid: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} of model {self.name!r} is not one of {', '.join(ROLES)}")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Losses of one site (``blocks.3.attn``) or of one model over training steps.

    held_out: (step, error) on held-out images, where that was measured.
    """

    name: str
    run: str
    stage: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.losses):
            raise ValueError(f"curve {self.name!r} has {len(self.steps)} steps and {len(self.losses)} losses")


@dataclass(frozen=True, kw_only=True)
class SiteMap:
    """Which operator stands in which block: operator names by site kind, one per block, ``None`` where untouched."""

    model: str
    run: str
    sites: Mapping[str, tuple[str | None, ...]]


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Measured speed-up over the teacher at one shape, beside its two bounds; ``setting`` tells shape, threads, dtype.

    seconds and teacher_seconds are minima of interleaved runs.
    """

    model: str
    run: str
    setting: str
    speedup: float
    seconds: float
    teacher_seconds: float
    low: float | None = None
    high: float | None = None
    flop_bound: float | None = None
    time_bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of making ``model``, by part: :data:`PAIRS`, solved start, stage 1, stage 2 or LoRA.

    Of a stage, forward, backward and the teacher's passes together.
    """

    model: str
    run: str
    parts: Mapping[str, float]
    teacher_training: float

    @property
    def share(self) -> float:
        """Of the teacher's own training."""
        return sum(self.parts.values()) / self.teacher_training


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that one report shows. provenance: free text by name (versions, hashes, machine, command, seed)."""

    title: str
    run: str
    summary: str = ""
    schema: int = SCHEMA
    models: tuple[ModelResult, ...] = ()
    curves: tuple[Curve, ...] = ()
    maps: tuple[SiteMap, ...] = ()
    speed: tuple[SpeedRow, ...] = ()
    costs: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Results:
        """Check and convert plain data.

        Raises:
            ValueError: another schema version, an unknown or a missing key (named, with the nearest valid one).
        """
        if raw.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"results of schema {raw['schema']}: this version reads schema {SCHEMA}")
        data = dict(raw)
        data["models"] = tuple(_model(x) for x in raw.get("models", ()))
        data["curves"] = tuple(
            built(
                Curve,
                x
                | {key: tuple(x.get(key, ())) for key in ("steps", "losses")}
                | {"held_out": tuple((int(step), float(error)) for step, error in x.get("held_out") or ())},
            )
            for x in raw.get("curves", ())
        )
        data["maps"] = tuple(
            built(SiteMap, {**x, "sites": {k: tuple(v) for k, v in x.get("sites", {}).items()}})
            for x in raw.get("maps", ())
        )
        data["speed"] = tuple(built(SpeedRow, x) for x in raw.get("speed", ()))
        data["costs"] = tuple(built(Cost, x) for x in raw.get("costs", ()))
        data["notes"] = tuple(raw.get("notes", ()))
        return built(cls, data)


def _model(raw: Mapping[str, Any]) -> ModelResult:
    data = dict(raw)
    for key in ("figures", "stages"):
        data[key] = {name: built(Figure, figure) for name, figure in raw.get(key, {}).items()}
    for key in ("denoising", "denoising_difference"):
        if raw.get(key) is not None:
            data[key] = built(Figure, raw[key])
    for key in ("scenes", "held_out"):
        if raw.get(key) is not None:
            data[key] = TaskScores.from_dict(raw[key])
    return built(ModelResult, data)


def built(kind: type[T], raw: Mapping[str, Any]) -> T:
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in raw:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown key {key!r} in {kind.__name__} of the results: {hint}")
    try:
        return kind(**raw)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} of the results is incomplete: {error}") from None


def figures_of(quality: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of ``measure.quality.Quality.to_dict()``, each joined to its floor."""
    floors = quality.get("floors", {})
    return {name: Figure(**figure, floor=floors.get(name)) for name, figure in quality["figures"].items()}


def write_results(path: Path | str, results: Results) -> None:
    """Write ``results.json`` atomically.

    Raises:
        ValueError: a number that is not finite, which JSON cannot hold.
    """
    write_plain(Path(path), asdict(results))


def read_results(path: Path | str) -> Results:
    """Read what :func:`write_results` wrote; raises ValueError as :meth:`Results.from_dict` does."""
    return Results.from_dict(read_plain(Path(path), "results"))


def write_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data of a report atomically. Raises ValueError: a number that is not finite."""
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError(f"{path.name} would hold a number that is not finite; leave such a figure out") from None
    write_text_atomic(path, text + "\n")


def read_plain(path: Path, what: str) -> dict[str, Any]:
    """Read what :func:`write_plain` wrote. Raises ValueError, which says ``what`` the file does not hold."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no {what}: it is no mapping")
    return content
