"""The benchmark of where on the way a graft loses: who computes at which level, and what its rows say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hosts_pixart import hybrid, latents
from test_hosts_table import pixart

from grafting.sampling import Sampling
from grafting.store.models import Model
from grafting.tasks import TASKS, Verdict

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "levels.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_graft_computes_between_its_levels_and_the_teacher_elsewhere(script: dict[str, Any]) -> None:
    handle, _ = hybrid("hyena_x")
    _, condition, _ = pixart()
    z, pipeline = latents(8, 8), script["Divided"](handle.model)

    def at(level: int) -> torch.Tensor:
        with torch.no_grad():
            return pipeline._model(z, torch.tensor(level), condition, Sampling())

    pipeline.first, pipeline.last = 0, 1000
    student = {level: at(level) for level in (199, 200, 449, 450)}
    with handle.teacher():
        teacher = {level: at(level) for level in student}
    pipeline.first, pipeline.last = 200, 450
    for level, wanted in ((199, teacher), (200, student), (449, student), (450, teacher)):
        assert torch.equal(at(level), wanted[level]) and not torch.equal(teacher[level], student[level])


def test_rows_are_the_teacher_each_part_and_the_whole(script: dict[str, Any]) -> None:
    """A graft that is wrong about one prompt in six, at levels below 500 alone."""
    handle, _ = hybrid("none")
    model = Model(name="m", transformer=handle.model, graft=handle)

    def draw(pipeline: Any) -> list[Verdict]:
        spoils = pipeline.first < 500 and pipeline.last > 0
        return [
            Verdict(task=task, prompt=k, correct=not (spoils and task == "position"), text=task)
            for k, task in enumerate(TASKS * 4)
        ]

    rows = script["measure"](model, (500,), Sampling(), draw)
    assert [(row["from"], row["to"]) for row in rows] == [(0, 0), (0, 500), (500, 1000), (0, 1000)]
    assert [row["right"]["overall"] for row in rows] == pytest.approx([1, 5 / 6, 1, 5 / 6])
    assert [row["minus teacher"]["value"] for row in rows] == pytest.approx([0, -1 / 6, 0, -1 / 6])
    assert "-16.7" in script["line"](rows[1]) and script["line"](rows[0]).startswith("teacher ")
    with pytest.raises(ValueError, match="m is no graft that holds its teacher"):
        script["measure"](Model(name="m", transformer=handle.model), (500,), Sampling(), draw)
    for edges in ((), (0, 500), (500, 200), (200, 200), (500, 1000)):
        with pytest.raises(ValueError, match="rising, above 0 and below 1000, at least one"):
            script["parts"](edges)
