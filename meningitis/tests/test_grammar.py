"""The grammar reads what the model declares, refuses the rest with a place, and never crashes or evaluates."""

import math

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from meningitis.grammar import GrammarError, parse
from meningitis.units import UnitError, parse_quantity, parse_unit, spell

TABLE = {name: sympy.Symbol(name, positive=True) for name in ("S", "N", "E", "beta", "lambda", "Q", "gamma", "I")}


def test_names_are_ours_even_where_sympify_has_its_own():
    expression = parse("beta*S*I/N + E*lambda - Q*gamma", TABLE)
    assert expression.free_symbols == set(TABLE.values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2^3^2", 512),
        ("-2^2", -4),
        ("2**-1", 0.5),
        ("8/4/2", 1),
        ("1 - 2 - 3", -4),
        ("1e-3*1E3", 1),
        ("exp(0) + ln(1) + sqrt(4)", 3),
        ("min(3, 1, 2) + max(1, 2)", 3),
        ("pi", math.pi),
        ("--1", 1),
    ],
)
def test_arithmetic(text, value):
    assert float(parse(text, {})) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "position"),
    [("1 +", 3), ("(1", 2), ("1 ) 2", 2), ("S $ 2", 2), ("exp(1, 2)", 0), ("", 0), ("S S", 2), ("9^9^9", 1)],
)
def test_errors_are_located(text, position):
    with pytest.raises(GrammarError) as caught:
        parse(text, TABLE)
    assert caught.value.position == position


def test_unknown_names_come_together_with_the_nearest():
    with pytest.raises(GrammarError, match="did you mean 'beta'") as caught:
        parse("betta*S + zzz", TABLE)
    assert caught.value.unknown == ("betta", "zzz")


@pytest.mark.parametrize("text", ["__import__('os')", "S.diff", "(lambda: 1)()", "S[0]", "exp", "1/0", "1e999"])
def test_code_and_infinities_are_refused(text):
    with pytest.raises(GrammarError):
        parse(text, TABLE)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="SNEIQbeta0123456789.+-*/^(), expminlog", max_size=24) | st.text(max_size=12))
def test_any_text_is_an_expression_or_a_grammar_error(text):
    try:
        assert parse(text, TABLE).free_symbols <= set(TABLE.values())
    except GrammarError as error:
        assert 0 <= error.position <= max(len(text), 1)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.sampled_from(["S", "N", "beta", "2", "0.5"]),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        max_leaves=8,
    )
)
def test_values_agree_with_python(text):
    at = {"S": 3.0, "N": 7.0, "beta": 0.3}
    try:
        expected = eval(text, {"__builtins__": {}}, at)  # the strategy writes the text, so this oracle is safe
    except ZeroDivisionError:
        return
    try:
        found = parse(text, TABLE)
    except GrammarError:  # it divides by a difference that is exactly zero
        return
    assert float(found.subs({TABLE[k]: v for k, v in at.items()})) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("70/year", 70 / 365),
        ("52 per year", 52 / 365),
        ("20 %", 0.2),
        ("1/3", 1 / 3),
        ("0.19", 0.19),
        ("3 days", 3),
        ("2 weeks", 14),
        ("1e-3 /week", 1e-3 / 7),
        (5, 5),
    ],
)
def test_quantities(text, value):
    assert parse_quantity(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["", "fast", "3/fortnight", "1/0", "nan", "1e400"])
def test_bad_quantities_are_refused(text):
    with pytest.raises(UnitError):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["1/day", "persons", "1", "1/(persons day)", "persons^2/day"])
def test_units_are_spelled_as_they_are_read(text):
    assert spell(parse_unit(text)) == text
