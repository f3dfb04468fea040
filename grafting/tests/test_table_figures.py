"""What a row of a table says of itself, worked out again from what lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from grafting import operators
from grafting.data import LabelledImages, write_subset
from grafting.measure.speed import flops
from grafting.report.table import TableRow
from grafting.store.models import open_model
from grafting.study.table import TableRecipe
from grafting.study.whole import Table

TEXT = """
kind: table
budget: 1.0e-4
stage_one: 0.2
calibration: 16
seed: 3
starts: {copied: {init: default, distill: {batch: 4, heldout_batches: 1}}}
finetune: {batch: 4, lr: 1.0e-2, target: noise}
evaluate: {triples: 60, samples: 100, steps: 2, grid: 0, batch: 100, bootstraps: 0}
rows:
  - {name: mlp_r2, site: mlp, operator: mlp, options: {ratio: 2}, shares: [50]}
  - {name: untrained, role: control, what: untrained, site: attn, operator: hyena_x, shares: [50]}
"""


@pytest.fixture(scope="module")
def made(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, dict[str, TableRow]]:
    """A table of a teacher that brings as many held-out images as a KID takes, and its rows by name."""
    teacher = tmp_path_factory.mktemp("teacher") / "more"
    shutil.copytree(tiny_teacher, teacher)
    torch.manual_seed(0)
    halves = [LabelledImages(images=torch.rand(n, 1, 4, 4) * 2 - 1, labels=torch.arange(n) % 3) for n in (120, 100)]
    write_subset(teacher / "images.npz", *halves)
    recipe = TableRecipe.from_yaml(f"teacher: {teacher}\n{TEXT}")
    table = Table(recipe, tmp_path_factory.mktemp("table") / "out", lambda line: None)
    return table, {row.name: table.make(row) for row in table.rows}


@pytest.mark.parametrize("name", ["mlp_r2-50", "untrained-50"])
def test_a_row_s_distance_to_the_teacher_is_its_own_figure_less_the_teacher_s(
    made: tuple[Table, dict[str, TableRow]], name: str
) -> None:
    _, rows = made
    assert rows[name].differences.keys() == {"loss", "fid", "kid"}
    for figure in ("fid", "kid"):
        apart = rows[name].figures[figure].value - rows["teacher"].figures[figure].value
        assert rows[name].differences[figure].value == pytest.approx(apart, rel=1e-6) and apart != 0


def test_losses_by_noise_level_are_the_row_s_less_the_teacher_s(made: tuple[Table, dict[str, TableRow]]) -> None:
    table, rows = made
    mine, theirs = (
        load_file(table.out / "work" / name / "losses.safetensors")["losses"].double().numpy()
        for name in ("mlp_r2-50", "teacher")
    )
    tenth = table.study.triples.t.numpy() // 100
    for k, figure in enumerate(rows["mlp_r2-50"].by_timestep):
        assert figure.value == pytest.approx((mine - theirs)[tenth == k].mean(), rel=1e-9)
    assert len(rows["mlp_r2-50"].by_timestep) == 10 and np.abs(mine - theirs).min() > 0


@pytest.mark.parametrize("name", ["mlp_r2-50", "untrained-50"])
def test_a_row_s_cost_is_its_passes_over_the_teacher_s(made: tuple[Table, dict[str, TableRow]], name: str) -> None:
    """torch's counter, over one forward pass of each."""
    table, rows = made
    z, t = torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    study, entry = table.opened(table.named(name))
    before = flops(study.teacher, z, timestep=t, class_labels=t)
    with study.opened(entry) as (model, _):
        after = flops(model, z, timestep=t, class_labels=t)
    assert after < 0.98 * before and rows[name].flops == pytest.approx(after / before, rel=1e-3)


def test_untrained_operators_are_the_bits_of_the_seed(made: tuple[Table, dict[str, TableRow]]) -> None:
    table, _ = made
    handle = open_model(str(table.out / "work" / "untrained-50" / "model")).graft
    assert handle is not None and [site.block for site in handle.operators()] == [1, 3]
    for site, operator in handle.operators().items():
        torch.manual_seed(3 + site.block)
        fresh = operators.build("hyena_x", width=32, heads=2, tokens=16).state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in operator.state_dict().items())
