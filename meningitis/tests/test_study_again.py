"""A study holds what is needed to run it again, and speaks of what its model has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from textbook import SEIR, build

from meningitis import analysis
from meningitis import study as module
from meningitis.chapters import CHAPTERS, Work, fitting
from meningitis.chapters.course import course, ratios
from meningitis.chapters.outcomes import _critical, adequacy
from meningitis.chapters.structure import origins
from meningitis.cli import main
from meningitis.model import Distribution, Model
from meningitis.models import BASIC, GENERALISED
from meningitis.report import Report
from meningitis.study import study


def own() -> Model:
    first, *others = SEIR.parameters
    spread = dataclasses.replace(first, distribution=Distribution(kind="loguniform", low=0.2, high=0.6))
    return dataclasses.replace(SEIR, name="own", parameters=(spread, *others))


def work(out: Path, *models: Model, fraction: float = 1.0) -> Work:
    report = Report(out=out, title="A study", lead="")
    report.section("A chapter")
    return Work(
        report=report, models=models, seed=1, sobol_n=64, lhs_n=60, start=None, weeks="iso", reporting_fraction=fraction
    )


def test_a_study_runs_again_from_the_declaration_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHAPTERS", (("Provenance", origins),))
    model, first, second = own(), tmp_path / "first", tmp_path / "second"
    page = study(first, models=(model,)).read_text()
    file = first / "models" / "own.yaml"
    assert "models/own.yaml" in json.loads((first / "manifest.json").read_text())["files"] and "models/own.yaml" in page
    assert Model.from_yaml(file).parameters[0].distribution == model.parameters[0].distribution
    assert main(["study", "--model", str(file), "--out", str(second)]) == 0
    again, once = (json.loads((out / "results.json").read_text())["provenance"]["models"] for out in (second, first))
    assert again == once and once["own"]["hash"] == model.hash and once["own"]["declaration"] == "models/own.yaml"


def test_the_shipped_models_are_in_the_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHAPTERS", (("Provenance", origins),))
    study(tmp_path)
    for model in (BASIC, GENERALISED):
        assert Model.from_yaml(tmp_path / "models" / f"{model.name}.yaml").hash == model.hash


def test_the_events_of_a_scenario_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def events(model: Model, values: dict[str, float], days: float, **options: Any) -> analysis.Events:
        asked.append(values["transmission_rate"])
        return analysis.events(model, values, days, **options)

    monkeypatch.setattr("meningitis.chapters.work.events", events)
    each = work(tmp_path, BASIC)
    course(each)
    ratios(each)
    assert len(asked) == len(BASIC.scenarios)


def test_a_reporting_fraction_moves_alerts_lines_and_verdicts(tmp_path: Path) -> None:
    every, third = (work(tmp_path / str(f), BASIC, fraction=f) for f in (1.0, 0.3))
    for each in (every, third):
        course(each)
        ratios(each)
    pages = [each.report.write(each.results).read_text() for each in (every, third)]
    assert "suspected cases for each case" not in pages[0]
    assert pages[1].count("0.3 suspected cases for each case of the model") == 2
    by_run = [{row["run"]: row["verdict"] for row in each.results["outlook"]} for each in (every, third)]
    assert by_run[0] != by_run[1]
    alerts = [
        next(r["day"] for r in each.results["events"] if (r["scenario"], r["event"]) == ("epidemic", "alert threshold"))
        for each in (every, third)
    ]
    assert alerts[0] < alerts[1]
    weeks = [each.results["course"][0]["weeks_above_alert"] for each in (every, third)]
    assert weeks[0] > weeks[1]
    cases = [each.results["course"][0]["cases"] for each in (every, third)]
    assert cases[0] == cases[1]


def test_simulate_shows_suspected_cases(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--model", "basic", "--days", "70", "--json"]
    assert main(words) == 0
    plain = pd.DataFrame(json.loads(capsys.readouterr().out))
    assert main([*words, "--reporting-fraction", "1.5"]) == 0
    shown = pd.DataFrame(json.loads(capsys.readouterr().out))
    assert "weekly_suspected_cases" not in plain
    assert shown.pop("weekly_suspected_cases").to_numpy() == pytest.approx(1.5 * plain["weekly_cases"].to_numpy())
    pd.testing.assert_frame_equal(shown, plain)


def test_a_study_without_carriers_does_not_speak_of_them(tmp_path: Path) -> None:
    sick = work(tmp_path, SEIR)
    assert [title for title, _ in fitting(work(tmp_path, BASIC, GENERALISED), CHAPTERS)] == [t for t, _ in CHAPTERS]
    titles = [title for title, _ in fitting(sick, CHAPTERS)]
    assert "The order of events" in titles and len(titles) == len(CHAPTERS) - 1
    assert all(chapter is not adequacy for _, chapter in fitting(sick, CHAPTERS))
    _critical(sick, SEIR, SEIR.values())
    page = sick.report.write(sick.results).read_text()
    assert "from being infected has to reach" in page
    assert not any(word in page.partition("<main")[2] for word in ("carriage", "prevents illness"))


VACCINATED = build(
    "vaccinated", "S E I R", "E I",
    {"b": 0.42, "a": 0.2, "g": 0.1, "m": 0.01, "v": 0.05, "births": 10.0, "N": 1e3},
    [
        (None, "S", "births", False), ("S", "E", "b*S*I/N", True), ("E", "I", "a*E", False), ("I", "R", "g*I", False),
        ("S", "R", "v*S", False), *((x, None, f"m*{x}", False) for x in ("S", "E", "I", "R")),
    ],
    {"S": "0.999*N", "I": "0.001*N"},
)  # fmt: skip


def test_r_at_the_start_stands_beside_the_control_reproduction_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vaccinated.yaml"
    file.write_text(VACCINATED.to_yaml())
    words = ["compare", "--model", str(file), "--days", "70", "--with", "v=0"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    start, settled = 0.42 / 0.11 * 0.2 / 0.21 * 0.999, 0.42 / 0.11 * 0.2 / 0.21 * 0.01 / 0.06
    assert found["a"]["R0"] == pytest.approx(settled) and found["b"]["R0"] == pytest.approx(6 * settled)
    assert found["a"]["R_at_start"] == found["b"]["R_at_start"] == pytest.approx(start)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "R_c, the control reproduction number, is that of the disease-free state" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert "R0" not in rows and float(rows["R_c"][2]) == pytest.approx(settled, rel=1e-3)
    assert float(rows["R_at_start"][2]) == pytest.approx(start, rel=1e-3)
    assert main(["compare", "--model", "basic", "--days", "70", "--with", "carrier_odds=0.5"]) == 0
    said = capsys.readouterr().out
    assert "R_c" not in said and "R0 " in said and "R_at_start" in said


def test_sensitivity_calls_the_control_reproduction_number_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vaccinated.yaml"
    content = yaml.safe_load(VACCINATED.to_yaml())
    for parameter in content["parameters"]:
        if parameter["name"] in ("b", "g"):
            parameter["distribution"] = {"kind": "uniform", "low": 0.1, "high": 0.5}
    file.write_text(yaml.safe_dump(content))
    for words in (["sensitivity"], ["sensitivity", "--global", "--sobol-n", "16", "--lhs-n", "40", "--days", "7"]):
        assert main([*words, "--model", str(file)]) == 0
        said = capsys.readouterr().out
        assert "R_c" in said and "R0" not in said, words
    assert main([*words, "--model", str(file), "--csv"]) == 0
    assert "R0" in capsys.readouterr().out  # the key that programs read
