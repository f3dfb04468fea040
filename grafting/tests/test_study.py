"""Studies from end to end on a tiny random model: what is measured, what is kept, what is made once."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from grafting import operators
from grafting.claims import ClaimError, locked
from grafting.cli import main
from grafting.cost import plan_cost
from grafting.data import LabelledImages, write_subset
from grafting.graft import Grafted, ungraft
from grafting.measure.denoising import denoising_losses
from grafting.operators import arithmetic
from grafting.plan import Plan, PlanError
from grafting.report import Results, read_results
from grafting.searching.scores import Scoring, settings_of
from grafting.settings import SettingsError
from grafting.store.checkpoints import unshift_timesteps
from grafting.store.configs import ModelError
from grafting.store.models import open_model
from grafting.study import RunRecipe, Study, StudyError, run
from grafting.study.assemble import note_results
from grafting.study.material import Material
from grafting.study.parts import part
from grafting.study.recipe import DistillStage, FinetuneStage
from grafting.study.spending import part_flops, training_flops
from grafting.study.stages import begin, denoiser, stage_one, stage_two
from grafting.switch import Switch

TEXT = """
plan: {edits: [{site: attn, blocks: interleaved 50%, operator: hyena_x}]}
calibration: 32
distill: {steps: 6, batch: 8, evaluate_every: 3, save_every: 1}
finetune: {steps: 6, batch: 8, lr: 1e-3, target: noise, save_every: 1, log_every: 1}
evaluate: {triples: 40, samples: 24, steps: 3, grid: 6, batch: 12}
speed: {batch: 2, rounds: 2, sides: [4, 6]}
controls: [procedure, none, untrained, self]
"""


def recipe(teacher: Path, *changes: str) -> RunRecipe:
    return RunRecipe.from_yaml(f"teacher: {teacher}\n{TEXT}", changes)


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run(recipe(tiny_teacher), out, say=lambda line: None)


def test_every_model_is_measured_and_the_file_is_what_was_returned(finished: tuple[Path, Results]) -> None:
    out, results = finished
    assert [(m.name, m.role) for m in results.models] == [
        ("teacher", "teacher"),
        ("hybrid", "hybrid"),
        ("procedure", "control"),
        ("none", "control"),
        ("untrained", "control"),
        ("self", "control"),
    ]
    assert read_results(out / "results.json") == results
    for model in results.models:
        assert model.denoising is not None and model.grid is not None and (out / model.grid).is_file()
        assert {"fid", "fid_minus_floor", "recognised"} <= set(model.figures) and model.figures["fid"].floor is not None
        assert "not Inception FID" in model.protocol and "N = 24" in model.protocol
        assert (model.denoising_difference is None) == (model.role == "teacher")
    assert {curve.stage for curve in results.curves} >= {"hybrid: stage 1", "hybrid: stage 2", "procedure: stage 2"}
    for curve in results.curves:
        if not curve.stage.endswith("stage 1"):
            assert curve.held_out == ()
            continue
        owner = curve.stage.split(":")[0]
        kept = json.loads((out / owner / "train.json").read_text())["outcome"]["held out"][curve.name]
        assert kept["steps"][0] == 0 and kept["steps"][-1] == curve.steps[-1] + 1
        assert curve.held_out == tuple(zip(kept["steps"], kept["losses"], strict=True)) and min(kept["losses"]) > 0
    assert results.maps[0].sites == {"attn": (None, "hyena_x", None, "hyena_x"), "mlp": (None,) * 4}
    assert [row.setting.split(",")[0] for row in results.speed] == ["16 tokens", "36 tokens"]


def test_the_page_shows_them(finished: tuple[Path, Results]) -> None:
    out, results = finished
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 6 and "<script" not in page and 'src="http' not in page
    for word in (
        "hybrid",
        "untrained",
        "FID − floor",
        "not Inception FID",
        "time bound",
        "of the teacher&#39;s training",
    ):
        assert word in page or word.replace("&#39;", "'") in page, word
    assert results.summary.split(";")[0] in page.replace("&#39;", "'")
    spent = {cost.model: sum(cost.parts.values()) for cost in results.costs}
    assert spent.keys() == {"hybrid", "procedure", "none", "self"} and spent["none"] < 0.95 * spent["hybrid"]
    assert f" none, taught for {spent['none'] / spent['hybrid']:.0%} of the FLOPs, " in results.summary
    assert results.summary.count("taught for") == 1


def test_what_was_measured_is_what_was_saved(finished: tuple[Path, Results], tiny_teacher: Path) -> None:
    """An independent reading of the saved hybrid gives the reported loss; its card carries the figures."""
    out, results = finished
    study = Study(recipe(tiny_teacher), out)
    model = open_model(str(out / "hybrid" / "model"))
    assert model.graft is not None and model.graft.private and model.classifier is not None
    losses = denoising_losses(denoiser(model.transformer), study.triples)
    hybrid = next(m for m in results.models if m.name == "hybrid")
    assert hybrid.denoising is not None and hybrid.denoising.value == pytest.approx(losses.mean().item(), abs=1e-6)
    manifest = json.loads((out / "hybrid" / "model" / "graft.json").read_text())
    assert manifest["results"]["fid"] == hybrid.figures["fid"].value
    assert manifest["protocol"]["recipe"]["plans"]["hybrid"]["edits"][0]["operator"] == "hyena_x"


def test_controls_are_what_they_say(finished: tuple[Path, Results], tiny_teacher: Path) -> None:
    out, _ = finished
    teacher = open_model(str(tiny_teacher)).transformer
    operators: dict[str, Any] = {}
    for name in ("hybrid", "none", "untrained", "self"):
        loaded = open_model(str(out / name / "model"))
        assert loaded.graft is not None
        operators[name] = [type(op).__name__ for op in loaded.graft.operators().values()]
        if name == "untrained":
            assert not loaded.graft.private  # a delta: the rest is the teacher, untouched
    assert operators["none"] == ["Nothing"] * 2 and operators["untrained"] == operators["hybrid"]
    assert operators["self"] != operators["hybrid"]
    procedure = open_model(str(out / "procedure" / "model")).transformer
    pairs = zip(procedure.state_dict().items(), teacher.state_dict().items(), strict=True)
    assert any(not torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_random_controls_are_the_bits_of_their_seed(tiny_teacher: Path, tmp_path: Path) -> None:
    """Untrained is what no stage has moved, though the recipe has both; self starts as the teacher's own kind: a
    perceptron of ratio 4 at an MLP, softmax attention, torch's, at an attention."""
    narrow = ("plan.edits.0={site: mlp, blocks: interleaved 50%, operator: mlp, options: {ratio: 3}}", "budget=0")
    for name, kind, changes in (("untrained", "hyena_x", ()), ("self", "mlp", narrow), ("self", "mha", ("budget=0",))):
        made = recipe(tiny_teacher, f"controls=[{name}]", "seed=3", *changes)
        study = Study(made, tmp_path / kind, say=lambda line: None)
        study.train(next(entry for entry in study.entries if entry.name == name))
        handle = open_model(str(tmp_path / kind / name / "model")).graft
        assert handle is not None and [site.block for site in handle.switches] == [1, 3]
        for site, operator in handle.operators().items():
            torch.manual_seed(3 + site.block)
            fresh = operators.build(kind, width=32, heads=2, tokens=16).state_dict()
            assert operator.state_dict().keys() == fresh.keys()
            assert all(torch.equal(value, fresh[key]) for key, value in operator.state_dict().items())
    x, oracle = torch.randn(2, 16, 32), nn.MultiheadAttention(32, 2, batch_first=True)
    oracle.in_proj_weight.data, oracle.in_proj_bias.data = fresh["qkv.weight"], fresh["qkv.bias"]
    oracle.out_proj.weight.data, oracle.out_proj.bias.data = fresh["proj.weight"], fresh["proj.bias"]
    torch.testing.assert_close(operator(x), oracle(x, x, x, need_weights=False)[0])


