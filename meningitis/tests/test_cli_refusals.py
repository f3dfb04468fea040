"""Input that leads to no result is refused with one sentence and status 2, whatever verb meets it."""

from __future__ import annotations

import pytest

from meningitis import analysis
from meningitis.cli import main
from meningitis.engine import simulate
from meningitis.model import ModelError
from meningitis.models import BASIC, GENERALISED


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        status = main(words)
    except SystemExit as leaving:
        status = int(str(leaving.code))
    caught = capsys.readouterr()
    assert status == 2 and caught.out == ""
    assert len(caught.err.strip().splitlines()) == 1
    return caught.err


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
        assert "1 of 2 trajectories" in refused(capsys, verb, *words)


def test_a_mistake_of_the_program_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from meningitis import verbs

    def broken(_arguments: object) -> None:
        raise NotImplementedError

    monkeypatch.setitem(verbs.WORK, "models", broken)
    with pytest.raises(NotImplementedError):
        main(("models",))
