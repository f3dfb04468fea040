"""The unit that a person writes is held against the parameter's own."""

from __future__ import annotations

import pytest

from meningitis.cli import main
from meningitis.model import Model, ModelError
from meningitis.models import BASIC
from meningitis.units import UnitError, parse_unit, quantity, quantity_in


@pytest.mark.parametrize(
    ("text", "unit"),
    [("70/year", "1/day"), ("2 per week", "1/day"), ("3 days", "day"), ("2 weeks", "day"), ("20 %", "1"),
     ("70/yr", "1/day"), ("1 yr", "day"), ("500 persons/day", "persons/day"), ("7 persons per week", "persons/day"),
     ("10 persons", "persons"), ("1 person", "persons"), ("1/3", None), ("5", None), (0.5, None)],
)  # fmt: skip
def test_a_quantity_has_the_dimension_written(text: str | float, unit: str | None) -> None:
    assert quantity(text)[1] == (None if unit is None else parse_unit(unit))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("stage_progression_rate", "3 days", "'3 days' is in day, but must be in 1/day: write 1/3"),
        ("stage_progression_rate", "1 week", "0.1429/day"),
        ("transmission_rate", "20 %", "a rate such as 0.1/day"),
        ("transmission_rate", "3 persons", "a rate such as 0.1/day"),
        ("population", "100000/year", "a plain number of persons"),
        ("population", "50 %", "a plain number of persons"),
        ("carrier_odds", "1 day", "a plain number or a share in %"),
        ("initial_immune_fraction", "10 persons", "a plain number or a share in %"),
    ],
)
def test_another_unit_is_refused_with_what_to_write(
    name: str, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("r0", "--set", f"{name}={text}"), ("profile", "--sweep", f"{name}={text}")):
        assert main((*words, "--model", "basic")) == 2
        caught = capsys.readouterr()
        assert caught.out == "" and says in caught.err and name in caught.err and len(caught.err.splitlines()) == 1


def test_the_advice_given_is_accepted() -> None:
    assert BASIC.values(None, {"stage_progression_rate": "1/3"})["stage_progression_rate"] == pytest.approx(1 / 3)
    assert BASIC.values(None, {"stage_progression_rate": "0.3333/day"})["stage_progression_rate"] == 0.3333
    assert BASIC.values(None, {"population": "50000 persons"})["population"] == 50_000
    assert BASIC.values(None, {"initial_immune_fraction": "30 %"})["initial_immune_fraction"] == 0.3


def test_persons_per_time_and_other_names_of_a_year() -> None:
    assert quantity_in("persons/day", "500 persons/day") == 500 and quantity_in("persons/day", "730 persons/yr") == 2
    assert quantity_in("1/day", "73 /yr") == 0.2 and quantity_in("day", "2 yr") == 730
    for wrong in ("5 persons/", "5 persons/person", "5 persons/3", "5 day/persons"):
        with pytest.raises(UnitError, match="unknown unit: allowed are /hour"):
            quantity(wrong)


def test_a_plain_number_is_in_any_unit() -> None:
    assert quantity_in("persons^2/day", "1/4") == quantity_in("1/day", 0.25) == quantity_in("1", "0.25") == 0.25
    with pytest.raises(UnitError, match=r"a plain number in persons/day"):
        quantity_in("persons/day", "3/day")
    with pytest.raises(ModelError, match="E013"):
        BASIC.values(None, {"population": "3 days"})


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("default: 0.2", "default: 5 days", "parameters"),
        ("overrides: {}", "overrides: {beta: 2 days}", "scenarios"),
    ],
)
def test_a_declaration_is_held_to_its_units(old: str, new: str, where: str) -> None:
    text = """
name: sis
compartments: [{name: S}, {name: I, infected: true}]
parameters:
  - {name: beta, default: 0.2, unit: 1/day, kind: rate}
  - {name: n, default: 100, unit: persons, kind: count}
flows:
  - {name: infection, source: S, target: I, rate: beta*S*I/n, new_infection: true, case: true}
initial: {S: n - 1, I: 1}
scenarios: [{name: usual, overrides: {}}]
"""
    assert Model.from_yaml(text).values()["beta"] == 0.2
    with pytest.raises(ModelError, match="must be in 1/day") as caught:
        Model.from_yaml(text.replace(old, new))
    assert caught.value.problems[0].where.startswith(where)
