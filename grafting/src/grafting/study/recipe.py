"""A recipe says the whole way of a study: frozen data, YAML in and out, every problem reported at once.

    teacher: fashion
    plan: {edits: [{site: attn, blocks: interleaved 50%, operator: hyena_x}]}
    distill: {steps: 200, batch: 64}
    finetune: {steps: 300, batch: 64, lr: 1.0e-4, target: teacher}
    evaluate: {triples: 2000, samples: 500}
    controls: [none, untrained]

``plans`` in the place of ``plan`` is a mapping from names to plans, for several hybrids in one study. A plan may also
be the name of a YAML file, such as ``grafting search`` writes. ``most local 50%`` is read as a list of blocks from
``analysis``: a file of ``grafting analyze``, or, where it is left out, what lies beside the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..data.pairs import PairsConfig
from ..diffusion import Levels
from ..initialise import STARTS
from ..lora import Lora
from ..measure.quality.extractors import CLASSIFIER, ExtractorConfig
from ..plan import Plan, PlanError
from ..precision import WEIGHTS
from ..sampling import Sampling
from ..settings import Frozen, SettingsError, build, near, read_recipe
from ..training.distill import DistillConfig, SiteConfig
from ..training.finetune import CAP, FinetuneConfig
from ..training.finetune import LATER as FINETUNE_LATER
from ..training.loop import LoopConfig

CONTROLS = ("procedure", "none", "untrained", "self")
TARGETS = {"teacher": (1.0, 1.0), "mixture": (1.0, 0.0), "noise": (0.0, 0.0)}
"""Stage 2's targets: the share of the teacher's output against the noise, at the first and the last step."""
TRAINED = ("all", "grafted", "lora")
SCENES = "scenes"
"""The prompts that are the captions of a model's own world of scenes."""
LATER = ("lora", "levels", "optimizer", *FINETUNE_LATER)
"""Settings of a stage that work begun before there were any does not name: not told where they are as they were."""
PASSES = ("pairs", "distill", "finetune", "evaluate")
"""What of a recipe runs models, in a precision."""
HOW = ("save_every", "checkpointing")
"""Settings of a stage that say when to write and what to keep in memory, and change nothing of what is learnt."""


