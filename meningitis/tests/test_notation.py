"""Written formulas mean what they stand for: read back by another reader, they have the expression's value."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from textbook import build

from meningitis import symbolic
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.notation import FORCE, Notation, abbreviated, equations, glyph, per_person
from meningitis.printed import equations_text
from meningitis.report.diagram import flow_labels

WRITE = Notation(GENERALISED)
LETTERS = {WRITE.text(s): s for s in GENERALISED.symbols.values()}
SOME = [GENERALISED.symbols[name] for name in ("transmission_rate", "carrier_odds", "direct_fraction", "S", "I1", "C")]
NUMBERS = {s: 0.3 + 0.17 * k for k, s in enumerate(GENERALISED.symbols.values())}


def read_text(text: str) -> float:
    """The value of a line of text, by Python's own grammar."""
    names = {f"v{k}": NUMBERS[symbol] for k, symbol in enumerate(LETTERS.values())}
    for k, letter in sorted(enumerate(LETTERS), key=lambda item: -len(item[1])):
        text = re.sub(rf"(?<![v\d\w]){re.escape(letter)}(?![\w₀-₉])", f"v{k}", text)
    text = text.replace(" + ", "+").replace(" − ", "-").replace("−", "-").replace(" ", "*")
    return float(eval(text.replace("^", "**").replace("√", "sqrt"), {"sqrt": math.sqrt, "exp": math.exp}, names))


def read_math(element: ET.Element) -> str:
    """MathML as text for `read_text`."""
    parts = [read_math(child) for child in element]
    match element.tag:
        case "mi" | "mn" | "mo":
            word = str(element.text)
            return f" {word} " if word in "+−" and element.get("form") != "prefix" else word
        case "mspace":
            return " "
        case "msub":
            return parts[0] + (parts[1].translate(str.maketrans("0123456789c", "₀₁₂₃₄₅₆₇₈₉c")))
        case "mfrac":
            return f"(({parts[0]})/({parts[1]}))"
        case "msup":
            return f"{parts[0]}^({parts[1]})"
        case "msqrt":
            return f"√({''.join(parts)})"
    return "".join(parts)


def expressions() -> st.SearchStrategy[Any]:
    leaves = st.sampled_from([*SOME, sp.Integer(1), sp.Integer(2), sp.Rational(1, 3)])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda x: x[0] + x[1]),
            st.tuples(inner, inner).map(lambda x: x[0] - x[1]),
            st.tuples(inner, inner).map(lambda x: x[0] * x[1]),
            st.tuples(inner, inner).map(lambda x: x[0] / (x[1] + SOME[0])),
            inner.map(lambda x: sp.sqrt(x**2 + 1)),
            inner.map(lambda x: (1 - x) ** 2),
        ),
        max_leaves=8,
    )


@settings(max_examples=150, deadline=None)
@given(expressions())
def test_text_and_mathml_have_the_value_of_the_expression(e: sp.Expr) -> None:
    if e.has(sp.zoo, sp.nan):
        return
    value = pytest.approx(float(e.subs(NUMBERS)), rel=1e-5, abs=1e-9)  # numbers are written with six figures
    assert read_text(WRITE.text(e)) == value
    tree = ET.fromstring(f"<math>{WRITE.math(e)}</math>")
    assert read_text(read_math(tree)) == value


def test_the_equations_are_written_as_in_the_specification() -> None:
    found = {name: WRITE.text(e) for name, e in equations(GENERALISED).items()}
    assert WRITE.text(per_person(GENERALISED)[0]) == "β (ε C + I₁ + η I₂)/N"
    assert found["S"] == "−λ S"
    assert found["C"] == "(1 − p) λ S − (φ + γc) C"
    assert found["I2"] == "σ I₁ − (γ₂ + δ₂) I₂"


@pytest.mark.parametrize("model", [BASIC, GENERALISED], ids=lambda m: m.name)
def test_equations_and_abbreviations_are_the_declaration(model: Model) -> None:
    force, _ = per_person(model)
    for name, e in equations(model).items():
        assert sp.simplify(e.subs(FORCE, force) - model.rhs()[name]) == 0
    derived = symbolic.next_generation(model)
    short, rates = abbreviated(model, {"R0": derived.r0, "V": derived.V})
    assert {WRITE.text(symbol) for symbol in rates} == {"a_C", "a₁", "a₂"}
    assert sp.simplify(short["R0"].subs(rates) - derived.r0) == 0
    assert short["V"].subs(rates) == derived.V
    assert short["R0"] != derived.r0


TWO_STRAINS = build(
    "two_strains", "S I J R", "I J", {"b": 0.4, "c": 0.3, "g": 0.1, "h": 0.2, "N": 1e3},
    [
        ("S", "I", "b*S*I/N", True), ("S", "J", "c*S*J/N", True), ("I", "R", "g*I", False), ("J", "R", "h*J", False),
    ],
    {"S": "0.99*N", "I": "0.005*N", "J": "0.005*N"},
)  # fmt: skip


def test_strains_that_infect_each_with_its_own_force_share_none() -> None:
    force, rates = per_person(TWO_STRAINS)
    assert force is None and "λ" not in equations_text(TWO_STRAINS) and flow_labels(TWO_STRAINS)[0] == ""
    S, I, J, N = (TWO_STRAINS.symbols[name] for name in ("S", "I", "J", "N"))
    b, c, g, h = (TWO_STRAINS.symbols[name] for name in "bcgh")
    by_hand = {
        "S": -(b * I + c * J) * S / N, "I": b * S * I / N - g * I, "J": c * S * J / N - h * J, "R": g * I + h * J,
    }  # fmt: skip
    assert all(sp.simplify(e - by_hand[name]) == 0 for name, e in equations(TWO_STRAINS).items())
    assert sp.simplify(rates["flow1"] - c * J / N) == 0


def test_latex_is_read_by_matplotlib() -> None:
    from matplotlib.mathtext import MathTextParser

    parser: Any = MathTextParser("path")
    for e in (*equations(GENERALISED).values(), symbolic.r0(GENERALISED), sp.exp(-SOME[0])):
        assert parser.parse(f"${WRITE.latex(e)}$").width > 0
    assert r"\varphi" in WRITE.latex(symbolic.r0(GENERALISED))


def test_matrices_take_a_line_for_each_row() -> None:
    matrix = sp.Matrix([[1, -SOME[0]], [0, SOME[1] + SOME[2]]])
    assert WRITE.text(matrix) == "⎡ 1  −β    ⎤\n⎣ 0  ε + p ⎦"
    assert WRITE.math(matrix).count("<mtd>") == 4
    assert WRITE.text(sp.Matrix([[SOME[0]]])) == "[ β ]"


def test_names_become_glyphs() -> None:
    said = (r"\gamma_c", r"\varepsilon", r"\phi", "R_0", r"\mathrm{contact\_rate}", r"\Lambda", "r_{max}", "N")
    assert [glyph(name) for name in said] == [
        ("γ", "c"), ("ε", ""), ("ϕ", ""), ("R", "0"), ("contact_rate", ""), ("Λ", ""), ("r", "max"), ("N", ""),
    ]  # fmt: skip
