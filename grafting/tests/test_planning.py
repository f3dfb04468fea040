"""Planning from a configuration alone: what it counts, what it says, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grafting.cli import main
from grafting.hosts import HostError, bundled_config, bundled_configs, shape_of
from grafting.plan import Plan


@pytest.mark.parametrize("name", bundled_configs())
def test_parameters_of_a_host_are_those_of_diffusers_own_class(name: str) -> None:
    import diffusers

    config = bundled_config(name)
    for change in ({}, {"use_additional_conditions": True} if "caption_channels" in config else {"out_channels": None}):
        given: dict[str, Any] = config | change
        with torch.device("meta"):
            made = getattr(diffusers, given["_class_name"]).from_config(given)
        assert shape_of(given).parameters == sum(p.numel() for p in made.parameters())


def test_a_configuration_that_lacks_a_size_is_told_so() -> None:
    config = bundled_config("dit-xl-2-256")
    with pytest.raises(HostError, match="DiTTransformer2DModel lacks num_layers"):
        shape_of({key: value for key, value in config.items() if key != "num_layers"})
    with pytest.raises(HostError, match="bad size"):
        shape_of(config | {"patch_size": 0})


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "dit-xl-2-256", "--blocks", "all", "--operator", "mamba2"],
        ["plan", "pixart-sigma-2048", "--operator", "hyena_x"],
        ["plan", "FOLDER", "--operator", "mlp", "--site", "mlp", "--json"],
        ["inspect", "pixart-sigma-2048"],
        ["operators"],
        ["recipes", "ls"],
    ],
)
def test_planning_imports_neither_torch_nor_diffusers(arguments: list[str], tiny_teacher: Path) -> None:
    given = [str(tiny_teacher) if part == "FOLDER" else part for part in arguments]
    code = (
        f"import sys; from grafting.cli import main; assert main({given!r}) == 0; "
        "heavy = {'torch', 'diffusers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def planned(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """The JSON of a plan over half of DiT-XL/2's attention at 1,024 tokens."""
    assert main(["plan", "dit-xl-2-256", "--side", "32", "--operator", "hyena_y", "--json", *more]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_expected_time_and_disk_follow_from_flops_and_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    d, n = 1152, 32 * 32
    found = planned(capsys, "--tflops", "2", "--steps", "10,20", "--batch", "3")
    expected = found["expected"]
    operator = 2 * n * (4 * d * d + 4 * d)  # four projections and four taps on every channel
    saved = 14 * (8 * n * d * d + 4 * n * n * d - operator)
    assert found["flops_before"] - found["flops_after"] == saved
    assert expected["stage_1_seconds"] == pytest.approx(30 * (found["flops_before"] + 3 * 14 * operator) / 2e12)
    assert expected["stage_2_seconds"] == pytest.approx(60 * (found["flops_before"] + 3 * found["flops_after"]) / 2e12)
    new = 14 * (4 * d * d + 4 * d + 5 * d)
    whole = shape_of(bundled_config("dit-xl-2-256")).parameters + new - 14 * (4 * d * d + 4 * d)
    assert expected["delta_bytes"] == 4 * new and expected["whole_bytes"] == 4 * whole
    assert expected["stage_1_state_bytes"] == 16 * new and expected["stage_2_state_bytes"] == 16 * whole
    assert expected["time_bound"] is None and "not measured" in expected["rate_source"]
    again = planned(capsys, "--throughput", "4", "--steps", "10,20", "--batch", "3")["expected"]
    assert again["stage_1_seconds"] * 4 * found["flops_before"] == pytest.approx(expected["stage_1_seconds"] * 2e12)


def test_text_tokens_are_a_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = {}
    for more in ([], ["--text-tokens", "10"]):
        assert main(["plan", "pixart-sigma-2048", "--json", *more]) == 0
        plain = json.loads(capsys.readouterr().out)
        found[plain["text_tokens"]] = plain["flops_before"]
        assert main(["inspect", "pixart-sigma-2048", *more]) == 0
        assert f"{plain['text_tokens']} text tokens" in capsys.readouterr().out
    n, d = 16_384, 1152
    assert found[300] - found[10] == 28 * 290 * (4 * d * d + 4 * n * d)
    assert main(["plan", "dit-xl-2-256", "--text-tokens", "10"]) == 2
    assert "10 text tokens: a DiT reads no text" in capsys.readouterr().err
    # The folder of a pipeline says what its prompts are padded to.
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(bundled_config("pixart-sigma-2048")))
    for name, tokens in (("PixArtAlphaPipeline", 120), ("PixArtSigmaPipeline", 300)):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        assert main(["plan", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["text_tokens"] == tokens


def test_a_plan_is_written_down_and_is_the_same_plan_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--operator", "mlp:ratio=3", "--site", "mlp", "--blocks", "last 25%"]
    path = tmp_path / "made" / "plan.yaml"
    assert main(["plan", "dit-xl-2-256", *options, "--out", str(path)]) == 0
    table = capsys.readouterr().out
    edit = {"site": "mlp", "blocks": "last 25%", "operator": "mlp", "options": {"ratio": 3}}
    assert Plan.from_yaml(path) == Plan.from_dict({"edits": [edit]})
    assert main(["plan", "dit-xl-2-256", "--plan", str(path)]) == 0 and capsys.readouterr().out == table
    refused = tmp_path / "refused.yaml"
    assert main(["plan", "dit-xl-2-256", "--blocks", "1,28", "--out", str(refused)]) == 2 and not refused.exists()


PROFILE = {"model": "xl", "tokens": 1024, "batch": 4, "threads": 2, "milliseconds": 2000.0}


def test_a_second_attention_is_told_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    n, d = 4096, 1536
    each = (8 * n * d * d + 4 * n * n * d) / 1e9
    assert main(["inspect", "sd3.5-medium-1024"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"  and a second attention, of the picture alone, in 13 of them: {each:.1f} GFLOPs each"
    assert main(["inspect", "sd3-medium-1024"]) == 0 and "second" not in capsys.readouterr().out


def test_a_measurement_gives_the_rate_and_the_time_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    flops = planned(capsys)["flops_before"]
    path.write_text(json.dumps(PROFILE | {"GFLOPs per sample": flops / 1e9, "time bound of every core": 1.25}))
    expected = planned(capsys, "--measured", str(path))["expected"]
    # Four samples in two seconds; every core a fifth of the time, so half of them a tenth.
    assert expected["flops_per_second"] == pytest.approx(2 * flops)
    assert expected["time_bound"] == pytest.approx(1 / 0.9) and "profile.json" in expected["time_bound_source"]
    stack = {"tokens": 1024, "width": 1152, "blocks": 4, "swapped": 2, "threads": 1, "device": "CPU"}
    stack |= {"seconds": {"plain": {"minimum": 10.0}, "bound": {"minimum": 9.0}}}
    path.write_text(json.dumps(stack))
    assert planned(capsys, "--measured", str(path))["expected"]["time_bound"] == pytest.approx(1 / 0.9)
    assert main(["plan", "dit-xl-2-256", "--side", "32", "--measured", str(path)]) == 0
    assert "time bound       1.11x if the swapped cores took no time (measured in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "is no JSON object"),
        (json.dumps({"tokens": 256}), "of 256 tokens, the plan is of 1024"),
        (json.dumps(PROFILE), "profiles a graft"),
        (json.dumps(PROFILE | {"GFLOPs per sample": 1.0, "time bound of every core": 1.2}), "of 1 GFLOPs"),
        (json.dumps({"tokens": 1024, "seconds": {}, "width": 384}), "blocks of width 384"),
        (json.dumps({"tokens": 1024, "seconds": {}, "width": 1152}), "lacks a figure"),
    ],
)
def test_another_measurement_is_refused_in_a_sentence(
    content: str | None, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "measured.json"
    if content is not None:
        path.write_text(content)
    assert main(["plan", "dit-xl-2-256", "--side", "32", "--measured", str(path)]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--throughput", "0"], "throughput 0"),
        (["--tflops", "nan"], "FLOP/s: must be above 0"),
        (["--tflops", "1", "--throughput", "1"], "give one of them"),
        (["--steps", "5"], "two numbers"),
        (["--batch", "0"], "--batch: '0' must be a whole number of at least 1"),
    ],
)
def test_bad_figures_are_refused_in_a_sentence(more: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dit-xl-2-256", *more]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
