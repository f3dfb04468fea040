"""Two real processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grafting.training.team import Team

RUN = """
import os, sys, torch
from pathlib import Path
from grafting.data import Batches
from grafting.diffusion import Levels
from grafting.training.finetune import FinetuneConfig, finetune
from grafting.training.loop import LoopConfig
from grafting.training.team import Team, leave

torch.set_num_threads(1)
torch.manual_seed(0)
student, teacher = (torch.nn.Conv2d(2, 4, 3, padding=1) for _ in range(2))
batches = Batches(inputs=torch.randn(12, 2, 4, 4), labels=torch.arange(12) % 3, size=4, seed=0)
loop = LoopConfig(steps=int(sys.argv[2]), lr=1e-2, log_every=1)
# Levels of a batch are stratified, so that each process has its own part of the schedule.
config = FinetuneConfig(loop=loop, teacher_share=(1.0, 0.5), levels=Levels(centre=-3.0), weight_power=0.5)
call = lambda m: lambda z, t, y: m(z)
team = Team.current()
assert team.size == int(sys.argv[3]) and team.device.type == "cpu"
given = {"batches": batches, "null": 3, "config": config, "out": Path(sys.argv[1])}
finetune(student, call(student), call(teacher), **given, team=team)
leave()
if os.path.isdir("/proc/self/task"):
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    assert not any("gloo" in name for name in threads), threads
"""


def _launch(script: Path, count: int, out: Path, steps: int) -> None:
    launcher = [sys.executable]
    if count > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=0", "--standalone"]
    environment = {"ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launcher, str(script), str(out), str(steps), str(count)],
        check=True,
        capture_output=True,
        timeout=240,
        env=os.environ | environment,
    )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    for count in (1, 2):
        _launch(script, count, tmp_path / str(count), 12)
    one, two = (load_file(tmp_path / str(count) / "state-12.safetensors") for count in (1, 2))
    start = torch.manual_seed(0) and torch.nn.Conv2d(2, 4, 3, padding=1)
    assert not torch.allclose(one["model/weight"], start.weight, atol=1e-3)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.heavy
def test_a_launched_study_is_the_study_of_one_process(tiny_teacher: Path, tmp_path: Path) -> None:
    """From the command line through accelerate: both stages shared by two, everything written by one."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
teacher: {tiny_teacher}
plan: {{edits: [{{site: attn, blocks: interleaved 50%, operator: hyena_x}}]}}
calibration: 32
distill: {{steps: 4, batch: 8, evaluate_every: 2}}
finetune: {{steps: 4, batch: 8, log_every: 1}}
evaluate: {{triples: 20, steps: 2, grid: 2}}
speed: null
controls: [untrained]
"""
    )
    # Without --multi_gpu accelerate starts a single process; on a machine without a GPU the two meet on the CPU.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
    launch += ["--num_processes=2", "--dynamo_backend=no", "--main_process_port=0"]
    for name, launcher in (("one", []), ("two", launch)):
        command = [sys.executable, *launcher, "-m", "grafting", "run", str(recipe), "--out", str(tmp_path / name)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
        assert done.stdout.count("the page:") == 1 and done.stdout.count("hybrid: stage 2") == 1
    one, two = (load_file(tmp_path / name / "hybrid" / "model" / "graft.safetensors") for name in ("one", "two"))
    # Adam turns the rounding of a gradient near zero into a whole step, and threads round differently: so both runs are
    # compared by how far they are apart over how far they went. Processes that share no gradients are about 1 apart.
    start = load_file(tiny_teacher / "transformer" / "diffusion_pytorch_model.safetensors")
    moved = [(one[f"shared.{key}"] - start[key]) for key in start if f"shared.{key}" in one]
    apart = [(one[f"shared.{key}"] - two[f"shared.{key}"]) for key in start if f"shared.{key}" in one]
    assert moved and sum(x.square().sum() for x in apart).sqrt() < 0.1 * sum(x.square().sum() for x in moved).sqrt()
    first, second = (
        json.loads((tmp_path / name / "hybrid" / "train.json").read_text())["outcome"] for name in ("one", "two")
    )
    assert second["explained"] == pytest.approx(first["explained"], rel=1e-4)
    losses = second["curves"]["stage 2"]["hybrid"]["losses"]
    assert losses == pytest.approx(first["curves"]["stage 2"]["hybrid"]["losses"], rel=1e-4) and len(losses) == 4


def test_a_device_that_is_not_here_is_a_sentence() -> None:
    assert Team.current("cpu") == Team(device=torch.device("cpu"))
    for name in ("warp", "meta", "cuda:77"):
        with pytest.raises(ValueError, match=f"^device '{name}': [^\n]+$"):
            Team.current(name)


def test_rows_are_a_partition() -> None:
    batch = torch.arange(6)
    shares = [Team(device=torch.device("cpu"), rank=rank, size=3).rows(batch) for rank in range(3)]
    assert torch.equal(torch.cat(shares), batch) and {len(share) for share in shares} == {2}
    with pytest.raises(ValueError, match="a batch of 6 over 4 processes: give a multiple of 4"):
        Team(device=torch.device("cpu"), size=4).rows(batch)
