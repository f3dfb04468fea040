"""What must hold on a GPU as on a CPU. Skipped without one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from encoding import CHANNELS, picture, pixart_pipeline
from test_hosts_table import HOSTS, ready

from grafting.cli import main
from grafting.conditions import to
from grafting.data import Batches
from grafting.graft import graft, ungraft
from grafting.hosts import host_for
from grafting.initialise import Moments
from grafting.operators import build, list_operators
from grafting.plan import Plan
from grafting.precision import autocast
from grafting.restructure import Merge
from grafting.sampling import Pipeline, Sampling
from grafting.training.distill import DistillConfig, SiteReport, distill
from grafting.training.finetune import FinetuneConfig, checkpointed, finetune
from grafting.training.loop import Loop, LoopConfig
from grafting.training.pretrain.scaffold import erect, take_down
from grafting.training.team import Team

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", list_operators())
def test_operator_agrees_with_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    operator = build(name, width=64, heads=4, tokens=64).double()
    x = torch.randn(2, 64, 64, dtype=torch.float64, requires_grad=True)
    y = operator(x, grid=(8, 8))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    there = x.detach().cuda().requires_grad_()
    z = operator.cuda()(there, grid=(8, 8))
    torch.testing.assert_close(z.cpu(), y, rtol=1e-8, atol=1e-8)
    (other,) = torch.autograd.grad(z.square().sum(), there)
    torch.testing.assert_close(other.cpu(), gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", list_operators())
def test_operator_in_bfloat16_is_near_float32(name: str) -> None:
    torch.manual_seed(0)
    operator = build(name, width=64, heads=4, tokens=64).cuda()
    x = torch.randn(2, 64, 64, device="cuda")
    exact = operator(x, grid=(8, 8))
    rough = operator.bfloat16()(x.bfloat16(), grid=(8, 8)).float()
    assert (exact - rough).norm() < 0.05 * exact.norm()


def _model() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()


def test_pictures_agree_with_the_cpu() -> None:
    labels, sampling = torch.tensor([1, 2, 3]), Sampling(steps=4, guidance=1.5)
    here = Pipeline(_model())(labels, sampling=sampling)
    there = Pipeline(_model().cuda())(labels, sampling=sampling)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_stage_two_trains_on_the_device() -> None:
    model = _model().cuda()
    host = host_for(model)
    handle = graft(model, Plan.all(operator="hyena_x"), init="copy")
    handle.train_grafted()
    batches = Batches(inputs=torch.randn(16, 4, 8, 8), labels=torch.arange(16) % 10, size=8, seed=0)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with handle.teacher():
            return host.call(model, z, t, y)

    def student(z: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return host.call(model, z, t, y)

    config = FinetuneConfig(loop=LoopConfig(steps=30, lr=1e-3, log_every=1), precision="bf16")
    loop = finetune(
        model, student, teacher, batches=batches, null=10, config=config, team=Team(device=torch.device("cuda"))
    )
    assert loop.log[-1]["loss"] < loop.log[0]["loss"]


CUDA = torch.device("cuda")


def _batches() -> Batches:
    torch.manual_seed(1)
    return Batches(inputs=torch.randn(16, 4, 8, 8), labels=torch.arange(16) % 10, size=8, seed=0)


def test_a_singular_system_is_solved_as_on_the_cpu() -> None:
    """Its solver exists on the CPU alone."""
    f, y = torch.randn(50, 4), torch.randn(50, 3)
    f[:, 2] = 0
    found = []
    for device in ("cpu", "cuda"):
        moments = Moments(4, 3, device)
        moments.add(f.to(device), y.to(device))
        weight, _ = moments.solve(ridge=0.0)
        assert weight.device.type == device
        found.append(weight.cpu())
    torch.testing.assert_close(found[0], found[1])


def test_the_device_is_found_without_a_flag() -> None:
    assert Team.current().device.type == "cuda" and Team.current("cpu").device.type == "cpu"


def test_stage_one_solves_teaches_and_continues_on_the_device(tmp_path: Path) -> None:
    """A state written half-way goes on there, with its moments, to the errors of an uninterrupted run."""

    def run(folder: Path, cut: bool) -> dict[str, SiteReport]:
        handle = graft(_model().cuda(), Plan.all(operator="hyena_x"), init="solve", calibration=_batches())
        assert all(share <= 1 for share in handle.explained.values())

        def stopped(step: int) -> dict[str, torch.Tensor]:
            if cut and step == 5:
                raise KeyboardInterrupt
            return _batches()(step)

        config = DistillConfig(steps=12, evaluate_every=4, heldout_batches=1, save_every=2)
        return distill(handle, stopped, 10, config=config, out=folder, heldout=_batches())

    whole = run(tmp_path / "whole", cut=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", cut=True)
    for name, report in run(tmp_path / "cut", cut=False).items():
        assert report.heldout[-1][1] == pytest.approx(whole[name].heldout[-1][1], rel=1e-3)


def test_a_state_of_the_cpu_continues_on_the_device(tmp_path: Path) -> None:
    def loop(device: str, until: int) -> Loop:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4).to(device)
        x = torch.ones(2, 4, device=device)
        made = Loop(model, lambda _: {"mse": model(x).square().mean()}, LoopConfig(steps=8, lr=0.1), tmp_path, "tiny")
        made.run(until)
        return made

    loop("cpu", 4)
    there = loop("cuda", 8)
    assert there.step == 8
    assert {v.device.type for state in there.optimizers[0].state.values() for v in state.values()} == {"cuda"}


@pytest.mark.parametrize("combine", ["scale", "dense"])
def test_merged_pairs_agree_with_the_cpu_and_with_their_plain_form(combine: str) -> None:
    model = _model()
    handle = graft(model, Plan(restructure=(Merge(combine=combine),)))
    given = torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.arange(2)
    with torch.no_grad():
        wanted = handle.host.call(model, *given)
        model.cuda()
        for wide in (True, False):
            for group in handle.groups.values():
                group.wide = wide
            found = handle.host.call(model, *(part.cuda() for part in given))
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_checkpointing_gives_the_gradients_on_the_device() -> None:
    model = _model().cuda()
    z, t, y = torch.randn(4, 4, 8, 8).cuda(), torch.tensor([1, 9, 500, 999]).cuda(), torch.arange(4).cuda()
    found = []
    for context in (nullcontext(), checkpointed(model, CUDA, "bf16")):
        model.zero_grad()
        with context:
            with autocast(CUDA, "bf16"):
                loss = model(z, timestep=t, class_labels=y).sample.float().square().mean()
            loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_the_way_of_a_model_of_text_from_the_command_line(tmp_path: Path) -> None:
    """Pictures with captions, pairs, stage 1, adapters, GenEval's pictures, merged: all on the GPU that they find."""

    def run(*given: object) -> None:
        assert main([*map(str, given)]) == 0

    for k in range(20):
        picture(tmp_path / "pictures" / f"{k}.png", k)
        (tmp_path / "pictures" / f"{k}.txt").write_text("a red disc left of the square" if k % 2 else "blue")
    (tmp_path / "prompts.txt").write_text("a red disc left of the square\nblue\n")
    (tmp_path / "metadata.jsonl").write_text('{"tag": "single_object", "prompt": "a red disc", "include": []}\n')
    pixart_pipeline().save_pretrained(tmp_path / "pixart")
    model, few = tmp_path / "pixart", ["--steps", 2, "--batch", 4]
    run("encode", tmp_path / "pictures", "--model", model, "--out", tmp_path / "encoded")
    drawn = ["--count", 8, "--guidance", 2, "--shard", 4, *few]
    run("pairs", model, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "pairs", *drawn)
    data = ["--data", tmp_path / "pairs"]
    run("distill", model, *data, *few, "--calibration", 8, "--set", "precision=bf16", "--out", tmp_path / "taught")
    lora = ["--train", "lora", "--rank", 2, "--set", "checkpointing=true"]
    run("finetune", tmp_path / "taught", *data, *few, *lora, "--out", tmp_path / "tuned")
    tuned, measured = tmp_path / "tuned", ["--data", tmp_path / "encoded", "--triples", 4, "--batch", 2]
    run("evaluate", tuned, *measured, "--against", model)
    run("sample", tuned, "--prompt", "a red disc", "--steps", 2, "--guidance", 2, "--out", tmp_path / "x.png")
    geneval = ["--geneval", tmp_path / "metadata.jsonl", "--each", 2, "--steps", 2]
    run("sample", tuned, *geneval, "--out", tmp_path / "judged")
    run("profile", tuned, "--rounds", 2, "--batch", 1)
    run("merge", tuned, "--out", tmp_path / "whole")


