"""The benchmark of predictors: its rows, their predictions, and correlations beside scipy's."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from grafting.teachers import teacher_folder

HOME = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(HOME / "scores.py"))


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
    for group, told in kept["spearman"].items():
        mine = [row for row in kept["rows"] if group in row["groups"]]
        assert len(mine) == told["rows"]
        cells = []
        for name in ("loss", "carried", "loss minus carried"):
            one = told["finetuned"][name]
            cells.append(f"{one['value']:.2f} ({one['low']:.2f} … {one['high']:.2f})".replace("-", "−"))
        assert f"| {group} | {len(mine)} | {' | '.join(cells)} |" in page
        for name in ("loss", "carried"):
            said = [row["predicted"][name] for row in mine]
            exact = spearmanr(said, [row["finetuned"]["value"] for row in mine]).statistic
            assert told["finetuned"][name]["value"] == pytest.approx(exact)


def test_rows_are_those_of_the_table_that_ships(script: dict[str, Any], tmp_path: Path) -> None:
    """And their predictions sums of the scores that lie beside the teacher."""
    out = tmp_path / "scores.json"
    script["main"](["--out", str(out)])
    assert json.loads(out.read_text()) == json.loads((HOME / "results" / "scores.json").read_text())
    rows = {row["row"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"hyena_x-50", "searched-loss", "none-mlp-100"} <= rows.keys()
    assert not {"teacher", "procedure", "depth-halved", "mamba2-50", "hyena_x_2d-random-50"} & rows.keys()
    home = teacher_folder("fashion")
    table = {row["name"]: row for row in json.loads((home / "runs" / "table" / "table.json").read_text())["rows"]}
    scores = json.loads((home / "scores" / "attn-hyena_x.json").read_text())["outcome"]["scores"]
    for name, blocks in (("hyena_x-50", {1, 3, 5, 7, 9, 11}), ("searched-loss", {0, 1, 2, 5, 10, 11})):
        assert rows[name]["finetuned"] == table[name]["differences"]["loss"]
        carried = sum(score["carried"] for score in scores if score["block"] in blocks)
        assert rows[name]["predicted"]["carried"] == pytest.approx(carried)
        assert (
            "half of the attention" in rows[name]["groups"]
            and "half of the attention" not in rows["mlp_r3-50"]["groups"]
        )
