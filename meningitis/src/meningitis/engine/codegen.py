"""From a system of expressions to the source of its kernel: lanes in lockstep, stages unrolled.

Everything of W lanes lies in one flat array `b`: row r, lane l is b[r * W + l], with constant rows, so that the
compiler sees that rows never overlap and turns a loop over the lanes into vector instructions. A whole step is one such
loop, without a branch. Shape legend: W lanes, M components (states, then integrals), T output times, Q watched states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import sympy
from sympy.printing.pycode import PythonCodePrinter

from meningitis.engine.system import System
from meningitis.engine.tableau import ERROR, INTERPOLANT, A, C
from meningitis.engine.template import TEMPLATE

LANES = 8
"""Trajectories that advance together."""

TASK = 128
"""Trajectories that the lanes of one task share."""

SCALARS = ("TIME", "AFTER", "STEP", "NEXT", "DUE", "PAST", "ERROR", "LOW", "ACTIVE", "TRIES", "TAKEN", "EVENT")
"""Rows of one number: start and end of the step, its size and the next one's, the next output time, the last error's
root, the error, the lowest state, and whether the lane is in use, its attempts, whether the step was taken, whether
something rare follows from it."""


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
    body = _Body(
        rhs=[hoist(expression) for expression in plain],
        initial=[expression.xreplace(renamed) for expression in system.initial],
        hoisted=hoist.found,
        parameters=len(parameters),
        watched=system.watched,
        nonnegative=system.nonnegative,
        lanes=lanes,
    )
    parts = {
        "LANES": lanes,
        "TASK": TASK,
        "STATES": len(states),
        "COMPONENTS": body.components,
        "PARAMETERS": len(parameters),
        "WATCHED": f"({''.join(f'{at}, ' for at in system.watched)})" if system.watched else "(0,)",
        "WATCHES": len(system.watched),
        "NONNEGATIVE": system.nonnegative,
        "rows": body.rows(),
        "start": body.start(),
        "stages": body.stages(),
        "error": body.error(),
        "SHARE": 1 / body.components,
        "commit": body.commit(),
        "interpolate": body.interpolate(),
        "peak": body.peak(),
    }
    text = TEMPLATE
    for name, value in parts.items():
        text = text.replace(f"<<{name}>>", str(value))
    return text


@dataclass(frozen=True, kw_only=True)
class _Body:
    """The lines that differ from system to system."""

    rhs: Sequence[sympy.Expr]
    initial: Sequence[sympy.Expr]
    hoisted: dict[sympy.Expr, sympy.Symbol]
    parameters: int
    watched: Sequence[int]
    nonnegative: bool
    lanes: int

    @property
    def components(self) -> int:
        return len(self.rhs)

    @cached_property
    def used(self) -> set[str]:
        return {symbol.name for expression in self.rhs for symbol in expression.free_symbols}

    def rows(self) -> str:
        """Assign the first row of each group, and the number of rows."""
        m = self.components
        sizes = {"Y": m, "NEW": m, "K": 7 * m, "AT": m, "P": self.parameters, "HOISTED": len(self.hoisted)}
        sizes |= dict.fromkeys(SCALARS, 1) | {"PEAK": 2 * len(self.watched)}
        starts = accumulate(sizes.values(), initial=0)
        return "\n".join(f"{name} = {start}" for name, start in zip((*sizes, "ROWS"), starts, strict=True))

    def slopes(self, stage: int) -> list[str]:
        """Assign k<stage>_<m> from y0, y1, ..., p, q and t."""
        common, reduced = sympy.cse(list(self.rhs), symbols=sympy.numbered_symbols("x", real=True))
        lines = [f"{name} = {printed(expression)}" for name, expression in common]
        return lines + [f"k{stage}_{m} = {printed(expression)}" for m, expression in enumerate(reduced)]

    def start(self) -> str:
        lines = [f"p{i} = {_at('P', i)}" for i in range(self.parameters)]
        lines += [f"q{i} = {printed(expression)}" for i, expression in enumerate(self.hoisted)]
        lines += [f"{_at('HOISTED', i)} = q{i}" for i in range(len(self.hoisted))]
        lines += [f"y{m} = {printed(expression)}" for m, expression in enumerate(self.initial)]
        lines += [f"{_at('NEW', m)} = {f'y{m}' if m < len(self.initial) else 0.0}" for m in range(self.components)]
        lines += ["t = 0.0", *self.slopes(0)]
        lines += [f"{_at('K6', m)} = k0_{m}" for m in range(self.components)]
        return _indented(lines, 4)

    def stages(self) -> str:
        """From state z and slope k0 to the slopes k1 ... k6 and the state n at the end of the step."""
        lines = [f"p{i} = {_at('P', i)}" for i in range(self.parameters) if f"p{i}" in self.used]
        lines += [f"q{i} = {_at('HOISTED', i)}" for i in range(len(self.hoisted))]
        for m in range(self.components):
            lines += [f"z{m} = {_at('NEW', m)}", f"{_at('Y', m)} = z{m}"]
            lines += [f"k0_{m} = {_at('K6', m)}", f"{_at('K', m)} = k0_{m}"]
        for stage in range(1, 7):
            if "t" in self.used:
                lines.append(f"t = t0 + {C[stage]!r} * h")
            for m in range(self.components):
                name = f"y{m}"
                if name in self.used or stage == 6:
                    lines.append(f"{name} = z{m} + h * ({_sum(A[stage], m)})")
                if stage == 6:
                    lines.append(f"n{m} = {name}")
            lines += self.slopes(stage)
            if stage < 6:
                lines += [f"{_at('K', m, stage)} = k{stage}_{m}" for m in range(self.components)]
        return _indented(lines, 8)

    def error(self) -> str:
        lines = []
        for m in range(self.components):
            lines.append(f"r = ({_sum(ERROR, m)}) / (atol + rtol * max(abs(z{m}), abs(n{m})))")
            lines.append("e = e + r * r")
        if self.nonnegative:
            lines += [f"low = min(low, n{m})" for m in range(len(self.initial))]
        return _indented(lines, 8)

    def commit(self) -> str:
        """Where the next step starts, and what is watched: the highest value so far, and whether one lies within."""
        lines = []
        for m in range(self.components):
            lines.append(f"{_at('NEW', m)} = n{m} if good else z{m}")
            lines.append(f"{_at('K6', m)} = k6_{m} if good else k0_{m}")
        for q, m in enumerate(self.watched):
            value, day = _at("PEAK", 2 * q), _at("PEAK", 2 * q + 1)
            lines.append(f"event = event | (taken & (k0_{m} > 0.0) & (k6_{m} <= 0.0))")
            lines.append(f"higher = taken & (n{m} > {value})")
            lines.append(f"{value} = n{m} if higher else {value}")
            lines.append(f"{day} = after if higher else {day}")
        return _indented(lines, 8)

    def interpolate(self) -> str:
        lines = []
        for i, (r1, r2, r3, r4) in enumerate(INTERPOLANT):
            lines.append(f"w{i} = h * (x * ({r1!r} + x * ({r2!r} + x * ({r3!r} + x * {r4!r}))))")
        for m in range(self.components):
            terms = [f"w{i} * {_at('K', m, i)}" for i in range(7)]
            lines.append(f"{_at('AT', m)} = {_at('Y', m)} + ({' + '.join(terms)})")
        return _indented(lines, 8)

    def peak(self) -> str:
        """Coefficients c0 ... c3 of the slope of component m over the position in the step."""
        lines = [f"k{i} = b[(K + {i} * M + m) * W + l]" for i in range(7)]
        for power in range(4):
            terms = [f"{(power + 1) * row[power]!r} * k{i}" for i, row in enumerate(INTERPOLANT) if row[power]]
            lines.append(f"c{power} = {' + '.join(terms)}")
        return _indented(lines, 4)


def _at(group: str, offset: int, stage: int = 0) -> str:
    first = f"{group} + {stage} * M" if stage else group
    return f"b[({first} + {offset}) * W + l]"


def _sum(weights: Sequence[float], m: int) -> str:
    return " + ".join(f"{weight!r} * k{i}_{m}" for i, weight in enumerate(weights))


def _indented(lines: Iterable[str], indent: int) -> str:
    return "\n".join(" " * indent + line for line in lines)


def printed(expression: sympy.Expr, names: Mapping[sympy.Symbol, str] | None = None) -> str:
    """The expression as Python source, with symbols written as `names` says."""
    renamed = {symbol: sympy.Symbol(name, real=True) for symbol, name in (names or {}).items()}
    return str(_Printer({"fully_qualified_modules": True}).doprint(sympy.sympify(expression).xreplace(renamed)))
