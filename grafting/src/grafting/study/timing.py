"""Speed of a hybrid beside its teacher and its two bounds, at one or several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from ..cost import plan_cost
from ..graft import Grafted
from ..hosts import shape_of
from ..measure.speed import latency, without_cores
from .recipe import SpeedStage


def speed_rows(handle: Grafted, teacher: nn.Module, speed: SpeedStage) -> list[dict[str, Any]]:
    """One row per side that the hybrid can run at: the numbers of :class:`grafting.report.SpeedRow`.

    teacher: the pretrained model, the same module as the hybrid's where that is a delta. The FLOP bound is
    :attr:`~grafting.cost.PlanCost.flop_bound`; the time bound exists where the plan edits attention alone. All are
    timed in turn, so that a busy moment hits the bound as it hits both models, and all go through the interception
    that the bound needs.
    """
    host, shape = handle.host, shape_of(handle.model)
    like, own = next(handle.model.parameters()), host.grid_of(handle.model)[0]
    device, held = like.device, like.dtype
    found = []
    for side in speed.sides or (own,):
        if handle.tied and side != own:
            continue
        z = torch.randn(speed.batch, shape.channels, *shape.at((side, side)).latents).to(like)
        t = torch.full((speed.batch,), 500, device=device)
        y = host.example(teacher, speed.batch)

        def hybrid(z: torch.Tensor = z, t: torch.Tensor = t, y: Any = y) -> None:
            with without_cores([]):
                host.run(handle.model, z, t, y)

        def original(skipped: Sequence[nn.Module], z: torch.Tensor = z, t: torch.Tensor = t, y: Any = y) -> None:
            with nullcontext() if handle.private else handle.teacher(), without_cores(skipped, host.text_first):
                host.run(teacher, z, t, y)

        calls: dict[str, Callable[[], None]] = {"teacher": partial(original, ()), "hybrid": hybrid}
        if handle.switches and all(site.kind == "attn" for site in handle.switches) and not handle.plan.restructure:
            calls["bound"] = partial(original, host.cores(teacher, handle.switches))
        timed = latency(calls, rounds=speed.rounds)
        cost = plan_cost(handle.plan, handle.model, grid=(side, side))
        bound = timed["bound"].speedup_over(timed["teacher"]) if "bound" in timed else None
        ours, theirs = timed["hybrid"], timed["teacher"]
        where = f"{place(device, ours.threads)}, {str(held).removeprefix('torch.')}"
        found.append(
            {
                "setting": f"{side * side:,} tokens, batch {speed.batch}, {where}",
                "speedup": ours.speedup_over(theirs),
                "seconds": ours.minimum,
                "teacher_seconds": theirs.minimum,
                "low": min(theirs.low / ours.high, ours.speedup_over(theirs)),
                "high": max(theirs.high / ours.low, ours.speedup_over(theirs)),
                "flop_bound": cost.flop_bound,
                "time_bound": bound,
            }
        )
    return found


def place(device: torch.device, threads: int) -> str:
    """What computes there, in words: the GPU's name, or how many threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} threads"
