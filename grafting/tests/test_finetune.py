"""Stage 2 on a model small enough to reason about."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from safetensors.torch import load_file
from torch import nn

from grafting.data import Batches
from grafting.diffusion import Denoiser, Diffusion, Levels, draw
from grafting.graft import Grafted, graft
from grafting.hosts import Site
from grafting.measure.speed import peak_bytes
from grafting.plan import Plan
from grafting.precision import autocast
from grafting.training.distill import distill
from grafting.training.finetune import FinetuneConfig, checkpointed, finetune, match_teacher
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


def _config(
    steps: int = 30, share: tuple[float, float] = (1.0, 1.0), lr: float = 1e-2, save_every: int = 500
) -> FinetuneConfig:
    loop = LoopConfig(steps=steps, lr=lr, ema=0.9, log_every=1, save_every=save_every)
    return FinetuneConfig(loop=loop, teacher_share=share)


def test_student_approaches_the_teacher() -> None:
    teacher, student, batches = _parts()
    before = (student.conv.weight - teacher.conv.weight).norm()
    loop = finetune(student, student, teacher, batches=batches, null=3, config=_config(400, lr=3e-2))
    assert (student.conv.weight - teacher.conv.weight).norm() < 0.1 * before
    assert loop.log[-1]["teacher_noise"] < 0.02 * loop.log[0]["teacher_noise"]


def test_a_caller_is_told_of_every_step_in_the_place_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student, batches = _parts()
    told: list[tuple[int, int]] = []
    how: dict[str, Any] = {"batches": batches, "null": 3, "config": _config(5)}
    finetune(student, student, teacher, **how, progress=lambda done, of: told.append((done, of)))
    assert told == [(step, 5) for step in range(1, 6)] and not capsys.readouterr().err
    finetune(student, student, teacher, **how)
    assert capsys.readouterr().err.startswith("finetune 5/5")


def test_what_is_left_in_the_model_is_the_average_of_its_weights(tmp_path: Path) -> None:
    teacher, student, batches = _parts()
    finetune(student, student, teacher, batches=batches, null=3, config=_config(), out=tmp_path)
    state = load_file(tmp_path / "state-30.safetensors")
    for name, value in student.state_dict().items():
        assert torch.equal(value, state[f"ema/{name}"]) and not torch.allclose(value, state[f"model/{name}"], atol=1e-4)


def test_untouched_model_is_the_optimum_of_the_teacher_target() -> None:
    teacher, _, batches = _parts()
    student = copy.deepcopy(teacher)
    loop = finetune(student, student, teacher, batches=batches, null=3, config=_config())
    assert all(row["loss"] == 0 for row in loop.log)
    assert torch.equal(student.conv.weight, teacher.conv.weight)


def test_noise_target_is_the_teachers_own_objective() -> None:
    _, student, batches = _parts()
    loop = finetune(student, student, None, batches=batches, null=3, config=_config(5, (0.0, 0.0)))
    assert {"mse", "bound"} <= loop.log[0].keys()


def test_mixture_moves_from_one_target_to_the_other() -> None:
    teacher, student, batches = _parts()
    config = _config(11, (1.0, 0.0))
    assert [config.share(step) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
    loop = finetune(student, student, teacher, batches=batches, null=3, config=config)
    assert "mse" not in loop.log[0] and {"mse", "teacher_noise"} <= loop.log[5].keys()
    assert "teacher_noise" not in loop.log[-1]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_levels_and_weights_say_which_noise_is_learnt_and_how_much(share: float) -> None:
    """The first step's errors by hand: levels by their shares, squares over alpha_bar to the power, at most the cap."""
    teacher, student, batches = _parts()
    levels, plain = Levels(centre=-3.0, deviation=1.0, uniform=0.1), _config(1, (share, share))
    config = replace(plain, levels=levels, weight_power=0.5, weight_cap=4.0, label_dropout=0.0)
    z, schedule = batches(0)["z"], Diffusion()
    noise, t = draw(z.shape, schedule, 0, 0, schedule.level_shares(levels))
    weights = schedule.alphas_bar[t].rsqrt().clamp(max=4.0).float()
    assert 1 < weights.min() < weights.max() == 4.0  # of these draws, some beyond the cap
    with torch.no_grad():
        zt = schedule.add_noise(z, t, noise)
        given, wanted = student(zt, t, t)[:, :2], teacher(zt, t, t)[:, :2]
    row = finetune(student, student, teacher, batches=batches, null=3, config=config).log[0]
    for name, part, target in (("teacher_noise", share, wanted), ("mse", 1 - share, noise)):
        error = (weights * (given - target).square().mean((1, 2, 3))).mean().item()
        assert part == 0 or row[name] == pytest.approx(part * error, rel=1e-5)


