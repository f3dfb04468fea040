"""benchmarks/operators.py: operators with their options beside each other, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = ["--tokens", "16", "--width", "16", "--heads", "2", "--rounds", "2"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(HOME))
    import operators

    yield operators
    del sys.modules["operators"]


def test_operators_stand_beside_each_other_by_name_and_options(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = tmp_path / "found.json", ["swa:window=1", "swa:window=2", "hyena_x", "mha"]
    bench.main([*SMALL, "--operators", *names, "--dtype", "bfloat16", "--out", str(out)])
    found = json.loads(out.read_text())
    rows = {row["operator"]: row for row in found["runs"][0]["rows"]}
    assert list(rows) == ["mha", "swa:window=1", "swa:window=2", "hyena_x"]
    assert rows["swa:window=1"]["flop_bound"] > rows["swa:window=2"]["flop_bound"]
    assert found["protocol"]["dtype"] == "bfloat16" and rows["hyena_x"]["target"] is None
    told = capsys.readouterr().out
    assert "16 tokens, width 16, bfloat16, cpu" in told and "swa:window=2" in told


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--operators", "swa:window"], "operator 'swa:window': 'window' is no option=value"),
        (["--operators", "swa:windw=8"], "windw"),
        (["--operators", "hyena_z"], "hyena_z"),
        (["--operators", "hyena_x_2d", "--tokens", "15"], "15 tokens"),
        (["--tokens", "0"], "'0' must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    more: list[str], word: str, bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main([*SMALL, *more])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and word in error and "Traceback" not in error
