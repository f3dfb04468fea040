"""The models of a study: the teacher, the hybrids, and the controls that a hybrid must be read beside.

*procedure*: the teacher through the same stage 2, the price of finetuning (LoRA on the teacher, where stage 2 trains
adapters). *none*: zero at the grafted sites with the same stage 2, what the sites are worth. *untrained*: a random
start, or that of a plan that replaces no operator. *self*: operators of the teacher's own kind from a random start
through both stages, the price of the whole procedure; of a plan without operators there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..hosts.shapes import HostShape, Source, shape_of
from ..plan import Edit, Plan
from ..restructure import Drop, Merge, Step, to_dict
from ..settings import SettingsError
from .recipe import RunRecipe


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of a study. plan: None for the teacher and for *procedure*. learns: takes part in the two stages."""

    name: str
    role: str
    description: str
    plan: Plan | None = None
    init: str = "default"
    learns: bool = True


def entries(recipe: RunRecipe, teacher: Source) -> list[Entry]:
    """The teacher, the hybrids, the controls; where there are several plans a control is named after its own.

    teacher: the model, its configuration or its sizes, which say what its own operators are.
    """
    shape = shape_of(teacher)
    found = [Entry(name="teacher", role="teacher", description="pretrained", learns=False)]
    for name, plan in recipe.plans.items():
        found.append(
            Entry(name=name, role="hybrid", description=plan.name or summary(plan), plan=plan, init=recipe.init)
        )
    for control in recipe.controls:
        if control == "procedure":
            if (stage := recipe.stages[1]) is not None:
                # Adapters are a delta of the teacher, as a hybrid is; full finetuning gives a plain model.
                bare = None if stage.adapters is None else Plan()
                text = f"the teacher unchanged, through the same stage 2{'' if bare is None else ', LoRA alone'}"
                found.append(Entry(name=control, role="control", description=text, plan=bare, init="random"))
            continue
        for name, plan in recipe.plans.items():
            found.append(_control(control, f"{name}-{control}" if len(recipe.plans) > 1 else control, plan, shape))
    return found


def _control(control: str, name: str, plan: Plan, shape: HostShape) -> Entry:
    if control == "untrained":
        text = "the hybrid from a random start, no training" if plan.edits else "the hybrid's start, no training"
        return Entry(name=name, role="control", description=text, plan=plan, init="random", learns=False)
    if control == "none":
        text = "zero in the place of the grafted sites, the same stage 2"
        if plan.restructure:
            text = "all but the first block of a merged group dropped, no grafted sites, the same stages"
        edits = tuple(replace(edit, operator="none", options={}) for edit in plan.edits if not plan.restructure)
    else:
        text = "operators of the teacher's own kind from a random start, the same two stages"
        edits = tuple(_own(edit, shape) for edit in plan.edits)
    restructure = plan.restructure if control == "self" else tuple(_fewer(step, plan) for step in plan.restructure)
    bare = Plan(edits=edits, restructure=restructure)
    return Entry(name=name, role="control", description=text, plan=bare, init="random")


def _own(edit: Edit, shape: HostShape) -> Edit:
    operator, options = shape.own(edit.site)
    return replace(edit, operator=operator, options=options)


def _fewer(step: Step, plan: Plan) -> Step:
    """Instead of a merge, the blocks dropped that it puts beside the first of their group."""
    if not isinstance(step, Merge):
        return step
    if not isinstance(step.groups, str):
        return Drop(blocks=tuple(block for group in step.groups for block in group[1:]))
    if len(plan.restructure) > 1:
        raise SettingsError(["control none: name the merged pairs as lists where a plan has other steps too"])
    return Drop(blocks="interleaved 50%")


def summary(plan: Plan) -> str:
    """A plan in a few words."""
    parts = []
    for edit in plan.edits:
        options = f" ({', '.join(f'{key} {value}' for key, value in edit.options.items())})" if edit.options else ""
        blocks = edit.blocks if isinstance(edit.blocks, str) else f"blocks {', '.join(map(str, edit.blocks))}"
        parts.append(f"{edit.operator}{options} at {edit.site}, {blocks}")
    for step in plan.restructure:
        told = to_dict(step)
        what = told.pop(step.verb)
        parts.append(f"{step.verb} {what}{''.join(f', {key} {value}' for key, value in told.items())}")
    return "; ".join(parts)