def test_what_stands_around_a_text_model_while_it_learns_works_on_the_device() -> None:
    """Whitened captions and the question what lies where: the same gradients as on the CPU."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model, states = pixart_pipeline().transformer.train(), torch.randn(200, 16)
        erect(model, states, semantics=True)
        model.to(device)
        z, t = torch.randn(2, CHANNELS, 8, 8), torch.tensor([100, 700])
        text = {"encoder_hidden_states": torch.randn(2, 3, 16), "encoder_attention_mask": torch.ones(2, 3)}
        side = 8 // model.config.patch_size
        out = host_for(model).call(model, z.to(device), t.to(device), to(text, torch.device(device)))
        cells = torch.zeros(2, 2, side, side, dtype=torch.uint8, device=device)
        (out.square().mean() + model.semantics.error(cells)).backward()
        found.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
        take_down(model)
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-4)


def test_the_whole_way_from_the_command_line(tiny_teacher: Path, tmp_path: Path) -> None:
    """Every verb on the GPU that it finds."""
    taught, tuned = str(tmp_path / "taught"), str(tmp_path / "tuned")
    few = ["--steps", "2", "--batch", "8"]
    assert main(["distill", str(tiny_teacher), "--operator", "swa", "--out", taught, "--calibration", "16", *few]) == 0
    assert main(["finetune", taught, "--out", tuned, "--set", "checkpointing=true", *few]) == 0
    assert main(["sample", taught, "--out", str(tmp_path / "x.png"), "--steps", "2", "--count", "4"]) == 0
    assert main(["evaluate", taught, "--triples", "20", "--samples", "12", "--steps", "2"]) == 0
    assert main(["profile", taught, "--rounds", "2", "--batch", "1"]) == 0
    few = ["--samples", "4", "--steps", "2"]
    assert main(["analyze", str(tiny_teacher), *few, "--out", str(tmp_path / "analysis")]) == 0
    search = [
        "search",
        str(tiny_teacher),
        "--operators",
        "mlp:ratio=2",
        "--triples",
        "8",
        "--out",
        str(tmp_path / "search"),
    ]
    assert main([*search, "--budget", "flops=0.999"]) == 0


@pytest.mark.parametrize("row", HOSTS)
def test_the_control_none_agrees_with_the_cpu(row: str) -> None:
    """Grafted there, not moved there: beside text it has a parameter of its own."""
    model, z, t, condition = ready(row)
    with torch.no_grad():
        wanted = graft(model, Plan.all(operator="none")).host.call(model, z, t, condition)
        ungraft(model).cuda()
        handle = graft(model, Plan.all(operator="none"))
        found = handle.host.call(model, z.cuda(), t.cuda(), to(condition, CUDA))
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("row", HOSTS)
def test_weights_in_bfloat16_run_beside_operators_in_float32(row: str) -> None:
    """Windows beside text among them, whose logarithm of weights has two parts there."""
    model, z, t, condition = ready(row)
    model, z, t, condition = model.cuda(), z.cuda(), t.cuda(), to(condition, "cuda")
    plan = Plan.all(operator="swa")
    handle = graft(model, plan, init="copy")
    exact = handle.host.call(model, z, t, condition)
    ungraft(model).to(torch.bfloat16)
    handle = graft(model, plan, init="copy", dtype=torch.float32)
    rough = handle.host.call(model, z, t, condition)
    assert rough.dtype == torch.float32 and (rough - exact).norm() < 0.05 * exact.norm()


def test_a_stage_beside_weights_in_bfloat16_takes_less_memory() -> None:
    """By about the half of what does not learn."""

    def peak(held: torch.dtype) -> tuple[int, int]:
        torch.manual_seed(0)
        wide = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=64, in_channels=4, num_layers=4, sample_size=8, patch_size=2
        )
        model = wide.to("cuda", held).eval().requires_grad_(False)
        bytes_held = sum(parameter.nbytes for parameter in model.parameters())
        handle = graft(model, Plan.first(site="attn", operator="swa", share=0.25), dtype=torch.float32)
        batches = Batches(inputs=torch.randn(16, 4, 8, 8), labels=torch.zeros(16, dtype=torch.int64), size=4, seed=0)
        torch.cuda.reset_peak_memory_stats()
        distill(handle, batches, 1000, config=DistillConfig(steps=2, evaluate_every=1, precision="bf16"))
        return bytes_held, torch.cuda.max_memory_allocated()

    (whole, full), (half, less) = peak(torch.float32), peak(torch.bfloat16)
    assert 2 * half == whole and full - less > 0.8 * half