def test_a_start_sees_and_pays_for_as_many_samples_as_it_is_told(tiny_teacher: Path) -> None:
    """130 in three passes, the last of two; per sample the teacher's pass, two operators, and the sums of features by
    themselves and by outputs."""
    model, plan = open_model(str(tiny_teacher)), Plan.interleaved(site="attn", operator="hyena_x")
    passes: list[int] = []
    watched = model.transformer.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    for calibration in (130, 64, 20):
        begin(model.transformer, plan, Material(model), init="solve", seed=0, calibration=calibration)
        ungraft(model.transformer)
    watched.remove()
    assert passes == [64, 64, 2, 64, 20]
    cost = plan_cost(plan, model.transformer)
    sample = cost.flops_before + 2 * operators.get("hyena_x").flops(32, 2, 16) + 2 * 2 * 16 * 32 * (32 + 32)
    assert part_flops(cost, calibration=130, one=None, two=None) == {"solved start": 130 * sample}


def test_cost_counts_every_pass(finished: tuple[Path, Results], tiny_teacher: Path) -> None:
    """Counted by torch's own counter over the forward passes of the teacher, of hyena_x and of the hybrid."""
    from torch.utils.flop_counter import FlopCounterMode

    out, results = finished
    cost = results.costs[0]
    assert cost.model == "hybrid"
    model = open_model(str(out / "untrained" / "model"))
    assert model.graft is not None

    def passes(n: int) -> dict[str, int]:
        z, t, y = torch.zeros(n, 1, 4, 4), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        with FlopCounterMode(display=False) as hybrid, torch.no_grad():
            model.transformer(z, timestep=t, class_labels=y)
        operators = 0
        for operator in model.graft.operators().values():  # type: ignore[union-attr]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                operator(torch.zeros(n, 16, 32))
            operators += counter.get_total_flops()
        return {"hybrid": hybrid.get_total_flops() // n, "operators": operators // n}

    counted = passes(4)
    stage_two = 3 * counted["hybrid"] * 6 * 8
    # CPU attention counts as nothing: two sites of 4 N^2 D are added by hand.
    assert cost.parts["stage 2"] == pytest.approx(stage_two + 3 * 2 * 4 * 16**2 * 32 * 6 * 8, rel=0.02)
    assert set(cost.parts) == {"solved start", "stage 1", "stage 2"} and 0 < cost.share < 0.01


def test_a_second_run_makes_nothing_and_other_measurements_only_themselves(
    finished: tuple[Path, Results], tiny_teacher: Path
) -> None:
    out, results = finished
    said: list[str] = []
    again = run(recipe(tiny_teacher), out, say=said.append)
    assert said == [f"the page: {out / 'report.html'}"] and again == results
    with pytest.raises(StudyError, match="holds a run"):
        run(recipe(tiny_teacher), out, resume=False)
    said.clear()
    changed = run(recipe(tiny_teacher, "evaluate.triples=20"), out, say=said.append)
    assert len(said) == len(results.models) + 1 and all("20 triples" in line for line in said[:-1])
    assert changed.models[1].figures == results.models[1].figures
    with pytest.raises(ClaimError, match=r"hybrid holds a model of other settings \(finetune.steps 6 there, 7 now\)"):
        run(recipe(tiny_teacher, "finetune.steps=7"), out, say=said.append)
    run(recipe(tiny_teacher), out, say=said.append)


def test_killed_anywhere_it_goes_on_to_the_same_figures(
    finished: tuple[Path, Results], tiny_teacher: Path, tmp_path: Path
) -> None:
    _, results = finished
    out, file = tmp_path / "out", tmp_path / "recipe.yaml"
    file.write_text(recipe(tiny_teacher).to_yaml())
    code = f"""
from pathlib import Path
import torch
torch.set_num_threads({torch.get_num_threads()})
from grafting.study import RunRecipe, run
print("ready", flush=True)
run(RunRecipe.from_yaml(Path({str(file)!r})), Path({str(out)!r}))
"""
    kills = 0
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(random.random() * 2.5 + attempt)
        kills += process.poll() is None
        process.kill()
        process.wait()
        process.stdout.close()
    assert kills
    resumed = run(recipe(tiny_teacher), out, say=lambda line: None)
    assert resumed.models == results.models and resumed.curves == results.curves


def test_solved_start_alone_and_grafted_only_training(tiny_teacher: Path, tmp_path: Path) -> None:
    small = ("controls=[none]", "evaluate={triples: 20, grid: 0}", "speed=null")
    solved = run(recipe(tiny_teacher, "budget=0", *small), tmp_path / "solved", say=lambda line: None)
    assert solved.run.startswith("solved start alone") and not solved.curves
    assert "solved start" in solved.costs[0].parts and len(solved.costs[0].parts) == 1
    changes = (
        "finetune.train=grafted",
        "finetune.target=teacher",
        "plan.edits.0.site=mlp",
        "plan.edits.0.operator=mlp",
    )
    grafted = run(recipe(tiny_teacher, *changes, *small), tmp_path / "grafted", say=lambda line: None)
    delta = (tmp_path / "grafted" / "hybrid" / "model" / "graft.safetensors").stat().st_size
    whole = (tiny_teacher / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert delta < whole / 3 and grafted.models[1].denoising is not None


def test_a_study_says_once_where_nothing_could_be_copied(tiny_teacher: Path, tmp_path: Path) -> None:
    small = ("controls=[untrained]", "evaluate={triples: 20, grid: 0}", "speed=null", "budget=0")
    said: list[str] = []
    for _ in range(2):  # the second finds all of it made
        run(recipe(tiny_teacher, "plan.edits.0.operator=mamba2", *small), tmp_path / "out", say=said.append)
    told = [line for line in said if "nothing to copy" in line]
    assert told == ["hybrid: mamba2: nothing to copy, random start, its last layer solved"]


def test_flops_are_told_where_the_card_does_not_say_what_the_teacher_took(tiny_teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "teacher.json").write_text("{}")
    text = f"""
teacher: {tmp_path / "teacher"}
plan: {{edits: [{{site: attn, blocks: all, operator: local_mean}}]}}
calibration: 0
init: random
finetune: {{steps: 2, batch: 4}}
evaluate: {{triples: 20, samples: 0, grid: 0}}
speed: null
controls: []
"""
    recipe = RunRecipe.from_yaml(text)
    results = run(recipe, tmp_path / "out", say=lambda line: None)
    assert not results.costs and results.notes[-1].startswith("The teacher's card does not say how many samples")
    cost = plan_cost(recipe.plans["hybrid"], open_model(str(tiny_teacher)).transformer)
    spent = part_flops(cost, calibration=0, one=None, two=recipe.stages[1])["stage 2"]
    assert f"hybrid took {spent:.2e} FLOPs: stage 2 {spent:.2e}." in results.notes
    told = run(replace(recipe, trained_on=4000), tmp_path / "out", say=lambda line: None)
    (cost_of,) = told.costs
    assert cost_of.teacher_training == training_flops(open_model(str(tiny_teacher)).transformer, 4000)
    assert not any("does not say" in note for note in told.notes)
    with pytest.raises(ValueError, match="trained_on 0: at least 1"):
        replace(recipe, trained_on=0)


def test_a_batch_that_did_not_fit_is_made_smaller(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran out of memory has made nothing, and a stage 1 that is there is kept."""
    text = f"""
teacher: {tiny_teacher}
plan: {{edits: [{{site: attn, blocks: all, operator: local_mean}}]}}
calibration: 8
distill: {{steps: 2, batch: 8, evaluate_every: 2, save_every: 1}}
finetune: {{steps: 2, batch: 8}}
evaluate: {{triples: 20, samples: 0, grid: 0}}
speed: null
controls: []
"""
    with monkeypatch.context() as full:
        full.setattr("grafting.training.finetune.match_teacher", _full)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                run(RunRecipe.from_yaml(text), tmp_path, say=lambda line: None)
    with pytest.raises(ClaimError, match=r"distill\.batch 8 there, 4 now"):
        run(RunRecipe.from_yaml(text, ["distill.batch=4"]), tmp_path, say=lambda line: None)
    with monkeypatch.context() as kept:
        kept.setattr("grafting.training.distill.Distillation._advance", _full)  # no step of stage 1 is made again
        run(RunRecipe.from_yaml(text, ["finetune.batch=4"]), tmp_path, say=lambda line: None)
    assert json.loads((tmp_path / "hybrid" / "settings.json").read_text())["finetune"]["batch"] == 4
    ran = (tmp_path / "recipe.yaml").read_text()
    assert yaml.safe_load(ran)["finetune"]["batch"] == 4
    with pytest.raises(ClaimError, match=r"finetune\.lr"):
        run(RunRecipe.from_yaml(text, ["finetune.batch=4", "finetune.lr=1e-5"]), tmp_path, say=lambda line: None)
    assert (tmp_path / "recipe.yaml").read_text() == ran  # of what was run, not of what was refused


def test_nothing_holds_what_ran_out_of_memory_before_it_saved(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr("grafting.training.distill.Distillation._advance", _full)
        with pytest.raises(torch.OutOfMemoryError):
            run(recipe(tiny_teacher, "controls=[]"), tmp_path, say=lambda line: None)
    smaller = ["controls=[]", "distill.batch=4", "distill.steps=2", "evaluate.samples=0", "evaluate.grid=0"]
    run(recipe(tiny_teacher, *smaller, "speed=null"), tmp_path, say=lambda line: None)
    assert json.loads((tmp_path / "hybrid" / "settings.json").read_text())["distill"]["batch"] == 4


def test_a_model_is_trained_by_one_process_at_a_time(tiny_teacher: Path, tmp_path: Path) -> None:
    study = Study(recipe(tiny_teacher), tmp_path, say=lambda line: None)
    (entry,) = (entry for entry in study.entries if entry.name == "hybrid")
    with locked(tmp_path / "hybrid" / "train.lock", wait=False) as mine:
        assert mine
        with pytest.raises(ClaimError, match="hybrid: another process is training this model"):
            study.train(entry)
    assert not (tmp_path / "hybrid" / "settings.json").exists()


def _full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none. See the manual")


def test_memory_that_is_full_is_one_sentence(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("grafting.training.finetune.match_teacher", _full)
    graft = ["distill", str(tiny_teacher), "--operator", "local_mean", "--steps", "1", "--calibration", "8"]
    assert main([*graft, "--out", str(tmp_path / "a")]) == 0
    assert main(["finetune", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--steps", "2", "--batch", "4"]) == 2
    told = (
        "grafting finetune: CUDA out of memory. Tried to allocate 2.00 GiB: a smaller batch needs less, "
        "or --set checkpointing=true, or micro_batch=N\n"
    )
    assert capsys.readouterr().err.endswith(told)

    def allocator(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 12 bytes.")

    monkeypatch.setattr("grafting.training.finetune.match_teacher", allocator)
    assert main(["finetune", str(tmp_path / "a"), "--out", str(tmp_path / "c"), "--steps", "2", "--batch", "4"]) == 2
    assert "can't allocate memory: 12 bytes: a smaller batch" in capsys.readouterr().err


def test_two_plans_share_one_page(tiny_teacher: Path, tmp_path: Path) -> None:
    text = f"""
teacher: {tiny_teacher}
plans:
  half: {{edits: [{{site: attn, blocks: interleaved 50%, operator: local_mean}}]}}
  all: {{edits: [{{site: attn, blocks: all, operator: local_mean}}]}}
finetune: {{steps: 2, batch: 4}}
evaluate: {{triples: 20, grid: 2, steps: 2}}
speed: null
against: half
controls: [procedure, none]
"""
    recipe = RunRecipe.from_yaml(text)
    results = run(recipe, tmp_path, say=lambda line: None)
    assert [m.name for m in results.models] == ["teacher", "half", "all", "procedure", "half-none", "all-none"]
    procedure = results.models[3]
    assert "bit for bit" in procedure.description and procedure.denoising == results.models[0].denoising
    assert "half-none" in results.summary and "all-none" in results.summary
    study = Study(recipe, tmp_path, pytest.fail)
    losses = {entry.name: study.denoise(entry) for entry in study.entries}
    apart = (losses["all"] - losses["half"]).mean().item()
    assert f"{apart:+.4f} (" in results.summary and results.summary.count("against half") == 1
    with pytest.raises(SettingsError, match="against 'hlaf': did you mean 'half'"):
        RunRecipe.from_yaml(text, ["against=hlaf"])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (("plan.edits.0.operator=hyena_z",), "hyena_z"),
        (("plan.edits.0.blocks=[9]",), "9"),
        (("evaluate.samples=49",), "samples 49: the floor needs as many held-out images, and there are 48"),
        (("data=nowhere.npz",), "nowhere.npz"),
        (("finetune.train=grafted",), "control procedure"),
        (("teacher=nothing",), "'nothing' is no bundled teacher"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    tiny_teacher: Path, tmp_path: Path, changes: tuple[str, ...], word: str
) -> None:
    with pytest.raises((StudyError, PlanError, SettingsError, ValueError), match=word):
        run(recipe(tiny_teacher, *changes), tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_stage_goes_on_over_the_same_images_alone(tiny_teacher: Path, tmp_path: Path) -> None:
    model = open_model(str(tiny_teacher))
    plan, whole = Plan.interleaved(operator="local_mean"), Material(model)
    one = DistillStage(steps=2, batch=4, heldout_batches=1)
    two = FinetuneStage(steps=2, batch=4, train="grafted")
    for _ in range(2):  # and again, from what is there
        handle = begin(model.transformer, plan, whole, init="random", seed=0, calibration=0)
        stage_one(handle, one, whole, out=tmp_path / "one")
        stage_two(handle, two, whole, out=tmp_path / "two")
        fewer = whole.first(8)
        with pytest.raises(ValueError, match="learnt from None there, 8 now"):
            stage_one(handle, one, fewer, out=tmp_path / "one")
        with pytest.raises(ValueError, match="learnt from None there, 8 now"):
            stage_two(handle, two, fewer, out=tmp_path / "two")
        ungraft(model.transformer)


def test_latents_that_nobody_could_see_are_refused_and_an_autoencoder_can_be_given(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL
    from test_graft import tiny

    tiny().save_pretrained(tmp_path / "transformer")  # type: ignore[operator]
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "decoder")
    with pytest.raises(StudyError, match=r"latents of 4 channels .*vae: in a recipe"):
        run(recipe(tmp_path), tmp_path / "out", say=lambda line: None)
    given = f"vae={tmp_path / 'decoder'}"
    with pytest.raises(ModelError, match="data"):  # of which this teacher brings none: the next thing that is asked for
        run(recipe(tmp_path, given), tmp_path / "out", say=lambda line: None)


def test_a_bundle_brings_measurements_of_its_teacher_and_finished_runs(
    finished: tuple[Path, Results], tiny_teacher: Path, tmp_path: Path
) -> None:
    """What was measured elsewhere under the same settings is taken; a finished run's figures keep its label."""
    out, results = finished
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_teacher, bundle)
    shutil.copytree(out / "teacher", bundle / "measured")
    shutil.copytree(out, bundle / "runs" / "long", ignore=shutil.ignore_patterns("model"))
    said: list[str] = []
    changes = ("controls=[]", "budget=0", "speed=null", "beside=[long]")
    joined = run(recipe(bundle, *changes), tmp_path / "out", say=said.append)
    assert not any(line.startswith("teacher: held-out") or line.startswith("teacher: 24 samples") for line in said)
    assert joined.models[0].denoising == results.models[0].denoising
    labels = [model.run for model in joined.models]
    assert labels == [joined.models[0].run] * 2 + [f"long: {results.run}"] * 6
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png") == 8
    other = run(recipe(bundle, *changes, "evaluate.triples=30"), tmp_path / "other", say=said.append)
    assert "teacher: held-out loss on 30 triples" in said and other.models[0].denoising != joined.models[0].denoising
    with pytest.raises(StudyError, match=r"beside short: no results\.json"):
        run(recipe(bundle, "beside=[short]"), tmp_path / "none", say=said.append)


def test_a_run_beside_another_is_paired_with_it(
    finished: tuple[Path, Results], tiny_teacher: Path, tmp_path: Path
) -> None:
    out, _ = finished
    changes = ("controls=[]", "budget=0", "speed=null", "evaluate.samples=0", "evaluate.grid=0", f"beside=[{out}]")
    joined = run(recipe(tiny_teacher, *changes), tmp_path / "out", say=lambda line: None)
    mine, theirs = (load_file(home / "hybrid" / "losses.safetensors")["losses"] for home in (tmp_path / "out", out))
    told = [note for note in joined.notes if "paired" in note]
    assert len(told) == 1 and told[0].startswith(f"hybrid: held-out loss {(mine - theirs).mean():+.4f} (")
    assert told[0].endswith(f") against its own in “{out.name}”, paired.")
    other = run(recipe(tiny_teacher, *changes, "seed=1"), tmp_path / "other", say=lambda line: None)
    assert not any("paired" in note for note in other.notes)  # of other triples


def test_runs_of_other_triples_are_not_paired_whatever_their_recipes_say(tiny_teacher: Path, tmp_path: Path) -> None:
    def ran(name: str, *more: str) -> list[str]:
        changes = ("controls=[]", "budget=0", "speed=null", "evaluate.samples=0", "evaluate.grid=0", *more)
        notes = run(recipe(teacher, *changes), tmp_path / name, say=lambda line: None).notes
        return [note for note in notes if "paired" in note]

    teacher, first = tmp_path / "teacher", tmp_path / "first"
    shutil.copytree(tiny_teacher, teacher)
    ran("first")
    beside = f"beside=[{first}]"
    assert len(ran("same", beside)) == 1
    pictures = LabelledImages(images=torch.rand(48, 1, 4, 4) * 2 - 1, labels=torch.arange(48) % 3)
    write_subset(teacher / "images.npz", pictures, pictures)  # under the name that they had
    assert ran("other", beside) == []
    (first / "teacher" / "denoise.json").unlink()  # as shipped runs are: their recipes are all there is
    assert len(ran("again", beside)) == 1


def test_figures_are_written_into_a_hybrid_s_manifest_without_its_weights(
    finished: tuple[Path, Results], tiny_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    weights, manifest = (out / "hybrid" / "model" / name for name in ("graft.safetensors", "graft.json"))
    there = json.loads(manifest.read_text())
    figures = there.pop("results")
    assert "fid" in figures and there["protocol"]["recipe"]["teacher"] == str(tiny_teacher)
    weights.unlink()  # gigabytes, of a graft that learnt as a whole
    manifest.write_text(json.dumps(there | {"results": {}}))
    note_results(Study(recipe(tiny_teacher), out, say=lambda line: None), finished[1])
    assert json.loads(manifest.read_text()) == there | {"results": figures} and not weights.exists()


def test_fewer_images_are_learnt_from_while_quality_compares_to_all(tiny_teacher: Path, tmp_path: Path) -> None:
    all_of_them = Study(recipe(tiny_teacher), tmp_path)
    few = all_of_them.again(recipe(tiny_teacher, "images=10"))
    seen = few.material.batches(8, 0)
    assert {row for step in range(5) for row in seen.indices(step).tolist()} == set(range(10))
    assert len(few.material.batches(8, 0, train=False).inputs) == 48 and len(few.reference) == 96
    assert few.model is all_of_them.model and len(all_of_them.material.batches(8, 0).inputs) == 96
    hybrid = few.entries[1]
    assert few.settings(hybrid) == all_of_them.settings(hybrid) | {"images": 10}
    with pytest.raises(StudyError, match="images 97: there are 96"):
        all_of_them.again(recipe(tiny_teacher, "images=97"))
    with pytest.raises(StudyError, match="seed, evaluate differ"):
        all_of_them.again(recipe(tiny_teacher, "seed=1", "evaluate.triples=30"))


def test_a_model_depends_on_what_its_operators_begin_with(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that was mended is another model's; what begins as it always did keeps the settings that it had."""
    study = Study(recipe(tiny_teacher), tmp_path)
    before = [study.settings(entry) for entry in study.entries]
    operators = {edit.operator for edit in study.entries[1].plan.edits}  # type: ignore[union-attr]
    for name in operators:
        monkeypatch.setattr(
            arithmetic(name), "start_version", classmethod(lambda cls, init: 3 if init != "random" else 1)
        )
    after = [study.settings(entry) for entry in study.entries]
    assert after[1] == before[1] | {"starts": dict.fromkeys(operators, 3)}
    assert [entry.name for entry, a, b in zip(study.entries, before, after, strict=True) if a != b] == ["hybrid"]


def test_the_same_weights_under_other_constants_are_another_teacher(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An original checkpoint, and the same weights in a folder of diffusers, embed timesteps differently."""
    study = Study(recipe(tiny_teacher), tmp_path, say=lambda line: None)
    shared = settings_of(Scoring(), study.model, study.material)
    imported = open_model(str(tiny_teacher))
    unshift_timesteps(imported.transformer)
    monkeypatch.setattr("grafting.study.bench.open_model", lambda *_, **__: imported)
    other = Study(recipe(tiny_teacher), tmp_path, say=lambda line: None)
    for entry, same in zip(study.entries, other.entries, strict=True):
        assert study.settings(entry) != other.settings(same), entry.name
    losses = study.denoise(study.entries[0])
    assert not torch.equal(losses, other.denoise(other.entries[0]))
    assert set(study.settings(study.entries[0])) == {"teacher"}, "a model as its class has it keeps its key"
    assert shared != settings_of(Scoring(), other.model, other.material)
    assert set(shared) == {"version", "teacher", "material", "triples", "calibration", "seed"}


def test_a_hybrid_is_timed_within_its_teacher(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy of all weights, of which a large model leaves no room for two."""
    study = Study(recipe(tiny_teacher), tmp_path, say=lambda line: None)
    monkeypatch.setattr(Grafted, "own_copy", lambda self: pytest.fail("copied"))
    rows = study.time(study.entries[1])
    assert [row["setting"].split(",")[0] for row in rows] == ["16 tokens", "36 tokens"]
    assert all(row["time_bound"] > 0 and row["seconds"] > 0 for row in rows)
    assert not any(isinstance(module, Switch) for module in study.teacher.modules())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "x"}', '{"outcome": {}}'])
def test_a_part_that_is_not_what_was_written_is_made_again(tmp_path: Path, text: str) -> None:
    path = tmp_path / "part.json"
    path.write_text(text)
    assert part(path, {"a": 1}, lambda: {"made": 2}) == {"made": 2}
    assert part(path, {"a": 1}, lambda: {"made": 3}) == {"made": 2}
    assert part(path, {"a": 2}, lambda: {"made": 3}) == {"made": 3}
