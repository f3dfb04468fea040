"""What a recipe of ``run`` takes, before it is run: FLOPs by formula, from a configuration alone; time at a rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cost import host_flops, plan_cost
from ..data.pairs import Prompts
from ..expect import Rate, duration
from ..hosts.shapes import HostShape
from ..plan import Plan
from ..report.results import PAIRS
from .entries import Entry, entries
from .recipe import PairsStage, RunRecipe
from .spending import part_flops, training_flops

MEASURED = "measuring"
"""What samples and held-out losses are called among the parts."""
PARTS = (PAIRS, "solved start", "stage 1", "stage 2", MEASURED)


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What one model of a study takes. parts: FLOPs by part, those of making it before those of measuring it."""

    name: str
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


def bills(recipe: RunRecipe, shape: HostShape) -> list[Bill]:
    """Every model of a study over a teacher of this shape, the pairs that are drawn first among the teacher's parts.

    Speed, features of pictures and decoding are not counted: beside passes of the model they are little.

    Raises:
        PlanError: a plan does not fit.
        OSError: there is no such file of prompts.
    """
    return [_bill(recipe, entry, shape) for entry in entries(recipe, shape)]


def _bill(recipe: RunRecipe, entry: Entry, shape: HostShape) -> Bill:
    if entry.role == "teacher":
        drawn = {} if recipe.pairs is None else {PAIRS: float(_pairs(recipe.pairs) * host_flops(shape))}
        return Bill(name=entry.name, parts={**drawn, MEASURED: float(recipe.evaluate.measuring * host_flops(shape))})
    plan = entry.plan or Plan()
    one, two = recipe.stages if entry.learns else (None, None)
    if two is not None and two.still and plan.bare:
        return Bill(name=entry.name)  # the teacher, bit for bit, whose measurements stand for it
    cost = plan_cost(plan, shape)
    new = cost.new_parameters > 0
    solved = new and entry.learns and entry.init in ("default", "solve")
    parts = part_flops(cost, calibration=recipe.calibration if solved else 0, one=one if new else None, two=two)
    looks = 0
    if recipe.evaluate.stages and two is not None and not plan.bare:
        looks = 2 if "stage 1" in parts else 1
    passes = recipe.evaluate.measuring + looks * recipe.evaluate.triples
    return Bill(name=entry.name, parts=parts | {MEASURED: float(passes * cost.flops_after)})


def _pairs(stage: PairsStage) -> int:
    """Passes of the teacher that draw the pairs."""
    count = stage.count or Prompts.read(Path(str(stage.prompts)), stage.column).length
    assert count, "the stage says how many, or its file does"
    return count * stage.passes


def outlook(recipe: RunRecipe, shape: HostShape, rate: Rate) -> str:
    """As people read it: a line for each model, TFLOP by part, and how long each takes at ``rate``."""
    found = bills(recipe, shape)
    parts = [part for part in PARTS if any(part in model.parts for model in found)]
    width = max(len(model.name) for model in found) + 2
    lines = [f"{'model':<{width}}" + "".join(f"{part:>14}" for part in (*parts, "TFLOP", "time"))]
    lines += [_line(model, parts, width, rate) for model in found]
    total = Bill(name="all", parts={part: sum(model.parts.get(part, 0.0) for model in found) for part in parts})
    lines.append(_line(total, parts, width, rate))
    lines.append(f"at {rate.flops / 1e12:.3g} TFLOP/s ({rate.source}); decoding, features and timings come on top")
    if recipe.trained_on is not None:
        whole = training_flops(shape, recipe.trained_on)
        made = total.flops - total.parts[MEASURED]
        lines.append(f"making them is {made / whole:.2%} of the teacher's training, {whole / 1e12:,.0f} TFLOP")
    return "\n".join(lines)


def _line(model: Bill, parts: Sequence[str], width: int, rate: Rate) -> str:
    cells = [f"{model.parts[part] / 1e12:,.2f}" if model.parts.get(part) else "–" for part in parts]
    cells += [f"{model.flops / 1e12:,.2f}", duration(model.flops / rate.flops)]
    return f"{model.name:<{width}}" + "".join(f"{cell:>14}" for cell in cells)
