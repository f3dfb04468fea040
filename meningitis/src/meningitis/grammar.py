"""The safe grammar of rates: text in, SymPy expression out, and nothing is ever evaluated.

    expression = term  { ("+" | "-") term }
    term       = unary { ("*" | "/") unary }
    unary      = [ "+" | "-" ] unary | power
    power      = atom [ ("^" | "**") unary ]
    atom       = number | name | function "(" expression { "," expression } ")" | "(" expression ")"

A name means what the caller's table says. `sympify` would read S, N, E, beta or lambda as its own objects; here they
are whatever the model declares, and a name that is declared nowhere is an error with the nearest one beside it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int | None]] = {
    "exp": (sympy.exp, 1),
    "log": (sympy.log, 1),
    "ln": (sympy.log, 1),
    "sqrt": (sympy.sqrt, 1),
    "abs": (sympy.Abs, 1),
    "sin": (sympy.sin, 1),
    "cos": (sympy.cos, 1),
    "min": (sympy.Min, None),
    "max": (sympy.Max, None),
}
"""Functions of the grammar, with their number of arguments (None: two or more)."""

CONSTANTS: Mapping[str, Any] = {"pi": sympy.pi}
"""Names with a value of their own, unless the caller's table gives them another."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<operator>\*\*|[-+*/^(),]))"
)
_MAX_DEPTH = 100
_MAX_LENGTH = 10_000
_MAX_EXPONENT = 100


class GrammarError(ValueError):
    """A rate that cannot be read. `position` counts characters from 0; `unknown` lists undeclared names."""

    def __init__(self, message: str, *, position: int, unknown: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.position = position
        self.unknown = unknown


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Say `, did you mean 'x'?` for the allowed name closest to `name`; nothing when none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def nearest_or_all(name: str, allowed: Iterable[str]) -> str:
    """The same, but where none is close say `; allowed are x, y` instead of nothing."""
    names = list(allowed)
    return nearest(name, names) or f"; allowed are {', '.join(names) or 'none'}"


def parse(text: str, symbols: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """Read `text` as an expression over `symbols`.

    Raises GrammarError for a syntax error (with its position) and for undeclared names (all of them at once).
    """
    if len(text) > _MAX_LENGTH:
        raise GrammarError(f"an expression may have {_MAX_LENGTH} characters, this one has {len(text)}", position=0)
    parser = _Parser(text=text, symbols=symbols, tokens=_tokenize(text))
    expression = parser.whole()
    if parser.unknown:
        first = min(parser.unknown.values())
        listed = "; ".join(f"'{name}'{nearest(name, symbols)}" for name in parser.unknown)
        raise GrammarError(f"undeclared name {listed}", position=first, unknown=tuple(parser.unknown))
    if expression.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        raise GrammarError(f"'{text}' divides by zero or is infinite", position=0)
    return expression


@dataclass(frozen=True, kw_only=True)
class _Token:
    kind: str
    text: str
    position: int


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            skipped = position + len(text[position:]) - len(text[position:].lstrip())
            raise GrammarError(f"unexpected character '{text[skipped]}' at {skipped} in '{text}'", position=skipped)
        kind = match.lastgroup
        tokens.append(_Token(kind=kind, text=match.group(kind), position=match.start(kind)))
        position = match.end()
    tokens.append(_Token(kind="end", text="the end", position=end))
    return tokens


@dataclass(kw_only=True)
class _Parser:
    text: str
    symbols: Mapping[str, sympy.Expr]
    tokens: list[_Token]
    at: int = 0
    depth: int = 0
    unknown: dict[str, int] = field(default_factory=dict)

    def whole(self) -> sympy.Expr:
        expression = self.expression()
        if self.tokens[self.at].kind != "end":
            raise self.unexpected("an operator")
        return expression

    def unexpected(self, wanted: str) -> GrammarError:
        token = self.tokens[self.at]
        return GrammarError(
            f"expected {wanted} but found '{token.text}' at {token.position} in '{self.text}'", position=token.position
        )

    def take(self, *operators: str) -> str | None:
        token = self.tokens[self.at]
        if token.kind == "operator" and token.text in operators:
            self.at += 1
            return token.text
        return None

    def expect(self, operator: str) -> None:
        if self.take(operator) is None:
            raise self.unexpected(f"'{operator}'")

    def expression(self) -> sympy.Expr:
        total = self.term()
        while operator := self.take("+", "-"):
            right = self.term()
            total = total + right if operator == "+" else total - right
        return total

    def term(self) -> sympy.Expr:
        product = self.unary()
        while operator := self.take("*", "/"):
            right = self.unary()
            product = product * right if operator == "*" else product / right
        return product

    def unary(self) -> sympy.Expr:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise GrammarError(f"more than {_MAX_DEPTH} nested parts", position=self.tokens[self.at].position)
        operator = self.take("+", "-")
        value = self.power() if operator is None else self.unary()
        self.depth -= 1
        return -value if operator == "-" else value

    def power(self) -> sympy.Expr:
        base = self.atom()
        where = self.tokens[self.at].position
        if self.take("^", "**") is None:
            return base
        exponent = self.unary()
        # Numbers are computed as they are read: 9^9^9 would never come back.
        if exponent.is_number and (not exponent.is_real or abs(exponent) > _MAX_EXPONENT):
            raise GrammarError(f"an exponent may be {_MAX_EXPONENT} at most", position=where)
        return base**exponent

    def atom(self) -> sympy.Expr:
        token = self.tokens[self.at]
        if self.take("("):
            inner = self.expression()
            self.expect(")")
            return inner
        if token.kind == "number":
            self.at += 1
            return _number(token)
        if token.kind == "name":
            self.at += 1
            return self.named(token)
        raise self.unexpected("a number, a name or '('")

    def named(self, token: _Token) -> sympy.Expr:
        if token.text in self.symbols:
            return self.symbols[token.text]
        if token.text in FUNCTIONS and self.take("("):
            return self.call(token)
        if token.text in CONSTANTS:
            return CONSTANTS[token.text]
        self.unknown.setdefault(token.text, token.position)
        return sympy.Dummy(token.text, positive=True)

    def call(self, token: _Token) -> sympy.Expr:
        function, arity = FUNCTIONS[token.text]
        arguments = [self.expression()]
        while self.take(","):
            arguments.append(self.expression())
        self.expect(")")
        if len(arguments) != arity if arity is not None else len(arguments) < 2:
            wanted = "two or more arguments" if arity is None else "one argument"
            raise GrammarError(f"{token.text}() takes {wanted}, not {len(arguments)}", position=token.position)
        return function(*arguments)


def _number(token: _Token) -> sympy.Expr:
    if re.fullmatch(r"\d+", token.text):
        return sympy.Integer(token.text)
    value = float(token.text)
    if value == float("inf"):
        raise GrammarError(f"the number {token.text} is too large", position=token.position)
    return sympy.Float(value)
