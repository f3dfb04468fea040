"""The recipe of a whole table: which operators at which shares of the sites, at which budgets, under one protocol.

    kind: table
    teacher: fashion
    budget: 0.05                                   # of the teacher's own training, all passes counted
    starts: {copied: {init: default, distill: {attn: {lr: 1.0e-4}}}}
    finetune: {lr: 5.0e-4}
    rows:
      - {name: hyena_x, site: attn, operator: hyena_x}
      - {name: none-attn, site: attn, operator: none, role: control}

No stage says its steps: they follow from the budget, so that every row costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..initialise import STARTS
from ..settings import SettingsError, build, near, read_recipe
from .recipe import DistillStage, EvaluateStage, FinetuneStage, SpeedStage, as_plain

SHARE_OF_BUDGET = "a share of the budget, from 0 to below 1"


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the operators of some rows begin, and at which rates they learn in stage 1."""

    init: str
    distill: DistillStage


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of one operator: every combination of ``shares``, ``budgets``, ``images`` and ``seeds``.

    site, operator, options: as in a plan's edit. shares: percent of the blocks, interleaved. plan: a whole plan in
    their place; ``share`` says among which percent its row stands and is judged, None among none. start: a name among
    the recipe's starts. what: ``graft``; ``untrained`` (random operators, no training); ``procedure`` (the unchanged
    teacher through stage 2). none: the row that is its control *none*, where that is not the one of equal site and
    share. against: the name of other rows that these are compared with, at equal share, budget and images. budgets,
    images, seeds: the recipe's budget, all images and the recipe's seed where empty; a seed is that of start and
    training alone, and such a row is compared with the one of the recipe's seed. finetune, stage_one: what is not as
    the recipe has it. samples: False draws none and judges by the held-out loss alone, in a fraction of the time.
    variant: not of the table proper, which alone is judged against goals and timed; rows of other budgets, images,
    seeds or settings never are, nor those without samples.
    """

    name: str
    role: Literal["hybrid", "control"] = "hybrid"
    what: Literal["graft", "untrained", "procedure"] = "graft"
    site: str = ""
    operator: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    share: int | None = None
    shares: tuple[int, ...] = (50, 75, 100)
    start: str = "copied"
    none: str = ""
    against: str = ""
    budgets: tuple[float, ...] = ()
    images: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    finetune: dict[str, Any] = field(default_factory=dict)
    stage_one: float | None = None
    samples: bool = True
    variant: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not self.name.replace("-", "").replace("_", "").isalnum():
            problems.append(f"name {self.name!r}: letters, digits, - and _")
        if self.what != "procedure" and self.plan is None and not (self.site and self.operator):
            problems.append("site and operator, or plan, are missing")
        if self.share is not None and self.plan is None:
            problems.append(f"share {self.share}: of a row with a plan; give shares")
        shares = self.shares if self.share is None else (self.share,)
        problems += [f"share {share}: from 1 to 100 percent" for share in shares if not 1 <= share <= 100]
        problems += [f"budget {budget}: above 0" for budget in self.budgets if not budget > 0]
        problems += [f"images {count}: at least 1" for count in self.images if count < 1]
        if self.stage_one is not None and not 0 <= self.stage_one < 1:
            problems.append(f"stage_one {self.stage_one}: {SHARE_OF_BUDGET}")
        if self.what == "untrained" and (self.finetune or self.stage_one is not None or self.budgets or self.seeds):
            problems.append("finetune, stage_one, budgets, seeds: of rows that are trained")
        if problems:
            raise SettingsError(problems)


@dataclass(frozen=True, kw_only=True)
class TableRecipe:
    """A whole table.

    teacher, vae, data, trained_on, seed, calibration, evaluate: as in :class:`~grafting.study.recipe.RunRecipe`.
    analysis: a file or folder of ``grafting analyze``, for plans by locality, where none lies beside the teacher.
    budget: share of the teacher's training compute that a row may spend, start, both stages and the teacher's passes
    included. stage_one: the share of that budget which stage 1 gets. speed: how the rows of the table proper are timed,
    beside the teacher. notes: sentences for the page, such as what was tuned on what.
    """

    teacher: str
    starts: dict[str, Start]
    finetune: FinetuneStage
    rows: tuple[Group, ...]
    title: str = ""
    vae: str | None = None
    data: str | None = None
    analysis: str | None = None
    trained_on: int | None = None
    seed: int = 0
    calibration: int = 512
    budget: float = 0.05
    stage_one: float = 0.15
    evaluate: EvaluateStage = field(default_factory=EvaluateStage)
    speed: SpeedStage | None = None
    notes: tuple[str, ...] = ()
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        problems = []
        if self.trained_on is not None and self.trained_on < 1:
            problems.append(f"trained_on {self.trained_on}: at least 1")
        if not self.budget > 0:
            problems.append(f"budget {self.budget}: above 0")
        if not 0 <= self.stage_one < 1:
            problems.append(f"stage_one {self.stage_one}: {SHARE_OF_BUDGET}")
        if self.calibration < 1:
            problems.append(f"calibration {self.calibration}: at least 1")
        if self.evaluate.samples < 2 and not self.evaluate.prompts:
            problems.append(
                f"samples {self.evaluate.samples}: a table judges at least 2 samples a row, or, of text, prompts"
            )
        for group in self.rows:
            if group.start not in self.starts:
                problems.append(f"row {group.name}: start {group.start!r}: {near(group.start, list(self.starts))}")
            if self.finetune is not None:  # a bad one was told by what read it
                _stage_two(self.finetune, group, problems)
        if not self.rows:
            problems.append("rows: give at least one")
        if problems:
            raise SettingsError(problems)

    def stage_two(self, group: Group) -> FinetuneStage:
        """Stage 2 of the rows of a group, its steps not known yet."""
        made = _stage_two(self.finetune, group, [])
        assert made is not None  # checked when the recipe was made
        return made

    @classmethod
    def from_dict(cls, content: Any, where: str = "recipe") -> TableRecipe:
        """From plain data. Raises SettingsError naming every unknown key, with the nearest, and every bad value."""
        if not isinstance(content, Mapping):
            raise SettingsError([f"{where}: {content!r} is no mapping of settings"])
        if content.get("kind") != "table":
            verb = "run" if "teacher" in content else "pretrain"
            raise SettingsError([f"{where}: no table (kind: table): give it to grafting {verb}"])
        problems: list[str] = []
        starts = {}
        named = content.get("starts")
        if not isinstance(named, Mapping) or not named:
            problems.append(f"{where}: starts {named!r}: a mapping from names to init and distill")
            named = {}
        for name, entry in named.items():
            starts[str(name)] = _start(entry, f"{where}: start {name}", problems)
        finetune = _unstepped(FinetuneStage, content.get("finetune", {}), f"{where}: finetune", problems)
        plain = {key: value for key, value in content.items() if key not in ("starts", "finetune")}
        known = [f.name for f in fields(cls)]
        made = build(cls, plain, where, problems, {"starts": starts, "finetune": finetune}, known)
        if problems or made is None:
            raise SettingsError(list(dict.fromkeys(problems)))
        return made

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Sequence[str] = (), where: str = "recipe") -> TableRecipe:
        """From a YAML file (a Path, or one line that ends in ``.yaml`` or ``.yml``) or YAML text.

        overrides: ``key=value`` with dots between levels. where: what the text is called in errors. Raises
        SettingsError.
        """
        return cls.from_dict(*read_recipe(source, overrides, where))


def _start(content: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(content, Mapping):
        problems.append(f"{where}: {content!r} is no mapping with init and distill")
        return None
    problems += [
        f"{where}: unknown key {key!r}: {near(key, ['init', 'distill'])}"
        for key in content
        if key not in ("init", "distill")
    ]
    init = content.get("init", "default")
    if init not in STARTS:
        problems.append(f"{where}: init {init!r}: {near(init, STARTS)}")
    distill = _unstepped(DistillStage, content.get("distill", {}), f"{where}: distill", problems)
    return Start(init=init, distill=distill)


def _stage_two(general: FinetuneStage, group: Group, problems: list[str]) -> FinetuneStage | None:
    where = f"row {group.name}: finetune"
    if "steps" in group.finetune:
        problems.append(f"{where}: steps follow from the budget: leave them out")
        return None
    return build(FinetuneStage, as_plain(asdict(general)) | group.finetune, where, problems)


def _unstepped(kind: Any, content: Any, where: str, problems: list[str]) -> Any:
    """A stage whose steps are not known yet: one stands for them."""
    if isinstance(content, Mapping) and "steps" in content:
        problems.append(f"{where}: steps follow from the budget: leave them out")
        return None
    return build(kind, {**content, "steps": 1} if isinstance(content, Mapping) else content, where, problems)
