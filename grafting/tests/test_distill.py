"""Stage 1 on a tiny random DiT: sites do not disturb each other, errors fall, a killed run resumes to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graft import batch, tiny
from torch import nn

from grafting.diffusion import Diffusion, Levels, draw
from grafting.graft import Grafted, graft
from grafting.operators import get
from grafting.plan import Plan
from grafting.restructure import Merge
from grafting.training.distill import Distillation, DistillConfig, Learner, SiteConfig, distance, distill
from grafting.training.distill_state import load_learners

PLAN = Plan.interleaved(site="attn", operator="hyena_x") + Plan.explicit(
    site="mlp", operator="mlp", blocks=[0], ratio=3
)
CONFIG = DistillConfig(steps=12, evaluate_every=4, heldout_batches=1, save_every=1)


def weights(handle: Grafted) -> dict[str, torch.Tensor]:
    return {f"{s.name}.{k}": v.clone() for s, op in handle.operators().items() for k, v in op.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def fresh(plan: Plan = PLAN) -> Grafted:
    return graft(tiny(), plan, init="random", seed=3)


def test_all_sites_at_once_equal_one_site_alone() -> None:
    together = fresh()
    reports = distill(together, batch, 10, config=CONFIG)
    assert list(reports) == ["blocks.0.mlp", "blocks.1.attn", "blocks.3.attn"]
    alone = fresh(Plan.explicit(site="attn", operator="hyena_x", blocks=[3]))
    report = distill(alone, batch, 10, config=CONFIG)["blocks.3.attn"]
    assert report == reports["blocks.3.attn"]
    assert same(weights(alone), {k: v for k, v in weights(together).items() if k.startswith("blocks.3.attn")})


def test_gradients_that_were_left_behind_are_no_part_of_a_step() -> None:
    handle, whole = fresh(), fresh()
    wanted = distill(whole, batch, 10, config=CONFIG)
    for parameter in handle.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    assert distill(handle, batch, 10, config=CONFIG) == wanted and same(weights(handle), weights(whole))


def test_learning_lowers_the_heldout_error_and_leaves_the_teacher_alone() -> None:
    handle = fresh()
    before = {n: p.clone() for n, p in handle.model.named_parameters() if ".operator." not in n}
    config = DistillConfig(
        steps=60,
        attn=SiteConfig(lr=1e-2, weight_decay=0.0, loss="l2"),
        mlp=SiteConfig(lr=1e-2, weight_decay=0.0, loss="huber"),
        evaluate_every=20,
        gate_weighted=True,
    )
    for report in distill(handle, batch, 10, config=config, heldout=lambda i: batch(1000 + i)).values():
        assert report.heldout[-1][1] < 0.8 * report.heldout[0][1]
        assert report.explained == max(share for step, _, share in report.heldout if step == report.best_step)
        assert len(report.curve) == 60
    assert all(torch.equal(p, before[n]) for n, p in handle.model.named_parameters() if n in before)
    assert all(switch.grafted for switch in handle.switches.values())


def test_a_caller_is_told_of_every_step_in_the_place_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    distill(fresh(), batch, 10, config=CONFIG, progress=lambda done, of: told.append((done, of)))
    assert told == [(step + 1, CONFIG.steps) for step in range(CONFIG.steps)] and not capsys.readouterr().err
    distill(fresh(), batch, 10, config=CONFIG)
    assert capsys.readouterr().err.startswith(f"distill {CONFIG.steps}/{CONFIG.steps}")


def test_a_ruinous_rate_keeps_the_best_step() -> None:
    handle = graft(tiny(), Plan.all(site="attn", operator="swa"), init="solve", calibration=batch)
    start = weights(handle)
    ruin = SiteConfig(lr=10.0, weight_decay=0.0, loss="l1")
    reports = distill(handle, batch, 10, config=DistillConfig(steps=4, attn=ruin, evaluate_every=2))
    assert {report.best_step for report in reports.values()} == {0}
    assert same(weights(handle), start)


def test_a_site_at_its_floor_stops_early() -> None:
    still = SiteConfig(lr=1e-12, weight_decay=0.0, loss="l1")
    config = DistillConfig(steps=50, attn=still, mlp=still, evaluate_every=1, floor=0.01, patience=2)
    reports = distill(fresh(), batch, 10, config=config)
    assert {report.stopped for report in reports.values()} == {2}


def test_a_state_is_continued_on_the_models_device(tmp_path: Path) -> None:
    """Weights of no real device stand for another card: the moments that were saved from the CPU follow them."""
    distill(fresh(), batch, 10, config=CONFIG, out=tmp_path)
    away = graft(tiny(), PLAN, init="random", seed=3)
    away.model.to("meta")
    run = Distillation(away, batch, 10, CONFIG, None, batch, Diffusion())
    assert load_learners(tmp_path, run.learners, CONFIG, run.depends)[0] == CONFIG.steps
    moments = [v for learner in run.learners.values() for s in learner.optimizer.state.values() for v in s.values()]
    assert len(moments) == 3 * sum(len(learner.parameters) for learner in run.learners.values())
    assert {value.device.type for value in moments} == {"meta"}


def test_a_state_of_other_operators_or_a_damaged_one_is_named(tmp_path: Path) -> None:
    distill(fresh(), batch, 10, config=CONFIG, out=tmp_path)
    other = Plan(edits=(replace(PLAN.edits[0], options={"kernel": 6}), PLAN.edits[1]))
    with pytest.raises(ValueError, match=r"other settings \(plan [0-9a-f]+ there, [0-9a-f]+ now\)"):
        distill(fresh(other), batch, 10, config=CONFIG, out=tmp_path)
    manifest = json.loads((tmp_path / "distill.json").read_text())
    manifest["depends"]["plan"] = other.digest  # as if one option were another by now
    (tmp_path / "distill.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"distill-\d+\.safetensors is the state of another model: .*, must be"):
        distill(fresh(other), batch, 10, config=CONFIG, out=tmp_path)
    (tmp_path / "distill.json").write_text("{}")
    with pytest.raises(ValueError, match=r"distill\.json lacks step, file, sha256, config, sites"):
        distill(fresh(), batch, 10, config=CONFIG, out=tmp_path)


@pytest.mark.parametrize("levels", [None, Levels(centre=-3.0, deviation=1.0, uniform=0.0)])
def test_one_gradient_step_is_plain_adamw_on_the_plain_loss(levels: Levels | None) -> None:
    """An independent step: activations taken by hand, torch's own AdamW."""
    handle = fresh(Plan.explicit(site="attn", operator="hyena_x", blocks=[2]))
    ((_, switch),) = handle.switches.items()
    config = DistillConfig(steps=1, warmup=0.0, label_dropout=0.0, halve=(), clip=1e9, levels=levels)
    reference = graft(tiny(), Plan.explicit(site="attn", operator="hyena_x", blocks=[2]), init="random", seed=3)
    operator = next(iter(reference.operators().values()))
    seen: list[torch.Tensor] = []
    hook = reference.model.transformer_blocks[2].attn1.register_forward_hook(lambda m, a, o: seen.extend((a[0], o)))
    noise, t = draw(batch(0)["z"].shape, Diffusion(), 0, 0, Diffusion().level_shares(levels))
    zt = Diffusion().add_noise(batch(0)["z"], t, noise)
    with torch.no_grad(), reference.teacher() as model:
        model(zt, timestep=t, class_labels=batch(0)["y"])
    hook.remove()
    optimizer = torch.optim.AdamW(operator.parameters(), lr=5e-4, weight_decay=0.0)
    (operator(seen[0]) - seen[1]).abs().mean().backward()
    optimizer.step()
    report = distill(handle, batch, 10, config=config)["blocks.2.attn"]
    assert report.best_step == 1
    for one, two in zip(operator.parameters(), switch.operator.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def seen_at(plan: Plan, counter: int, block: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, output and gate (B, 1, D) of the attention of a block of the teacher in the pass of a counter over the
    first batch, taken by hooks."""
    handle, seen = graft(tiny(), plan, init="random", seed=3), []
    host = handle.model.transformer_blocks[block]
    hooks = [
        host.attn1.register_forward_hook(lambda module, args, output: seen.extend((args[0], output))),
        host.norm1.register_forward_hook(lambda module, args, output: seen.append(output[1][:, None])),
    ]
    noise, t = draw(batch(0)["z"].shape, Diffusion(), 0, counter)
    with torch.no_grad(), handle.teacher() as model:
        model(Diffusion().add_noise(batch(0)["z"], t, noise), timestep=t, class_labels=batch(0)["y"])
    for hook in hooks:
        hook.remove()
    gate, given, wanted = seen
    return given, wanted, gate


ONE = Plan.explicit(site="attn", operator="hyena_x", blocks=[2])
PLAIN = DistillConfig(steps=2, warmup=0.0, label_dropout=0.0, halve=(), heldout_batches=2, evaluate_every=2)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_heldout_error_and_what_is_explained_by_hand(loss: str) -> None:
    """Of a start, over both held-out passes; numpy, with deviations from the mean of each channel over all tokens."""
    site = SiteConfig(lr=1e-3, weight_decay=0.0, loss=loss)
    report = distill(fresh(ONE), batch, 10, config=replace(PLAIN, attn=site), heldout=lambda _: batch(0))[
        "blocks.2.attn"
    ]
    passes = [seen_at(ONE, -1_000_000 - index) for index in (0, 1)]
    (operator,) = fresh(ONE).operators().values()
    with torch.no_grad():
        given = np.concatenate([operator(inputs).double().numpy().reshape(-1, 32) for inputs, *_ in passes])
    wanted = np.concatenate([outputs.double().numpy().reshape(-1, 32) for _, outputs, _ in passes])
    apart, spread = given - wanted, wanted - wanted.mean(0)
    step, error, share = report.heldout[0]
    assert step == 0 and error == pytest.approx((np.abs(apart) if loss == "l1" else apart**2).mean(), rel=1e-5)
    assert share == pytest.approx(1 - (apart**2).sum() / (spread**2).sum(), rel=1e-5)


def test_two_steps_are_adamw_with_clipped_gradients_and_decayed_weights() -> None:
    """torch's own, each gradient cut to a norm that both are beyond."""
    site = SiteConfig(lr=1e-2, weight_decay=0.3, loss="l2")
    config = replace(PLAIN, attn=site, clip=1e-3)
    run = Distillation(fresh(ONE), lambda _: batch(0), 10, config, None, batch, Diffusion())
    run._run()
    ((operator, learner),) = zip(fresh(ONE).operators().values(), run.learners.values(), strict=True)
    optimizer, norms = torch.optim.AdamW(operator.parameters(), lr=1e-2, weight_decay=0.3), []
    for step in (0, 1):
        inputs, outputs, _ = seen_at(ONE, step)
        optimizer.zero_grad()
        (operator(inputs) - outputs).square().mean().backward()
        norms.append(nn.utils.clip_grad_norm_(operator.parameters(), 1e-3).item())
        optimizer.step()
    assert min(norms) > 5e-3
    for name, parameter in operator.named_parameters():
        mine = learner.parameters[name]
        torch.testing.assert_close(mine, parameter, rtol=1e-4, atol=1e-5)
        moments = [each.state[p]["exp_avg"] for each, p in ((learner.optimizer, mine), (optimizer, parameter))]
        torch.testing.assert_close(*moments, rtol=1e-3, atol=1e-8)


def test_a_gate_weighs_the_gradient() -> None:
    """The first moment after one step is a tenth of the gradient: of |g (given - wanted)|, g as the block's norm has
    it."""
    config = replace(PLAIN, steps=1, clip=1e9, gate_weighted=True)
    run = Distillation(fresh(ONE), batch, 10, config, None, batch, Diffusion())
    run._run()
    ((operator, learner),) = zip(fresh(ONE).operators().values(), run.learners.values(), strict=True)
    inputs, outputs, gate = seen_at(ONE, 0)
    (gate * (operator(inputs) - outputs)).abs().mean().backward()
    for name, parameter in operator.named_parameters():
        found = learner.optimizer.state[learner.parameters[name]]["exp_avg"]
        torch.testing.assert_close(10 * found, parameter.grad, rtol=1e-3, atol=1e-3 * parameter.grad.abs().max().item())


def test_a_site_stops_where_its_error_falls_by_less_than_the_floor() -> None:
    """Made errors: within two evaluations they must fall by a tenth; the best weights are kept."""
    parameter = nn.Parameter(torch.zeros(1))
    settings = SiteConfig(lr=1.0, weight_decay=0.0, loss="l1")
    optimizer = torch.optim.AdamW([parameter])

    def judged(*losses: float, floor: float) -> Learner:
        learner = Learner(
            parameters={"w": parameter}, optimizer=optimizer, settings=settings, best={"w": torch.zeros(1)}
        )
        for step, loss in enumerate(losses):
            parameter.data.fill_(step)
            learner.judge(step, loss, 0.0, floor, 2)
        return learner

    assert judged(1.0, 0.95, 0.89, 0.85, floor=0.1).stopped is None  # 0.89 of 1, then 0.85 of 0.95
    stopped = judged(1.0, 0.95, 0.89, 0.86, floor=0.1)  # 0.86 of 0.95 is too little
    assert (stopped.stopped, stopped.best_step, stopped.best_loss, stopped.best["w"].item()) == (3, 3, 0.86, 3.0)
    stopped = judged(1.0, 0.92, 0.94, floor=0.1)
    assert (stopped.stopped, stopped.best_step, stopped.best["w"].item()) == (2, 1, 1.0)
    assert judged(1.0, 0.999, floor=0.1).stopped is None  # too early to tell
    assert judged(1.0, 1.0, 1.0, 1.0, floor=0.0).stopped is None


def test_bfloat16_is_in_the_products_alone() -> None:
    """Activations meet in bfloat16, and what is learnt stays float32 and near to what float32 learns."""
    seen: set[torch.dtype] = set()
    learnt = {}
    for precision in ("fp32", "bf16"):
        handle = fresh()
        operators = handle.operators()
        for operator in operators.values():
            operator.register_forward_hook(lambda m, a, o, p=precision: seen.add(o.dtype) if p == "bf16" else None)
        reports = distill(handle, batch, 10, config=replace(CONFIG, precision=precision))
        assert {p.dtype for operator in operators.values() for p in operator.parameters()} == {torch.float32}
        learnt[precision] = reports
    assert seen == {torch.bfloat16}
    for name, report in learnt["fp32"].items():
        rough = learnt["bf16"][name].heldout[-1]
        assert rough != report.heldout[-1] and rough[1] == pytest.approx(report.heldout[-1][1], rel=0.05)


def test_distance_and_settings() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    gate = torch.randn(2, 1, 4)
    assert distance(a, b, "l1", gate).item() == pytest.approx((gate * (a - b)).abs().mean().item(), rel=1e-5)
    assert distance(a, b, "l2").item() == pytest.approx((a - b).square().mean().item(), rel=1e-5)
    apart = (gate * (a - b)).abs().numpy()
    assert apart.min() < 1 < apart.max()  # both branches of Huber's
    huber = np.where(apart <= 1, apart**2 / 2, apart - 0.5).mean()
    assert distance(a, b, "huber", gate).item() == pytest.approx(huber, rel=1e-5)
    with pytest.raises(ValueError, match="loss 'l3': one of l1, l2, huber"):
        distance(a, b, "l3")
    with pytest.raises(ValueError, match=r"attn: loss 'cosine'.*steps 0: at least 1"):
        DistillConfig(steps=0, attn=SiteConfig(lr=1.0, weight_decay=0.0, loss="cosine"))
    config = DistillConfig(steps=200, warmup=0.0)
    assert [config.factor(step) for step in (0, 49, 50, 100, 199)] == [1, 1, 0.5, 0.25, 0.125]
    slow = [DistillConfig(steps=200, warmup=0.5).factor(step) for step in range(200)]
    assert slow[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert slow[100:] == [rate for rate in (1.0, 0.5, 0.25, 0.125) for _ in range(25)]
    with pytest.raises(ValueError, match="nothing to distil"):
        distill(fresh(Plan.all(site="attn", operator="none")), batch, 10, config=CONFIG)


CHILD = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_distill import CONFIG, batch, distill, fresh
import time
def slow(step):
    time.sleep(0.05)
    return batch(step)
distill(fresh(), slow, 10, config=CONFIG, out=Path(sys.argv[1]), heldout=batch)
"""


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = fresh()
    wanted = distill(whole, batch, 10, config=CONFIG)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 100
    while not (tmp_path / "distill.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.4)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert (tmp_path / "distill.json").is_file()
    resumed = fresh()
    assert distill(resumed, batch, 10, config=CONFIG, out=tmp_path) == wanted
    assert same(weights(resumed), weights(whole))


def interrupted(step: int) -> dict[str, torch.Tensor]:
    """Batches, and Ctrl-C as that of step 5 is asked for."""
    if step == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return batch(step)


def test_interrupt_leaves_a_resumable_state_and_other_settings_are_refused(tmp_path: Path) -> None:
    whole = fresh()
    wanted = distill(whole, batch, 10, config=CONFIG)

    with pytest.raises(KeyboardInterrupt):
        distill(fresh(), interrupted, 10, config=CONFIG, out=tmp_path, heldout=batch)
    with pytest.raises(ValueError, match="steps 12 there, 13 now"):
        distill(fresh(), batch, 10, config=DistillConfig(steps=13, evaluate_every=4, heldout_batches=1), out=tmp_path)
    with pytest.raises(ValueError, match="over other sites"):
        distill(fresh(Plan.all(site="attn", operator="swa")), batch, 10, config=CONFIG, out=tmp_path)
    resumed = fresh()
    assert distill(resumed, batch, 10, config=CONFIG, out=tmp_path) == wanted
    assert same(weights(resumed), weights(whole))
    (tmp_path / "distill-12.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="its hash differs"):
        distill(fresh(), batch, 10, config=CONFIG, out=tmp_path)
    (tmp_path / "distill-12.safetensors").unlink()
    with pytest.raises(ValueError, match=r"distill-12\.safetensors is not the file .*: it is missing"):
        distill(fresh(), batch, 10, config=CONFIG, out=tmp_path)


def test_gradients_of_other_sites_are_freed() -> None:
    handle = fresh()
    held: list[int] = []
    first: nn.Module = next(iter(handle.operators().values()))

    def watched(step: int) -> dict[str, torch.Tensor]:
        held.append(sum(p.grad is not None for p in first.parameters()))
        return batch(step)

    distill(handle, watched, 10, config=CONFIG)
    assert max(held) == 0


def test_a_second_interrupt_within_a_step_saves_nothing_half_applied(tmp_path: Path) -> None:
    whole = fresh()
    wanted = distill(whole, batch, 10, config=CONFIG)
    handle = fresh()
    last = list(handle.operators().values())[-1]
    calls = []

    def twice(*_: object) -> None:
        calls.append(None)
        if len(calls) == 7:  # the sites before this one have learnt in this step
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    last.register_forward_pre_hook(twice)
    often = replace(CONFIG, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        distill(handle, batch, 10, config=often, out=tmp_path)
    resumed = fresh()
    assert distill(resumed, batch, 10, config=often, out=tmp_path) == wanted
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    ("other", "null", "named"),
    [
        (lambda: graft(tiny(), PLAN, init="random", seed=4), 10, "start's seed 3 there, 4 now"),
        (
            lambda: graft(tiny(), PLAN, init="copy", seed=3),
            10,
            r"init random there, copy now, starts\.hyena_x None there, 2 now",
        ),
        (lambda: graft(tiny(1), PLAN, init="random", seed=3), 10, "teacher [0-9a-f]+ there, [0-9a-f]+ now"),
        (lambda: fresh(PLAN + Plan.explicit(site="mlp", operator="none", blocks=[3])), 10, "plan .* there, .* now"),
        (fresh, 9, "null 10 there, 9 now"),
    ],
)
def test_a_state_of_another_start_is_refused(
    other: Callable[[], Grafted], null: int, named: str, tmp_path: Path
) -> None:
    distill(fresh(), batch, 10, config=replace(CONFIG, steps=1), out=tmp_path)
    with pytest.raises(ValueError, match=rf"other settings \({named}\): name another folder"):
        distill(other(), batch, null, config=replace(CONFIG, steps=1), out=tmp_path)
    distill(fresh(), batch, 10, config=replace(CONFIG, steps=1, save_every=7), out=tmp_path)


def test_a_state_of_an_operator_that_began_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(fresh(), batch, 10, config=replace(CONFIG, steps=1), out=tmp_path)
    (name,) = {edit.operator for edit in PLAN.edits if edit.site == "attn"}
    monkeypatch.setattr(get(name), "start_version", classmethod(lambda cls, init: 7))
    with pytest.raises(ValueError, match=rf"other settings \(starts.*{name}.*7.*\): name another folder"):
        distill(fresh(), batch, 10, config=replace(CONFIG, steps=1), out=tmp_path)


@pytest.mark.parametrize("init", ["solve", "random"])
def test_a_run_that_began_from_other_weights_is_refused(init: str, tmp_path: Path) -> None:
    """Of one plan, teacher and seed, but solved from other samples, or moved; not where its last bits alone differ."""
    few = replace(CONFIG, steps=1)

    def begun(first: int = 0, moved: float = 1.0) -> Grafted:
        calibration = (lambda step: batch(first + step)) if init == "solve" else None
        handle = graft(tiny(), PLAN, init=init, seed=3, calibration=calibration)
        with torch.no_grad():
            for parameters in handle.learnable().values():
                for parameter in parameters.values():
                    parameter *= moved
        return handle

    whole = begun()
    wanted = distill(whole, batch, 10, config=few, out=tmp_path)
    with pytest.raises(ValueError, match="holds a run that began from other weights: name another folder or remove it"):
        distill(begun(100) if init == "solve" else begun(moved=1.1), batch, 10, config=few, out=tmp_path)
    again = begun(moved=1 + 1e-6)
    assert distill(again, batch, 10, config=few, out=tmp_path) == wanted and same(weights(again), weights(whole))
    manifest = json.loads((tmp_path / "distill.json").read_text())
    del manifest["start"]  # as of before it was noted
    (tmp_path / "distill.json").write_text(json.dumps(manifest))
    assert distill(begun(moved=1.1), batch, 10, config=few, out=tmp_path) == wanted


def test_a_model_that_learns_on_after_an_interrupt_goes_on(tmp_path: Path) -> None:
    """The same objects, in one process: they stand where the run left them, and once more where it ended."""
    whole, handle = fresh(), fresh()
    wanted = distill(whole, batch, 10, config=CONFIG)

    with pytest.raises(KeyboardInterrupt):
        distill(handle, interrupted, 10, config=CONFIG, out=tmp_path, heldout=batch)
    for one in (handle, handle, fresh()):
        assert distill(one, batch, 10, config=CONFIG, out=tmp_path) == wanted
        assert same(weights(one), weights(whole))


def test_a_gate_that_nothing_has_is_refused() -> None:
    """Groups learn updates of the residual stream, which no gate scales; sites beside them, or within, have theirs."""
    merged = Plan(restructure=(Merge(groups=((1, 2),)),))
    gated = replace(CONFIG, steps=1, gate_weighted=True)
    with pytest.raises(ValueError, match="gate_weighted: no site of this plan has weights to learn, and groups"):
        distill(graft(tiny(), merged), batch, 10, config=gated)
    distill(graft(tiny(), merged), batch, 10, config=replace(gated, gate_weighted=False))
    distill(graft(tiny(), merged + ONE), batch, 10, config=gated)


def test_a_model_in_float16_is_refused() -> None:
    for dtype in (None, torch.float32):
        handle = graft(tiny().half(), PLAN, dtype=dtype)
        with pytest.raises(ValueError, match=r"held in float16, .*: load it in float32 or bfloat16"):
            distill(handle, batch, 10, config=CONFIG)
