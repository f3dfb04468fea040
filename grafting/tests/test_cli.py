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
    assert "1.59x if only cores went" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["plan", "nothing"], "nothing"),
        (["plan", "dit-xl-2-256", "--operator", "hyena_z"], "hyena_z"),
        (["plan", "dit-xl-2-256", "--side", "0"], "--side 0"),
        (["operators", "x*"], "x*"),
        (["recipes", "cp", "none"], "none"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_operators_inspect_and_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators", "hyena*"]) == 0 and "hyena_x" in capsys.readouterr().out
    assert main(["inspect", "dit-xl-2-256"]) == 0 and "28 blocks" in capsys.readouterr().out
    assert main(["recipes", "cp", "fashion-transformer", str(tmp_path)]) == 0
    assert (tmp_path / "fashion-transformer.yaml").is_file()
    assert main(["recipes", "cp", "fashion-transformer", str(tmp_path)]) == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from grafting.cli import _parser; _parser().format_help(); "
        "sys.exit(bool({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
