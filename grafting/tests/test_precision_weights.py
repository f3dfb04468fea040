"""Weights held in bfloat16: half the memory for what does not learn, float32 for what does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_flux_training import hybrid as of_flux
from test_hosts_table import HOSTS, ready
from test_sd3_training import NULL, batches
from torch import nn

from grafting.cli import main
from grafting.graft import graft, ungraft
from grafting.hashes import tensors_hash
from grafting.hosts import host_for
from grafting.lora import Lora
from grafting.plan import Plan
from grafting.precision import widened
from grafting.restructure import Merge
from grafting.searching.search import search
from grafting.searching.solve import SearchError
from grafting.settings import SettingsError
from grafting.store.folder import load, save
from grafting.store.models import open_model
from grafting.study import RunRecipe, run
from grafting.study.material import Material
from grafting.study.recipe import DistillStage, FinetuneStage
from grafting.study.stages import begin, stage_one, stage_two
from grafting.training.distill import DistillConfig, distill

ONE = DistillStage(steps=8, batch=8, evaluate_every=4, heldout_batches=1, precision="bf16")
START: dict[str, Any] = {"init": "default", "seed": 0, "calibration": 16}
RANDOM = START | {"init": "random"}
TWO = FinetuneStage(steps=6, batch=8, lr=3e-3, train="grafted", precision="bf16", log_every=1)


def types(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@pytest.fixture
def teacher(tiny_teacher: Path) -> Any:
    return open_model(str(tiny_teacher), weights="bf16")


@pytest.mark.parametrize("row", HOSTS)
def test_every_family_runs_beside_operators_in_float32(row: str) -> None:
    """A copied operator computes what the original did, and what comes out is near to float32."""
    model, z, t, condition = ready(row)
    host, exact = host_for(model), host_for(model).call(model, z, t, condition)
    model.to(torch.bfloat16)
    rough = host.call(model, z, t, condition)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()
    own: dict[str, Any] = {"operator": "mha"}
    if "SANA" in row:
        own = {"operator": "linear", "feature_map": "relu"}
    handle = graft(model, Plan.all(**own), init="copy", dtype=torch.float32)
    assert {p.dtype for part in handle.learnable().values() for p in part.values()} == {torch.float32}
    again = host.call(model, z, t, condition)
    near = (0.5 if "1.5" in row else 0.05) * exact.norm()  # 1.5 norms each token
    assert (again - rough).norm() < near
    given = as_a_pipeline(model, z, t, condition)
    assert given.dtype == torch.bfloat16 and (given - rough).norm() < near


def as_a_pipeline(model: nn.Module, z: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
    """What a model gives to a pipeline of diffusers, in whose type all is and which opens no autocast."""
    flat = {"": condition} if isinstance(condition, torch.Tensor) else dict(condition)
    flat |= flat.pop("added_cond_kwargs", {})
    halves = {key: value.bfloat16() if value.is_floating_point() else value for key, value in flat.items()}
    sizes = {key: halves.pop(key) for key in ("resolution", "aspect_ratio") if key in halves}
    halves |= {"added_cond_kwargs": sizes} if sizes else {}
    with torch.no_grad():
        return host_for(model).run(model, z.bfloat16(), t, halves.get("", halves))


def test_half_the_bytes_and_the_same_model(tiny_teacher: Path, teacher: Any) -> None:
    whole = open_model(str(tiny_teacher)).transformer

    def size(model: nn.Module) -> int:
        return sum(parameter.nbytes for parameter in model.parameters())

    assert 2 * size(teacher.transformer) == size(whole) and types(teacher.transformer) == {torch.bfloat16}
    buffers = dict(whole.named_buffers())  # the places of tokens, which no file holds
    assert all(torch.equal(buffers[name], buffer) for name, buffer in teacher.transformer.named_buffers())
    rounded = tensors_hash(whole.state_dict(), rounded_to=torch.bfloat16, halves_as=torch.float32)
    assert graft(teacher.transformer, Plan.all(operator="swa")).source_hash == rounded


def test_both_stages_teach_what_is_new_and_nothing_else(tiny_teacher: Path, teacher: Any, tmp_path: Path) -> None:
    """Near to what they learn beside float32, and a delta that goes into the model as it is held, and in float32."""

    def learnt(model: Any) -> tuple[Any, Any]:
        handle = begin(model.transformer, Plan.interleaved(operator="hyena_x"), Material(model), **RANDOM)
        reports = stage_one(handle, ONE, Material(model))
        trained, loop = stage_two(handle, TWO, Material(model))
        return trained, (reports, loop)

    before = {name: tensor.clone() for name, tensor in teacher.transformer.state_dict().items()}
    exact, _ = learnt(open_model(str(tiny_teacher)))
    handle, (reports, loop) = learnt(teacher)
    assert all(report.heldout[-1][1] < report.heldout[0][1] for report in reports.values())
    assert loop.log[-1]["loss"] < loop.log[0]["loss"]
    fresh = begin(open_model(str(tiny_teacher)).transformer, handle.plan, Material(teacher), **RANDOM)
    for site, operator in handle.operators().items():
        assert types(operator) == {torch.float32}
        mine, theirs, first = (
            torch.cat([p.flatten() for p in one.operators()[site].parameters()]) for one in (handle, exact, fresh)
        )
        assert (mine - theirs).norm() < 0.3 * (theirs - first).norm()
    save(handle, tmp_path, base=str(tiny_teacher))
    for weights in ("fp32", "bf16"):
        again = open_model(str(tmp_path), weights=weights)
        assert again.graft is not None
        for site, operator in handle.operators().items():
            kept = again.graft.operators()[site].state_dict()
            assert all(torch.equal(kept[name], tensor) for name, tensor in operator.state_dict().items())
    assert load(tmp_path, open_model(str(tiny_teacher), weights="bf16").transformer).source_hash == handle.source_hash
    after = ungraft(handle.model).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_adapters_learn_in_float32_and_are_merged_in_it(tiny_teacher: Path, teacher: Any, tmp_path: Path) -> None:
    stage = FinetuneStage(
        steps=4, batch=8, lr=1e-2, train="lora", lora=Lora(rank=2), target="noise", precision="bf16", checkpointing=True
    )
    handle, _ = stage_two(graft(teacher.transformer, Plan()), stage, Material(teacher))
    adapters = handle.adapters.parameters()  # type: ignore[union-attr]
    assert {p.dtype for p in adapters.values()} == {torch.float32}
    assert all(p.abs().sum() > 0 for p in adapters.values())
    assert types(handle.own_copy().model) == {torch.float32}  # type: ignore[union-attr]
    save(handle, tmp_path, base=str(tiny_teacher))  # type: ignore[arg-type]
    again = open_model(str(tmp_path), weights="bf16")
    assert again.graft is not None and again.graft.adapters is not None
    kept = again.graft.adapters.parameters()
    assert all(torch.equal(kept[name], tensor) for name, tensor in adapters.items())
    assert types(again.transformer) == {torch.float32, torch.bfloat16}


def test_a_whole_copy_trains_in_float32_against_a_teacher_in_half(teacher: Any) -> None:
    handle = begin(teacher.transformer, Plan.all(site="mlp", operator="none"), Material(teacher), **START)
    stage = FinetuneStage(steps=2, batch=8, precision="bf16", fade=0.5)
    trained, _ = stage_two(handle, stage, Material(teacher))
    assert types(trained.model) == {torch.float32} and types(teacher.transformer) == {torch.bfloat16}  # type: ignore[union-attr]
    alone = FinetuneStage(steps=2, batch=8, target="noise", precision="bf16")
    plain, _ = stage_two(ungraft(teacher.transformer), alone, Material(teacher))
    assert types(plain) == {torch.float32}  # type: ignore[arg-type]


def test_what_learnt_as_a_whole_is_trained_on_in_float32(tiny_teacher: Path, tmp_path: Path) -> None:
    """Rounded to bfloat16 it would lose the small steps that it took."""
    handle = graft(open_model(str(tiny_teacher)).transformer, Plan.all(operator="swa")).own_copy()
    save(handle, tmp_path)
    model = open_model(str(tmp_path), weights="bf16")
    assert model.graft is not None and types(model.transformer) == {torch.float32, torch.bfloat16}
    with pytest.raises(ValueError, match="finetuned as a whole, and all of its weights learn: open it in float32"):
        stage_two(model.graft, TWO, Material(open_model(str(tiny_teacher))), teacher=model.transformer)


def test_a_start_that_is_exact_is_seen_to_be(teacher: Any) -> None:
    handle = begin(teacher.transformer, Plan.all(operator="mha"), Material(teacher), **START)
    assert set(handle.explained.values()) == {1.0}
    copied = graft(open_model_of(teacher), handle.plan, init="copy", dtype=torch.float32)
    for site, operator in handle.operators().items():
        theirs = copied.operators()[site].state_dict()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in operator.state_dict().items())


def open_model_of(model: Any) -> nn.Module:
    """Its transformer anew."""
    return open_model(model.name, weights="bf16").transformer


@pytest.mark.parametrize("combine", ["scale", "dense"])
@pytest.mark.parametrize("train", ["all", "combine"])
def test_groups_of_blocks_learn_in_float32(combine: str, train: str, teacher: Any, tmp_path: Path) -> None:
    plan = Plan(restructure=(Merge(combine=combine, train=train),))
    handle = begin(teacher.transformer, plan, Material(teacher), **START)
    reports = stage_one(handle, ONE, Material(teacher))
    assert all(report.heldout[-1][1] < report.heldout[0][1] for report in reports.values())
    kinds = {torch.float32} if train == "all" else {torch.float32, torch.bfloat16}
    assert all(types(group) == kinds for group in handle.groups.values())
    save(handle, tmp_path, base=teacher.name)
    again = open_model(str(tmp_path), weights="bf16").graft
    assert again is not None and all(types(group) == kinds for group in again.groups.values())
    assert types(again.originals) == {torch.bfloat16}
    z, t, y = torch.randn(2, 1, 4, 4), torch.tensor([3, 800]), torch.tensor([0, 2])
    given, wanted = (one.host.call(one.model, z, t, y) for one in (again, handle))
    assert torch.equal(given, wanted)
    plain = as_a_pipeline(again.model, z, t, y)
    assert plain.dtype == torch.bfloat16 and (plain - wanted).norm() < 0.05 * wanted.norm()


def test_two_streams_learn_at_every_gate() -> None:
    """Flux, whose gates are computed beside the pass, and whose text goes along."""
    handle = of_flux("hyena_x_2d")
    model = ungraft(handle.model).to(torch.bfloat16)
    handle = graft(model, handle.plan, init="copy", dtype=torch.float32)
    config = DistillConfig(steps=6, evaluate_every=3, halve=(), warmup=0.0, gate_weighted=True, precision="bf16")
    for report in distill(handle, batches, NULL, config=config).values():
        assert report.heldout[-1][1] < report.heldout[0][1]


def test_what_does_not_go_together_is_one_sentence(tiny_teacher: Path, teacher: Any) -> None:
    with pytest.raises(ValueError, match="weights 'fp8': fp32 or bf16"):
        open_model(str(tiny_teacher), weights="fp8")
    handle = begin(teacher.transformer, Plan.all(operator="swa"), Material(teacher), **START)
    with pytest.raises(ValueError, match=r"precision fp32: the model's weights are held in bfloat16"):
        stage_one(handle, DistillStage(steps=1), Material(teacher))
    for train in ("grafted", "all"):
        with pytest.raises(ValueError, match=r"precision fp32: the model's weights are held in bfloat16"):
            stage_two(handle, FinetuneStage(steps=1, train=train), Material(teacher))
    ungraft(handle.model)
    half = graft(teacher.transformer, Plan.all(operator="swa"))
    with pytest.raises(ValueError, match=r"is bfloat16: .*graft\(\.\.\., dtype=torch\.float32\)"):
        stage_one(half, ONE, Material(teacher))
    with pytest.raises(SearchError, match="open the model with weights fp32"):
        search(teacher)
    recipe = {"teacher": str(tiny_teacher), "plan": Plan.all(operator="swa").to_dict(), "weights": "bf16"}
    with pytest.raises(SettingsError, match=r"distill: precision fp32: it is bf16 where weights are held in it"):
        RunRecipe.from_dict({**recipe, "distill": {"steps": 1, "precision": "fp32"}})
    with pytest.raises(SettingsError, match=r"weights 'fp8': fp32 or bf16"):
        RunRecipe.from_dict({**recipe, "weights": "fp8"})
    made = RunRecipe.from_dict({**recipe, "distill": {"steps": 1}, "finetune": {"steps": 1}})
    assert {made.distill.precision, made.finetune.precision, made.evaluate.precision} == {"bf16"}  # type: ignore[union-attr]


def test_a_stage_does_not_go_on_beside_other_weights(tmp_path: Path, teacher: Any) -> None:
    """Of a model that is published in bfloat16 both are the same numbers, and the passes are not."""
    exact = widened(open_model_of(teacher))
    stage = DistillStage(steps=2, batch=8, evaluate_every=1, heldout_batches=1, precision="bf16")
    handle = begin(teacher.transformer, Plan.all(operator="swa"), Material(teacher), **RANDOM)
    stage_one(handle, stage, Material(teacher), out=tmp_path)
    other = begin(exact, handle.plan, Material(teacher), **RANDOM)
    assert other.source_hash == handle.source_hash
    with pytest.raises(ValueError, match="weights bf16 there, None now"):
        stage_one(other, stage, Material(teacher), out=tmp_path)


def test_a_delta_goes_into_float16(tmp_path: Path, teacher: Any) -> None:
    """As a pipeline may hold a model that is published so: its rounding to bfloat16 is what the delta was made from."""
    published = open_model(teacher.name).transformer.half()
    rounded = copy.deepcopy(published).to(torch.bfloat16)
    save(graft(rounded, Plan.all(operator="swa"), dtype=torch.float32), tmp_path)
    assert types(load(tmp_path, published).model) == {torch.float16}


def test_from_the_command_line(tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = ["--weights", "bf16"]
    first, second, merged = tmp_path / "one", tmp_path / "two", tmp_path / "merged"
    given = ["distill", str(tiny_teacher), "--operator", "swa", "--steps", "2", "--batch", "8", "--out", str(first)]
    assert main([*given, *held, "--set", "precision=fp32"]) == 2
    assert "precision fp32: it is bf16 with --weights bf16" in capsys.readouterr().err and not first.exists()
    assert main([*given, *held]) == 0
    given = ["finetune", str(first), "--train", "lora", "--rank", "2", "--steps", "2", "--batch", "8"]
    assert main([*given, *held, "--out", str(second)]) == 0
    assert main(["merge", str(second), "--out", str(merged)]) == 0
    assert json.loads((merged / "graft.json").read_text())["whole"]
    for model in (tiny_teacher, second, merged):
        few = ["--count", "2", "--steps", "2", "--out", str(tmp_path / "x.png")]
        assert main(["sample", str(model), *held, *few]) == 0
        capsys.readouterr()
        assert main(["evaluate", str(model), *held, "--json"]) == 0
        loss = json.loads(capsys.readouterr().out)["held-out loss"]
        assert main(["evaluate", str(model), "--json"]) == 0
        full = json.loads(capsys.readouterr().out)["held-out loss"]
        rough, exact = (next(iter(found.values()))["value"] for found in (loss, full))
        assert 0 < abs(rough - exact) < 0.01 * exact
    assert main(["sample", str(second), *held, "--precision", "fp32", "--out", str(tmp_path / "y.png")]) == 2
    assert "--precision fp32: it is bf16 with --weights bf16" in capsys.readouterr().err
    assert main(["profile", str(second), *held, "--json", "--rounds", "2"]) == 0
    few = ["--out", str(tmp_path / "a"), "--samples", "4", "--steps", "3"]
    assert main(["analyze", str(tiny_teacher), *held, *few]) == 0


def test_a_study(tiny_teacher: Path, tmp_path: Path) -> None:
    recipe = RunRecipe.from_dict(
        {
            "teacher": str(tiny_teacher),
            "weights": "bf16",
            "plan": Plan.interleaved(operator="hyena_x").to_dict(),
            "distill": {"steps": 4, "batch": 8},
            "finetune": {"steps": 4, "batch": 8, "train": "lora", "lora": {"rank": 2}},
            "evaluate": {"triples": 16, "samples": 8, "steps": 2, "grid": 4, "bootstraps": 2},
            "speed": {"batch": 2, "rounds": 2},
            "controls": ["none", "untrained"],
        }
    )
    results = run(recipe, tmp_path, say=lambda _: None)
    assert results.speed and results.speed[0].setting.endswith("bfloat16")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert run(recipe, tmp_path, say=lambda _: None) == results
    assert files and {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == files
