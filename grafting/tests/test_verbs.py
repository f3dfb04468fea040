"""The commands over models, on a tiny random one: what they write, what they print, what they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from grafting.claims import held
from grafting.cli import main
from grafting.operators.arithmetic import TABLE
from grafting.store.models import ModelError, open_model

GRAFTING = [sys.executable, "-m", "grafting"]


@pytest.fixture(scope="module")
def taught(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta from the command line."""
    out = tmp_path_factory.mktemp("verbs") / "graft"
    arguments = ["distill", str(tiny_teacher), "--operator", "swa", "--out", str(out), "--steps", "4", "--batch", "8"]
    assert main([*arguments, "--calibration", "16", "--set", "attn.lr=1e-3", "--set", "evaluate_every=2"]) == 0
    return out


def test_distill_writes_a_delta_that_names_its_teacher(taught: Path, tiny_teacher: Path) -> None:
    manifest = json.loads((taught / "graft.json").read_text())
    assert not manifest["whole"] and manifest["base"]["name"] == str(tiny_teacher)
    assert manifest["protocol"]["stage 1"]["attn"]["lr"] == 1e-3 and not (taught / "state").exists()
    model = open_model(str(taught))
    assert model.graft is not None and model.classifier is not None and model.images is not None
    assert main(["distill", str(tiny_teacher), "--out", str(taught)]) == 2


def test_finetune_goes_on_from_it_and_again_with_its_teacher(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["finetune", str(taught), "--out", str(first), "--steps", "2", "--batch", "4"]) == 0
    manifest = json.loads((first / "graft.json").read_text())
    assert manifest["whole"] and set(manifest["protocol"]) == {"stage 1", "stage 2"}
    again = ["finetune", str(first), "--out", str(second), "--steps", "2", "--batch", "4"]
    assert main([*again, "--base", "fashion"]) == 2 and not second.exists()
    assert "fashion is not the teacher of" in capsys.readouterr().err
    assert main(again) == 0  # the graft names its own
    before, after = open_model(str(first)).transformer, open_model(str(second)).transformer
    pairs = zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_finetune_of_grafted_weights_alone_stays_a_delta(taught: Path, tmp_path: Path) -> None:
    arguments = ["finetune", str(taught), "--out", str(tmp_path / "x"), "--steps", "2", "--set", "train=grafted"]
    assert main(arguments) == 0
    assert not json.loads((tmp_path / "x" / "graft.json").read_text())["whole"]


