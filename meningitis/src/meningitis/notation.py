"""Formulas as people write them: with the parameters' own symbols, as MathML, as LaTeX or as a line of Unicode text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import sympy as sp

from meningitis.glyphs import glyph, greek
from meningitis.symbolic.limits import tidy

if TYPE_CHECKING:
    from meningitis.model import Model

SUM, PRODUCT, POWER, ATOM = range(4)  # how tightly the outermost operation of a formula binds

_DIGITS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
TALL = ' class="tall"'
"""Brackets that the page draws itself: browsers let `mo` grow only where the reader has a font for mathematics."""
FORCE = sp.Symbol("lambda", nonnegative=True)
"""The force of infection, per person and day, where a model has a single one."""


class Piece(NamedTuple):
    """A written formula and how tightly its outermost operation binds."""

    text: str
    level: int


class Text:
    """A line of Unicode text: β (ε + φ T)/(φ + γc)."""

    def symbol(self, base: str, sub: str) -> str:
        """A name with its subscript; digits are lowered, a small letter follows on the line."""
        return base + (
            sub.translate(_DIGITS) if (len(sub) == 1 and sub.islower()) or sub.isdigit() or not sub else f"_{sub}"
        )

    def number(self, digits: str) -> str:
        """Digits."""
        return digits

    def wrapped(self, inner: str) -> str:
        """In brackets."""
        return f"({inner})"

    def product(self, factors: Sequence[str]) -> str:
        """Factors side by side."""
        return " ".join(factors)

    def fraction(self, above: Piece, below: Piece) -> Piece:
        """A quotient with a slash."""
        return Piece(f"{self.inside(above, PRODUCT)}/{self.inside(below, POWER)}", PRODUCT)

    def power(self, base: str, exponent: str) -> str:
        """A power."""
        return f"{base}^{exponent}" if exponent.isalnum() else f"{base}^({exponent})"

    def call(self, name: str, arguments: Sequence[str]) -> str:
        """A function of its arguments."""
        return f"{name}({', '.join(arguments)})"

    def root(self, inner: str) -> str:
        """A square root."""
        return f"√({inner})"

    def signed(self, terms: Sequence[tuple[bool, str]]) -> str:
        """A sum; True marks a term that is taken away."""
        parts = [f" {'−' if minus else '+'} {term}" for minus, term in terms]
        return ("−" if terms[0][0] else "") + parts[0][3:] + "".join(parts[1:])

    def matrix(self, rows: Sequence[Sequence[str]]) -> str:
        """Rows in brackets, columns aligned."""
        widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if len(lines) == 1:
            return f"[ {lines[0]} ]"
        left, right = ("⎡", *"⎢" * (len(lines) - 2), "⎣"), ("⎤", *"⎥" * (len(lines) - 2), "⎦")
        return "\n".join(f"{a} {line} {b}" for a, line, b in zip(left, lines, right, strict=True))

    def inside(self, piece: Piece, level: int) -> str:
        """The piece as an operand of an operation at `level`, in brackets where it binds less tightly."""
        return piece.text if piece.level >= level else self.wrapped(piece.text)


class Latex(Text):
    """LaTeX that matplotlib's mathtext reads too."""

    def symbol(self, base: str, sub: str) -> str:
        """A name with its subscript."""
        return f"{_upright(base)}_{{{_upright(sub)}}}" if sub else _upright(base)

    def wrapped(self, inner: str) -> str:
        """In brackets that grow."""
        return rf"\left({inner}\right)"

    def product(self, factors: Sequence[str]) -> str:
        """Factors side by side."""
        return r" \, ".join(factors)

    def fraction(self, above: Piece, below: Piece) -> Piece:
        """A fraction."""
        return Piece(rf"\frac{{{above.text}}}{{{below.text}}}", PRODUCT)

    def power(self, base: str, exponent: str) -> str:
        """A power."""
        return f"{base}^{{{exponent}}}"

    def call(self, name: str, arguments: Sequence[str]) -> str:
        """A function of its arguments."""
        return rf"\mathrm{{{name}}}\left({', '.join(arguments)}\right)"

    def root(self, inner: str) -> str:
        """A square root."""
        return rf"\sqrt{{{inner}}}"

    def signed(self, terms: Sequence[tuple[bool, str]]) -> str:
        """A sum."""
        return super().signed(terms).replace("−", "-")

    def matrix(self, rows: Sequence[Sequence[str]]) -> str:
        """A matrix in square brackets."""
        return r"\begin{bmatrix}" + r" \\ ".join(" & ".join(row) for row in rows) + r"\end{bmatrix}"


