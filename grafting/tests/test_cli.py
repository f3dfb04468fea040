"""The command line: what it prints, what it refuses, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grafting.cli import main


def test_plan_prints_bounds_from_a_bare_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pixart-sigma-2048", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["tokens"] == 16384 and data["core_bound"] == pytest.approx(1.49, abs=0.006)
    assert main(["plan", "dit-xl-2-256", "--side", "64", "--blocks", "all"]) == 0
    assert "FLOP bound       1.59x" in capsys.readouterr().out
    assert main(["plan", "dit-xl-2-256", "--operator", "mlp:ratio=3", "--site", "mlp", "--blocks", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_parameters"] == 2 * 3 * 1152**2 + 4 * 1152  # weights and biases


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["plan", "nothing"], "nothing"),
        (["plan", "dit-xl-2-256", "--operator", "hyena_z"], "hyena_z"),
        (["plan", "dit-xl-2-256", "--operator", "mlp:ratio"], "operator 'mlp:ratio': 'ratio' is no option=value"),
        (["plan", "dit-xl-2-256", "--operator", "swa:window=["], "operator 'swa:window=[': window: not YAML"),
        (["plan", "dit-xl-2-256", "--operator", "mha:heads=8"], "heads is the model's, no option of an operator"),
        (["plan", "dit-xl-2-256", "--side", "0"], "argument --side: '0' must be a whole number of at least 1"),
        (["plan", "pixart-sigma-2048", "--side", "4x0"], "'4x0' must be a whole number of at least 1, or two such as"),
        (["plan", "dit-xl-2-256", "--side", "4x8"], "4 x 8 tokens: a DiT puts its tokens together as"),
        (["plan", "dit-xl-2-256", "--plan", "nope.yaml"], "--plan nope.yaml: no such file"),
        (["operators", "x*"], "x*"),
        (["operators", "--width", "0"], "width"),
        (["plan", "dit-xl-2-256", "--plan", "x.yaml", "--site", "mlp", "--blocks", "1"], "leave out --site, --blocks"),
        (["plan", "dit-xl-2-256", "--blocks", "1,28"], "block 28"),
        (["plan", "dit-xl-2-256", "--blocks", "1,"], "a list of indices"),
        (["plan", "dit-xl-2-256", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["run", "fashion-transformer", "--out", "x"], "give it to grafting pretrain"),
        (["pretrain", "fashion-linear", "--out", "x"], "give it to grafting run"),
        (["pretrain", "scenes-transformer-8", "--out", "x", "--set", "strat=y"], "'strat': did you mean 'start'"),
        (["recipes", "cp", "none"], "none"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("kind: classifier\nmodel: {}\nbatch: 2\nloop: 3\n", "loop: 3 is no mapping"),
        ('kind: classifier\nmodel: {}\nbatch: 2\nloop: {steps: "x", lr: 1}\n', "steps is 'x', must be a whole number"),
        ("kind: classifier\nmodel: 7\nbatch: 2\nloop: {steps: 1, lr: 1}\n", "model is 7, must be a mapping"),
        ("kind: [\n", "not YAML"),
    ],
)
def test_a_bad_pretraining_recipe_is_one_sentence(
    text: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["pretrain", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert word in error and str(path) in error and error.count("\n") == 1


def test_blocks_are_named_by_their_indices_too(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*blocks: str) -> str:
        assert main(["plan", "dit-xl-2-256", *blocks]) == 0
        return capsys.readouterr().out

    interleaved = printed()
    assert printed("--blocks", ",".join(map(str, range(1, 28, 2)))) == interleaved
    assert printed("--blocks", "3") != interleaved


NUMBERS = [
    ["profile", "fashion", "--batch", "0"],
    ["profile", "fashion", "--side", "0"],
    ["profile", "fashion", "--side", "-3"],
    ["profile", "fashion", "--rounds", "1"],
    ["evaluate", "fashion", "--triples", "1"],
    ["evaluate", "fashion", "--samples", "-1"],
    ["evaluate", "fashion", "--steps", "1"],
    ["sample", "fashion", "--out", "x.png", "--zoom", "0"],
    ["sample", "fashion", "--out", "x.png", "--guided-channels", "0"],
    ["distill", "fashion", "--out", "x", "--batch", "two"],
    ["finetune", "x", "--out", "y", "--steps", "0"],
    ["analyze", "fashion", "--batch", "0"],
]


def test_numbers_are_refused_before_anything_heavy_is_imported() -> None:
    code = f"import sys; from grafting.cli import main; print({{main(a) for a in {NUMBERS}}}, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{2} False\n"
    for arguments, error in zip(NUMBERS, done.stderr.splitlines(), strict=True):
        verb, option, given = arguments[0], *arguments[-2:]
        assert error.startswith(f"grafting {verb}: argument {option}: {given!r} must be a whole number of at least ")


def test_a_file_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    for arguments in (["plan", "dit-xl-2-256", "--plan", str(path)], ["run", str(path)]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"{path}" in error and "no text in UTF-8" in error and error.count("\n") == 1


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [\n")
    for before, after in ((["plan", "dit-xl-2-256", "--plan"], []), (["run"], []), (["study"], ["--dry-run"])):
        assert main([*before, str(path), *after]) == 2
        error = capsys.readouterr().err
        assert f"{path}: not YAML: " in error and error.endswith("at line 3, column 1\n") and "unicode" not in error


def test_broken_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]"):
        (tmp_path / "results.json").write_text(text)
        assert main(["report", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / "results.json") in error and error.count("\n") == 1


def test_operators_inspect_and_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators", "hyena*"]) == 0 and "hyena_x" in capsys.readouterr().out
    assert main(["inspect", "dit-xl-2-256"]) == 0 and "28 blocks" in capsys.readouterr().out
    assert main(["recipes", "ls"]) == 0
    told = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert told["table"] == told["ablation-start"] == "study" and told["fashion-classifier"] == "pretrain"
    assert told["demo"] == told["ablation-half"] == "run"
    assert main(["run", "table", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "grafting run: table is a table of many rows: give it to grafting study\n"
    assert main(["study", "demo", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "grafting study: demo: no table (kind: table): give it to grafting run\n"
    assert main(["recipes", "cp", "fashion-transformer", str(tmp_path)]) == 0
    assert (tmp_path / "fashion-transformer.yaml").is_file()
    assert main(["recipes", "cp", "fashion-transformer", str(tmp_path)]) == 2


def test_the_tokens_of_a_plan_may_be_of_a_rectangle(capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*more: str) -> dict[str, object]:
        assert main(["plan", "pixart-sigma-2048", "--operator", "hyena_x", "--json", *more]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    assert planned("--side", "64x256") == planned() == planned("--side", "128x128") == planned("--side", "128")
    assert planned("--side", "4x8")["tokens"] == 32


RESUMED = [
    ["pretrain", "fashion-classifier", "--out", "x"],
    ["distill", "fashion", "--out", "x"],
    ["finetune", "x", "--out", "y"],
    ["encode", "x", "--model", "fashion", "--out", "y"],
    ["pairs", "fashion", "--out", "x"],
    ["search", "fashion"],
    ["study", "table"],
]


@pytest.mark.parametrize("arguments", RESUMED, ids=lambda arguments: arguments[0])
def test_verbs_that_go_on_by_themselves_take_the_word_and_change_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from grafting.cli import _parser

    plain, told = (_parser().parse_args([*arguments, *more]) for more in ([], ["--resume"]))
    assert {**vars(plain), "resume": True} == vars(told) and told.goes_on_with == ""
    with pytest.raises(SystemExit):
        _parser().parse_args([arguments[0], "--help"])
    assert "it goes on by itself" in " ".join(capsys.readouterr().out.split())


def test_only_a_run_that_is_told_to_resumes() -> None:
    from grafting.cli import _parser

    assert _parser().parse_args(["run", "demo"]).resume is False
    assert _parser().parse_args(["run", "demo", "--resume"]).resume is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "demo"], "stopped; go on with: grafting run demo --resume"),
        (["run", "demo", "--resume", "--out", "a b"], "stopped; go on with: grafting run demo --resume --out 'a b'"),
        (["pretrain", "fashion-classifier", "--out", "x"], "go on with: grafting pretrain fashion-classifier --out x"),
        (["sample", "fashion", "--out", "x.png"], "stopped"),
    ],
)
def test_ctrl_c_prints_the_command_that_goes_on(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    parse = argparse.ArgumentParser.parse_args

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    def parsed(self: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
        found = parse(self, given)
        found.run = stopped
        return found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    assert main(arguments) == 130
    assert capsys.readouterr().err.strip().endswith(said)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m grafting operators | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("width")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from grafting.cli import _parser; _parser().format_help(); "
        "sys.exit(bool({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