def test_frozen_parameters_stay() -> None:
    teacher, student, batches = _parts()
    student.conv.bias.requires_grad_(False)
    bias, weight = student.conv.bias.clone(), student.conv.weight.clone()
    finetune(student, student, teacher, batches=batches, null=3, config=_config())
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
        finetune(student, denoiser, teacher, batches=batches, null=3, config=config, out=folder)
        return student

    whole = run(tmp_path / "a", None)
    for stop in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", stop)
    resumed = run(tmp_path / "b", None)
    assert torch.equal(whole.conv.weight, resumed.conv.weight) and torch.equal(whole.conv.bias, resumed.conv.bias)


CHILD = """
import sys, time; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_finetune import _config, _parts, finetune
teacher, student, batches = _parts()
def slow(step):
    time.sleep(0.05)
    return batches(step)
config = _config(14, (1.0, 0.3), save_every=1)
finetune(student, student, teacher, batches=slow, null=3, config=config, out=Path(sys.argv[1]))
"""


def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    """Weights, their averages, moments and every logged loss."""
    (tmp_path / "whole").mkdir()
    config = _config(14, (1.0, 0.3), save_every=1)

    def go_on(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
        teacher, student, batches = _parts()
        finetune(student, student, teacher, batches=batches, null=3, config=config, out=folder)
        return load_file(folder / "state-14.safetensors"), (folder / "log.jsonl").read_text()

    wanted, log = go_on(tmp_path / "whole")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "cut"), str(Path(__file__).parent)])
    deadline = time.monotonic() + 100
    while not (tmp_path / "cut" / "state.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.5)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert json.loads((tmp_path / "cut" / "state.json").read_text())["step"] >= 1
    found, other = go_on(tmp_path / "cut")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert {key.split("/")[0] for key in wanted} == {"model", "ema", "optimizer"} and other == log


def _dit() -> tuple[nn.Module, Any]:
    model = DiTTransformer2DModel(**SMALL, in_channels=2, out_channels=4, num_embeds_ada_norm=3)
    return model.eval(), torch.tensor([0, 3, 1])


def _pixart() -> tuple[nn.Module, Any]:
    model = PixArtTransformer2DModel(
        **SMALL,
        in_channels=2,
        out_channels=4,
        cross_attention_dim=16,
        caption_channels=6,
        use_additional_conditions=False,
    )
    return model.eval(), {"encoder_hidden_states": torch.randn(3, 5, 6)}


SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 6,
    "sample_size": 8,
    "patch_size": 1,
}


@pytest.mark.parametrize("make", [_dit, _pixart])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_gives_the_same_bits_for_less_memory(make: Callable[[], Any], precision: str) -> None:
    torch.manual_seed(0)
    model, condition = make()
    handle = graft(model, Plan.interleaved(operator="hyena_x") + Plan.explicit(site="mlp", operator="mlp", blocks=[2]))
    z, t = torch.randn(3, 2, 8, 8), torch.tensor([3, 500, 999])
    found = []
    for context in (nullcontext(), checkpointed(model, torch.device("cpu"), precision)):
        model.zero_grad()
        losses = []

        def step(losses: list[torch.Tensor] = losses) -> None:
            with torch.enable_grad():
                with autocast("cpu", precision):
                    loss = handle.host.call(model, z, t, condition).float().square().mean()
                loss.backward()
                losses.append(loss.detach())

        with context:
            peak = peak_bytes(step)
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((losses[0], grads, peak))
    (loss, grads, peak), (again, same, less) = found
    assert torch.equal(loss, again) and grads.keys() == same.keys()
    assert all(torch.equal(grads[name], same[name]) for name in grads)
    assert sum(".operator." in name and grad.abs().sum() > 0 for name, grad in grads.items()) >= 4 * 4
    assert less < 0.6 * peak
    assert (
        not model.gradient_checkpointing and handle.host.get(model, Site(1, "attn")) is handle.switches[Site(1, "attn")]
    )


def test_checkpointing_leaves_the_callers_own() -> None:
    model, _ = _dit()
    named = ("gradient_checkpointing", "_gradient_checkpointing_func")

    def found() -> list[dict[str, Any]]:
        return [{name: vars(module).get(name) for name in named} for module in model.modules()]

    for own in (None, lambda block, *inputs: block(*inputs)):
        model.disable_gradient_checkpointing() if own is None else model.enable_gradient_checkpointing(own)
        before = found()
        with checkpointed(model, torch.device("cpu"), "fp32"):
            assert model.is_gradient_checkpointing and found() != before
        assert found() == before and model.is_gradient_checkpointing == (own is not None)


