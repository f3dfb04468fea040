"""FLOPs of making a model, part by part: the start, both stages, and a teacher's own training beside them."""

from __future__ import annotations

from typing import Any

from ..cost import PlanCost, adapter_cost, host_flops
from ..expect import distill_flops
from ..hosts.shapes import ROLES, shape_of
from .recipe import DistillStage, FinetuneStage

PASSES = 3
"""A training step costs a forward pass and a backward one of twice that."""


def training_flops(model: Any, samples: int) -> float:
    """FLOPs of the own training of a model, or of one of a configuration, which took ``samples`` with repetition."""
    return float(PASSES * host_flops(shape_of(model)) * samples)


def start_flops(cost: PlanCost, calibration: int) -> float:
    """A teacher pass, the new operators' features and the sums that they are regressed by, per calibration sample."""
    tokens, width = cost.shape.tokens, cost.shape.width
    sums = sum(2 * tokens * site.features * (site.features + width) for site in cost.sites)
    return calibration * (cost.flops_before + _operators(cost) + sums)


def stage_one_flops(cost: PlanCost, stage: DistillStage) -> float:
    """The teacher's pass, the operators forward and backward (twice the forward), and the held-out passes."""
    evaluations = 1 + -(-stage.steps // stage.evaluate_every)
    taught = stage.steps * stage.batch * distill_flops(cost)
    return taught + evaluations * stage.heldout_batches * stage.batch * (cost.flops_before + cost.taught_flops)


def stage_two_flops(cost: PlanCost, stage: FinetuneStage) -> float:
    """The student forward and backward, and the teacher's pass where the target needs it.

    A backward pass costs two forward ones, but for products with frozen weights: these have a gradient of their input
    alone, which is one. The cores of attention have no weights and two gradients. A checkpointed pass runs once more.
    What fades out is billed as if it learnt, in the share of the steps that it lasts.
    Of passes alone: what the optimiser does is not counted. AdamW's is nothing beside them; for Muon's see
    :func:`grafting.training.muon.step_flops`.
    """
    forward, frozen = float(cost.flops_after), 0.0
    if stage.train != "all":
        frozen = max(0.0, forward - cost.cores_after - cost.taught_flops)
    if stage.adapters is not None:
        forward += adapter_cost(cost, stage.adapters.rank, stage.adapters.targets or ROLES).flops
    again = 4 if stage.checkpointing else 3
    passes = again * (forward + stage.fade * sum(site.runs * site.flops_before for site in cost.sites)) - frozen
    return stage.steps * stage.batch * (passes + (cost.flops_before if stage.target != "noise" else 0))


def part_flops(
    cost: PlanCost, *, calibration: int, one: DistillStage | None, two: FinetuneStage | None
) -> dict[str, float]:
    """FLOPs of making one hybrid, by part; a start without ``calibration`` samples and a stage of None cost nothing."""
    parts: dict[str, float] = {}
    if calibration:
        parts["solved start"] = start_flops(cost, calibration)
    if one is not None:
        parts["stage 1"] = stage_one_flops(cost, one)
    if two is not None:
        parts["stage 2"] = stage_two_flops(cost, two)
    return parts


def _operators(cost: PlanCost) -> int:
    return sum(site.flops_after for site in cost.sites)
