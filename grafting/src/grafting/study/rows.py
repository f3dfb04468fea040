"""The rows of a table: each a recipe of its own, whose steps follow from its budget by the cost formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ..cost import PlanCost, plan_cost
from ..measure.analysis import AnalysisError
from ..measure.suggest import located
from ..plan import Edit, Plan, PlanError
from .entries import summary
from .parts import StudyError
from .recipe import DistillStage, FinetuneStage, RunRecipe
from .spending import part_flops, stage_one_flops, stage_two_flops, training_flops
from .table import Group, TableRecipe


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the table.

    share: percent of the sites; None where that has no meaning. budget: as asked, None for what is not trained. images:
    learnt from, None for all. seed: of start and training, None for the recipe's. variant: of another budget, data,
    seed or setting than the table's own, or without samples; changed: of another setting; samples: whether any are
    drawn, or the held-out loss alone judges it; finetune: what it changes in stage 2. none: the
    name or label of its control *none*, where that is not the one of equal site and share. against: the name of the
    rows that it is compared with. recipe, entry: the study that makes it, and its name there; None where ``problem``
    says why it cannot be made. parts: FLOPs by part. cost: of its plan; None for the unchanged teacher.
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
    seed: int | None = None
    variant: bool = False
    changed: bool = False
    samples: bool = True
    finetune: dict[str, Any] = field(default_factory=dict)
    none: str = ""
    against: str = ""
    recipe: RunRecipe | None = None
    entry: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    cost: PlanCost | None = None
    problem: str = ""

    @property
    def steps(self) -> dict[str, int]:
        """Steps of both stages."""
        one, two = (None, None) if self.recipe is None else self.recipe.stages
        return {f"stage {k}": stage.steps for k, stage in ((1, one), (2, two)) if stage is not None and self.parts}

    @property
    def flops(self) -> float:
        """FLOPs of making it."""
        return sum(self.parts.values())


def base(recipe: TableRecipe) -> RunRecipe:
    """The study of the teacher alone, whose measurements all rows share."""
    edit = Edit(site="attn", blocks="all", operator="none")
    unused = Row(name="unused", label="unused", role="teacher")
    return _recipe(recipe, unused, Plan(edits=(edit,)), init="random", one=None, two=None)


def rows(recipe: TableRecipe, model: Any, samples: int) -> list[Row]:
    """Every row, in the order in which they are made: what a reader needs first comes first.

    model: the teacher or its configuration. samples: that it was trained on. The table proper, by share, controls
    before hybrids, cheap before dear; then what varies budget and data.

    Raises:
        StudyError: two rows have one name, or a budget that is too small for a single step.
    """
    whole = training_flops(model, samples)
    teacher = Row(name="teacher", label="teacher", role="teacher", description="pretrained", entry="teacher")
    found = [replace(teacher, recipe=base(recipe))]
    for group in recipe.rows:
        found += [_row(recipe, group, model, whole, choice) for choice in _choices(recipe, group)]
    names = [row.name for row in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StudyError(f"rows {', '.join(twice)} occur twice: give their groups other names")
    labels = [row.label for row in found]
    for key, known in (("none", [*names, *labels]), ("against", labels)):
        if lost := sorted({getattr(row, key) for row in found} - {"", *known}):
            raise StudyError(f"{key} {', '.join(lost)}: no such row; there are {', '.join(dict.fromkeys(known))}")
    if odd := [row.name for row in found if row.none and none_of(row, found) is None]:
        raise StudyError(f"rows {', '.join(odd)}: their none has no row of their share, budget, images and seed")
    return sorted(found, key=_order)


def matching(found: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows whose name matches any of the patterns (``hyena*``); all where there is none.

    Raises:
        StudyError: a pattern that matches no row.
    """
    if not patterns:
        return list(found)
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in found):
            raise StudyError(f"no row matches {pattern!r}: there are {', '.join(row.name for row in found)}")
    return [row for row in found if any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def none_of(row: Row, found: Sequence[Row]) -> Row | None:
    """A hybrid's control *none*, of the same share, budget, images and seed: of the name or label that it gives, or
    that of the same site and stage 2."""
    if row.none:
        named = (other for other in found if row.none in (other.name, other.label) and _alike(row, other))
        return next(named, None)
    place = (row.site, row.finetune)
    there = (o for o in found if o.operator == "none" and _alike(row, o) and (o.site, o.finetune) == place)
    return next(there, None) if row.role == "hybrid" else None


def against_of(row: Row, found: Sequence[Row]) -> Row | None:
    """What a row is compared with beside the controls: of the name that it gives, of equal share, budget, images and
    seed; where it gives none, and its seed is not the table's, the same row of that seed."""
    if row.against:
        return next((other for other in found if other.label == row.against and _alike(row, other)), None)
    if row.seed is None:
        return None
    first = replace(row, seed=None)
    return next((other for other in found if other.label == row.label and _alike(first, other)), None)


def _alike(row: Row, other: Row) -> bool:
    keys = ("share", "budget", "images", "seed")
    return all(getattr(row, key) == getattr(other, key) for key in keys)


def untrained_of(row: Row, found: Sequence[Row]) -> Row | None:
    """A trained hybrid's control *untrained*: of the same site and share, of the same operator and size where there is
    one."""
    if row.role != "hybrid" or row.budget is None or not row.site:
        return None
    there = [other for other in found if other.budget is None and (other.site, other.share) == (row.site, row.share)]
    return min(there, key=lambda other: (other.operator != row.operator, _size(other) != _size(row)), default=None)


def _size(row: Row) -> float | None:
    return None if row.cost is None else row.cost.flops_after


def _order(row: Row) -> tuple[Any, ...]:
    place = row.share if row.share is not None else (0 if row.entry == "procedure" else 101)
    return (
        row.role != "teacher",
        row.variant,
        row.seed or 0,
        (row.budget or 0) if row.variant else 0,
        place,
        row.role != "control",
        bool(row.problem),
        row.flops > 0,
    )


class _Choice(NamedTuple):
    """What tells the rows of a group apart."""

    share: int | None
    budget: float
    images: int | None
    seed: int | None


def _choices(recipe: TableRecipe, group: Group) -> Iterator[_Choice]:
    several = group.plan is None and group.what != "procedure"
    shares: Sequence[int | None] = group.shares if several else (group.share,)
    for share in shares:
        for budget in group.budgets or (recipe.budget,):
            for images in group.images or (None,):
                for seed in group.seeds or (None,):
                    yield _Choice(share, budget, images, seed)


def _row(recipe: TableRecipe, group: Group, model: Any, whole: float, choice: _Choice) -> Row:
    share, budget, images, seed = choice
    name = group.name if share is None or group.plan is not None else f"{group.name}-{share}"
    if budget != recipe.budget:
        name += f"-b{budget * 100:g}".replace(".", "_")
    if images is not None:
        name += f"-n{images}"
    if seed is not None:
        name += f"-s{seed}"
    changed = group.variant or bool(group.finetune) or group.stage_one is not None
    other = changed or budget != recipe.budget or images is not None or seed is not None
    plain = Row(
        name=name,
        label=group.name,
        role=group.role,
        site=group.site,
        operator=group.operator,
        share=share,
        budget=None if group.what == "untrained" else budget,
        images=images,
        seed=seed,
        none=group.none,
        against=group.against,
        variant=other or not group.samples,
        changed=changed,
        samples=group.samples,
        finetune=group.finetune,
        entry=name,
    )
    if group.what == "procedure":
        return _procedure(recipe, plain, model, whole * budget, recipe.stage_two(group))
    try:
        plan = _plan(group, share, recipe)
        cost = plan_cost(plan, model)
    except (PlanError, AnalysisError) as error:
        return replace(plain, problem=str(error))
    if group.what == "untrained":
        made = _recipe(recipe, plain, plan, init="random", one=None, two=None)
        return replace(plain, recipe=made, cost=cost, description="random operators, no training")
    start = recipe.starts[group.start]
    learns = cost.new_parameters > 0
    init = start.init if learns else "random"
    calibration = recipe.calibration if cost.sites and init in ("default", "solve") else 0
    one, two = fit(
        cost,
        whole * budget,
        first=(recipe.stage_one if group.stage_one is None else group.stage_one) if learns else 0.0,
        calibration=calibration,
        distill=start.distill,
        finetune=recipe.stage_two(group),
    )
    parts = part_flops(cost, calibration=calibration, one=one, two=two)
    made = _recipe(recipe, plain, plan, init=init, one=one, two=two, calibration=calibration)
    told = f"{group.start} start" if learns else "nothing at the sites"
    told = told if group.plan is None else summary(plan)
    told += "".join(f", {key} {value}" for key, value in group.finetune.items())
    told += "" if one is not None or not learns else ", no stage 1"
    return replace(plain, recipe=made, cost=cost, parts=parts, description=told)


def _plan(group: Group, share: int | None, recipe: TableRecipe) -> Plan:
    if group.plan is not None:
        analysis = None if recipe.analysis is None else Path(recipe.analysis)
        return located(Plan.from_dict(group.plan, f"row {group.name}"), recipe.teacher, analysis)
    blocks = "all" if share == 100 else f"interleaved {share}%"
    edit = {"site": group.site, "blocks": blocks, "operator": group.operator, "options": group.options}
    return Plan.from_dict({"edits": [edit]}, f"row {group.name}")


def _procedure(recipe: TableRecipe, row: Row, model: Any, allowed: float, stage: FinetuneStage) -> Row:
    """The unchanged teacher through stage 2; on its own output as target it stays what it is, for nothing."""
    whole = Plan(edits=(Edit(site="attn", blocks="all", operator="identity"),))
    unchanged = plan_cost(Plan(), model)
    step = stage_two_flops(unchanged, replace(stage, steps=1))
    steps = int(allowed / step)
    if steps < 1:
        raise StudyError(f"row {row.name}: budget of {allowed:.3g} FLOPs: one step of stage 2 costs {step:.3g}")
    two = replace(stage, steps=steps)
    made = _recipe(recipe, replace(row, name="unused"), whole, init="random", one=None, two=two)
    return replace(
        row,
        recipe=replace(made, controls=("procedure",)),
        entry="procedure",
        parts={} if two.still else {"stage 2": stage_two_flops(unchanged, two)},
        description="the teacher unchanged, through the same stage 2",
    )


def _recipe(
    recipe: TableRecipe,
    row: Row,
    plan: Plan,
    *,
    init: str,
    one: DistillStage | None,
    two: FinetuneStage | None,
    calibration: int = 0,
) -> RunRecipe:
    """What one row depends on, and nothing that it does not: it is made again where any of this is another."""
    if one is not None:
        kinds = {"group"} if plan.restructure else set()
        kinds |= {edit.site for edit in plan.edits}
        rest = {name: getattr(DistillStage, name) for name in ("attn", "mlp", "group") if name not in kinds}
        one = replace(one, **rest)
    return RunRecipe(
        teacher=recipe.teacher,
        plans={row.name: plan},
        vae=recipe.vae,
        data=recipe.data,
        trained_on=recipe.trained_on,
        images=row.images,
        init=init,
        seed=recipe.seed,
        train_seed=row.seed,
        calibration=calibration,
        distill=one,
        finetune=two,
        evaluate=recipe.evaluate,
        speed=None if row.variant else recipe.speed,
        controls=(),
    )


def fit(
    cost: PlanCost,
    allowed: float,
    *,
    first: float,
    calibration: int,
    distill: DistillStage,
    finetune: FinetuneStage,
) -> tuple[DistillStage | None, FinetuneStage]:
    """The longest stages that ``allowed`` FLOPs pay for, stage 1 taking at most the share ``first`` of them.

    A stage 1 too short for a single step is left out. Raises StudyError where no step of stage 2 is left.
    """
    fits, beyond = 0, 1  # steps; a stage of more of them is never cheaper
    while first and stage_one_flops(cost, _timed(distill, beyond)) <= first * allowed:
        fits, beyond = beyond, 2 * beyond
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if stage_one_flops(cost, _timed(distill, middle)) <= first * allowed:
            fits = middle
        else:
            beyond = middle
    one = _timed(distill, fits) if fits else None
    left = allowed - sum(part_flops(cost, calibration=calibration, one=one, two=None).values())
    step = part_flops(cost, calibration=0, one=None, two=replace(finetune, steps=1))["stage 2"]
    if left < step:
        raise StudyError(
            f"a budget of {allowed:.3g} FLOPs leaves {left:.3g} for stage 2, of which one step costs {step:.3g}"
        )
    return one, replace(finetune, steps=int(left / step))


def _timed(stage: DistillStage, steps: int) -> DistillStage:
    """``steps`` long, with three held-out errors: at the start, half-way, at the end."""
    return replace(stage, steps=steps, evaluate_every=max(1, -(-steps // 2)))