def test_stage_two_with_checkpointing_ends_at_the_same_weights() -> None:
    ends = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, _ = _dit()
        handle = graft(model, Plan.all(operator="local_mean"), init="copy")
        handle.train_grafted()
        batches = Batches(inputs=torch.randn(6, 2, 8, 8), labels=torch.arange(6) % 3, size=3, seed=0)

        def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, h: Grafted = handle) -> torch.Tensor:
            return h.host.call(h.model, z, t, y)

        def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, h: Grafted = handle) -> torch.Tensor:
            with h.teacher():
                return h.host.call(h.model, z, t, y)

        config = replace(_config(2), checkpointing=checkpointing)
        finetune(model, student, teacher, batches=batches, null=3, config=config)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    plain, _, batches = _parts()
    with pytest.raises(ValueError, match="checkpointing: Net is no diffusers model"):
        finetune(plain, plain, plain, batches=batches, null=3, config=replace(_config(2), checkpointing=True))


@pytest.mark.parametrize("share", [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0)])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(share: tuple[float, float]) -> None:
    """A mean over four samples is that over three and over the last, each by how many it is of."""
    ends, logs, sizes = [], [], set()
    for micro in (None, 3):
        teacher, student, batches = _parts()

        def seen(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, net: Net = student) -> torch.Tensor:
            sizes.add(len(z))
            return net(z, t, y)

        loop = finetune(
            student, seen, teacher, batches=batches, null=3, config=replace(_config(5, share), micro_batch=micro)
        )
        ends.append(student.state_dict())
        logs.append(loop.log[-1])
    assert sizes == {4, 3, 1}
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-7)
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
    with pytest.raises(ValueError, match="micro_batch 0: at least 1"):
        replace(_config(), micro_batch=0)


def test_parts_of_a_batch_are_held_one_at_a_time() -> None:
    torch.manual_seed(0)
    model, _ = _dit()
    handle = graft(model, Plan.all(operator="local_mean"), init="copy")
    handle.train_grafted()
    batches = Batches(inputs=torch.randn(16, 2, 8, 8), labels=torch.arange(16) % 3, size=16, seed=0)

    def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return handle.host.call(model, z, t, y)

    def peak(micro: int | None) -> float:
        config = replace(_config(1, (0.0, 0.0)), micro_batch=micro)

        def stage() -> None:
            with torch.enable_grad():
                finetune(model, student, None, batches=batches, null=3, config=config)

        return peak_bytes(stage)

    assert peak(2) < 0.4 * peak(None)


def test_weights_that_the_teacher_shares_are_refused() -> None:
    model, _ = _dit()
    handle = graft(model, Plan.all(operator="local_mean"), init="copy")
    batches = Batches(inputs=torch.randn(6, 2, 8, 8), labels=torch.arange(6) % 3, size=3, seed=0)

    def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return handle.host.call(handle.model, z, t, y)

    with pytest.raises(ValueError, match=r"more weights belong to the teacher.*train_grafted"):
        finetune(model, student, None, batches=batches, null=3, config=_config(1, (0.0, 0.0)))
    handle.train_grafted()
    finetune(model, student, None, batches=batches, null=3, config=_config(1, (0.0, 0.0)))


def test_a_run_of_another_graft_is_refused(tmp_path: Path) -> None:
    """Of equal names and shapes, so that nothing else would tell."""
    for window in (4, 8):
        model, _ = _dit()
        handle = graft(model, Plan.all(operator="swa", window=window), init="copy")
        handle.train_grafted()
        batches = Batches(inputs=torch.randn(6, 2, 8, 8), labels=torch.arange(6) % 3, size=3, seed=0)

        def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor, h: Grafted = handle) -> torch.Tensor:
            return h.host.call(h.model, z, t, y)

        told = nullcontext() if window == 4 else pytest.raises(ValueError, match=r"other settings \(graft")
        with told:
            finetune(model, student, None, batches=batches, null=3, config=_config(1, (0.0, 0.0)), out=tmp_path)


