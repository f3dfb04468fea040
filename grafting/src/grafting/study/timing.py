"""Speed of a hybrid beside its teacher and its two bounds, at one or several resolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..graft import Grafted
from ..measure.beside import timed_beside
from .recipe import SpeedStage


def speed_rows(handle: Grafted, teacher: nn.Module, speed: SpeedStage) -> list[dict[str, Any]]:
    """One row per side that the hybrid can run at: the numbers of :class:`grafting.report.SpeedRow`.

    teacher: the pretrained model, the same module as the hybrid's where that is a delta.
    """
    like, own = next(handle.model.parameters()), handle.host.grid_of(handle.model)[0]
    found = []
    for side in speed.sides or (own,):
        if handle.tied and side != own:
            continue
        timed = timed_beside(handle, teacher, grid=(side, side), batch=speed.batch, rounds=speed.rounds)
        where = f"{place(like.device, timed.hybrid.threads)}, {str(like.dtype).removeprefix('torch.')}"
        low, high = timed.spread
        found.append(
            {
                "setting": f"{side * side:,} tokens, batch {speed.batch}, {where}",
                "speedup": timed.speedup,
                "seconds": timed.hybrid.minimum,
                "teacher_seconds": timed.teacher.minimum,
                "low": low,
                "high": high,
                "flop_bound": timed.cost.flop_bound,
                "time_bound": timed.time_bound,
            }
        )
    return found


def place(device: torch.device, threads: int) -> str:
    """What computes there, in words: the GPU's name, or how many threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} threads"
