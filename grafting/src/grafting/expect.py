"""What a plan will take: time from FLOPs at a rate that is measured or stated, disk from parameters; no weights needed.

A measurement is the JSON of ``grafting profile MODEL --json`` on the pretrained model, or of ``benchmarks/stack.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cost import KEEPS_CORE, PlanCost, block_cost, time_bound
from .files import read_json
from .hosts.shapes import HostShape

STATED_RATE = 1e11
"""FLOP/s that are assumed where nothing is measured: about two cores of a CPU in float32."""
STATE_BYTES = 16
"""Per trained parameter in a state of either stage: the weight, its best or average, and two moments, in float32."""


class MeasuredError(ValueError):
    """A measurement that cannot be read, or that is of something else than the plan's model."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast the model's FLOPs run: FLOP/s, and in words where the figure is from."""

    flops: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement says: a rate, and the share of a forward pass that all attention cores take."""

    rate: Rate
    core_share: float


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Time (s) and disk (bytes) of one plan.

    stage_1, stage_2: of the given samples. delta: the new operators. whole: every weight of the finetuned graft.
    state_1, state_2: of a stage under way; two generations stand side by side while one is written. bound: the speed-up
    if the swapped attention cores took no time, None where nothing was measured.
    """

    rate: Rate
    steps: tuple[int, int]
    batch: int
    stage_1: float
    stage_2: float
    delta: int
    whole: int
    state_1: int
    state_2: int
    bound: float | None = None
    bound_source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "flops_per_second": self.rate.flops,
            "rate_source": self.rate.source,
            "steps": list(self.steps),
            "batch": self.batch,
            "stage_1_seconds": self.stage_1,
            "stage_2_seconds": self.stage_2,
            "delta_bytes": self.delta,
            "whole_bytes": self.whole,
            "stage_1_state_bytes": self.state_1,
            "stage_2_state_bytes": self.state_2,
            "time_bound": self.bound,
            "time_bound_source": self.bound_source,
        }


def distill_flops(cost: PlanCost) -> int:
    """Of stage 1 per sample: the teacher's pass, what is new forward and backward (twice the forward)."""
    return cost.flops_before + 3 * cost.taught_flops


def finetune_flops(cost: PlanCost) -> int:
    """Of stage 2 per sample, all weights on the teacher's own output: its pass, the student forward and backward."""
    return cost.flops_before + 3 * cost.flops_after


def expect(
    cost: PlanCost, rate: Rate, *, steps: tuple[int, int], batch: int, measured: Measured | None = None
) -> Expectation:
    """What ``steps`` of both stages at ``batch`` take at ``rate``.

    Raises:
        ValueError: steps below 0, or a batch below 1.
    """
    if min(steps) < 0 or batch < 1:
        raise ValueError(f"steps {steps[0]} and {steps[1]}, batch {batch}: at least 0, and at least 1")
    after = cost.parameters_after
    swapped = sum(s.site.kind == "attn" and s.operator not in KEEPS_CORE for s in cost.sites)
    bound = None
    if measured is not None and not cost.restructured:
        bound = time_bound(1.0, 1.0 - measured.core_share, swapped, cost.shape.depth)
    return Expectation(
        rate=rate,
        steps=steps,
        batch=batch,
        stage_1=steps[0] * batch * distill_flops(cost) / rate.flops,
        stage_2=steps[1] * batch * finetune_flops(cost) / rate.flops,
        delta=cost.delta_bytes,
        whole=4 * after,
        state_1=STATE_BYTES * cost.new_parameters,
        state_2=STATE_BYTES * after,
        bound=bound,
        bound_source="" if measured is None or bound is None else measured.rate.source,
    )


def stated(flops: float = STATED_RATE) -> Rate:
    """A rate that nobody measured. Raises ValueError for one that is not positive."""
    if not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"{flops:g} FLOP/s: must be above 0")
    return Rate(flops=flops, source="stated, not measured" + (", of two CPU cores" if flops == STATED_RATE else ""))


def throughput(samples: float, cost: PlanCost) -> Rate:
    """From the pretrained model's forward passes per second at this size. Raises ValueError below 0."""
    if not (samples > 0 and math.isfinite(samples)):
        raise ValueError(f"throughput {samples:g} samples/s: must be above 0")
    return Rate(flops=samples * cost.flops_before, source=f"{samples:g} forward passes of the model a second")


def read_measured(path: Path, cost: PlanCost) -> Measured:
    """A measurement of the plan's own model at its size.

    Raises:
        MeasuredError: no such file, another kind of file, or a measurement of another size or family.
    """
    if not path.is_file():
        raise MeasuredError(f"measured {path}: no such file")
    found, shape = read_json(path, error=MeasuredError, what="measured"), cost.shape
    if found.get("tokens") != shape.tokens:
        raise MeasuredError(f"measured {path}: of {found.get('tokens')} tokens, the plan is of {shape.tokens}")
    try:
        return _of_stack(found, path, shape) if "seconds" in found else _of_profile(found, path, cost)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise MeasuredError(f"measured {path}: lacks a figure ({error})") from None


def _of_profile(found: Mapping[str, Any], path: Path, cost: PlanCost) -> Measured:
    if "time bound of every core" not in found:
        raise MeasuredError(f"measured {path}: profiles a graft; give the profile of its pretrained model")
    counted = found["GFLOPs per sample"] * 1e9
    if abs(counted / cost.flops_before - 1) > 0.01:
        raise MeasuredError(
            f"measured {path}: of {counted / 1e9:.4g} GFLOPs, the model has {cost.flops_before / 1e9:.4g}"
        )
    rate = found["batch"] * counted / (found["milliseconds"] / 1000)
    where = f"{found.get('device', 'cpu')}, {found['threads']} threads"
    source = f"measured in {path.name}: {found['model']}, {where}, batch {found['batch']}"
    return Measured(rate=Rate(flops=rate, source=source), core_share=1 - 1 / found["time bound of every core"])


def _of_stack(found: Mapping[str, Any], path: Path, shape: HostShape) -> Measured:
    """Blocks alone: the share of their time that the cores of all of them take."""
    family = found.get("family", "DiT")
    if (family, found["width"]) != (shape.family, shape.width):
        raise MeasuredError(
            f"measured {path}: of {family} blocks of width {found['width']}, the plan is of {shape.family}, "
            f"width {shape.width}"
        )
    whole, without = (found["seconds"][name]["minimum"] for name in ("plain", "bound"))
    share = (whole - without) / whole * found["blocks"] / found["swapped"]
    rate = found["blocks"] * block_cost(shape).total / whole
    source = f"measured in {path.name}: {found['blocks']} blocks, {found['device']}, {found['threads']} threads"
    return Measured(rate=Rate(flops=rate, source=source), core_share=share)


def lines(expected: Expectation) -> str:
    """As people read it, below the table of the costs."""
    bound = (
        "not measured: give --measured FILE"
        if expected.bound is None
        else f"{expected.bound:.2f}x if the swapped cores took no time ({expected.bound_source})"
    )
    one, two = expected.steps
    return "\n".join(
        [
            f"time bound       {bound}",
            f"expected time    stage 1 {duration(expected.stage_1)} ({one} steps of {expected.batch}), "
            f"stage 2 {duration(expected.stage_2)} ({two} steps)",
            f"                 at {expected.rate.flops / 1e12:.3g} TFLOP/s ({expected.rate.source})",
            f"expected disk    delta {_size(expected.delta)}, or all weights {_size(expected.whole)}; states under way "
            f"{_size(expected.state_1)} and {_size(expected.state_2)}, twice that while one is written",
        ]
    )


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"