class MathML(Text):
    """Presentation MathML, which browsers set without help."""

    def symbol(self, base: str, sub: str) -> str:
        """An identifier with its subscript."""
        name = f"<mi>{html.escape(base)}</mi>"
        lowered = f"<mn>{sub}</mn>" if sub.isdigit() else f"<mi>{html.escape(sub)}</mi>"
        return f"<msub>{name}{lowered}</msub>" if sub else name

    def number(self, digits: str) -> str:
        """Digits."""
        return f"<mn>{digits}</mn>"

    def wrapped(self, inner: str) -> str:
        """In brackets; class `tall` marks those that have to grow."""
        return f"<mrow{TALL if '<mfrac' in inner else ''}><mo>(</mo>{inner}<mo>)</mo></mrow>"

    def product(self, factors: Sequence[str]) -> str:
        """Factors side by side, a hair apart."""
        return '<mspace width="0.14em"/>'.join(factors)

    def fraction(self, above: Piece, below: Piece) -> Piece:
        """A fraction."""
        return Piece(f"<mfrac><mrow>{above.text}</mrow><mrow>{below.text}</mrow></mfrac>", PRODUCT)

    def power(self, base: str, exponent: str) -> str:
        """A power."""
        return f"<msup><mrow>{base}</mrow><mrow>{exponent}</mrow></msup>"

    def call(self, name: str, arguments: Sequence[str]) -> str:
        """A function of its arguments."""
        return f"<mi>{name}</mi>{self.wrapped('<mo>,</mo>'.join(arguments))}"

    def root(self, inner: str) -> str:
        """A square root."""
        return f"<msqrt>{inner}</msqrt>"

    def signed(self, terms: Sequence[tuple[bool, str]]) -> str:
        """A sum."""
        signs = [f"<mo>{'−' if minus else '+'}</mo>" for minus, _ in terms]
        if not terms[0][0]:
            signs[0] = ""
        else:
            signs[0] = '<mo form="prefix">−</mo>'
        return "".join(sign + term for sign, (_, term) in zip(signs, terms, strict=True))

    def matrix(self, rows: Sequence[Sequence[str]]) -> str:
        """A matrix in round brackets, its fractions in full size."""
        cells = "".join("<mtr>" + "".join(f"<mtd>{cell}</mtd>" for cell in row) + "</mtr>" for row in rows)
        table = f'<mtable displaystyle="true">{cells}</mtable>'
        return f"<mrow{TALL}><mo>(</mo>{table}<mo>)</mo></mrow>"


