"""The benchmark of predictors: equal plans, correlations beside scipy's, and that it goes on where it was."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from grafting.searching.candidates import candidates

HOME = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(HOME / "scores.py"))


def test_plans_differ_and_swap_equally_many_sites(script: dict[str, Any]) -> None:
    operators = candidates(("swa", "linear", "mlp:ratio=3"))
    plans = [script["random_plan"](operators, 12, number) for number in range(6)]
    assert plans[2] == script["random_plan"](operators, 12, 2) and len({plan.to_yaml() for plan in plans}) == 6
    for plan in plans:
        sites = [(edit.site, block) for edit in plan.edits for block in edit.blocks]
        assert len(sites) == len(set(sites)) == 12 and sum(kind == "attn" for kind, _ in sites) == 6


def row(loss: float, carried: float, measured: float) -> dict[str, Any]:
    stages = {stage: {"value": measured} for stage in ("start", "finetuned")}
    return {"predicted": {"loss": loss, "carried": carried}, **stages}


def test_correlations_are_spearmans(script: dict[str, Any]) -> None:
    told = [(1.0, 4.0), (2.0, 4.0), (9.0, 1.0), (3.0, 7.0), (2.5, 0.5), (7.0, 7.5), (0.2, 6.0), (5.0, 5.0)]
    measured = [0.1, 0.3, 2.0, 0.2, 0.25, 0.9, 0.05, 0.4]
    rows = [row(*pair, value) for pair, value in zip(told, measured, strict=True)]
    found = script["correlations"](rows, rounds=500)["finetuned"]
    for k, by in enumerate(("loss", "carried")):
        exact = spearmanr([pair[k] for pair in told], measured).statistic
        assert found[by]["value"] == pytest.approx(exact) and found[by]["low"] <= exact <= found[by]["high"]
    assert found["loss minus carried"]["value"] == pytest.approx(found["loss"]["value"] - found["carried"]["value"])
    perfect = script["correlations"]([row(x, -x, x**3) for x in range(8)], rounds=200)["start"]
    assert (perfect["loss"]["low"], perfect["loss"]["high"], perfect["carried"]["value"]) == (1.0, 1.0, -1.0)


def test_the_page_says_what_was_measured(script: dict[str, Any]) -> None:
    kept = json.loads((HOME / "results" / "scores.json").read_text())
    page = (HOME.parent / "docs" / "search.md").read_text()
    assert len(kept["rows"]) == 12
    for name in ("loss", "carried", "loss minus carried"):
        found = [kept["spearman"][stage][name] for stage in ("start", "finetuned")]
        cells = [f"{one['value']:.2f} ({one['low']:.2f} … {one['high']:.2f})".replace("-", "−") for one in found]
        assert f"| {name} | {' | '.join(cells)} |" in page
    for stage in ("start", "finetuned"):
        for name in ("loss", "carried"):
            told = [row["predicted"][name] for row in kept["rows"]]
            exact = spearmanr(told, [row[stage]["value"] for row in kept["rows"]]).statistic
            assert kept["spearman"][stage][name]["value"] == pytest.approx(exact)


def test_it_goes_on_with_the_next_plan(
    script: dict[str, Any], tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    options = ["--operators", "swa:window=3", "mlp:ratio=2", "--steps", "1", "--batch", "4", "--precision", "fp32"]
    options += ["--triples", "8", "--calibration", "16", "--scores", str(tmp_path), "--out", str(out)]
    command = [str(tiny_teacher), *options]
    script["main"]([*command, "--plans", "2"])
    first = json.loads(out.read_text())
    script["main"]([*command, "--plans", "3"])
    second = json.loads(out.read_text())
    assert len(second["rows"]) == 3 and second["rows"][:2] == first["rows"]
    assert capsys.readouterr().out.count("plan 0:") == 1 and set(second["spearman"]) == {"start", "finetuned"}
    with pytest.raises(SystemExit, match="was measured with"):
        script["main"]([*command, "--plans", "3", "--steps", "2"])
