"""The benchmark of guidance's error: zero for the teacher itself, and the ratio that is told for a known mistake."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hosts_pixart import hybrid, latents
from test_hosts_table import pixart

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "guidance.py"


class Host:
    """Calls of a graft that misses a tenth of what the caption adds, and of its teacher."""

    def __init__(self) -> None:
        self.share = 0.9

    def call(self, model: Any, zt: torch.Tensor, t: torch.Tensor, condition: float) -> torch.Tensor:
        return zt + self.share * condition * t[0] * torch.ones_like(zt)


class Handle:
    model = None

    def __init__(self) -> None:
        self.host = Host()

    def teacher(self) -> Handle:
        return self

    def __enter__(self) -> None:
        self.host.share = 1.0

    def __exit__(self, *_: object) -> None:
        self.host.share = 0.9


def test_a_tenth_missed_is_a_hundredth_of_the_square() -> None:
    measure = runpy.run_path(str(SCRIPT))["measure"]
    found = measure(Handle(), latents(8, 8), 1.0, 0.0, (150, 600))
    assert [row["level"] for row in found] == [150, 600]
    for row in found:
        assert row["difference"] == row["caption"] == pytest.approx(0.01, rel=1e-4) and row["none"] == 0


def test_a_graft_that_is_its_teacher_misses_nothing() -> None:
    handle, _ = hybrid("mha")
    _, condition, _ = pixart()
    z = latents(8, 8)
    null = {key: torch.zeros_like(value) if value.is_floating_point() else value for key, value in condition.items()}
    measure = runpy.run_path(str(SCRIPT))["measure"]
    with handle.teacher():
        same = measure(handle, z, condition, null, (600,))
    assert same[0]["difference"] == 0
    assert measure(handle, z, condition, null, (600,))[0]["difference"] > 0