class Notation:
    """Writes a model's expressions with its parameters' symbols, in the order in which they are declared.

    `also` gives LaTeX names to further symbols; others are written by their own names.
    """

    def __init__(self, model: Model, also: Mapping[sp.Symbol, str] | None = None) -> None:
        names = {model.symbols[p.name]: p.symbol for p in model.parameters} | {FORCE: r"\lambda"}
        self._states = {model.symbols[s]: at for at, s in enumerate(model.state_names)}
        self._latex = names | dict(also or {})
        self._glyphs = {symbol: glyph(latex) for symbol, latex in self._latex.items()}
        self._ranks = {symbol: at for at, symbol in enumerate(names)}  # the force of infection comes last

    def text(self, expression: sp.Expr | sp.Matrix) -> str:
        """A line of Unicode text; a matrix takes a line for each row."""
        return self._write(expression, Text())

    def latex(self, expression: sp.Expr | sp.Matrix) -> str:
        """LaTeX, without dollar signs."""
        return self._write(expression, Latex())

    def math(self, expression: sp.Expr | sp.Matrix) -> str:
        """The inside of a <math> element."""
        return self._write(expression, MathML())

    def _write(self, expression: sp.Expr | sp.Matrix, form: Text) -> str:
        if isinstance(expression, sp.MatrixBase):
            return form.matrix([[self._piece(x, form).text for x in row] for row in expression.tolist()])
        return self._piece(sp.sympify(expression), form).text

    def _piece(self, e: sp.Expr, form: Text) -> Piece:
        e = _complements(e)
        if e.is_Symbol and isinstance(form, Latex) and e in self._latex:
            return Piece(self._latex[e], ATOM)
        if e.is_Symbol:
            return Piece(form.symbol(*(self._glyphs.get(e) or _own(e.name))), ATOM)
        if e.is_Add:
            terms = [
                (_negative(t), self._piece(-t if _negative(t) else t, form)) for t in sorted(e.args, key=self._term)
            ]
            return Piece(form.signed([(minus, form.inside(p, PRODUCT)) for minus, p in terms]), SUM)
        if _negative(e):
            return Piece(form.signed([(True, form.inside(self._piece(-e, form), PRODUCT))]), SUM)
        if e.is_Integer:
            return Piece(form.number(str(e)), ATOM)
        above, below = sp.fraction(e)
        if below != 1:
            return form.fraction(self._piece(above, form), self._piece(below, form))
        if e.is_Number:
            return Piece(form.number(f"{float(e):.6g}"), ATOM)
        if e.is_Mul:
            factors = [form.inside(self._piece(f, form), PRODUCT) for f in sorted(e.args, key=self._factor)]
            return Piece(form.product(factors), PRODUCT)
        if e.is_Pow and e.exp == sp.Rational(1, 2):
            return Piece(form.root(self._piece(e.base, form).text), ATOM)
        if e.is_Pow:
            base = form.inside(self._piece(e.base, form), ATOM)
            return Piece(form.power(base, self._piece(e.exp, form).text), POWER)
        name = e.func.__name__.lower() if e.args else str(e)
        return Piece(form.call(name, [self._piece(x, form).text for x in e.args]), ATOM)

    def _rank(self, symbols: Iterable[sp.Symbol]) -> tuple[int, str]:
        last = len(self._ranks)
        return min(((self._ranks.get(s, last), "" if s in self._ranks else s.name) for s in symbols), default=(-1, ""))

    def _state(self, e: sp.Expr) -> int:
        return min((self._states[s] for s in e.free_symbols if s in self._states), default=-1)

    def _term(self, e: sp.Expr) -> tuple[bool, int, bool, int, tuple[int, str]]:
        """Numbers first, then by compartment, what is taken away last, the simpler before the longer."""
        return not e.is_number, self._state(e), _negative(e), len(e.free_symbols), self._rank(e.free_symbols)

    def _factor(self, e: sp.Expr) -> tuple[int, tuple[int, str]]:
        """(1 - p), then parameters as declared, sums of them, compartments, sums of compartments."""
        if self._state(e) >= 0:
            return (6 if e.is_Add else 5), (self._state(e), "")
        if e.is_number:
            return 0, (0, "")
        complement = e.is_Add and all(t.is_number or (-t).is_Symbol for t in e.args)
        return (1 if complement else 3 if e.is_Add else 2), self._rank(e.free_symbols)


