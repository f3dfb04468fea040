"""Stage 2 on a model small enough to reason about."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from grafting.data import Batches
from grafting.diffusion import Denoiser
from grafting.training.finetune import FinetuneConfig, finetune, match_teacher
from grafting.training.loop import LoopConfig


class Net(nn.Module):
    """A denoiser with a variance half, conditioned on nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.conv(z)


def _parts() -> tuple[Net, Net, Batches]:
    torch.manual_seed(0)
    z = torch.randn(12, 2, 4, 4)
    return Net(), Net(), Batches(inputs=z, labels=torch.arange(12) % 3, size=4, seed=0)


def _config(steps: int = 30, share: tuple[float, float] = (1.0, 1.0), lr: float = 1e-2) -> FinetuneConfig:
    return FinetuneConfig(loop=LoopConfig(steps=steps, lr=lr, ema=0.9, log_every=1), teacher_share=share)


def test_student_approaches_the_teacher() -> None:
    teacher, student, batches = _parts()
    before = (student.conv.weight - teacher.conv.weight).norm()
    loop = finetune(student, student, teacher, batches, 3, _config(400, lr=3e-2))
    assert (student.conv.weight - teacher.conv.weight).norm() < 0.1 * before
    assert loop.log[-1]["teacher_noise"] < 0.02 * loop.log[0]["teacher_noise"]


def test_untouched_model_is_the_optimum_of_the_teacher_target() -> None:
    teacher, _, batches = _parts()
    student = copy.deepcopy(teacher)
    loop = finetune(student, student, teacher, batches, 3, _config())
    assert all(row["loss"] == 0 for row in loop.log)
    assert torch.equal(student.conv.weight, teacher.conv.weight)


def test_noise_target_is_the_teachers_own_objective() -> None:
    _, student, batches = _parts()
    loop = finetune(student, student, None, batches, 3, _config(5, (0.0, 0.0)))
    assert {"mse", "bound"} <= loop.log[0].keys()


def test_mixture_moves_from_one_target_to_the_other() -> None:
    teacher, student, batches = _parts()
    config = _config(11, (1.0, 0.0))
    assert [config.share(step) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
    loop = finetune(student, student, teacher, batches, 3, config)
    assert "mse" not in loop.log[0] and {"mse", "teacher_noise"} <= loop.log[5].keys()
    assert "teacher_noise" not in loop.log[-1]


def test_frozen_parameters_stay() -> None:
    teacher, student, batches = _parts()
    student.conv.bias.requires_grad_(False)
    bias, weight = student.conv.bias.clone(), student.conv.weight.clone()
    finetune(student, student, teacher, batches, 3, _config())
    assert torch.equal(student.conv.bias, bias) and not torch.equal(student.conv.weight, weight)


def test_resume_gives_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None) -> Net:
        teacher, student, batches = _parts()
        config = _config(20, (1.0, 0.3))

        def interrupted(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            calls.append(0)
            if stop is not None and len(calls) > stop:
                raise KeyboardInterrupt
            return student(z, t, y)

        calls: list[int] = []
        denoiser: Denoiser = interrupted
        finetune(student, denoiser, teacher, batches, 3, config, folder)
        return student

    whole = run(tmp_path / "a", None)
    for stop in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", stop)
    resumed = run(tmp_path / "b", None)
    assert torch.equal(whole.conv.weight, resumed.conv.weight) and torch.equal(whole.conv.bias, resumed.conv.bias)


def test_match_teacher_weighs_the_variance() -> None:
    student, teacher = torch.zeros(1, 4, 1, 1), torch.tensor([1.0, 1.0, 2.0, 2.0]).view(1, 4, 1, 1)
    losses = match_teacher(student, teacher, 2, 0.5)
    assert losses["teacher_noise"] == 1 and losses["teacher_variance"] == 2
    assert match_teacher(student[:, :2], teacher[:, :2], 2, 0.5).keys() == {"teacher_noise"}


def test_bad_settings_are_sentences() -> None:
    _, student, batches = _parts()
    with pytest.raises(ValueError, match=r"needs a teacher"):
        finetune(student, student, None, batches, 3, _config())
    with pytest.raises(ValueError, match=r"teacher_share 1\.5.*label_dropout 2.*precision 'fp8'"):
        FinetuneConfig(loop=LoopConfig(steps=1, lr=1), teacher_share=(1.5, 0), label_dropout=2, precision="fp8")
