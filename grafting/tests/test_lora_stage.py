"""Stage 2 with adapters: over the verbs, in a study, killed and continued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from grafting.cli import main
from grafting.cost import adapter_cost, plan_cost
from grafting.diffusion import Levels
from grafting.graft import Grafted, graft, handle_of, ungraft
from grafting.hosts import bundled_config
from grafting.lora import Lora, LoraError
from grafting.plan import Plan
from grafting.settings import SettingsError
from grafting.store.models import open_model
from grafting.study import RunRecipe, Study, run
from grafting.study.material import Material
from grafting.study.recipe import FinetuneStage, depended_on
from grafting.study.spending import PASSES, part_flops, stage_two_flops
from grafting.study.stages import stage_two
from grafting.teachers import teacher_folder, teachers
from grafting.training.loop import Loop

STAGE = FinetuneStage(
    steps=6, batch=4, lr=1e-2, train="lora", lora=Lora(rank=3), target="mixture", save_every=1, log_every=1
)
PLAN = Plan.interleaved(operator="hyena_x")


def trained(teacher: Path, out: Path | None, *, plan: Plan = PLAN, stage: FinetuneStage = STAGE) -> Any:
    """A handle after stage 2, its model and what the loop logged."""
    model = open_model(str(teacher))
    source = model.transformer if plan.bare else graft(model.transformer, plan, seed=3)
    handle, loop = stage_two(source, stage, Material(model), seed=5, out=out)
    return handle, loop


@pytest.mark.parametrize("plan", [PLAN, Plan()])
def test_operators_and_adapters_move_and_the_teacher_does_not(tiny_teacher: Path, plan: Plan) -> None:
    before = open_model(str(tiny_teacher)).transformer.state_dict()
    handle, loop = trained(tiny_teacher, None, plan=plan)
    assert handle.adapters is not None and len(handle.switches) == (0 if plan.bare else 2)
    learnt = {name: parameter for name, parameter in handle.adapters.parameters().items() if "lora_B" in name}
    assert all(parameter.abs().sum() > 0 for parameter in learnt.values())
    fresh = graft(open_model(str(tiny_teacher)).transformer, plan, seed=3)
    for site, operator in handle.operators().items():
        pairs = zip(operator.parameters(), fresh.operators()[site].parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)
    assert {"mse", "teacher_noise"} <= loop.log[3].keys()
    after = ungraft(handle.model).state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_adapters_of_an_earlier_stage_are_trained_on(tiny_teacher: Path) -> None:
    handle, _ = trained(tiny_teacher, None)
    adapters = handle.adapters
    before = {name: parameter.clone() for name, parameter in adapters.parameters().items()}
    material = Material(open_model(str(tiny_teacher)))
    again, _ = stage_two(handle, STAGE, material, seed=6, out=None)
    assert again.adapters is adapters
    assert all(not torch.equal(parameter, before[name]) for name, parameter in adapters.parameters().items())
    with pytest.raises(LoraError, match="has adapters already"):
        stage_two(handle, replace(STAGE, lora=Lora(rank=2)), material, seed=6, out=None)
    kept = {name: parameter.clone() for name, parameter in adapters.parameters().items()}
    stage_two(handle, replace(STAGE, train="grafted", lora=None), material, seed=6, out=None)
    assert all(torch.equal(parameter, kept[name]) for name, parameter in adapters.parameters().items())
    whole, _ = stage_two(handle, replace(STAGE, train="all", lora=None, steps=1), material, seed=6, out=None)
    assert whole.private and whole.adapters is None and handle.adapters is adapters


@pytest.mark.parametrize("cut", ["no peft", "a step"])
def test_a_plain_model_is_as_it_was_where_adapters_end_in_an_error(
    cut: str, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(tiny_teacher))
    modules = dict(model.transformer.named_modules())
    learns = [parameter.requires_grad for parameter in model.transformer.parameters()]

    def stopped(loop: Loop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises((LoraError, KeyboardInterrupt)):
        if cut == "no peft":
            patched.setitem(sys.modules, "peft", None)
        else:
            patched.setattr(Loop, "_advance", stopped)
        stage_two(model.transformer, STAGE, Material(model), seed=5)
    assert handle_of(model.transformer) is None and dict(model.transformer.named_modules()) == modules
    assert [parameter.requires_grad for parameter in model.transformer.parameters()] == learns
    trained, loop = stage_two(model.transformer, STAGE, Material(model), seed=5)
    assert isinstance(trained, Grafted) and trained.model is model.transformer and loop.step == STAGE.steps


def test_checkpointing_ends_at_the_same_weights(tiny_teacher: Path) -> None:
    ends = []
    for checkpointing in (False, True):
        handle, _ = trained(tiny_teacher, None, stage=replace(STAGE, steps=3, checkpointing=checkpointing))
        ends.append(handle.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


CHILD = """
import sys, time; sys.path.insert(0, sys.argv[3])
from pathlib import Path
from grafting.training import loop
from test_lora_stage import trained
step = loop.Loop._advance
def slow(self):
    step(self)
    time.sleep(0.5)