def _own(name: str) -> tuple[str, str]:
    """The glyph of a symbol that has no LaTeX name: a Greek name is its letter, digits at the end are lowered."""
    head, _, sub = name.partition("_")
    letters = head.rstrip("0123456789")
    if letters and not sub:
        head, sub = letters, head[len(letters) :]
    return greek(head) or head, sub


def _upright(text: str) -> str:
    """A part of a name as LaTeX: single letters are italic, words upright."""
    escaped = text.replace("_", r"\_")
    return escaped if len(text) <= 1 or text.isdigit() else rf"\mathrm{{{escaped}}}"


def _complements(e: sp.Expr) -> sp.Expr:
    """The same product with p - 1 written as -(1 - p), which SymPy turns round at will."""
    for factor in e.args if e.is_Mul else ():
        base, exponent = factor.as_base_exp()
        if base.is_Add and base.as_coeff_Add()[0].is_negative and exponent.is_odd:
            e = -(e / factor) * (-base) ** exponent
    return e


def _negative(e: sp.Expr) -> bool:
    return bool(e.as_coeff_Mul()[0].is_negative)


def per_person(model: Model) -> tuple[sp.Expr | None, dict[str, sp.Expr]]:
    """The force of infection (None where flows of infection share none) and each flow's rate per person of its source.

    Rates of infection are written with FORCE, unless flows leave with forces of their own, as of two strains; a flow
    from outside has its total.
    """
    rates = model.flow_rates()
    new = [flow for flow in model.flows if flow.new_infection and flow.source is not None]
    sources = {flow.source for flow in new}
    force: sp.Expr | None = None
    if len(sources) == 1:
        source = model.symbols[str(next(iter(sources)))]
        force = tidy(tidy(sum((rates[f.name] for f in new), sp.Integer(0)) / source), sp.factor)
    found = {
        flow.name: rates[flow.name] if flow.source is None else tidy(rates[flow.name] / model.symbols[flow.source])
        for flow in model.flows
    }
    if force is None:
        return None, found
    states = {model.symbols[name] for name in model.state_names}
    shares = {flow.name: tidy(found[flow.name] / force) for flow in new}
    if any(share.free_symbols & states for share in shares.values()):
        return None, found
    return force, found | {name: share * FORCE for name, share in shares.items()}


def equations(model: Model) -> dict[str, sp.Expr]:
    """Time derivative of each compartment, arranged as gains minus losses, with FORCE for the force of infection."""
    _, rates = per_person(model)
    found = {}
    for name in model.state_names:
        gains = [rates[f.name] * (model.symbols[f.source] if f.source else 1) for f in model.flows if f.target == name]
        loss = tidy(sum((rates[f.name] for f in model.flows if f.source == name), sp.Integer(0)))
        found[name] = sp.Add(*gains, sp.Mul(-1, loss, model.symbols[name]))
    return found


def abbreviated(
    model: Model, expressions: Mapping[str, sp.Expr | sp.Matrix]
) -> tuple[dict[str, sp.Expr | sp.Matrix], dict[sp.Symbol, sp.Expr]]:
    """The same expressions with a_X for the total rate of leaving infected compartment X, and what each a_X is."""
    from meningitis.symbolic.declared import infected_states
    from meningitis.symbolic.nextgen import infection_matrices

    _, V = infection_matrices(model)
    digits = [re.sub(r"\D", "", name) for name in infected_states(model)]
    rates: dict[sp.Symbol, sp.Expr] = {}
    for at, name in enumerate(infected_states(model)):
        if V[at, at].is_Add and not any(V[at, at] == other for other in rates.values()):
            label = digits[at] if digits[at] and digits.count(digits[at]) == 1 else name
            rates[sp.Symbol(f"a_{label}")] = V[at, at]
    swap = {expression: symbol for symbol, expression in rates.items()}
    short = {name: value.subs(swap) for name, value in expressions.items()}
    used = set().union(*(value.free_symbols for value in short.values()))
    return short, {symbol: value for symbol, value in rates.items() if symbol in used}
