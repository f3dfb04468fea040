"""The study from end to end, at small sample sizes: its files, its numbers against the specification, its verdicts."""

from __future__ import annotations

import inspect
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meningitis import analysis, engine
from meningitis.cli import main
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "deep" / "out"
    words = ("study", "--out", str(folder), "--sobol-n", "64", "--lhs-n", "60", "--start", "2026-11-30")
    assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in page and "@import" not in page and "url(http" not in page


def test_every_link_within_the_page_has_its_target_once(page: str) -> None:
    ids = re.findall(r"""\bid\s*=\s*["']([^"']+)""", page)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"""href\s*=\s*["']#([^"']+)""", page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids)


def test_every_figure_and_table_of_the_page_is_a_file(out: Path, page: str) -> None:
    figures = re.findall(r"\((\S+)\.svg, \.pdf\)", page)
    tables = re.findall(r"\((\S+)\.csv\)", page)
    assert len(figures) >= 15 and len(tables) >= 8
    for name in figures:
        assert (out / "figures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in tables:
        assert len(pd.read_csv(out / "tables" / f"{name}.csv")) > 0
    assert not list(out.rglob(".*"))


def test_every_figure_of_numbers_has_them_in_a_file(out: Path) -> None:
    files = {path.stem for path in (out / "tables").glob("*.csv")}
    drawn = {path.stem for path in (out / "figures").glob("*.svg") if not path.stem.startswith("flow-")}
    # The two on ever infected are of one table.
    assert {"ever-infected" if name.startswith("ever-infected-") else name for name in drawn} <= files


def test_the_ratio_of_all_ill_to_carriers_is_told_over_sweeps(out: Path) -> None:
    table = pd.read_csv(out / "tables" / "ratio-sweeps-basic.csv")
    assert set(table["parameter"]) == {"transmission_rate", "carrier_odds", "carrier_conversion_rate"}
    part = table[(table["parameter"] == "carrier_odds") & (table["value"] == 1.5)]
    found = analysis.profiles(BASIC, {"carrier_odds": 1.5})
    assert part["both"].to_numpy() == pytest.approx(found.both[0], nan_ok=True)
    assert part["stage1"].to_numpy() == pytest.approx(found.stage1[0], nan_ok=True)


def test_the_scenarios_give_what_the_specification_says(results: Any) -> None:
    rows = {row["scenario"]: row for row in results["course"] if row["model"] == "basic"}
    assert rows["epidemic"]["cases"] == pytest.approx(342, abs=0.5)
    assert rows["epidemic"]["deaths"] == pytest.approx(34, abs=0.5)
    assert rows["epidemic"]["peak_week"] == 12
    assert rows["hyperendemic"]["weekly_peak_per_100000"] == pytest.approx(4.3, abs=0.05)
    assert rows["endemic"]["weekly_peak_per_100000"] == pytest.approx(0.02, abs=0.005)
    assert rows["severe"]["weekly_peak_per_100000"] == pytest.approx(107, abs=0.5)
    start = next(r for r in results["reproduction"] if (r["model"], r["scenario"]) == ("basic", "epidemic"))
    assert start["R_at_start"] == pytest.approx(2.15, abs=0.005)


@pytest.mark.parametrize("model", [BASIC, GENERALISED], ids=lambda m: m.name)
def test_what_a_scenario_says_it_gives_is_what_it_gives(model: Model, results: Any) -> None:
    for scenario in model.scenarios:
        where = (model.name, scenario.name)
        row = next(r for r in results["course"] if (r["model"], r["scenario"]) == where)
        start = next(r for r in results["reproduction"] if (r["model"], r["scenario"]) == where)
        given = {
            "R_at_start": r"R at the start ([\d.]+)",
            "weekly_peak_per_100000": r"([\d.]+) per 100,000",
            "peak_week": r"in week (\d+)",
            "cases": r"(\d+) cases",
            "deaths": r"(\d+) deaths",
            "ever_infected_%": r"(\d+) % ever",
            "ill": r"([\d.]+) % fall ill",
        }
        facts = {**row, **start, "ill": 100 * row["cases"] / 111_540}
        found = {key: re.search(pattern, scenario.gives) for key, pattern in given.items()}
        assert sum(match is not None for match in found.values()) >= 2
        for key, match in found.items():
            if match:
                digits = len(match[1].partition(".")[2])
                assert facts[key] == pytest.approx(float(match[1]), abs=0.51 * 10**-digits), (where, key)


def test_control_is_the_formula_of_r0(results: Any) -> None:
    found = results["control"]
    v = GENERALISED.values()
    assert found["critical"]["transmission_rate"] == pytest.approx(v["transmission_rate"] / found["r0"], rel=1e-9)
    assert found["coverage"] == pytest.approx((1 - 1 / found["r0"]) / 0.9, rel=1e-9)


def test_the_integrator_meets_the_exact_end_away_from_the_threshold(results: Any) -> None:
    found = results["ever_infected"]["generalised"]
    for integrated, exact in zip(found["integrated"][-5:], found["exact"][-5:], strict=True):
        assert integrated[0] == pytest.approx(exact[0], rel=1e-5)  # p = 0, carriers twice as infectious: R well above 1
    assert found["exact"][0][0] < found["exact"][-1][0]


def test_the_claims_are_judged_by_the_numbers(results: Any) -> None:
    claims = results["claims"]
    early, critical = (claims[f"{ratio} ratio before epidemic threshold"] for ratio in ("early", "critical"))
    assert early["basic/epidemic"] is True and critical["basic/epidemic"] is False
    assert "basic/endemic" not in early  # no epidemic is declared there, so the claim says nothing
    rows = {(row["run"], row["ratio"]): row for row in results["outlook"]}
    quiet = rows["basic/hyperendemic", "early ratio"]
    assert (quiet["verdict"], quiet["before_epidemic"]) == ("false alarm", None)
    assert quiet["before_alert"] == pytest.approx(133 - 12.7, abs=0.1)
    assert rows["basic/epidemic", "early ratio"]["before_epidemic"] == pytest.approx(56 - 10.9, abs=0.1)
    assert rows["generalised/severe", "early ratio"]["before_alert"] < 0  # the alert is raised first
    days = [row["day"] for (_, ratio), row in rows.items() if ratio == "early ratio" and row["day"] is not None]
    assert len(days) == 6 and max(days) - min(days) < 3  # at about the same day in every run that grows
    assert rows["basic/endemic", "early ratio"]["verdict"] == "no alarm"
    assert claims["key parameters, basic, R0"]["holds"] is False
    assert claims["p = 0 adequate"]["ever_infected"] == pytest.approx(1, abs=0.05)
    assert claims["p = 0 adequate"]["cases"] > 10


def test_the_page_begins_with_the_verdicts(page: str) -> None:
    summary = page[page.index('class="summary"') : page.index("<nav")]
    assert [*re.findall(r'class="verdict">([^<]+)\.<', summary)][:2] == [
        "Holds, with false alarms",
        "Mixed",
    ]
    assert summary.count('class="claim') == 5 == page.count('class="claim') - 5
    assert "Depends on the outcome" in summary


def test_formulas_are_set_with_symbols(page: str) -> None:
    assert page.count("<math") > 30 and "<mi>β</mi>" in page
    for name in ("transmission_rate", "stage2_death_rate"):
        assert all(name not in formula for formula in re.findall(r"<math.*?</math>", page, re.DOTALL))
    for formula in re.findall(r"<math.*?</math>", page, re.DOTALL):
        ET.fromstring(formula.replace("&nbsp;", " "))


def test_events_have_a_row_for_each_scenario(out: Path, page: str) -> None:
    table = page[page.index("<b>Table 4.</b>") :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == 1 + 8
    assert "10\N{NO-BREAK SPACE}Jan\N{NO-BREAK SPACE}2027 (W01)" in table
    rows = pd.read_csv(out / "tables" / "events.csv")
    first = rows[(rows["model"] == "basic") & (rows["scenario"] == "epidemic")].set_index("event")
    assert first.loc["alert threshold", "day"] == 42 and first.loc["alert threshold", "date"] == "2027-01-10"


def test_provenance_is_enough_to_run_it_again(results: Any) -> None:
    facts = results["provenance"]
    assert facts["models"]["basic"]["hash"] == BASIC.hash
    assert facts["models"]["generalised"]["scenarios"]["severe"] == GENERALISED.values("severe")
    assert (facts["seed"], facts["sobol_n"], facts["lhs_n"], facts["start"]) == (1, 64, 60, "2026-11-30")
    assert (facts["scenario"], facts["days"], facts["overrides"], facts["weeks"]) == (None, None, {}, "iso")
    assert facts["models"]["basic"]["days"] == {s.name: s.days for s in BASIC.scenarios}
    assert {"python", "numpy", "numba", "meningitis"} <= set(facts["versions"])
    assert facts["tolerances"] == {
        "rtol": 1e-6, "atol_persons": 1e-8, "events": {"rtol": 1e-10, "atol_persons": 1e-10},
        "early_cases": {"rtol": 1e-9, "atol_persons": 1e-9},
    }  # fmt: skip


def test_the_tolerances_told_are_those_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Any) -> None:
    told = results["provenance"]["tolerances"]
    for solve in (engine.simulate, engine.reduce, engine.solve_ode):
        given = inspect.signature(solve).parameters
        assert (given["rtol"].default, given["atol"].default) == (told["rtol"], told["atol_persons"])
    used: list[tuple[float, float]] = []

    def simulate(*given: Any, rtol: float, atol: float, **options: Any) -> Any:
        used.append((rtol, atol))
        return engine.simulate(*given, rtol=rtol, atol=atol, **options)

    monkeypatch.setattr(sys.modules["meningitis.analysis.adequacy"], "simulate", simulate)
    analysis.adequacy(GENERALISED, {}, (0.0, 0.001), days=28.0)
    assert set(used) == {(told["early_cases"]["rtol"], told["early_cases"]["atol_persons"])}


def test_lead_times_are_told_of_the_runs_that_have_them(results: Any, page: str) -> None:
    """The days before the epidemic threshold belong to those runs alone that reach it later, not to false alarms."""
    rows = [row for row in results["outlook"] if row["ratio"] == "critical ratio"]
    ahead = [row["day"] for row in rows if row["verdict"] == "before"]
    every = [row["day"] for row in rows if row["day"] is not None]
    assert ahead and max(every) > max(ahead)
    assert f"There it is attained between day {min(ahead):.1f} and day {max(ahead):.1f}, " in page
    assert f"Over all runs that attain it: day {min(every):.1f} to day {max(every):.1f}." in page
