"""The page of a search: its drawings against hand-made plans, and that it needs nothing but its file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from grafting.files import write_json_atomic
from grafting.report.frontier import front_line, operator_map
from grafting.report.search import layout, read_search, score_maps, write_search_page

BOTH = ("attn", "mlp")


def plan(**blocks: list[int]) -> dict[str, Any]:
    """Edits by operator: ``swa`` in attention sites, ``mlp`` with three quarters of the units in the others."""
    sites = {"swa": ("attn", {"window": 3}), "mlp": ("mlp", {"ratio": 3})}
    return {
        "edits": [
            {"site": sites[op][0], "operator": op, "options": sites[op][1], "blocks": b} for op, b in blocks.items()
        ]
    }


@pytest.fixture
def content() -> dict[str, Any]:
    """As ``search.json`` has it, of two blocks."""
    found = [
        {"plan": plan(swa=[0, 1], mlp=[1]), "share": 0.8, "predicted": 0.05},
        {"plan": plan(mlp=[1]), "share": 0.9, "predicted": 0.01},
    ]
    return {
        "schema": 1,
        "model": "<tiny>",
        "depth": 2,
        "cost": "flops",
        "protocol": "FLOPs of one sample, 4 x 4 tokens",
        "by": "loss",
        "whole": 1e6,
        "scoring": {"triples": 12, "calibration": 16, "seed": 3},
        "version": "0",
        "budget": "flops=0.9",
        "swaps": [
            {"kind": "attn", "operator": "swa:window=3", "cost": -0.05},
            {"kind": "mlp", "operator": "mlp:ratio=3", "cost": -0.1},
        ],
        "scores": [
            {"block": b, "kind": kind, "candidate": name, "loss": 0.001 * (b + 1), "carried": 0.1}
            for b in range(2)
            for kind, name in (("attn", "swa:window=3"), ("mlp", "mlp:ratio=3"))
        ],
        "front": found,
        "best": found[1],
    }


def test_the_page_is_one_file_with_its_figures(content: dict[str, Any], tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "search.json", content)
    write_search_page(tmp_path / "search.html", read_search(tmp_path / "search.json"))
    text = (tmp_path / "search.html").read_text()
    assert text.count("<svg") == 3 + 4 and not re.findall(r"(?:src|href)=", text), "nothing is loaded from elsewhere"
    assert "<tiny>" not in text and "&lt;tiny&gt;" in text
    told = "<dt>scores</dt><dd>12 triples, 16 samples of calibration, seed 3</dd>"
    assert told in text
    write_search_page(tmp_path / "older.html", {key: value for key, value in content.items() if key != "scoring"})
    assert (tmp_path / "older.html").read_text() == re.sub(rf"\s*{told}", "", text), "older files do not say it"
    assert text.count("block 1, mlp: mlp:ratio=3</title>") == 3, "of the front's two plans and of the best"
    assert (
        "plans/front-01.yaml" in text and "+0.05000" in text and "attn: swa:window=3 × 2; mlp: mlp:ratio=3 × 1" in text
    )


def test_a_file_that_is_no_search_is_told(content: dict[str, Any], tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "search.json", content | {"schema": 7})
    with pytest.raises(ValueError, match="schema 7, this version reads 1"):
        read_search(tmp_path / "search.json")
    write_json_atomic(tmp_path / "search.json", {"schema": 1})
    with pytest.raises(ValueError, match="lacks model, depth, scores, front, best"):
        read_search(tmp_path / "search.json")


def test_a_plan_is_laid_out_by_block() -> None:
    assert layout(plan(swa=[0, 2], mlp=[1]), BOTH, 3) == {
        "attn": ["swa:window=3", None, "swa:window=3"],
        "mlp": [None, "mlp:ratio=3", None],
    }


def test_the_map_has_a_cell_for_every_site_of_every_plan() -> None:
    layouts = [("0.8", layout(plan(swa=[0, 2], mlp=[1]), BOTH, 3)), ("0.9", layout(plan(mlp=[1]), BOTH, 3))]
    svg = operator_map(layouts, "title", down="flops")
    cells = re.findall(r"<title>([\d.]+), block (\d), (\w+): ([^<]+)</title>", svg)
    assert len(cells) == 2 * 2 * 3
    assert {c for c in cells if c[3] != "untouched"} == {
        ("0.8", "0", "attn", "swa:window=3"),
        ("0.8", "2", "attn", "swa:window=3"),
        ("0.8", "1", "mlp", "mlp:ratio=3"),
        ("0.9", "1", "mlp", "mlp:ratio=3"),
    }
    assert operator_map([], "title", down="flops") == ""


def test_plans_lie_where_their_figures_say() -> None:
    points = [(0.8, 0.05), (0.9, 0.01), (0.95, -0.002)]
    svg = front_line(points, "title", x="cost", y="loss", marked=1)
    circles = [(float(a), float(b)) for a, b in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    corner = re.search(r'<rect x="([\d.]+)" y="([\d.]+)"', svg)
    assert corner is not None and len(circles) == 3 and svg.count("under the budget") == 1
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert (x1 - x0) / (x2 - x1) == pytest.approx(0.1 / 0.05, rel=0.01), "shares are drawn to scale"
    roots = [0.05**0.5, 0.01**0.5, -(0.002**0.5)]
    assert (y1 - y0) / (y2 - y1) == pytest.approx((roots[0] - roots[1]) / (roots[1] - roots[2]), rel=0.02), "as roots"
    assert float(corner[1]) + 5 > x2 and y1 < float(corner[2]) + 5 < y2, "the pretrained model loses nothing at 1"


def test_what_was_measured_whole_stands_beside_what_was_predicted(content: dict[str, Any], tmp_path: Path) -> None:
    content["front"][0]["measured"] = {"value": 0.2, "low": 0.1, "high": 0.3, "share": None}
    write_search_page(tmp_path / "search.html", content)
    page = (tmp_path / "search.html").read_text()
    assert "<title>measured: 0.8000, +0.20000</title>" in page and page.count("<th>at its start</th>") == 1
    assert "<td>+0.20000<small>+0.10000 … +0.30000</small></td>" in page and "<th>timed</th>" not in page
    svg = front_line([(0.8, 0.05)], "t", x="", y="", seen=[(0.8, 0.2, 0.1, 0.3)])
    (predicted, measured) = (float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg))
    zero = float(re.findall(r'<rect x="[\d.]+" y="([\d.]+)"', svg)[0]) + 5
    assert (zero - measured) / (zero - predicted) == pytest.approx(2, rel=0.02), "roots of 4 to 1"
    write_search_page(tmp_path / "search.html", content | {"by": "carried"})
    assert "<title>measured" not in (tmp_path / "search.html").read_text(), "a loss is no carried error"


def test_scores_are_shown_by_predictor_and_kind(content: dict[str, Any]) -> None:
    found = dict(score_maps(content))
    assert len(found) == 4
    told = found["attn: change of the held-out loss"]
    assert "block 1, operator swa:window=3: 0.00200" in told
