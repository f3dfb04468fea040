"""A hybrid timed beside the model that it was made from, and beside what bounds its speed-up, on one grid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ..cost import PlanCost, plan_cost
from ..graft import Grafted
from ..hosts import shape_of
from .speed import Latency, TimeBound, bound_calls, latency


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Times of one pass of a batch, measured in turn, and what the plan costs by formula.

    time_bound: how many times faster the teacher is without the attention cores that the plan swaps; None where it
    edits more than attention.
    """

    hybrid: Latency
    teacher: Latency
    time_bound: float | None
    cost: PlanCost

    @property
    def speedup(self) -> float:
        """How many times faster than the teacher, by the fastest rounds."""
        return self.hybrid.speedup_over(self.teacher)

    @property
    def spread(self) -> tuple[float, float]:
        """The speed-up by quartiles, the fast ones of one against the slow ones of the other."""
        low, high = self.teacher.low / self.hybrid.high, self.teacher.high / self.hybrid.low
        return min(low, self.speedup), max(high, self.speedup)


def timed_beside(
    handle: Grafted, teacher: nn.Module, *, grid: tuple[int, int], batch: int = 8, rounds: int = 10
) -> Beside:
    """Time a pass of ``batch`` samples of ``grid`` (H, W) tokens through a hybrid, its teacher, and the bound.

    teacher: the pretrained model, the same module as the hybrid's where that is a delta. All are timed in turn, so that
    a busy moment hits one as it hits the others. The bound needs each of torch's calls intercepted, which takes longer
    the more calls a model is of: both models run without, and the bound stands beside a teacher with it.
    """
    host, shape = handle.host, shape_of(handle.model).at(grid)
    like = next(handle.model.parameters())
    z = torch.randn(batch, shape.channels, *shape.latents).to(like)
    t = torch.full((batch,), 500, device=like.device)
    y = host.example(teacher, batch)

    def original() -> None:
        with nullcontext() if handle.private else handle.teacher():
            host.run(teacher, z, t, y)

    calls: dict[str, Callable[[], object]] = {"teacher": original, "hybrid": lambda: host.run(handle.model, z, t, y)}
    if handle.switches and all(site.kind == "attn" for site in handle.switches) and not handle.plan.restructure:
        calls |= bound_calls(original, host.cores(teacher, handle.switches), host.text_first)
    timed = latency(calls, rounds=rounds, device=like.device)
    bound = TimeBound.of(timed).speedup if "bound" in timed else None
    cost = plan_cost(handle.plan, handle.model, grid=grid)
    return Beside(hybrid=timed["hybrid"], teacher=timed["teacher"], time_bound=bound, cost=cost)
