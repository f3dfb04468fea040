"""Grafts on disk: round trips of delta and whole folders, released checkpoints, and loud refusals."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_graft import batch, output, tiny
from test_hosts_table import ready

import grafting.store.folder
from grafting.diffusion import Diffusion, Flow, Schedule
from grafting.files import sha256
from grafting.graft import GraftError, graft, handle_of, ungraft
from grafting.hosts import schedule_of, set_schedule
from grafting.plan import Plan
from grafting.store.checkpoints import unshift_timesteps
from grafting.store.folder import StoreError, annotate, load, save

PLAN = Plan.interleaved(site="attn", operator="hyena_x") + Plan.explicit(
    site="mlp", operator="mlp", blocks=[0], ratio=3
)


def test_delta_round_trip(tmp_path: Path) -> None:
    handle = graft(tiny(), PLAN, calibration=batch)
    save(handle, tmp_path, base="tiny", results={"mse": 0.1})
    again = load(tmp_path, tiny())
    assert torch.equal(output(again.model), output(handle.model))
    assert again.explained == handle.explained and again.plan == handle.plan
    assert again.copied == handle.copied and len(again.copied) == 3
    shared = sum(p.numel() for n, p in handle.model.named_parameters() if ".operator." in n)
    assert (tmp_path / "graft.safetensors").stat().st_size < 4 * shared + 10_000
    with again.teacher() as teacher:
        assert torch.equal(output(teacher), output(tiny()))
    assert torch.equal(output(ungraft(again.model)), output(tiny()))
    assert "| mse | 0.1 |" in (tmp_path / "README.md").read_text()


def test_figures_are_noted_beside_the_weights(tmp_path: Path) -> None:
    handle = graft(tiny(), PLAN, init="random")
    save(handle, tmp_path, base="tiny", protocol={"stage 1": 5}, results={"mse": 0.1})
    before = json.loads((tmp_path / "graft.json").read_text())
    weights = (tmp_path / "graft.safetensors").stat()
    annotate(tmp_path, protocol={"samples": "N = 8"}, results={"fid": 3.5})
    after = json.loads((tmp_path / "graft.json").read_text())
    assert after == before | {"protocol": {"samples": "N = 8"}, "results": {"fid": 3.5}}
    card = (tmp_path / "README.md").read_text()
    assert "| fid | 3.5 |" in card and "| samples | N = 8 |" in card and "mse" not in card
    now = (tmp_path / "graft.safetensors").stat()
    assert (now.st_ino, now.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    with pytest.raises(StoreError, match="is no graft"):
        annotate(tmp_path / "nothing", protocol={}, results={})


@pytest.mark.parametrize("last", ["save_safetensors_atomic", "write_text_atomic", None])
def test_saving_again_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str | None) -> None:
    """Whatever the last file to be written was, the folder holds the earlier graft until the manifest is."""
    earlier, later = graft(tiny(), PLAN, init="random"), graft(tiny(), PLAN, init="random", seed=1)
    save(earlier, tmp_path)
    cut_at = last or "write_json_atomic"
    write = getattr(grafting.store.folder, cut_at)

    def cut(*given: Any) -> None:
        if last is not None:
            write(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(grafting.store.folder, cut_at, cut)
        save(later, tmp_path)
    assert torch.equal(output(load(tmp_path, tiny()).model), output(earlier.model))
    (tmp_path / ".graft.safetensors.killed").touch()  # as a kill within a save leaves it
    for handle in (later, earlier):
        save(handle, tmp_path)
        assert not list(tmp_path.glob(".*"))
        assert torch.equal(output(load(tmp_path, tiny()).model), output(handle.model))
        assert len(list(tmp_path.glob("graft*.safetensors"))) == 1


@pytest.mark.parametrize("full", [True, False])
def test_whole_round_trip_keeps_what_the_configuration_cannot_say(tmp_path: Path, full: bool) -> None:
    model = tiny()
    unshift_timesteps(model)
    model.transformer_blocks[2].norm3.eps = 1e-3
    handle = graft(model, PLAN, init="random")
    if full:
        handle = handle.own_copy()
        with torch.no_grad():
            for parameter in handle.model.parameters():
                parameter.mul_(1.1)
        with pytest.raises(StoreError, match="finetuned as a whole"):
            save(handle, tmp_path, whole=False)
    save(handle, tmp_path, whole=None if full else True)
    again = load(tmp_path)
    assert again.private and torch.equal(output(again.model), output(handle.model))
    assert again.model.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift == 0


def test_plain_diffusers_fails_loudly(tmp_path: Path) -> None:
    from diffusers import AutoModel, DiTTransformer2DModel

    save(graft(tiny(), PLAN), tmp_path, whole=True)
    for cls in (DiTTransformer2DModel, AutoModel):
        with pytest.raises((OSError, ValueError)):
            cls.from_pretrained(str(tmp_path), local_files_only=True)


def test_diffusers_does_not_save_a_graft(tmp_path: Path) -> None:
    """Its loader would drop the new operators; given back, the model saves as ever."""
    handle = graft(tiny(), PLAN)
    for model in (handle.model, handle.own_copy().model):
        with pytest.raises(GraftError, match=r"grafting\.save\(handle, folder\)"):
            model.save_pretrained(tmp_path / "lost")  # type: ignore[operator]
    with pytest.raises(GraftError, match="ungraft"):
        handle.model.push_to_hub("someone/some-model")  # type: ignore[operator]
    assert not (tmp_path / "lost").exists()
    merged = graft(tiny(), Plan()).own_copy().model  # adapters alone leave the class as it is
    merged.save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    assert torch.equal(output(type(merged).from_pretrained(tmp_path / "merged").eval()), output(merged))  # type: ignore[attr-defined]
    ungraft(handle.model).save_pretrained(tmp_path / "plain")  # type: ignore[operator]
    assert (tmp_path / "plain" / "config.json").is_file()


def test_a_whole_graft_keeps_each_tensor_s_type(tmp_path: Path) -> None:
    """Operators that learnt in float32 beside weights in bfloat16 are not rounded by a folder."""
    handle = graft(tiny().to(torch.bfloat16), PLAN, init="random", dtype=torch.float32)
    save(handle, tmp_path, whole=True)
    again = load(tmp_path)
    for site, operator in handle.operators().items():
        for name, tensor in operator.state_dict().items():
            found = again.operators()[site].state_dict()[name]
            assert found.dtype == torch.float32 and torch.equal(found, tensor)
    assert next(again.model.parameters()).dtype == torch.bfloat16
    given = torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.tensor([0, 1])
    with torch.no_grad():
        found, wanted = (made.host.call(made.model, *given) for made in (again, handle))
    assert torch.equal(found, wanted)


def test_a_card_links_to_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for k, base in enumerate(("someone/some-model", "here/some-model", "gone/some-model.pt", "fashion", "")):
        linked = base == "someone/some-model"
        save(graft(tiny(), PLAN), tmp_path / str(k), base=base or None)
        text = (tmp_path / str(k) / "README.md").read_text()
        head = text.split("---")[1]
        assert (f"base_model: {base}\n" in head) == linked == ("base_model" in head)
        assert ("base=pretrained" not in text) == (linked or base == "fashion")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("base", ["teacher", "gone", None])
def test_the_code_of_a_card_runs(whole: bool, base: str | None, tmp_path: Path, monkeypatch: Any) -> None:
    """As it is printed, beside the folder; and the pipeline draws with the graft then."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("teacher" if base == "teacher" else "path/to/it")  # type: ignore[operator]
    handle = graft(tiny(), PLAN, init="random")
    save(handle, "folder", whole=whole, base=base)
    text = Path("folder/README.md").read_text()
    assert "is needed to load it" in text and re.findall(r"^pip install (.*)$", text, re.MULTILINE) == ["./grafting"]
    assert ("pretrained = " in text) == (not whole and base != "teacher")
    opening, piping = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made: dict[str, Any] = {}
    exec(opening, made)
    assert torch.equal(output(made["model"].transformer), output(handle.model))
    pipe = DiTPipeline(tiny(), AutoencoderKL(block_out_channels=[8], norm_num_groups=2), DDIMScheduler())
    exec(piping, {"pipe": pipe})
    assert torch.equal(output(pipe.transformer), output(handle.model))


