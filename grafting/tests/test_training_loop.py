"""The loop, the objective and the batches: exact resume, closed forms, counters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import norm

from grafting.data import Batches
from grafting.diffusion import Diffusion, Levels, draw, drop_labels
from grafting.random import generator
from grafting.training.loop import Loop, LoopConfig
from grafting.training.objective import teacher_objective

RUN = """
import sys, time, torch
from pathlib import Path
from grafting.random import normal
from grafting.training.loop import Loop, LoopConfig

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 8))

def losses(step):
    time.sleep(float(sys.argv[2]))
    x = normal((4, 8), 3, "x", step)
    return {"mse": (model(x) - x.flip(1)).square().mean()}

config = LoopConfig(steps=60, lr=1e-2, ema=0.9, save_every=7, log_every=1)
Loop(model, losses, config, Path(sys.argv[1]), "tiny").run()
"""


def _state(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("state-60.safetensors")
    return load_file(path)


def test_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([sys.executable, "-c", RUN, str(whole), "0"], check=True, capture_output=True)
    for delay in (0.1, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(broken), "0.02"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        began = time.monotonic()
        while not (broken / "state.json").exists():
            assert time.monotonic() - began < 60
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", RUN, str(broken), "0"], check=True, capture_output=True)
    a, b = _state(whole), _state(broken)
    assert a.keys() == b.keys()
    assert any(key.startswith("ema/") for key in a) and any(key.startswith("optimizer/exp_avg_sq") for key in a)
    for key in a:
        assert torch.equal(a[key], b[key]), key
    assert (whole / "log.jsonl").read_text() == (broken / "log.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_whole_steps_and_continues(tmp_path: Path, number: signal.Signals) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([sys.executable, "-c", RUN, str(whole), "0"], check=True, capture_output=True)
    process = subprocess.Popen([sys.executable, "-c", RUN, str(broken), "0.02"], stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while not (broken / "state.json").exists():
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    (broken / ".state-3.safetensors.killed").touch()  # as a kill within a save leaves it
    process.send_signal(number)
    if number == signal.SIGTERM:
        process.send_signal(number)  # of a launcher, beside the cluster's own
    _, errors = process.communicate(timeout=60)
    assert not list(broken.glob(".*"))
    assert process.returncode != 0 and "the same command continues" in errors
    assert 7 <= json.loads((broken / "state.json").read_text())["step"] < 60
    subprocess.run([sys.executable, "-c", RUN, str(broken), "0"], check=True, capture_output=True)
    a, b = _state(whole), _state(broken)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)

    def losses(step: int) -> dict[str, torch.Tensor]:
        return {"mse": model(torch.ones(1, 2)).square().sum()}

    Loop(model, losses, LoopConfig(steps=2, lr=0.1), tmp_path, "tiny").run()
    with pytest.raises(ValueError, match=r"lr 0\.1 there, 0\.2 now"):
        Loop(model, losses, LoopConfig(steps=2, lr=0.2), tmp_path, "tiny").run()
    often = LoopConfig(steps=2, lr=0.1, save_every=1, log_every=1)  # when to write, and not what
    Loop(model, losses, often, tmp_path, "tiny").run()


def test_a_state_is_continued_on_the_models_device(tmp_path: Path) -> None:
    """Weights of no real device stand for another card: moments and averages that were saved here follow them."""
    model = torch.nn.Linear(2, 2)
    config = LoopConfig(steps=2, lr=0.1)
    Loop(model, lambda _: {"mse": model(torch.ones(1, 2)).square().sum()}, config, tmp_path, "tiny").run()
    away = Loop(torch.nn.Linear(2, 2, device="meta"), lambda _: {}, config, tmp_path, "tiny")
    away._resume()
    moments = [value for state in away.optimizers[0].state.values() for value in state.values()]
    assert len(moments) == 6 and {value.device.type for value in (*moments, *away.ema.values())} == {"meta"}


def test_a_state_of_another_model_or_a_damaged_one_is_named(tmp_path: Path) -> None:
    config, model = LoopConfig(steps=2, lr=0.1), torch.nn.Linear(2, 2)

    def run(other: torch.nn.Module) -> None:
        Loop(other, lambda _: {"mse": other(torch.ones(1, 2)).square().sum()}, config, tmp_path, "tiny").run()

    run(model)
    with pytest.raises(ValueError, match=r"state-2\.safetensors .*model/weight is \(2, 2\), must be \(3, 2\)"):
        run(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"state-2\.safetensors .*model/0\.weight is missing"):
        run(torch.nn.Sequential(model))
    for text, words in (
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ('{"step": 2}', "lacks file, sha256, config"),
    ):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(ValueError, match=rf"state\.json {words}"):
            run(model)


def test_tensors_that_are_gone_are_a_sentence(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)

    def run() -> None:
        losses = {"mse": model(torch.ones(1, 2)).square().sum()}
        Loop(model, lambda _: losses, LoopConfig(steps=1, lr=0.1), tmp_path, "tiny").run()

    run()
    (tmp_path / "state-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"state-1\.safetensors is not the file .*: it is missing or its hash differs"):
        run()


def test_every_bad_setting_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"steps 0.*lr -1.*schedule 'step'"):
        LoopConfig(steps=0, lr=-1, schedule="step")


def test_step_is_adamw_with_the_clipped_gradient() -> None:
    """One step against AdamW written out by hand."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    config = LoopConfig(steps=10, lr=0.1, warmup=0.0, schedule="constant", clip=0.5, weight_decay=0.3)
    Loop(model, lambda _: {"l": model(torch.ones(1, 1)).sum() * 7}, config, None, "hand").run(until=1)
    gradient = 0.5  # 7, clipped
    first, second = (1 - 0.9) * gradient, (1 - 0.999) * gradient**2
    update = (first / (1 - 0.9)) / ((second / (1 - 0.999)) ** 0.5 + 1e-8)
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.3) - 0.1 * update, rel=1e-5)