@dataclass(frozen=True, kw_only=True)
class DistillStage:
    """Stage 1: ``batch`` and the settings of :class:`~grafting.training.distill.DistillConfig`."""

    steps: int
    batch: int = 64
    attn: SiteConfig = DistillConfig.attn
    mlp: SiteConfig = DistillConfig.mlp
    group: SiteConfig = DistillConfig.group
    clip: float = 10.0
    warmup: float = 0.1
    halve: tuple[float, ...] = (0.25, 0.5, 0.75)
    gate_weighted: bool = False
    levels: Levels | None = None
    label_dropout: float = 0.1
    evaluate_every: int = 50
    heldout_batches: int = 2
    floor: float = 0.0
    patience: int = 3
    precision: str = "fp32"
    save_every: int = 100

    def __post_init__(self) -> None:
        _at_least(self, batch=1)
        self.config(seed=0)

    def config(self, *, seed: int) -> DistillConfig:
        """As :func:`grafting.training.distill.distill` takes it. Raises ValueError naming every bad value."""
        return DistillConfig(seed=seed, **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch"})


@dataclass(frozen=True, kw_only=True)
class FinetuneStage:
    """Stage 2: its length, its target and what it trains; the rest as in :class:`~grafting.training.loop.LoopConfig`.

    target: ``teacher`` (the teacher's own output), ``noise`` (the paper's, for a flow the velocity), or ``mixture``
    (from the one to the other).
    train: ``all`` weights of a private copy, the ``grafted`` operators alone, or these and adapters on the rest, with
    the settings ``lora`` (:class:`~grafting.lora.Lora`). optimizer: ``adamw`` or ``muon``. features, fade, levels,
    weight_power, weight_cap, checkpointing, micro_batch: as in :class:`~grafting.training.finetune.FinetuneConfig`.
    """

    steps: int
    batch: int = 64
    lr: float = 1e-4
    target: str = "teacher"
    train: str = "all"
    lora: Lora | None = None
    weight_decay: float = 0.0
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float | None = 10.0
    ema: float = 0.9999
    ema_horizon: float = 0.1
    optimizer: str = "adamw"
    levels: Levels | None = None
    weight_power: float = 0.0
    weight_cap: float = CAP
    label_dropout: float = 0.1
    variance_weight: float = 0.05
    features: float = 1.0
    fade: float = 0.0
    precision: str = "fp32"
    checkpointing: bool = False
    micro_batch: int | None = None
    save_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        problems = []
        if self.target not in TARGETS:
            problems.append(f"target {self.target!r}: one of {', '.join(TARGETS)}")
        if self.train not in TRAINED:
            problems.append(f"train {self.train!r}: one of {', '.join(TRAINED)}")
        if self.lora is not None and self.train != "lora":
            problems.append(f"lora: these settings are for train: lora, given train: {self.train}")
        if problems:
            raise ValueError("; ".join(problems))
        _at_least(self, batch=1, save_every=1, log_every=1)
        self.config(seed=0)

    @property
    def still(self) -> bool:
        """Whether an unchanged teacher stays as it is: it matches itself exactly, so that every gradient is zero."""
        return self.target == "teacher" and self.weight_decay == 0

    @property
    def adapters(self) -> Lora | None:
        """The adapters that are trained, if any."""
        return (self.lora or Lora()) if self.train == "lora" else None

    def config(self, *, seed: int) -> FinetuneConfig:
        """As :func:`grafting.training.finetune.finetune` takes it. Raises ValueError naming every bad value."""
        loop = LoopConfig(**{f.name: getattr(self, f.name) for f in fields(LoopConfig) if hasattr(self, f.name)})
        return FinetuneConfig(
            loop=loop,
            teacher_share=TARGETS[self.target],
            variance_weight=self.variance_weight,
            features=self.features,
            levels=self.levels,
            weight_power=self.weight_power,
            weight_cap=self.weight_cap,
            label_dropout=self.label_dropout,
            precision=self.precision,
            checkpointing=self.checkpointing,
            micro_batch=self.micro_batch,
            fade=self.fade,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The settings of :class:`~grafting.sampling.Sampling`, for what draws in a study."""

    scheduler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    steps: int = 20
    spacing: Literal["linspace", "leading"] = "linspace"
    guidance: float = 1.0
    guided_channels: int | None = None
    clip: bool = False
    precision: str = "fp32"

    @property
    def sampling(self) -> Sampling:
        """The walk from noise to a sample. Raises ValueError naming every bad value."""
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})

    @property
    def passes(self) -> int:
        """Of the model, for one sample: two a step where it is guided."""
        return self.steps * (1 if self.guidance == 1 else 2)


@dataclass(frozen=True, kw_only=True)
class PairsStage(Walk):
    """What the teacher draws first, to be learnt from: see :mod:`grafting.data.pairs`.

    count: pairs; None: one of every prompt. prompts: of a model of text, a file of them, or ``scenes``: the captions
    of its own world of scenes. column: of the prompt in a ``.jsonl``. text, tokens: as in
    :func:`grafting.data.encoders.encoders_of`. batch, shard, dtype: as in :class:`~grafting.data.pairs.PairsConfig`.
    """

    count: int | None = None
    prompts: str | None = None
    column: str = "prompt"
    text: str | None = None
    tokens: int | None = None
    batch: int = 16
    shard: int = 128
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.count is None and self.prompts in (None, SCENES):
            raise ValueError("count: how many pairs, where no file of prompts tells")
        _at_least(self, **{name: 1 for name in ("count", "tokens") if getattr(self, name) is not None})
        _ = self.sampling, self.config(seed=0)

    def config(self, *, seed: int) -> PairsConfig:
        """As :func:`grafting.data.pairs.generate_pairs` takes it. Raises ValueError naming every bad value."""
        return PairsConfig(seed=seed, batch=self.batch, shard=self.shard, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Walk):
    """What is measured: ``triples`` of the held-out loss, ``samples`` of FID and KID (0: none), ``grid`` pictures.

    stages: whether the loss is measured at the start and after stage 1 too.
    prompts: of a model of text, the scene world's evaluation prompts that it draws, the tasks in turn, for the exact
    scorer; held_out: more of them, of combinations that training never shows, reported apart. labels: ``balanced`` or
    ``uniform``. extractor: as :class:`~grafting.measure.quality.extractors.ExtractorConfig` has it. reference: a folder
    or array of real images, or statistics as ADM publishes them, in the place of the training images; floor: held-out
    real images, in the place of the data's. bootstraps: rounds of the intervals of FID.
    """

    triples: int = 1000
    samples: int = 0
    grid: int = 40
    prompts: int = 0
    held_out: int = 0
    stages: bool = False
    labels: Literal["balanced", "uniform"] = "balanced"
    batch: int = 50
    extractor: ExtractorConfig = CLASSIFIER
    reference: str | None = None
    floor: str | None = None
    bootstraps: int = 100

    def __post_init__(self) -> None:
        _at_least(self, triples=2, samples=0, grid=0, prompts=0, held_out=0, batch=1, bootstraps=0)
        if self.held_out and not self.prompts:
            raise ValueError(f"held_out {self.held_out}: these are judged beside other prompts: give prompts too")
        _ = self.sampling

    @property
    def drawn(self) -> int:
        """How many samples are drawn of each model; of prompts, the grid shows the first."""
        return self.prompts + self.held_out or max(self.samples, self.grid)

    @property
    def measuring(self) -> int:
        """Passes of a model that is measured: those of its samples and of its held-out loss."""
        return self.drawn * self.passes + self.triples


@dataclass(frozen=True, kw_only=True)
class SpeedStage:
    """Latency of one forward pass over ``batch`` samples. sides: tokens along a side; the model's own where empty."""

    batch: int = 8
    rounds: int = 5
    sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _at_least(self, batch=1, rounds=2)
        if any(side < 1 for side in self.sides):
            raise ValueError(f"sides {list(self.sides)}: at least 1 each")


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """A study: a teacher, the plans that make hybrids of it, how they learn, how all are measured, and the controls.

    teacher: MODEL of :func:`grafting.store.models.open_model`. weights: how its transformer's are held, ``fp32`` or
    ``bf16``: then they take half the memory, and everything runs in bfloat16 but what is learnt. vae: an autoencoder's
    folder or hub id, for a teacher of latents that brings none. data: a folder of
    :func:`grafting.encode`, or an npz of :func:`grafting.data.write_subset`; where the teacher brings none. pairs: in
    the place of data, what the teacher draws itself, kept in the run's folder. trained_on: samples, repeated ones
    counted each time, that the teacher's transformer was trained on, where its card does not say: what shares of its
    training are of. images: how many of the training images are learnt from, the first ones; all where None.
    calibration: samples whose activations a solved start sees. budget: multiplies the steps of both stages; 0 is the
    start alone. seed: of everything that is random; train_seed: of the start and both stages, where that is another.
    beside: finished runs whose figures the page shows too, under their own label: folders, or names under ``runs`` in
    the teacher's folder. against: the plan that every other one is compared with, paired, beside the teacher and the
    controls.
    """

    teacher: str
    plans: Mapping[str, Plan]
    title: str = ""
    weights: str = "fp32"
    vae: str | None = None
    data: str | None = None
    pairs: PairsStage | None = None
    trained_on: int | None = None
    images: int | None = None
    init: str = "default"
    seed: int = 0
    train_seed: int | None = None
    calibration: int = 256
    budget: float = 1.0
    distill: DistillStage | None = None
    finetune: FinetuneStage | None = None
    evaluate: EvaluateStage = field(default_factory=EvaluateStage)
    speed: SpeedStage | None = field(default_factory=SpeedStage)
    beside: tuple[str, ...] = ()
    against: str | None = None
    controls: tuple[str, ...] = ("none", "untrained")

    def __post_init__(self) -> None:
        problems = [f"control {name!r}: {near(name, CONTROLS)}" for name in self.controls if name not in CONTROLS]
        if self.init not in STARTS:
            problems.append(f"init {self.init!r}: {near(self.init, STARTS)}")
        if self.weights not in WEIGHTS:
            problems.append(f"weights {self.weights!r}: {' or '.join(WEIGHTS)}")
        elif self.weights == "bf16":
            problems += [
                f"{name}: precision {stage.precision}: it is bf16 where weights are held in it"
                for name in PASSES
                if (stage := getattr(self, name)) is not None and stage.precision != "bf16"
            ]
        if self.data is not None and self.pairs is not None:
            problems.append(f"data {self.data} and pairs: a study learns from one of them")
        if self.calibration < 0 or (self.calibration == 0 and self.init == "solve"):
            problems.append(f"calibration {self.calibration}: at least 1 where the start is solved, else 0 or more")
        for name in ("images", "trained_on"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)}: at least 1")
        if not self.budget >= 0:
            problems.append(f"budget {self.budget}: 0 or above")
        if not self.plans:
            problems.append("plan is missing")
        elif self.against is not None and self.against not in self.plans:
            problems.append(f"against {self.against!r}: {near(self.against, list(self.plans))}")
        if "self" in self.controls and (bare := [name for name, plan in self.plans.items() if not plan.edits]):
            problems.append(f"control self: plan {', '.join(bare)} replaces no operator: self would be the same again")
        own = {f"{name}-{control}" for name in self.plans for control in self.controls}
        taken = {"teacher", "pairs", *CONTROLS, *own} & set(self.plans)
        problems += [f"plan {name!r}: this name is a control's, the pairs' or the teacher's" for name in sorted(taken)]
        problems += [
            f"plan {name!r}: a name of letters, digits, - and _"
            for name in self.plans
            if not name or not name.replace("-", "").replace("_", "").isalnum()
        ]
        if problems:
            raise SettingsError(problems)
        object.__setattr__(self, "plans", Frozen(self.plans))

    @property
    def learning_seed(self) -> int:
        """Of the start and both stages."""
        return self.seed if self.train_seed is None else self.train_seed

    @property
    def stages(self) -> tuple[DistillStage | None, FinetuneStage | None]:
        """Both stages at this budget: steps multiplied, None where nothing is left of one."""
        return _scaled(self.distill, self.budget), _scaled(self.finetune, self.budget)

    @classmethod
    def from_dict(cls, content: Any, where: str = "recipe") -> RunRecipe:
        """From plain data. Raises SettingsError naming every unknown key, with the nearest, and every bad value."""
        if not isinstance(content, Mapping):
            raise SettingsError([f"{where}: {content!r} is no mapping of settings"])
        if content.get("kind") == "table":
            raise SettingsError([f"{where} is a table of many rows: give it to grafting study"])
        if "kind" in content and "teacher" not in content:
            raise SettingsError([f"{where} trains a model of kind {content['kind']}: give it to grafting pretrain"])
        problems: list[str] = []
        plain = {key: value for key, value in content.items() if key not in ("plan", "plans", "analysis")}
        if plain.get("weights") == "bf16":
            in_half = {"precision": "bf16"}
            plain |= {name: in_half | plain[name] for name in PASSES if isinstance(plain.get(name), Mapping)}
            plain.setdefault("evaluate", in_half)
        if "plan" in content and "plans" in content:
            problems.append(f"{where}: both plan and plans are given")
        named = content.get("plans") or ({"hybrid": content["plan"]} if "plan" in content else {})
        plans: dict[str, Plan] = {}
        if not isinstance(named, Mapping):
            problems.append(f"{where}: plans {named!r}: a mapping from names to plans")
            named = {}
        for name, plan in named.items():
            try:
                read = Plan.from_yaml(Path(plan)) if _file(plan) else Plan.from_dict(plan, f"{where}: plan {name}")
                plans[str(name)] = _located(read, content) if read.by_locality else read
            except PlanError as error:
                problems += error.problems
            except ValueError as error:
                problems.append(f"{where}: plan {name}: {error}")
        known = [*(f.name for f in fields(cls) if f.name != "plans"), "plan", "plans", "analysis"]
        if not named:
            problems.append(f"{where}: plan is missing")
        made = build(cls, plain, where, problems, {"plans": plans}, known)
        if problems or made is None:
            raise SettingsError(list(dict.fromkeys(problems)))
        return made

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Sequence[str] = (), where: str = "recipe") -> RunRecipe:
        """From a YAML file (a Path, or one line that ends in ``.yaml`` or ``.yml``) or YAML text.

        overrides: ``key=value`` with dots between levels. where: what the text is called in errors. Raises
        SettingsError.
        """
        return cls.from_dict(*read_recipe(source, overrides, where))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back, defaults written out."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["plans"] = {name: plan.to_dict() for name, plan in self.plans.items()}
        return as_plain({key: asdict(value) if is_dataclass(value) else value for key, value in data.items()})  # type: ignore[arg-type]

    def to_yaml(self) -> str:
        """The recipe as YAML text."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def _file(plan: Any) -> bool:
    """Whether a plan is given as the name of a YAML file. Raises ValueError where there is no such file."""
    if not isinstance(plan, str):
        return False
    if not Path(plan).is_file():
        raise ValueError(f"{plan}: no such file")
    return True


def depended_on(stage: DistillStage | FinetuneStage) -> dict[str, Any]:
    """The settings that what a stage learns depends on, as plain data."""
    plain, later = as_plain(asdict(stage)), {f.name: f.default for f in fields(stage) if f.name in LATER}
    plain |= {f.name: f.default for f in fields(stage) if f.name == "log_every"}  # named by keys that are there
    return {key: value for key, value in plain.items() if key not in HOW and (key not in later or value != later[key])}


def _located(plan: Plan, content: Mapping[str, Any]) -> Plan:
    from ..measure.suggest import located

    analysis = content.get("analysis")
    return located(plan, str(content.get("teacher")), None if analysis is None else Path(str(analysis)))


def _scaled(stage: Any, budget: float) -> Any:
    if stage is None or budget == 0:
        return None
    return replace(stage, steps=max(1, round(stage.steps * budget)))


def as_plain(value: Any) -> Any:
    """Nested settings with lists for tuples, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: as_plain(entry) for key, entry in value.items()}
    return [as_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _at_least(config: Any, **least: int) -> None:
    problems = [f"{n} {getattr(config, n)}: at least {low}" for n, low in least.items() if getattr(config, n) < low]
    if problems:
        raise ValueError("; ".join(problems))