loop.Loop._advance = slow
trained(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_continues_to_the_same_bits(tiny_teacher: Path, tmp_path: Path) -> None:
    handle, loop = trained(tiny_teacher, tmp_path / "whole")
    arguments = [str(tiny_teacher), str(tmp_path / "cut"), str(Path(__file__).parent)]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
    while not (tmp_path / "cut" / "state.json").is_file() and child.poll() is None:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert 1 <= json.loads((tmp_path / "cut" / "state.json").read_text())["step"] < 6
    with pytest.raises(ValueError, match=r"lora\.alpha None there, 9\.0 now"):
        trained(tiny_teacher, tmp_path / "cut", stage=replace(STAGE, lora=Lora(rank=3, alpha=9.0)))
    again, continued = trained(tiny_teacher, tmp_path / "cut")
    assert continued.log == loop.log
    wanted, found = handle.model.state_dict(), again.model.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    states = [load_file(tmp_path / name / "state-6.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any("lora_A" in name for name in states[0]) and not any("base_layer" in name for name in states[0])


def test_over_the_command_line(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretrained model and a graft get adapters, one is trained on, one merged."""
    alone, hybrid, merged = (tmp_path / name for name in ("alone", "hybrid", "merged"))
    stage = ["--steps", "2", "--batch", "4", "--set", "lr=1e-2"]
    lora = [*stage, "--set", "target=noise", "--train", "lora", "--rank", "3", "--targets", "mlp"]
    assert main(["finetune", str(tiny_teacher), "--out", str(alone), *lora]) == 0
    manifest = json.loads((alone / "graft.json").read_text())
    assert manifest["lora"] == {"rank": 3, "alpha": None, "targets": ["mlp"]} and manifest["plan"] == {"edits": []}
    assert manifest["base"]["name"] == str(tiny_teacher) and not manifest["whole"]
    assert manifest["protocol"]["stage 2"]["lora"]["rank"] == 3
    assert set(load_file(alone / "graft.safetensors")) == {
        f"lora.blocks.{block}.{path}.{part}.weight"
        for block in range(4)
        for path in ("ff.net.0.proj", "ff.net.2")
        for part in ("lora_A", "lora_B")
    }
    one = ["--operator", "hyena_x", "--calibration", "0", "--steps", "2", "--batch", "4"]
    assert main(["distill", str(tiny_teacher), "--out", str(tmp_path / "graft"), *one]) == 0
    assert main(["finetune", str(tmp_path / "graft"), "--out", str(hybrid), *stage, "--train", "lora"]) == 0
    found = open_model(str(hybrid))
    assert found.graft is not None and found.graft.adapters is not None and found.graft.adapters.settings.rank == 16
    with monkeypatch.context() as alone_in_memory:
        alone_in_memory.setattr(Grafted, "own_copy", lambda *_: pytest.fail("a second model"))
        assert main(["merge", str(hybrid), "--out", str(merged)]) == 0
    whole = open_model(str(merged))
    assert whole.graft is not None and whole.graft.private
    z, t, y = torch.randn(2, 1, 4, 4), torch.tensor([1, 900]), torch.tensor([0, 3])
    call = found.graft.host.call
    torch.testing.assert_close(call(whole.transformer, z, t, y), call(found.transformer, z, t, y), atol=2e-6, rtol=1e-5)
    capsys.readouterr()
    profiles = []
    for folder in (hybrid, merged):
        assert main(["profile", str(folder), "--rounds", "2", "--batch", "1", "--json"]) == 0
        profiles.append(json.loads(capsys.readouterr().out))
    assert profiles[0]["adapters"] == "merged" and "adapters" not in profiles[1]
    assert profiles[0]["parameters"] == profiles[1]["parameters"]
    assert profiles[0]["speedup"] > 0 and profiles[0]["flop_bound"] > 1 and profiles[0]["time_bound"] > 0
    plain, again = tmp_path / "plain", tmp_path / "again"
    assert main(["merge", str(alone), "--out", str(plain)]) == 0
    based = ["--base", str(tiny_teacher), "--out", str(again)]
    assert main(["finetune", str(plain), *based, *stage]) == 0, "merged adapters alone are no longer their teacher"
    for arguments, word in (
        (["merge", str(merged), "--out", str(tmp_path / "x")], "holds no adapters to merge"),
        (["merge", str(hybrid), "--out", str(merged)], "holds a graft already"),
        (["finetune", str(tiny_teacher), "--out", str(tmp_path / "y"), "--rank", "3"], "given train: all"),
        (
            ["finetune", str(tiny_teacher), "--out", str(tmp_path / "y"), *lora[4:-3], "99"],
            "rank 99: blocks.0",
        ),
        (
            ["finetune", str(tiny_teacher), "--out", str(tmp_path / "y"), "--train", "lora"],
            "unchanged is its own teacher, and no step would move it",
        ),
        (
            ["finetune", str(tiny_teacher), "--out", str(tmp_path / "y"), "--train", "lora", "--targets", "atn"],
            "did you mean 'attn'",
        ),
        (["finetune", str(tiny_teacher), "--out", str(tmp_path / "y"), "--train", "lors"], "one of all, grafted, lora"),
    ):
        assert main(arguments) == 2
        assert word in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / "y").exists(), "nothing is claimed by settings that are refused"


STUDY = """
plan: {edits: [{site: attn, blocks: interleaved 50%, operator: hyena_x}]}
calibration: 16
distill: {steps: 2, batch: 8, evaluate_every: 2}
finetune: {steps: 3, batch: 8, lr: 1e-2, target: noise, train: lora, lora: {rank: 2, targets: [attn, mlp]}}
evaluate: {triples: 20, samples: 0, grid: 0}
speed: {batch: 2, rounds: 2}
controls: [procedure, none, untrained]
"""


def test_a_study_with_adapters(tiny_teacher: Path, tmp_path: Path) -> None:
    """*procedure* is LoRA on the ungrafted teacher; *none* has adapters too, *untrained* has not."""
    recipe = RunRecipe.from_yaml(f"teacher: {tiny_teacher}\n{STUDY}")
    results = run(recipe, tmp_path, say=lambda line: None)
    assert [model.name for model in results.models] == ["teacher", "hybrid", "procedure", "none", "untrained"]
    found = {name: open_model(str(tmp_path / name / "model")).graft for name in ("hybrid", "procedure", "none")}
    for name, sites, layers in (("hybrid", 2, 16), ("procedure", 0, 24), ("none", 2, 16)):
        handle = found[name]
        assert handle is not None and not handle.private and handle.adapters is not None
        assert (len(handle.switches), len(handle.adapters.names)) == (sites, layers)
        assert all(p.abs().sum() > 0 for p in handle.adapters.parameters().values())
    untrained = open_model(str(tmp_path / "untrained" / "model")).graft
    assert untrained is not None and untrained.adapters is None
    losses = {model.name: model.denoising.value for model in results.models if model.denoising is not None}
    assert len(set(losses.values())) == 5
    assert [cost.model for cost in results.costs] == ["hybrid", "procedure", "none"]
    cost = results.costs[0]
    assert recipe.finetune is not None
    assert cost.parts["LoRA"] == stage_two_flops(
        plan_cost(recipe.plans["hybrid"], Study(recipe, tmp_path).teacher), recipe.finetune
    )
    assert results.speed and (tmp_path / "speed-hybrid.json").is_file()


def test_settings_of_a_stage() -> None:
    text = f"teacher: fashion\n{STUDY}"
    recipe = RunRecipe.from_yaml(text)
    assert recipe.finetune is not None and recipe.finetune.adapters == Lora(rank=2, targets=("attn", "mlp"))
    assert RunRecipe.from_yaml(recipe.to_yaml()) == recipe
    assert FinetuneStage(steps=1, train="lora").adapters == Lora() and FinetuneStage(steps=1).adapters is None
    told = depended_on(FinetuneStage(steps=1))
    assert not {"lora", "levels", "optimizer", "weight_power", "weight_cap"} & told.keys()
    chosen = FinetuneStage(steps=1, levels=Levels(centre=-3.0), weight_power=0.5, optimizer="muon")
    levels = {"centre": -3.0, "deviation": 2.0, "uniform": 0.25}
    assert depended_on(chosen) == told | {"levels": levels, "weight_power": 0.5, "optimizer": "muon"}
    with pytest.raises(SettingsError) as caught:
        changes = ["finetune.lora.rank=0", "finetune.lora.targets=[crss]", "finetune.lora.alfa=1", "finetune.lr=-1"]
        RunRecipe.from_yaml(text, changes)
    assert "finetune: lora: unknown key 'alfa': did you mean 'alpha'" in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        RunRecipe.from_yaml(text, ["finetune.lora.rank=0", "finetune.lora.targets=[crss]"])
    assert "rank 0: at least 1" in str(caught.value) and "target 'crss': did you mean 'cross'" in str(caught.value)
    with pytest.raises(SettingsError, match="lora: these settings are for train: lora, given train: all"):
        RunRecipe.from_yaml(text, ["finetune.train=all"])


def test_the_papers_recipe_for_pixart_sigma_plans_on_its_configuration() -> None:
    """Section 8 of the specification: which blocks, what rank, and the bound of half of the cores."""
    text = (files("grafting") / "recipes" / "pixart-sigma-paper.yaml").read_text()
    recipe = RunRecipe.from_yaml(text)
    (plan,) = recipe.plans.values()
    assert plan.edits[0].blocks == (8, 10, 12, 14, 16, 18, *range(20, 28)) and plan.edits[0].operator == "hyena_x"
    cost = plan_cost(plan, bundled_config("pixart-sigma-2048"))
    assert len(cost.sites) * 2 == cost.shape.depth and cost.shape.tokens == 16_384
    assert cost.flop_bound == pytest.approx(1.49, abs=0.005)
    assert recipe.finetune is not None and recipe.finetune.adapters is not None
    told = adapter_cost(cost, recipe.finetune.adapters.rank, recipe.finetune.adapters.targets or ())
    attn, cross, mlp = 14 * 4 * (1152 + 1152), 28 * 4 * (1152 + 1152), 28 * 2 * (1152 + 4608)
    assert recipe.finetune.adapters.rank == 64 and told.parameters == 64 * (attn + cross + mlp)
    assert 0.001 < told.flops / cost.flops_after < 0.05


def test_the_scenes_recipe_is_half_of_the_sites_for_a_tenth_of_the_training() -> None:
    folder = files("grafting") / "recipes"
    recipe = RunRecipe.from_yaml((folder / "pixart-scenes.yaml").read_text())
    model = yaml.safe_load((folder / "scenes-transformer.yaml").read_text())["model"]
    samples = json.loads((teacher_folder("scenes") / "teacher.json").read_text())["training"]["samples"]
    one, two = recipe.stages
    assert one is not None and two is not None and two.adapters is not None and two.adapters.rank == 16
    for plan in recipe.plans.values():
        cost = plan_cost(plan, model)
        assert 2 * len(cost.sites) == cost.shape.depth
        spent = part_flops(cost, calibration=0, one=one, two=two)
        assert sum(spent.values()) < 0.1 * PASSES * cost.flops_before * samples
        adapters = adapter_cost(cost, 16, ("attn", "cross", "mlp"))
        assert cost.new_parameters + adapters.parameters < 2e6  # some megabytes
    swapped = {name: [site.site.block for site in plan_cost(p, model).sites] for name, p in recipe.plans.items()}
    assert sorted(swapped["interleaved"]) == [1, 3, 5, 7, 9]
    trials = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "pixart-trials.json"
    carried = json.loads(trials.read_text())["carried"]
    assert sorted(swapped["carries-least"]) == sorted(sorted(range(10), key=lambda block: carried[block])[:5])


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_the_page_runs_and_its_figures_are_those_of_the_formulas() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "lora.md").read_text()
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    (told,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert FinetuneStage(**yaml.safe_load(told)["finetune"] | {"lora": Lora(targets=("attn", "cross", "mlp"))}).adapters
    recipe = RunRecipe.from_yaml((files("grafting") / "recipes" / "pixart-sigma-paper.yaml").read_text())
    assert recipe.finetune is not None and recipe.finetune.adapters is not None
    cost = plan_cost(recipe.plans["hybrid"], bundled_config("pixart-sigma-2048"))
    adapters = adapter_cost(cost, recipe.finetune.adapters.rank, recipe.finetune.adapters.targets or ())
    stage = replace(recipe.finetune, target="noise", checkpointing=False)
    step = stage_two_flops(cost, stage) / stage_two_flops(cost, replace(stage, train="all", lora=None))
    (row,) = (line for line in page.splitlines() if line.startswith("| `pixart-sigma-paper`"))
    for word in (
        f"{cost.new_parameters / 1e6:.1f} M | {adapters.parameters / 1e6:.1f} M",
        f"| {4 * (cost.new_parameters + adapters.parameters) / 2**20:.0f} MiB |",
        f"| {100 * adapters.flops / cost.flops_after:.1f} % of a pass | {100 * step:.0f} % |",
    ):
        assert word in row, word