def test_gradients_of_a_step_that_was_cut_do_not_reach_the_next_training() -> None:
    """The first parts of a batch, then no memory for the next; and a loss that is not finite."""

    def trained(cut: BaseException | float | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)

        def broken(step: int) -> Iterator[dict[str, torch.Tensor]]:
            yield {"l": 1e3 * model(torch.ones(1, 2)).square().sum()}
            if isinstance(cut, BaseException):
                raise cut
            yield {"l": cut * model(torch.ones(1, 2)).sum()}

        config = LoopConfig(steps=3, lr=0.1)
        if cut is not None:
            with pytest.raises((RuntimeError, FloatingPointError)):
                Loop(model, broken, config, None, "cut").run()
        Loop(model, lambda _: {"l": model(torch.ones(1, 2)).square().sum()}, config, None, "whole").run()
        return model.weight.detach()

    wanted = trained(None)
    assert torch.equal(trained(RuntimeError("out of memory")), wanted) and torch.equal(trained(float("nan")), wanted)


def test_two_steps_are_adamw_by_hand() -> None:
    """Moments, their corrections and the decay of weights, over two gradients that differ."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    gradients, (one, two) = (0.5, -3.0), (0.8, 0.95)
    config = LoopConfig(
        steps=10, lr=0.1, warmup=0.0, schedule="constant", clip=None, weight_decay=0.3, betas=(one, two)
    )
    Loop(model, lambda step: {"l": model.weight.sum() * gradients[step]}, config, None, "hand").run(until=2)
    weight, first, second = 2.0, 0.0, 0.0
    for k, gradient in enumerate(gradients, 1):
        first, second = one * first + (1 - one) * gradient, two * second + (1 - two) * gradient**2
        weight *= 1 - 0.1 * 0.3
        weight -= 0.1 * first / (1 - one**k) / ((second / (1 - two**k)) ** 0.5 + 1e-8)
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)


def test_the_rate_rises_and_falls_as_its_closed_form() -> None:
    """Of 100 steps a tenth warm up, linearly to the whole rate; then half a cosine to a hundredth of it."""
    cosine = LoopConfig(steps=100, lr=0.2, warmup=0.1)
    wanted = {0: 0.02, 4: 0.1, 9: 0.2, 10: 0.2, 55: 0.2 * (0.01 + 0.99 / 2)}
    wanted[99] = 0.2 * (0.01 + 0.99 * np.cos(np.pi * 89 / 180) ** 2)
    assert [cosine.rate(step) for step in wanted] == pytest.approx(list(wanted.values()))
    constant = LoopConfig(steps=100, lr=0.2, warmup=0.1, schedule="constant")
    assert [constant.rate(step) for step in (0, 9, 10, 55, 99)] == pytest.approx([0.02, 0.2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(("ema", "share"), [(0.999, 0.1), (0.5, 1.0), (0.999, 1.0)])
def test_the_average_of_the_weights_is_what_its_settings_say(ema: float, share: float) -> None:
    """30 steps of one weight: the horizon cut to three steps, the setting itself, and the rise of early steps alone."""
    model, steps, weights = torch.nn.Linear(1, 1, bias=False), 30, []

    def losses(step: int) -> dict[str, torch.Tensor]:
        weights.append(model.weight.item())
        return {"l": (model.weight - step % 7).square().sum()}

    config = LoopConfig(steps=steps, lr=0.3, schedule="constant", ema=ema, ema_horizon=share)
    loop = Loop(model, losses, config, None, "one")
    loop.run()
    average = weights[0]
    for step, weight in enumerate([*weights[1:], model.weight.item()]):
        horizon = min(1 / (1 - ema), share * steps)
        decay = min(1 - 1 / horizon, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert loop.ema["weight"].item() == pytest.approx(average, rel=1e-5)
    assert abs(average - model.weight.item()) > 0.01


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), size=st.integers(1, 17), seed=st.integers(0, 5))
def test_every_epoch_visits_each_sample_once(n: int, size: int, seed: int) -> None:
    batches = Batches(inputs=torch.arange(n)[:, None], labels=torch.arange(n), size=size, seed=seed)
    seen = torch.cat([batches.indices(step) for step in range(2 * n)])[: 2 * n]
    for epoch in seen.split(n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_counters_do_not_collide() -> None:
    a, b, c = (torch.randn(4, generator=generator(*key)) for key in ((0, "x", 1, 2), (0, "x", 12), (0, "x1", 2)))
    assert not torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(b, c)


def test_dropped_labels_share() -> None:
    y = drop_labels(torch.zeros(20000, dtype=torch.long), 0.1, 10, seed=0, step=3)
    assert set(y.tolist()) == {0, 10}
    assert abs((y == 10).float().mean().item() - 0.1) < 4 * (0.09 / 20000) ** 0.5


def test_levels_are_drawn_normal_in_the_log_of_signal_over_noise() -> None:
    d = Diffusion()
    ratio = torch.logit(d.alphas_bar)
    shares = d.level_shares(Levels(centre=-1.0, deviation=1.5, uniform=0.0))
    assert shares is not None and d.level_shares(None) is None
    assert shares.sum().item() == pytest.approx(1) and bool((shares > 0).all())
    mean = (shares * ratio).sum()
    assert mean.item() == pytest.approx(-1, abs=0.05)
    assert (shares * (ratio - mean).square()).sum().sqrt().item() == pytest.approx(1.5, rel=0.03)
    # A centre beyond the schedule is its end, not nothing.
    beyond = d.level_shares(Levels(centre=30.0, deviation=0.5, uniform=0.0))
    assert beyond is not None and beyond[0] > 0.99 and beyond.sum().item() == pytest.approx(1)
    for wrong in ({"centre": float("nan")}, {"deviation": 0.0}, {"uniform": 1.5}):
        with pytest.raises(ValueError, match="a finite centre, a deviation above 0, a share from 0 to 1"):
            Levels(**wrong)
    # A tenth spread over all levels alike keeps the rarest at a tenth of its uniform share.
    mixed = d.level_shares(Levels(centre=-1.0, deviation=1.5, uniform=0.1))
    assert mixed is not None
    torch.testing.assert_close(mixed, 0.9 * shares + 0.1 / 1000)
    noise, t = draw(torch.Size([20000, 1]), d, 0, 5, mixed)
    plain, uniform = draw(torch.Size([20000, 1]), d, 0, 5)
    assert torch.equal(noise, plain) and abs(uniform.float().mean().item() - 499.5) < 5 * 288.7 / 20000**0.5
    wanted = mixed[:300].sum().item()
    assert abs((t < 300).double().mean().item() - wanted) < 5 * (wanted * (1 - wanted) / 20000) ** 0.5


def test_bound_vanishes_for_the_true_posterior() -> None:
    """With the true noise and the smallest variance (v = -1) the reverse step is the posterior: the KL is zero."""
    d = Diffusion()
    z, noise = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    t = torch.tensor([1, 2, 10, 300, 700, 999])
    zt = d.add_noise(z, t, noise)
    exact = d.bound(z, zt, t, noise, -torch.ones_like(z))
    assert exact.abs().max() < 1e-3
    widest = d.bound(z, zt, t, noise, torch.ones_like(z))
    low, high = d.log_variance_range()
    ratio = (high - low)[t].float()
    torch.testing.assert_close(widest, 0.5 * (ratio - 1 + (-ratio).exp()) / 0.6931472, rtol=1e-3, atol=2e-5)


def test_bound_is_the_gaussian_kl() -> None:
    """Against torch.distributions, in float64."""
    d = Diffusion()
    z, noise, hat = (torch.randn(3, 2, 2, 2, dtype=torch.float64) for _ in range(3))
    v = torch.rand_like(z) * 2 - 1
    t = torch.tensor([5, 400, 998])
    zt = d.add_noise(z, t, noise)
    a = d.alphas_bar[t][:, None, None, None]
    before = d.alphas_bar[t - 1][:, None, None, None]
    beta = d.betas[t][:, None, None, None]
    small = beta * (1 - before) / (1 - a)

    def mean(start: torch.Tensor) -> torch.Tensor:
        return (beta * before.sqrt() * start + (1 - before) * (1 - beta).sqrt() * zt) / (1 - a)

    start_hat = (zt - (1 - a).sqrt() * hat) / a.sqrt()
    scale = torch.exp(0.5 * ((v + 1) / 2 * beta.log() + (1 - v) / 2 * small.log()))
    p, q = (torch.distributions.Normal(m, s) for m, s in ((mean(z), small.sqrt()), (mean(start_hat), scale)))
    expected = torch.distributions.kl_divergence(p, q).flatten(1).mean(1) / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(d.bound(z, zt, t, hat, v), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("start", [-0.99, 0.3, 0.995])
def test_the_bound_at_the_last_step_is_the_mass_of_a_bin(start: float) -> None:
    """scipy over the 256 values of a byte, of which the first and the last take the tails; all of it is there."""
    d, v = Diffusion(), 0.2
    z = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None, None, None]
    hat, t = torch.full_like(z, 0.7), torch.zeros(256, dtype=torch.int64)
    beta = np.linspace(1e-4, 0.02, 1000)[:2]
    zt = torch.full_like(z, (1 - beta[0]) ** 0.5 * start + beta[0] ** 0.5 * 0.7)
    # At t = 0 the smallest variance is zero: that of t = 1 stands for it, as in the original.
    smallest = beta[1] * beta[0] / (1 - (1 - beta).prod())
    assert d.log_variance_range()[0][0].item() == pytest.approx(np.log(smallest))
    scale = np.exp(((v + 1) / 2 * np.log(beta[0]) + (1 - v) / 2 * np.log(smallest)) / 2)
    upto = norm.cdf((np.linspace(-1, 1, 256)[:-1] + 1 / 255 - start) / scale)
    mass = np.diff([0.0, *upto, 1.0])
    found = np.exp2(-d.bound(z, zt, t, hat, torch.full_like(z, v)).numpy())
    np.testing.assert_allclose(found, np.maximum(mass, 1e-12), rtol=1e-6, atol=1e-13)
    assert found.sum() == pytest.approx(1, abs=1e-9) and mass.max() < 0.9


def test_variance_term_does_not_move_the_mean() -> None:
    scale = torch.ones(1, requires_grad=True)

    def model(zt: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([scale * zt, torch.zeros_like(zt)], 1)

    z = torch.randn(4, 1, 4, 4)
    noise, t = draw(z.shape, Diffusion(), 0, 0)
    losses = teacher_objective(model, Diffusion(), z, t, torch.zeros(4, dtype=torch.long), noise)
    assert torch.autograd.grad(losses["mse"], scale, retain_graph=True)[0].abs() > 0
    assert torch.autograd.grad(losses["bound"], scale)[0] == 0


def test_schedule_is_diffusers_linear() -> None:
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    torch.testing.assert_close(Diffusion().alphas_bar.float(), reference.alphas_cumprod, rtol=1e-4, atol=1e-7)
    z, noise, t = torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3), torch.tensor([0, 1, 50, 500, 999])
    torch.testing.assert_close(
        Diffusion().add_noise(z, t, noise), reference.add_noise(z, noise, t), rtol=1e-3, atol=1e-4
    )
