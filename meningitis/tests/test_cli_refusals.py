"""Input that leads to no result is refused with one sentence and status 2, whatever verb meets it."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meningitis import analysis
from meningitis.cli import main
from meningitis.engine import simulate
from meningitis.model import ModelError
from meningitis.models import BASIC, GENERALISED
from meningitis.study import study


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        status = main(words)
    except SystemExit as leaving:
        status = int(str(leaving.code))
    caught = capsys.readouterr()
    assert status == 2 and caught.out == ""
    said = [line for line in caught.err.splitlines() if "compiling a kernel" not in line]  # by the first run of a model
    assert len(said) == 1
    return said[0]


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text, lines in (
        ("twice.yaml", "carrier_odds: 1\ntransmission_rate: 0.2\ncarrier_odds: 0.5\n", "1 and 3"),
        ("twice.json", '{"carrier_odds": 1,\n "carrier_odds": 0.5}', "1 and 2"),
    ):
        (tmp_path / name).write_text(text)
        said = refused(capsys, "r0", "--params", str(tmp_path / name))
        assert f"{name}: 'carrier_odds' is given twice in one table, on lines {lines}" in said
    (tmp_path / "twice.yaml").write_text("name: x\nname: y\n")
    said = refused(capsys, "show", "--model", str(tmp_path / "twice.yaml"))
    assert "twice.yaml: 'name' is given twice in one table, on lines 1 and 2" in said


def test_a_study_is_not_written_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, "study", "--model", "basic", "--out", str(tmp_path / "file"))
    assert "file is a file: a report needs a folder" in said and (tmp_path / "file").read_text() == "mine"


def test_a_reporting_fraction_is_above_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("simulate",), ("study", "--out", str(tmp_path / "out"))):
        assert "reporting_fraction is 0.0, but must be" in refused(capsys, *words, "--reporting-fraction", "0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["simulate", "r0", "thresholds", "sensitivity", "final-size", "profile", "show"])
def test_a_start_below_zero_is_refused_by_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, verb, "--model", "basic", "--set", "initial_immune_fraction=1")
    assert "S at the start is -111.54 persons" in said
    assert "initial_immune_fraction 1" in said and "initial_carrier_fraction 0.001" in said


def test_a_second_set_below_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("compare", "--set", "initial_immune_fraction=0.9995", "--with", "carrier_odds=0.5")
    assert "S at the start is -55.77 persons" in refused(capsys, *words)


def test_the_last_person_may_be_taken() -> None:
    values = BASIC.values(None, {"initial_immune_fraction": 0.999})
    assert simulate(BASIC, parameters=values, days=7)["S"][0, 0] == pytest.approx(0, abs=1e-7)
    with pytest.raises(ModelError, match="E014"):
        BASIC.values(None, {"initial_immune_fraction": 0.9991})


def test_analyses_raise_where_a_trajectory_fails() -> None:
    bad = {**GENERALISED.values(), "initial_immune_fraction": 1.0}
    assert simulate(GENERALISED, parameters=bad).status[0] > 0
    for analysed in (analysis.events, analysis.profiles, analysis.adequacy):
        with pytest.raises(RuntimeError, match="1 of 1 trajectories failed"):
            analysed(GENERALISED, bad)
    with pytest.raises(RuntimeError, match=r"1 of 2 .*set 1"):
        analysis.profiles(GENERALISED, GENERALISED.values(), {"initial_immune_fraction": [0.2, 1.0]})


def test_a_failed_trajectory_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--set", "initial_carrier_fraction=0.2", "--sweep", "initial_immune_fraction=0.2,0.9")
    for verb in ("profile", "final-size"):
        said = refused(capsys, verb, *words)  # found before anything runs, with the values that the run would have
        assert "E014" in said and "initial_carrier_fraction 0.2" in said and "initial_immune_fraction 0.9" in said
    alone = ("--set", "initial_immune_fraction=0", "--sweep", "initial_carrier_fraction=0.9")
    assert main(["profile", "--model", "basic", "--days", "14", *alone]) == 0


def test_a_mistake_of_the_program_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from meningitis import verbs

    def broken(_arguments: object) -> None:
        raise NotImplementedError

    monkeypatch.setitem(verbs.WORK, "models", broken)
    with pytest.raises(NotImplementedError):
        main(("models",))


SHORT = (
    (Path(__file__).parents[1] / "docs" / "declare-your-own-model.md").read_text().split("```yaml\n")[2].split("```")[0]
)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("default: 0.4", "default: true", "E010 parameters[0].default: true is not a quantity"),
        ("I: 1}", "I: true}", "E010 initial.I: must be persons"),
        ("infected: true", "infected: perhaps", "'infected' must be true or false, not 'perhaps'"),
        ("new_infection: true", "new_infection: 1", "'new_infection' must be true or false, not '1'"),
        ("name: short", "name: short\nclosed: maybe", "E010 declaration: 'closed' must be true or false"),
        ("name: beta", "name: 5", "E010 parameters[0]: 'name' must be text, not '5'"),
        ("gamma * I}", "gama * I}", "E001 flow recovery: undeclared name 'gama', did you mean 'gamma'?"),
        ("gamma * I}", "I}", "E004 flow recovery: its rate 'I' is in persons, but must be in persons/day"),
        ("gamma * I}", "3}", "E004 flow recovery: its rate '3' has no unit"),
        ("target: R", "target: Q", "E007 flow recovery: there is no compartment 'Q'; allowed are S, I, R"),
        ("name: short", "name: short\nscenarios: [{name: a, days: long}]", "'days' must be a number, not 'long'"),
        ("name: short", "name: short\nscenarios: [{name: a, days: -5}]", "E005 scenario a: days is -5"),
        ("name: short", "name: short\nscenarios: [{name: a, overrides: [1]}]", "'overrides' must be a table"),
        ("name: short", "name: {", "not YAML"),
    ],
)
def test_a_wrong_declaration_is_one_coded_sentence(
    old: str, new: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in SHORT
    file = tmp_path / "own.yaml"
    file.write_text(SHORT.replace(old, new, 1))
    assert says in refused(capsys, "show", "--model", str(file))


def test_a_declaration_that_is_no_text_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: méningite".encode("latin-1"))
    assert f"E010 {file}: it is not text in UTF-8" in refused(capsys, "show", "--model", str(file))


def test_a_study_with_a_bad_seed_or_date_writes_nothing(tmp_path: Path) -> None:
    for settings, says in (
        ({"seed": -1}, "seed is -1, but must be 0 or more"),
        ({"start": dt.date(9999, 12, 1)}, "is beyond 9999-12-31"),
    ):
        with pytest.raises(ValueError, match=says):
            study(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["true", "[1]", "null"])
def test_params_are_numbers_or_texts(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(f"carrier_odds: {value}")
    assert "gives carrier_odds as" in refused(capsys, "r0", "--params", str(file))


def test_a_refusal_is_one_sentence_however_the_program_is_started() -> None:
    for module in ("meningitis", "meningitis.cli"):
        done = subprocess.run([sys.executable, "-m", module, "r0", "--model", "basik"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.strip() == (
            "meningitis: E012 models: there is no model 'basik', did you mean 'basic'?; allowed are basic, generalised"
        )


def test_a_stiff_run_is_printed_with_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from meningitis import engine

    def fallen_back(*given: object, **options: object) -> object:
        run = engine.ensemble.simulate(*given, **options)  # type: ignore[arg-type]
        run.status[:] = engine.Status.FALLBACK
        return run

    monkeypatch.setattr(engine, "simulate", fallen_back)
    assert main(("simulate", "--model", "basic", "--days", "14", "--csv")) == 0
    caught = capsys.readouterr()
    assert "stiff: solved by scipy's Radau instead" in caught.err and len(caught.out.splitlines()) == 3
    assert np.isfinite(float(caught.out.splitlines()[1].split(",")[2]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("r0", "--start", "2026-11-30"), "r0 takes no --start"),
        (("show", "--days", "10"), "show takes no --days"),
        (("models", "--model", "basic"), "models takes no --model"),
        (("compare", "--weeks", "cdc"), "compare takes no --weeks"),
        (("study", "--out", "x", "--json"), "study takes no --json"),
        (("simulate", "--weeks", "cdc"), "needs --start"),
        (
            ("sensitivity", "--sobol-n", "64", "--seed", "2"),
            "--seed and --sobol-n would change nothing without --global",
        ),
        (("sensitivity", "--lhs-n", "0"), "--lhs-n would change nothing"),
        (("sensitivity", "--days", "30"), "--days would change nothing"),
        (("sensitivity", "--outcomes", "--seed", "2"), "--seed would change nothing without --global"),
        (("sensitivity", "--outcomes", "--global"), "not allowed with"),
        (("simulate", "--bands", "50", "--reporting-fraction", "2"), "would change nothing with --bands"),
        (("simulate", "--bands", "0"), "--bands is 0, but must be at least 2"),
        (("profile", "--step", "0"), "step is 0 days, but must be above 0"),
        (
            ("final-size", "--sweep", "carrier_odds=1,2", "--sweep", "carrier_odds=3"),
            "--sweep is given carrier_odds twice",
        ),
        (("r0", "--set", "carrier_odds=1", "--set", "carrier_odds=2"), "--set is given carrier_odds twice"),
        (
            ("profile", "--set", "carrier_odds=1", "--sweep", "carrier_odds=2"),
            "one value by --set and several by --sweep",
        ),
        (("simulate", "--start", ""), "must be a date such as"),
        (("simulate", "--model", "basic", "--days", "nan"), "--days is nan"),
        (("r0", "extra"), "r0 takes no extra"),
    ],
)
def test_an_option_that_could_only_be_ignored_is_refused(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *words)


def test_the_help_of_a_verb_lists_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(verb: str) -> set[str]:
        with pytest.raises(SystemExit):
            main((verb, "--help"))
        return set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)) - {"--help"}

    values = {"--model", "--scenario", "--set", "--params"}
    form, calendar = {"--json", "--csv"}, {"--start", "--weeks"}
    assert listed("models") == form
    assert listed("show") == values | form
    assert listed("r0") == values | form | {"--efficacy"}
    assert listed("simulate") == values | form | calendar | {"--days", "--reporting-fraction", "--bands"}
    assert listed("study") >= {"--reporting-fraction"}
    assert listed("final-size") == values | form | {"--days", "--sweep"}
    assert listed("profile") == values | form | calendar | {"--days", "--sweep", "--step"}
    assert listed("compare") == values | form | {"--days", "--with", "--with-scenario"}
