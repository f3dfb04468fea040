"""The page and its files: whole, self-contained, and equal at every run."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from meningitis.chapters.importance import _are_first
from meningitis.chapters.outcomes import _minimum
from meningitis.chapters.work import KEY
from meningitis.files import write_atomically
from meningitis.models import GENERALISED, get, names
from meningitis.report import NUMBER, Report, plain, show, to_json
from meningitis.report.diagram import flow_diagram, flow_labels, positions
from meningitis.report.figures import dots
from meningitis.report.style import to_svg


def page(out: Path) -> str:
    report = Report(out=out, title="A <title>", lead="Lead.")
    report.section("Section")
    report.claim("it holds.", holds=False, verdict="Does not hold", condition="Where & when.")
    report.formulas([("<mi>a</mi>", "<mi>b</mi>"), ("<mi>c</mi><mo>&lt;</mo>", "<mi>d</mi>")], "Formulas & more.")
    report.figure("flow", flow_diagram(GENERALISED), "The model.")
    report.table("numbers", pd.DataFrame({"name": ["<b>"], "value": [1234.5678]}), "Numbers.")
    report.table("other", pd.DataFrame({"x": [1]}), "Other.", pd.DataFrame({"shown instead": ["here"]}))
    return report.write({"a": np.array([1.0, np.nan])}).read_text()


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    text = page(tmp_path)
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert "A &lt;title&gt;" in text and "&lt;b&gt;" in text and "1,235" in text
    assert (tmp_path / "figures" / "flow.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "tables" / "numbers.csv").read_text() == "name,value\n<b>,1234.5678\n"
    assert "shown instead" in text and (tmp_path / "tables" / "other.csv").read_text() == "x\n1\n"
    assert "<mi>a</mi><mo>=</mo><mi>b</mi>" in text and "<mo>&lt;</mo><mi>d</mi>" in text
    assert text.count("Where &amp; when.") == 2  # in the summary and in its section
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": [1.0, None]}
    assert not list(tmp_path.rglob(".*"))


def test_the_same_page_at_every_run(tmp_path: Path) -> None:
    assert page(tmp_path / "a") == page(tmp_path / "b")


def test_ids_of_two_figures_stay_apart() -> None:
    first, second = (set(re.findall(r'\bid="([^"]+)"', to_svg(flow_diagram(GENERALISED), name))) for name in "ab")
    assert first and not first & second


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_atomically(file, "old")
    with pytest.raises(TypeError):
        write_atomically(file, 3)  # type: ignore[arg-type]
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("name", names())
def test_the_diagram_shows_every_compartment_and_flow(name: str) -> None:
    model = get(name)
    at = positions(model)
    assert set(at) == set(model.state_names) and len(set(at.values())) == len(at)
    force, labels = flow_labels(model)
    assert r"\beta" in force
    assert set(labels) == {flow.name for flow in model.flows}
    assert labels["progression"] == r"$\sigma$"


def test_dots_draw_every_interval_and_hide_no_estimate_outside_its_own() -> None:
    table = pd.DataFrame(
        {
            "outcome": ["y", "y"], "symbol": ["a", "b"],
            "total": [0.5, 0.9], "total_low": [0.4, 0.2], "total_high": [0.6, 0.8],
            "first": [0.1, 0.3], "first_low": [-0.1, 0.25], "first_high": [0.2, 0.35],
        }
    )  # fmt: skip
    axes = dots(table, {"total": "total order", "first": "first order"}, "share").axes[0]
    spans = [[(float(s[0, 0]), float(s[1, 0])) for s in lines.get_segments()] for lines in axes.collections]
    assert spans == [[(0.4, 0.6), (0.2, 0.8)], [(-0.1, 0.2), (0.25, 0.35)]]
    drawn = [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "None"]
    assert drawn == [[0.5, 0.9], [0.1, 0.3]]


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [
        ([0.5, 0.4, 0.3, 0.1], [0.6, 0.5, 0.4, 0.2], True),
        ([0.5, 0.4, 0.3, 0.1], [0.6, 0.5, 0.4, 0.35], None),  # the fourth may be the third
        ([0.5, 0.1, 0.3, 0.3], [0.6, 0.2, 0.4, 0.4], False),  # three lie clear above the second
        ([0.5, 0.1, 0.3, 0.15], [0.6, 0.2, 0.4, 0.4], None),
        ([np.nan] * 4, [np.nan] * 4, None),
    ],
)
def test_key_parameters_are_told_only_as_far_as_intervals_tell(
    low: list[float], high: list[float], holds: bool | None
) -> None:
    table = pd.DataFrame({"total_low": low, "total_high": high}, index=[*KEY, "other"])
    assert _are_first(table) is holds
    assert _are_first(table.drop(index="carrier_odds")) is False


def test_a_share_to_be_reached_is_rounded_up() -> None:
    assert [_minimum(x) for x in (0.684, 0.68, 0.57, 1 - 1 / 2.5, 1.0)] == ["69%", "68%", "57%", "60%", "100%"]


def test_cells_and_json() -> None:
    assert [show(x) for x in (0.0, 1234567.0, -0.00012345, 0.5, None, True, float("nan"), "x")] == [
        "0", "1.235e+06", "−1.234e−04", "0.5", "–", "yes", "–", "x",
    ]  # fmt: skip
    assert [show(x) for x in (float("inf"), -float("inf"))] == ["∞", "−∞"] and NUMBER.fullmatch("−∞")
    told = plain({"x": (1, float("inf"), -float("inf"), float("nan"))})  # unknown is not infinite
    assert told == {"x": [1, "Infinity", "-Infinity", None]} and float(told["x"][2]) == -float("inf")
    assert json.loads(to_json(np.float64(0.1))) == 0.1