def test_a_base_of_other_constants_is_refused(tmp_path: Path) -> None:
    """The very same weights are another model where the timestep embeddings are others."""
    original = tiny()
    unshift_timesteps(original)
    for model, other, told in (
        (original, tiny(), "the class's own there, 0"),
        (tiny(), original, "0 there, the class's own"),
    ):
        folder = tmp_path / told[:1]
        save(graft(copy.deepcopy(model), PLAN), folder)
        with pytest.raises(StoreError, match=f"downscale_freq_shift is {told}"):
            load(folder, copy.deepcopy(other))
        assert load(folder, copy.deepcopy(model)).plan == PLAN


def test_refusals(tmp_path: Path) -> None:
    save(graft(tiny(), PLAN), tmp_path, base="tiny")
    with pytest.raises(StoreError, match=r"give base.*\(tiny\)"):
        load(tmp_path)
    with pytest.raises(StoreError, match="base has hash"):
        load(tmp_path, tiny(seed=1))
    with pytest.raises(StoreError, match="no graft"):
        load(tmp_path / "nowhere")
    content = (tmp_path / "graft.safetensors").read_bytes()
    (tmp_path / "graft.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match="its hash differs"):
        load(tmp_path, tiny())


@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_another_shape_are_named_with_their_file(tmp_path: Path, whole: bool) -> None:
    """The hash is right and the content is not, as after an edit by hand that renewed the hash."""
    from safetensors.torch import load_file, save_file

    save(graft(tiny(), PLAN), tmp_path, whole=whole)
    path, manifest = tmp_path / "graft.safetensors", json.loads((tmp_path / "graft.json").read_text())
    good = load_file(path)
    key = "blocks.0.mlp.fc1.weight"
    changes = [(good | {key: torch.zeros(2, 3)}, f"{key} is \\(2, 3\\), must be")]
    changes.append(({k: v for k, v in good.items() if k != key}, f"{key} is missing"))
    if whole:
        changes.append((good | {"shared.proj_out_1.bias": torch.zeros(3)}, r"proj_out_1\.bias is \(3,\), must be"))
    for tensors, words in changes:
        save_file(tensors, path)
        manifest["file"]["sha256"] = sha256(path)
        (tmp_path / "graft.json").write_text(json.dumps(manifest))
        with pytest.raises(StoreError, match=rf"graft\.safetensors does not fit .*{words}"):
            load(tmp_path, None if whole else tiny())


def test_a_delta_goes_into_its_model_in_half_precision(tmp_path: Path) -> None:
    """As a pipeline of diffusers holds it: the numbers are the same in float32, in which the delta was made."""
    half = tiny().to(torch.bfloat16)
    handle = graft(copy.deepcopy(half).float(), PLAN, init="random")
    save(handle, tmp_path)
    again = load(tmp_path, half)
    for site, operator in handle.operators().items():
        mine = again.operators()[site].state_dict()
        assert all(torch.equal(mine[name], t.bfloat16()) for name, t in operator.state_dict().items())
    other = tiny().to(torch.bfloat16)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    with pytest.raises(StoreError, match="base has hash"):
        load(tmp_path, other)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_delta_of_float32_goes_into_its_model_in_half_precision(tmp_path: Path, half: torch.dtype) -> None:
    """As a pipeline on a GPU holds it, ``torch_dtype`` given: weights of float32 are rounded there, and known still."""
    handle = graft(tiny(), PLAN, init="random")
    save(handle, tmp_path, base="tiny")
    again = load(tmp_path, tiny().to(half))
    assert {p.dtype for p in again.model.parameters()} == {half} and again.source_hash == handle.source_hash
    for site, operator in handle.operators().items():
        mine = again.operators()[site].state_dict()
        assert all(torch.equal(mine[name], t.to(half)) for name, t in operator.state_dict().items())
    save(again, tmp_path / "again")  # it still is a graft of the model in float32
    for base in (tiny(), tiny().to(half)):
        assert load(tmp_path / "again", base).source_hash == handle.source_hash
    other = tiny().to(half)
    with torch.no_grad():
        other.proj_out_1.bias[0] += 1  # type: ignore[operator, union-attr, index]
    with pytest.raises(StoreError, match=r"base has hash \w+, \S+ was made from \w+ \(tiny\)$"):
        load(tmp_path, other)


def test_a_delta_made_from_a_rounding_goes_into_what_was_rounded(tmp_path: Path) -> None:
    for half in (torch.bfloat16, torch.float16):
        save(graft(tiny().to(half), PLAN, init="random", dtype=torch.float32), tmp_path / str(half))
        for base in (tiny(), tiny().to(half), tiny().to(half).float()):
            assert load(tmp_path / str(half), base).plan == PLAN


def test_an_older_delta_asks_for_its_model_in_float32(tmp_path: Path) -> None:
    """Such a folder has no hashes of the roundings, and loads as ever otherwise."""
    handle = graft(tiny(), PLAN, init="random")
    save(handle, tmp_path)
    manifest = json.loads((tmp_path / "graft.json").read_text())
    assert set(manifest["base"].pop("rounded")) == {"bfloat16", "float16"}
    (tmp_path / "graft.json").write_text(json.dumps(manifest))
    base = tiny().to(torch.bfloat16)
    with pytest.raises(StoreError, match=r"is in bfloat16.*: load the base in float32, give it the graft, then cast"):
        load(tmp_path, base)
    assert handle_of(base) is None
    again = load(tmp_path, tiny())
    assert torch.equal(output(again.model), output(handle.model)) and again.rounded == {}
    again.model.to(torch.bfloat16)
    assert {p.dtype for p in again.model.parameters()} == {torch.bfloat16}


def test_a_whole_folder_takes_no_base(tmp_path: Path) -> None:
    """Nothing of it would go there, and a pipeline would go on drawing with its own transformer."""
    save(graft(tiny(), PLAN), tmp_path, whole=True)
    base = tiny()
    with pytest.raises(StoreError, match=r"whole.*load it without base.*pipe\.transformer = grafting\.load\(") as told:
        load(tmp_path, base)
    assert "\n" not in str(told.value) and handle_of(base) is None
    assert load(tmp_path).private


@pytest.mark.parametrize("cut", [KeyboardInterrupt(), torch.OutOfMemoryError("out of memory"), TypeError("odd")])
def test_a_base_is_as_it_was_whatever_ends_a_load(
    cut: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(*_: object) -> None:
        raise cut

    save(graft(tiny(), PLAN), tmp_path)
    base = tiny()
    modules = dict(base.named_modules())
    with monkeypatch.context() as patched, pytest.raises(type(cut)):
        patched.setattr("grafting.store.folder._fill", filled)
        load(tmp_path, base)
    assert handle_of(base) is None and dict(base.named_modules()) == modules
    load(tmp_path, base)


def test_a_delta_of_a_bundled_teacher_finds_it_by_itself(tmp_path: Path) -> None:
    from grafting.teachers import load_teacher

    handle = graft(load_teacher("fashion"), Plan.last(site="attn", operator="swa", share=0.1), init="random")
    save(handle, str(tmp_path), base="fashion")
    again = load(str(tmp_path))
    assert again.source_hash == handle.source_hash
    mine, theirs = handle.model.state_dict(), again.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert 'grafting.open_model("folder")  #' in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "word"), [("{}", "lacks whole, base"), ("[1]", "no JSON object"), ("{", "not JSON")]
)
def test_a_manifest_that_is_none_is_one_sentence(
    content: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from grafting.cli import main

    (tmp_path / "graft.json").write_text(content)
    with pytest.raises(StoreError, match=word):
        load(tmp_path)
    for arguments in (["inspect", str(tmp_path)], ["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (Diffusion(beta_end=0.012), {"class": "Diffusion", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.012}),
        (Flow(steps=500, shift=2.0), {"class": "Flow", "steps": 500, "shift": 2.0}),
        (Flow(), {"class": "Flow", "steps": 1000, "shift": 3.0}),
        (Diffusion(), None),
    ],
)
def test_the_schedule_comes_back(whole: bool, schedule: Schedule, told: object, tmp_path: Path) -> None:
    model = tiny()
    set_schedule(model, schedule)
    save(graft(model, PLAN), tmp_path, whole=whole)
    assert json.loads((tmp_path / "graft.json").read_text())["schedule"] == told
    assert schedule_of(load(tmp_path, None if whole else tiny()).model) == schedule


def test_schedules_of_older_manifests_and_of_unknown_ones(tmp_path: Path) -> None:
    save(graft(ready("SD3")[0], Plan.interleaved(operator="swa")), tmp_path)
    manifest = json.loads((tmp_path / "graft.json").read_text())
    assert manifest.pop("schedule") is None

    def told(**schedule: object) -> Schedule:
        (tmp_path / "graft.json").write_text(json.dumps(manifest | schedule))
        return schedule_of(load(tmp_path, base).model)

    base = ready("SD3")[0]
    for given, word in (
        ({"class": "Karras", "steps": 3}, r"graft\.json: schedule: class 'Karras': known are Diffusion, Flow$"),
        ({"class": "Flow", "shft": 3}, "unexpected keyword argument 'shft'"),
        ({"shift": -1}, "a finite shift above 0"),
        (["Flow"], "must be a mapping"),
    ):
        with pytest.raises(StoreError, match=word) as caught:
            told(schedule=given)
        assert "\n" not in str(caught.value) and handle_of(base) is None
    assert told() == Flow() and ungraft(base) is base
    assert told(schedule=None) == Flow() and ungraft(base) is base
    assert told(schedule={"shift": 1.5}) == Flow(shift=1.5)

    class Other(Flow):
        pass

    set_schedule(base, Other(shift=2.0))
    with pytest.raises(StoreError, match="schedule Other: a folder can name Diffusion or Flow alone"):
        save(handle_of(base), tmp_path / "other")  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_manifest_names_everything(tmp_path: Path) -> None:
    save(graft(tiny(), PLAN, seed=4), tmp_path, protocol={"steps": 20})
    manifest = json.loads((tmp_path / "graft.json").read_text())
    assert Plan.from_dict(manifest["plan"]) == PLAN
    assert (manifest["seed"], manifest["protocol"]) == (4, {"steps": 20})
    assert set(manifest["versions"]) == {"grafting", "torch", "diffusers"}