def test_distill_says_once_where_nothing_could_be_copied(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["distill", str(tiny_teacher), "--operator", "mamba2", "--steps", "0"]
    for name, init, told in (("a", "copy", 1), ("b", "random", 0)):
        assert main([*given, "--init", init, "--out", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.splitlines().count("mamba2: nothing to copy, random start") == told
    assert not any(json.loads((tmp_path / "a" / "graft.json").read_text())["copied"].values())


def test_a_state_of_other_settings_is_refused(
    taught: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grafting.store.folder.save", stopped)  # both stages end, and their states stay
    one = ["distill", str(tiny_teacher), "--operator", "swa", "--steps", "2", "--out", str(tmp_path / "one")]
    two = ["finetune", str(taught), "--steps", "2", "--batch", "4", "--out", str(tmp_path / "two")]
    assert main(one) == 130 and main(two) == 130
    for again, word in (
        ([*one, "--init", "random"], "init default there, random now"),
        ([*one, "--batch", "8"], "batch 64 there, 8 now"),
        ([*two, "--set", "target=noise"], "target teacher there, noise now"),
        ([*two, "--seed", "1"], "seed 0 there, 1 now"),
    ):
        capsys.readouterr()
        assert main(again) == 2 and word in capsys.readouterr().err
    assert main(one) == 130 and main([*two, "--set", "save_every=1", "--set", "log_every=1"]) == 130


def test_a_folder_is_worked_on_by_one_process_at_a_time(
    taught: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, model in (("distill", tiny_teacher), ("finetune", taught)):
        out = tmp_path / verb
        command = [verb, str(model), "--steps", "2", "--batch", "4", "--out", str(out)]
        command += ["--operator", "swa", "--calibration", "8"] if verb == "distill" else []
        with held(out):
            assert main(command) == 2
            assert f"{out}: another process is at work there" in capsys.readouterr().err
        assert not out.exists() and main(command) == 0
        assert {path.name for path in out.iterdir()} == {"README.md", "graft.json", "graft.safetensors"}
    with held(tmp_path / "pretrained"):
        assert main(["pretrain", "fashion-transformer", "--out", str(tmp_path / "pretrained")]) == 2
        assert "another process is at work there" in capsys.readouterr().err


def test_sample_is_the_same_picture_for_the_same_seed(taught: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    def draw(model: Path, name: str, *more: str) -> bytes:
        path = tmp_path / name
        assert main(["sample", str(model), "--out", str(path), "--steps", "2", "--count", "6", *more]) == 0
        return path.read_bytes()

    one = draw(tiny_teacher, "a.png")
    assert one.startswith(b"\x89PNG") and one == draw(tiny_teacher, "b.png")
    assert one != draw(tiny_teacher, "c.png", "--seed", "1") and draw(taught, "d.png").startswith(b"\x89PNG")
    assert one == draw(tiny_teacher, "e.png", "--labels", "0,1,2,0,1,2")


def test_sampling_options_reach_the_sampler(
    taught: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grafting.sampling import Pipeline, Sampling

    seen: list[Sampling] = []
    latents = Pipeline.latents

    def spied(self: Pipeline, labels: Any, *, sampling: Sampling, **more: Any) -> torch.Tensor:
        seen.append(sampling)
        return latents(self, labels, sampling=sampling, **more)

    monkeypatch.setattr(Pipeline, "latents", spied)
    options = ["--steps", "2", "--scheduler", "ddpm", "--spacing", "leading", "--guidance", "1.5"]
    options += ["--guided-channels", "1", "--clip", "--precision", "bf16"]
    assert main(["sample", str(tiny_teacher), "--out", str(tmp_path / "x.png"), "--count", "3", *options]) == 0
    assert main(["evaluate", str(taught), "--triples", "8", "--samples", "8", *options]) == 0
    wanted = Sampling(
        scheduler="ddpm", steps=2, spacing="leading", guidance=1.5, guided_channels=1, clip=True, precision="bf16"
    )
    assert seen == [wanted] * 3  # a graft is drawn, and its teacher


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of latents without an autoencoder, and in ``other`` autoencoders of the right and a wrong width."""
    from diffusers import AutoencoderKL
    from test_graft import tiny

    folder = tmp_path_factory.mktemp("latents")
    tiny().save_pretrained(folder / "model" / "transformer")  # type: ignore[operator]
    for channels in (4, 3):
        AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=channels).save_pretrained(
            folder / "other" / str(channels) / "vae"
        )
    return folder


def test_an_autoencoder_can_be_given_beside_a_transformer(
    latent_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(latent_model / "model"), "--count", "1", "--steps", "2", "--out", str(tmp_path / "x.png")]
    assert main([*command, "--vae", str(latent_model / "other" / "4")]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    for given, word in (("3", "of 3 channels"), ("nothing", "no config.json")):
        capsys.readouterr()
        assert main([*command, "--vae", str(latent_model / "other" / given)]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


def test_latents_without_an_autoencoder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_graft import tiny

    tiny().save_pretrained(tmp_path / "transformer")  # type: ignore[operator]
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png"), "--count", "1", "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert "latents of 4 channels" in error and "subfolder vae" in error and error.count("\n") == 1


def test_debugging_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["report", "nowhere"]) == 2
    monkeypatch.setenv("GRAFTING_DEBUG", "1")
    with pytest.raises((ValueError, OSError), match="no such file"):
        main(["report", "nowhere"])


def test_an_operator_of_ones_own_goes_from_the_command_line_to_a_folder_and_back(
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from grafting import operators\n"
        "class Shift(operators.Operator):\n"
        "    option_table = {'by': operators.Option.integer(1)}\n"
        "    def make_layers(self):\n"
        "        self.out_proj = torch.nn.Linear(self.width, self.width)\n"
        "    def features(self, x, *, grid=None):\n"
        "        by = self.options['by']\n"
        "        return torch.nn.functional.pad(x[:, :-by], (0, 0, by, 0))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out, named = tmp_path / "out", "python:mine:Shift"
    request.addfinalizer(lambda: TABLE.pop(named, None))
    distilled = ["distill", str(tiny_teacher), "--out", str(out), "--steps", "2", "--batch", "4"]
    assert main([*distilled, "--operator", f"{named}:by=2"]) == 0
    edit = json.loads((out / "graft.json").read_text())["plan"]["edits"][0]
    assert (edit["operator"], edit["options"]) == (named, {"by": 2})
    handle = open_model(str(out)).graft
    assert handle is not None and {type(op).__name__ for op in handle.operators().values()} == {"Shift"}
    capsys.readouterr()
    for wrong, word in (("python:mine:Shfit", "mine has no Shfit ("), ("python:json:loads", "does not derive from")):
        assert main([*distilled[:3], str(tmp_path / "x"), "--operator", wrong]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"beta_schedule": "scaled_linear"}, "beta_schedule scaled_linear"),
        ({"prediction_type": "v_prediction", "beta_end": 0.012}, "beta_end 0.012, prediction_type v_prediction"),
        ({"beta_schedule": "linear", "beta_start": 0.0001, "trained_betas": [], "clip_sample": False}, None),
    ],
)
def test_a_model_of_other_noise_is_refused(found: dict[str, Any], word: str | None, tmp_path: Path) -> None:
    from test_graft import tiny

    tiny().save_pretrained(tmp_path / "transformer")  # type: ignore[operator]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(found))
    if word is None:
        assert open_model(str(tmp_path)).graft is None
        return
    with pytest.raises(ModelError, match=word):
        open_model(str(tmp_path))


def test_evaluate_pairs_a_delta_with_its_own_teacher(
    taught: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--triples", "30", "--json"]
    assert main(["evaluate", str(taught), "--samples", "12", "--steps", "2", *common]) == 0
    inner = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(taught), "--against", str(tiny_teacher), *common]) == 0
    outer = json.loads(capsys.readouterr().out)["held-out loss"]
    loss = inner["held-out loss"]
    assert loss["minus teacher"] == outer[f"minus {tiny_teacher}"]
    assert loss["minus teacher"]["value"] == pytest.approx(loss["loss"]["value"] - loss["of teacher"]["value"])
    assert "not Inception FID" in inner["quality"]["protocol"]["text"]
    again = ["evaluate", str(taught), "--samples", "12", "--steps", "2", "--bootstraps", "3", *common]
    assert main([*again, "--against", str(tiny_teacher)]) == 0
    figures = json.loads(capsys.readouterr().out)["quality"]["figures"]
    mine = inner["quality"]["figures"]
    assert figures["fid"]["value"] == mine["fid"]["value"] and figures["fid"]["low"] != mine["fid"]["low"]
    # From the same noise and labels, so the difference of the two is what is told.
    apart = figures[f"fid minus {tiny_teacher}"]
    assert apart["value"] == mine["fid minus teacher"]["value"] and apart["low"] < apart["value"] < apart["high"]
    assert main(["evaluate", str(tiny_teacher), "--samples", "12", "--steps", "2", *common]) == 0
    theirs = json.loads(capsys.readouterr().out)["quality"]["figures"]
    assert apart["value"] == pytest.approx(mine["fid"]["value"] - theirs["fid"]["value"], abs=1e-6)
    assert main(["evaluate", str(tiny_teacher), "--triples", "30"]) == 0
    assert "loss" in capsys.readouterr().out


def test_labels_of_samples_are_in_turn_or_drawn_as_a_recipe_has_it(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grafting.sampling import Pipeline, draw_labels

    seen: list[torch.Tensor] = []
    latents = Pipeline.latents

    def spied(self: Pipeline, labels: Any, **more: Any) -> torch.Tensor:
        seen.append(labels)
        return latents(self, labels, **more)

    monkeypatch.setattr(Pipeline, "latents", spied)
    given = ["evaluate", str(tiny_teacher), "--triples", "8", "--samples", "12", "--steps", "2", "--seed", "3"]
    for more, how in (([], "balanced"), (["--labels", "balanced"], "balanced"), (["--labels", "uniform"], "uniform")):
        assert main([*given, *more]) == 0 and f", {how} labels, " in capsys.readouterr().out
        assert torch.equal(seen.pop(), draw_labels(12, 3, how, 3))  # type: ignore[arg-type]
        assert main([*given, *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["quality"]["protocol"]["labels"] == how
        seen.clear()
    for more, word in ((["--labels", "even"], "balanced"), (["--samples", "0", "--labels", "uniform"], "--samples N")):
        assert main([*given, *more]) == 2 and word in capsys.readouterr().err


def test_profile_counts_a_plain_model_and_pairs_a_delta(
    taught: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--rounds", "2", "--batch", "1", "--json"]
    assert main(["profile", str(tiny_teacher), *common]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["parameters"] == sum(p.numel() for p in open_model(str(tiny_teacher)).transformer.parameters())
    assert plain["tokens"] == 16 and plain["GFLOPs per sample"] > 0
    assert main(["profile", str(taught), "--side", "6", *common]) == 0
    delta = json.loads(capsys.readouterr().out)
    assert delta["tokens"] == 36 and delta["speedup"] > 0 and delta["flop_bound"] > 1
    # Windowed attention has the projections of the attention that it replaces, whose own it must not be added to.
    assert delta["parameters"] == plain["parameters"]


def test_run_report_and_the_command_that_resumes(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "small.yaml", tmp_path / "out"
    recipe.write_text(
        f"""
teacher: {tiny_teacher}
plan: {{edits: [{{site: attn, blocks: interleaved 50%, operator: hyena_x}}]}}
finetune: {{steps: 100000, batch: 8, save_every: 1000000}}
evaluate: {{triples: 20, steps: 2, grid: 2}}
speed: null
controls: [untrained]
"""
    )
    command = [*GRAFTING, "run", str(recipe), "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background of a shell has Ctrl-C ignored, which its children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "hybrid: stage 2, 100000 steps\n"
    while process.poll() is None and not (out / "hybrid" / "settings.json").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: grafting run {recipe} --out {out} --resume" in error
    capsys.readouterr()
    assert main(["run", str(recipe), "--out", str(out)]) == 2
    assert f"{out} holds a run that is not finished: go on with it by --resume, or name" in capsys.readouterr().err
    short = ["run", str(recipe), "--out", str(tmp_path / "short"), "--budget", "0.00002"]
    assert main(short) == 0 and main([*short, "--resume"]) == 0
    capsys.readouterr()
    assert main(short) == 2 and "holds a finished run: go on with it by --resume" in capsys.readouterr().err
    page = tmp_path / "short" / "report.html"
    text = page.read_text()
    page.unlink()
    assert main(["report", str(tmp_path / "short")]) == 0 and page.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["sample", "nothing", "--out", "x.png"], "'nothing' is no bundled teacher"),
        (["sample", "TEACHER", "--out", "x.png", "--labels", "7"], "label 7"),
        (["sample", "TEACHER", "--out", "x.png", "--size", "2x4"], "2 x 4 tokens: a DiT puts"),
        (["sample", "TEACHER", "--out", "x.png", "--size", "2by4"], "'2by4' must be pixels such as 512, or 512x768"),
        (["sample", "TEACHER", "--out", "x.png", "--spacing", "trailing"], "linspace, leading"),
        (["sample", "TEACHER", "--out", "x.png", "--guided-channels", "3"], "give --guidance too"),
        (["sample", "TEACHER", "--out", "x.png", "--guided-channels", "3", "--guidance", "2"], "the samples have 1"),
        (["sample", "TEACHER", "--out", "x.png", "--clip", "--scheduler", "dpm++"], "clip has no meaning"),
        (["sample", "TEACHER", "--out", "x.png", "--precision", "int8"], "fp32, bf16"),
        (["sample", "TEACHER", "--out", "TEACHER"], "is a folder"),
        (["finetune", "TEACHER", "--out", "x"], "is no graft"),
        (["distill", "TEACHER", "--out", "x", "--operator", "hyena_z"], "hyena_z"),
        (["distill", "TEACHER", "--out", "x", "--set", "atn.lr=1"], "did you mean 'attn'"),
        (["evaluate", "TEACHER", "--samples", "99"], "--samples 99"),
        (["evaluate", "TEACHER", "--data", "no.npz"], "no.npz"),
        (["evaluate", "TEACHER", "--floor", "no.npz"], "--floor is about samples, and none are asked for: give"),
        (["evaluate", "TEACHER", "--steps", "5"], "are about samples, and none are asked for: give --samples N"),
        (["evaluate", "TEACHER", "--precision", "bf16"], "are about samples, and none are asked for: give --samples N"),
        (["distill", "TEACHER", "--out", "x", "--steps", "0", "--set", "warmup=0"], "--steps 0 trains nothing"),
        (["distill", "TEACHER", "--out", "x", "--operator", "python:nowhere:Shift"], "No module named 'nowhere'"),
        (["analyze", "TEACHER", "--data", "no.npz"], "--data no.npz: is for models of text"),
        (["run", "no.yaml"], "no.yaml"),
        (["run", "no"], "no recipe 'no'"),
        (["report", "no"], "no such file"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    arguments: list[str], word: str, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_teacher) if part == "TEACHER" else part for part in arguments]) == 2
    captured = capsys.readouterr()
    assert word in captured.err.replace("\n", " ") and captured.err.startswith("grafting ")
    assert captured.err.count("\n") == 1 and not captured.out


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # between diffusers and the hub's client
def test_a_hub_that_cannot_be_reached_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["sample", "nobody/nothing-of-that-name", "--out", "x.png"]) == 2
    assert capsys.readouterr().err.startswith("grafting sample: 'nobody/nothing-of-that-name' is no folder here")