def test_a_run_that_began_from_other_weights_is_refused(tmp_path: Path) -> None:
    """Not where the last bits alone differ, as of a start that was solved on another number of threads."""

    def run(moved: float = 1.0) -> torch.Tensor:
        teacher, student, batches = _parts()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter *= moved
        finetune(student, student, teacher, batches=batches, null=3, config=_config(3), out=tmp_path)
        return student.conv.weight.detach()

    done = run()
    with pytest.raises(ValueError, match="holds a run that began from other weights: name another folder or remove it"):
        run(moved=1.1)
    assert torch.equal(run(moved=1 + 1e-6), done)
    teacher, student, batches = _parts()
    for _ in range(2):  # the second time from where the first one ended
        finetune(student, student, teacher, batches=batches, null=3, config=_config(3), out=tmp_path)
        assert torch.equal(student.conv.weight, done)
    assert torch.equal(run(), done)
    state = json.loads((tmp_path / "state.json").read_text())
    del state["start"]  # as of before it was noted
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert torch.equal(run(moved=1.1), done)


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    student, teacher, batches = _parts()
    with pytest.raises(ValueError, match=r"conv\.weight is bfloat16: train a model in float32"):
        finetune(student.bfloat16(), student, teacher, batches=batches, null=3, config=_config(1))
    with pytest.raises(ValueError, match=r"held in float16, .*: load it in float32 or bfloat16"):
        finetune(student.half(), student, teacher, batches=batches, null=3, config=_config(1))
    student = student.float()
    student.conv.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError, match=r"finetune: the gradient is inf at step 0: try a lower lr"):
        finetune(student, student, teacher, batches=batches, null=3, config=_config(2, save_every=1), out=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not (tmp_path / "state.json").exists()
    with pytest.raises(ValueError, match=r"ema_horizon 0.*weight_decay -1.*clip 0.*save_every 0.*log_every 0"):
        LoopConfig(steps=1, lr=1, ema_horizon=0, weight_decay=-1, clip=0, save_every=0, log_every=0)


def test_match_teacher_weighs_the_variance() -> None:
    student, teacher = torch.zeros(1, 4, 1, 1), torch.tensor([1.0, 1.0, 2.0, 2.0]).view(1, 4, 1, 1)
    losses = match_teacher(student, teacher, 2, 0.5)
    assert losses["teacher_noise"] == 1 and losses["teacher_variance"] == 2
    assert match_teacher(student[:, :2], teacher[:, :2], 2, 0.5).keys() == {"teacher_noise"}


@pytest.mark.parametrize("stage", [distill, finetune])
def test_all_but_the_first_three_are_named(stage: Callable[..., Any]) -> None:
    """Of a dozen, two in the wrong order would be seen late."""
    kinds = [parameter.kind for parameter in signature(stage).parameters.values()]
    assert kinds[:3] == [Parameter.POSITIONAL_OR_KEYWORD] * 3 and set(kinds[3:]) == {Parameter.KEYWORD_ONLY}


def test_bad_settings_are_sentences() -> None:
    _, student, batches = _parts()
    with pytest.raises(ValueError, match=r"needs a teacher"):
        finetune(student, student, None, batches=batches, null=3, config=_config())
    with pytest.raises(ValueError, match=r"teacher_share 1\.5.*label_dropout 2.*precision 'fp8'"):
        FinetuneConfig(loop=LoopConfig(steps=1, lr=1), teacher_share=(1.5, 0), label_dropout=2, precision="fp8")
    with pytest.raises(ValueError, match=r"weight_power -1: 0 \(alike at every level\) or more; weight_cap 0\.5: 1 or"):
        FinetuneConfig(loop=LoopConfig(steps=1, lr=1), weight_power=-1, weight_cap=0.5)
    with pytest.raises(ValueError, match=r"weight_cap 200: of weights, and there are none without weight_power"):
        FinetuneConfig(loop=LoopConfig(steps=1, lr=1), weight_cap=200)


def test_a_run_of_other_settings_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    teacher, student, batches = _parts()
    config = replace(_config(3), seed=0)
    finetune(student, student, teacher, batches=batches, null=3, config=config, out=tmp_path)
    done = student.conv.weight.clone()
    others: list[tuple[dict[str, Any], str]] = [
        (
            {"seed": 7, "teacher_share": (0.0, 0.0)},
            r"teacher_share \[1.0, 1.0\] there, \[0.0, 0.0\] now, seed 0 there, 7 now",
        ),
        ({"variance_weight": 0.5}, "variance_weight 0.05 there, 0.5 now"),
        ({"label_dropout": 0.2}, "label_dropout 0.1 there, 0.2 now"),
        ({"precision": "bf16"}, "precision fp32 there, bf16 now"),
        (
            {"levels": Levels(uniform=1.0)},
            r"levels\.centre None there, 0\.0 now, .*levels\.uniform None there, 1\.0 now",
        ),
        ({"weight_power": 0.5}, r"weight_power None there, 0\.5 now"),
    ]
    for changed, named in others:
        with pytest.raises(ValueError, match=rf"\({named}\): name another folder or remove it"):
            finetune(
                student, student, teacher, batches=batches, null=3, config=replace(config, **changed), out=tmp_path
            )
    with pytest.raises(ValueError, match="null 3 there, 4 now"):
        finetune(student, student, teacher, batches=batches, null=4, config=config, out=tmp_path)
    student.conv.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model/conv\.bias is of no use here"):
        finetune(student, student, teacher, batches=batches, null=3, config=config, out=tmp_path)
    student.conv.bias.requires_grad_(True)
    _, again, _ = _parts()
    often = replace(config, loop=replace(config.loop, save_every=1))
    finetune(again, again, teacher, batches=batches, null=3, config=often, out=tmp_path)
    assert torch.equal(again.conv.weight, done)
