"""From a system of expressions to the source of its kernel: lanes in lockstep, stages unrolled.

Everything of a block lies in one flat array `b`: row r, lane l is b[r * W + l], with constant rows, so that the
compiler sees that rows never overlap and turns each lane loop into vector instructions. Shape legend: W lanes,
M components (states, then integrals), P parameters, T output times, Q watched states, n sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
from sympy.printing.pycode import PythonCodePrinter

from meningitis.engine.system import System
from meningitis.engine.tableau import ERROR, INTERPOLANT, A, C
from meningitis.engine.template import TEMPLATE

LANES = 8
"""Trajectories per block."""


class _Printer(PythonCodePrinter):
    """Numbers as doubles with all their digits; names are replaced before printing."""

    def _print_Float(self, expression: sympy.Float) -> str:
        return repr(float(expression))

    def _print_Rational(self, expression: sympy.Rational) -> str:
        return repr(float(expression))

    def _print_Pi(self, expression: Any) -> str:
        return repr(float(expression))


@dataclass(kw_only=True)
class _Hoist:
    """Moves what depends on parameters alone out of the right-hand side, to be computed once per lane."""

    constant: frozenset[sympy.Symbol]
    found: dict[sympy.Expr, sympy.Symbol] = field(default_factory=dict)

    def __call__(self, expression: sympy.Expr) -> sympy.Expr:
        if not expression.args:
            return expression
        if expression.free_symbols <= self.constant:
            return self.name(expression) if expression.free_symbols else expression
        if expression.is_Mul or expression.is_Add:
            fixed = [a for a in expression.args if a.free_symbols <= self.constant]
            rest = [self(a) for a in expression.args if a not in fixed]
            if len(fixed) > 1:
                return expression.func(self.name(expression.func(*fixed)), *rest)
            return expression.func(*(self(a) for a in fixed), *rest)
        return expression.func(*(self(a) for a in expression.args))

    def name(self, expression: sympy.Expr) -> sympy.Symbol:
        if not expression.free_symbols or expression.is_Symbol:
            return expression
        return self.found.setdefault(expression, sympy.Symbol(f"q{len(self.found)}", real=True))


def generate(system: System, lanes: int = LANES) -> str:
    """Return the source of a module with `solve(...)` for `system`; the text is the same on every machine."""
    states, parameters = system.states, system.parameters
    renamed: dict[sympy.Symbol, sympy.Symbol] = {system.time: sympy.Symbol("t", real=True)}
    renamed |= {s: sympy.Symbol(f"y{i}", real=True) for i, s in enumerate(states)}
    renamed |= {s: sympy.Symbol(f"p{i}", real=True) for i, s in enumerate(parameters)}
    plain = [expression.xreplace(renamed) for expression in (*system.rhs, *system.integrands)]
    hoist = _Hoist(constant=frozenset(renamed[s] for s in parameters))
    rhs = [hoist(expression) for expression in plain]
    rows = _Rows(states=len(states), components=len(rhs), parameters=len(parameters), hoisted=len(hoist.found))
    used = {symbol.name for expression in rhs for symbol in expression.free_symbols}
    body = _Body(rows=rows, used=used, rhs=rhs, lanes=lanes)
    parts = {
        "LANES": lanes,
        "STATES": rows.states,
        "COMPONENTS": rows.components,
        "PARAMETERS": rows.parameters,
        "ROWS": rows.total,
        "Y": rows.y,
        "NEW": rows.new,
        "K": rows.k,
        "P": rows.p,
        "TIME": rows.time,
        "STEP": rows.step,
        "ERROR": rows.error,
        "NONNEGATIVE": system.nonnegative,
        "WATCHED": f"({''.join(f'{at}, ' for at in system.watched)})" if system.watched else "(0,)",
        "WATCHES": len(system.watched),
        "start": body.start([e.xreplace(renamed) for e in system.initial], hoist.found),
        "first": body.stage(0),
        "stages": "\n".join(body.stage(at) for at in range(1, 7)),
        "error": body.error(),
        "accept": body.accept(),
        "weights": body.weights(),
        "slopes": body.slopes(),
        "combine": " + ".join(f"w{i} * b[(K + {i * rows.components} + m) * W + l]" for i in range(7)),
        "slope": " + ".join(f"w{i} * b[(K + {i * rows.components} + m) * W + l]" for i in range(7)),
    }
    text = TEMPLATE
    for name, value in parts.items():
        text = text.replace(f"<<{name}>>", str(value))
    return text


@dataclass(frozen=True, kw_only=True)
class _Rows:
    states: int
    components: int
    parameters: int
    hoisted: int
    y: int = 0

    @property
    def new(self) -> int:
        return self.components

    @property
    def k(self) -> int:
        return 2 * self.components

    @property
    def p(self) -> int:
        return 9 * self.components

    @property
    def q(self) -> int:
        return self.p + self.parameters

    @property
    def time(self) -> int:
        return self.q + self.hoisted

    @property
    def step(self) -> int:
        return self.time + 1

    @property
    def error(self) -> int:
        return self.time + 2

    @property
    def total(self) -> int:
        return self.time + 3


@dataclass(frozen=True, kw_only=True)
class _Body:
    rows: _Rows
    used: set[str]
    rhs: Sequence[sympy.Expr]
    lanes: int

    def at(self, row: int) -> str:
        return f"b[{row * self.lanes} + l]"

    def loop(self, lines: Iterable[str], indent: int) -> str:
        pad = " " * indent
        return "\n".join([f"{pad}for l in range({self.lanes}):", *(f"{pad}    {line}" for line in lines)])

    def loads(self) -> list[str]:
        lines = [f"p{i} = {self.at(self.rows.p + i)}" for i in range(self.rows.parameters) if f"p{i}" in self.used]
        return lines + [f"q{i} = {self.at(self.rows.q + i)}" for i in range(self.rows.hoisted)]

    def evaluate(self, stage: int) -> list[str]:
        """Assign k of `stage` from y0, y1, ..., p, q and t."""
        common, reduced = sympy.cse(list(self.rhs), symbols=sympy.numbered_symbols("x", real=True))
        lines = [f"{name} = {_text(expression)}" for name, expression in common]
        first = self.rows.k + stage * self.rows.components
        return lines + [f"{self.at(first + m)} = {_text(e)}" for m, e in enumerate(reduced)]

    def combination(self, weights: Sequence[float], m: int) -> str:
        terms = [f"{w!r} * {self.at(self.rows.k + i * self.rows.components + m)}" for i, w in enumerate(weights)]
        return " + ".join(terms)

    def start(self, initial: Sequence[sympy.Expr], hoisted: dict[sympy.Expr, sympy.Symbol]) -> str:
        lines = [f"p{i} = {self.at(self.rows.p + i)}" for i in range(self.rows.parameters)]
        lines += [f"{self.at(m)} = {_text(e)}" for m, e in enumerate(initial)]
        lines += [f"{self.at(m)} = 0.0" for m in range(len(initial), self.rows.components)]
        lines += [f"{self.at(self.rows.q + i)} = {_text(e)}" for i, e in enumerate(hoisted)]
        return self.loop(lines, 4)

    def stage(self, stage: int) -> str:
        lines = self.loads()
        h = self.at(self.rows.step)
        if "t" in self.used:
            lines.append(f"t = {self.at(self.rows.time)} + {C[stage]!r} * {h}")
        for m in range(self.rows.components):
            name = f"y{m}"
            if stage == 6:  # the solution itself, wanted for every component
                lines.append(f"{name} = {self.at(m)} + {h} * ({self.combination(A[stage], m)})")
                lines.append(f"{self.at(self.rows.new + m)} = {name}")
            elif name in self.used:
                move = f" + {h} * ({self.combination(A[stage], m)})" if stage else ""
                lines.append(f"{name} = {self.at(m)}{move}")
        return self.loop(lines + self.evaluate(stage), 8 if stage else 4)

    def error(self) -> str:
        lines = ["total = 0.0"]
        for m in range(self.rows.components):
            scale = f"atol + rtol * max(abs({self.at(m)}), abs({self.at(self.rows.new + m)}))"
            lines.append(f"e = {self.at(self.rows.step)} * ({self.combination(ERROR, m)}) / ({scale})")
            lines.append("total += e * e")
        lines.append(f"{self.at(self.rows.error)} = total * {1 / self.rows.components!r}")
        return self.loop(lines, 8)

    def accept(self) -> str:
        last = self.rows.k + 6 * self.rows.components
        lines = ["keep = accepted[l]"]
        for m in range(self.rows.components):
            lines.append(f"{self.at(m)} = {self.at(self.rows.new + m)} if keep else {self.at(m)}")
            lines.append(f"{self.at(self.rows.k + m)} = {self.at(last + m)} if keep else {self.at(self.rows.k + m)}")
        return self.loop(lines, 8)

    def weights(self) -> str:
        lines = []
        for i, (r1, r2, r3, r4) in enumerate(INTERPOLANT):
            lines.append(f"    w{i} = x * ({r1!r} + x * ({r2!r} + x * ({r3!r} + x * {r4!r})))")
        return "\n".join(lines)

    def slopes(self) -> str:
        lines = []
        for i, (r1, r2, r3, r4) in enumerate(INTERPOLANT):
            lines.append(f"    w{i} = {r1!r} + x * ({2 * r2!r} + x * ({3 * r3!r} + x * {4 * r4!r}))")
        return "\n".join(lines)


def _text(expression: sympy.Expr) -> str:
    return str(_Printer({"fully_qualified_modules": True}).doprint(sympy.sympify(expression)))
