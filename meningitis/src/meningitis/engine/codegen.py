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

from meningitis.engine.kinks import kinks
from meningitis.engine.system import System
from meningitis.engine.tableau import ERROR, INTERPOLANT, A, C
from meningitis.engine.template import FIRST_STOP, STOPS, TEMPLATE

LANES = 8
"""Trajectories that advance together."""

TASK = 512
"""Trajectories that the lanes of one task share, at most: many, so that few lanes wait for a task's last."""

SHARES = 16
"""Large sweeps are cut into a multiple of this many equal tasks, so that 2, 4, 8 or 16 threads get equal work."""

SCALARS = ("TIME", "AFTER", "STEP", "NEXT", "DUE", "PAST", "ROOM", "ERROR", "LOW", "ACTIVE", "TRIES", "TAKEN", "EVENT")
"""Rows of one number: start and end of the step, its size and the next one's, the next output time, the last error's
part in the next step and how far that may grow (both as powers of two), the error, the lowest state, and whether the
lane is in use, its attempts, whether the step was taken, whether something rare follows from it."""


STOPPING = ("STOP", "STOPPED")
"""Rows of one number where rates have corners: the time of the next one, and how many are past."""


class _Printer(PythonCodePrinter):
    """Numbers as doubles with all their digits; names are replaced before printing."""

    def _print_Float(self, expression: sympy.Float) -> str:
        return repr(float(expression))

    def _print_Rational(self, expression: sympy.Rational) -> str:
        return repr(float(expression))

    def _print_Pi(self, expression: Any) -> str:
        return repr(float(expression))


class _Fused(_Printer):
    """Sums of products as fused multiply-adds: half the instructions, and one rounding instead of two."""

    def _print_Add(self, expression: sympy.Expr, order: str | None = None) -> str:
        terms = self._as_ordered_terms(expression, order=order)
        first = next((term for term in terms if not term.is_Mul), terms[0])
        text = self._print(first)
        for term in terms:
            if term is first:
                continue
            number, rest = term.as_coeff_Mul()
            factor, *others = sympy.Mul.make_args(rest) if number in (1, -1) else (number, rest)
            sign = "-" if number == -1 else ""
            if others:
                text = f"fma({sign}({self._print(factor)}), {self._print(sympy.Mul(*others))}, {text})"
            else:
                text = f"({text} {sign or '+'} ({self._print(factor)}))"
        return text


@dataclass(kw_only=True)
class _Hoist:
    """Moves what depends on parameters alone out of the right-hand side, to be computed once per lane."""

    constant: frozenset[sympy.Symbol]
    found: dict[sympy.Expr, sympy.Symbol] = field(default_factory=dict)

    def __call__(self, expression: sympy.Expr) -> sympy.Expr:
        if not expression.args:
            return expression
        if expression.free_symbols <= self.constant:
            return self.name(expression)
        if expression.is_Add:
            weights: dict[sympy.Expr, list[sympy.Expr]] = {}
            for term in expression.args:
                fixed, rest = self.split(term)
                weights.setdefault(rest, []).append(fixed)
            return sympy.Add(*(self.name(sympy.Add(*fixed)) * self(rest) for rest, fixed in weights.items()))
        if expression.is_Mul:
            fixed, rest = self.split(expression)
            factors = rest.args if rest.is_Mul else (rest,)
            return sympy.Mul(self.name(fixed), *(self(a) for a in factors))
        return expression.func(*(self(a) for a in expression.args))

    def split(self, expression: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        """Return the factor of parameters and numbers, and the factor of everything else."""
        factors = sympy.Mul.make_args(expression)
        fixed = [a for a in factors if a.free_symbols <= self.constant]
        return sympy.Mul(*fixed), sympy.Mul(*(a for a in factors if a not in fixed))

    def name(self, expression: sympy.Expr) -> sympy.Symbol:
        if not expression.free_symbols or expression.is_Symbol:
            return expression
        return self.found.setdefault(expression, sympy.Symbol(f"q{len(self.found)}", real=True))


def generate(system: System, lanes: int = LANES, *, parallel: bool = True) -> str:
    """Return the source of a module with `solve(...)` for `system`; the text is the same on every machine.

    Its tasks are shared by threads, or done one after the other without any: to the same bits.
    """
    states, parameters = system.states, system.parameters
    renamed: dict[sympy.Symbol, sympy.Symbol] = {system.time: sympy.Symbol("t", real=True)}
    renamed |= {s: sympy.Symbol(f"y{i}", real=True) for i, s in enumerate(states)}
    renamed |= {s: sympy.Symbol(f"p{i}", real=True) for i, s in enumerate(parameters)}
    plain = [expression.xreplace(renamed) for expression in (*system.rhs, *system.integrands)]
    hoist = _Hoist(constant=frozenset(renamed[s] for s in parameters))
    slots, signs = _slots(plain, system.watched)
    body = _Body(
        slopes=[hoist(plain[slots.index(slot)]) for slot in range(max(slots) + 1)],
        slots=slots,
        signs=signs,
        initial=[expression.xreplace(renamed) for expression in system.initial],
        hoisted=hoist.found,
        parameters=len(parameters),
        watched=system.watched,
        nonnegative=system.nonnegative,
        lanes=lanes,
        stopping=bool(kinks(system).times),
    )
    parts = {
        "LANES": lanes,
        "TASK": TASK,
        "SHARES": SHARES,
        "STATES": len(states),
        "COMPONENTS": body.components,
        "SLOPES": len(body.slopes),
        "SLOTS": f"({''.join(f'{slot}, ' for slot in slots)})",
        "PARAMETERS": len(parameters),
        "WATCHED": f"({''.join(f'{at}, ' for at in system.watched)})" if system.watched else "(0,)",
        "WATCHES": len(system.watched),
        "NONNEGATIVE": system.nonnegative,
        "THREADS": "parallel=True, " if parallel else "",
        "RANGE": "prange" if parallel else "range",
        "rows": body.rows(),
        "start": body.start(),
        "stages": body.stages(),
        "error": body.error(),
        "SHARE": 1 / body.components,
        "commit": body.commit(),
        "interpolate": body.interpolate(),
        "peak": body.peak(),
        "first_stop": FIRST_STOP if body.stopping else "",
        "stops": STOPS if body.stopping else "",
    }
    text = TEMPLATE
    for name, value in parts.items():
        text = text.replace(f"<<{name}>>", str(value))
    return text


def _slots(rhs: Sequence[sympy.Expr], watched: Sequence[int]) -> tuple[list[int], list[int]]:
    """Components whose slopes are equal, or opposite, share a slot: deaths so far and the dead, for instance.

    Returns each component's slot and its sign (1 or -1) there. Watched components keep their own.
    """
    slots: list[int] = []
    signs: list[int] = []
    for m, expression in enumerate(rhs):
        same = [j for j in range(m) if m not in watched and signs[j] == 1 and rhs[j] in (expression, -expression)]
        slots.append(slots[same[0]] if same else max(slots, default=-1) + 1)
        signs.append(1 if not same or rhs[same[0]] == expression else -1)
    return slots, signs


@dataclass(frozen=True, kw_only=True)
class _Body:
    """The lines that differ from system to system."""

    slopes: Sequence[sympy.Expr]
    slots: Sequence[int]
    signs: Sequence[int]
    initial: Sequence[sympy.Expr]
    hoisted: dict[sympy.Expr, sympy.Symbol]
    parameters: int
    watched: Sequence[int]
    nonnegative: bool
    lanes: int
    stopping: bool

    @property
    def components(self) -> int:
        return len(self.slots)

    @cached_property
    def used(self) -> set[str]:
        return {symbol.name for expression in self.slopes for symbol in expression.free_symbols}

    def rows(self) -> str:
        """Assign the first row of each group, and the number of rows."""
        m, k = self.components, len(self.slopes)
        sizes = {"NEW": m, "K": 7 * k, "AT": m, "P": self.parameters, "HOISTED": len(self.hoisted)}
        sizes |= dict.fromkeys((*SCALARS, *(STOPPING if self.stopping else ())), 1)
        sizes |= {"PEAK": 2 * len(self.watched)}
        starts = accumulate(sizes.values(), initial=0)
        return "\n".join(f"{name} = {start}" for name, start in zip((*sizes, "ROWS"), starts, strict=True))

    def slope(self, stage: int) -> list[str]:
        """Assign k<stage>_<slot> from y0, y1, ..., p, q and t."""
        common, reduced = sympy.cse(list(self.slopes), symbols=sympy.numbered_symbols("x", real=True))
        lines = [f"{name} = {_fused(expression)}" for name, expression in common]
        return lines + [f"k{stage}_{k} = {_fused(expression)}" for k, expression in enumerate(reduced)]

    def moved(self, target: str, m: int, step: str, change: str, origin: str) -> str:
        """Assign to `target` what component m is after a step along a slope that its slot's sign may turn round."""
        sign = "-" if self.signs[m] < 0 else ""
        return f"{target} = fma({sign}{step}, {change}{self.slots[m]}, {origin})"

    def start(self) -> str:
        lines = [f"p{i} = {_at('P', i)}" for i in range(self.parameters)]
        lines += [f"q{i} = {printed(expression)}" for i, expression in enumerate(self.hoisted)]
        lines += [f"{_at('HOISTED', i)} = q{i}" for i in range(len(self.hoisted))]
        lines += [f"y{m} = {printed(expression)}" for m, expression in enumerate(self.initial)]
        lines += [f"{_at('NEW', m)} = {f'y{m}' if m < len(self.initial) else 0.0}" for m in range(self.components)]
        lines += ["t = 0.0", *self.slope(0)]
        lines += [f"{_at('K6', k)} = k0_{k}" for k in range(len(self.slopes))]
        return _indented(lines, 4)

    def stages(self) -> str:
        """From state z and slope k0 to the slopes k1 ... k6 and the state n at the end of the step."""
        lines = [f"p{i} = {_at('P', i)}" for i in range(self.parameters) if f"p{i}" in self.used]
        lines += [f"q{i} = {_at('HOISTED', i)}" for i in range(len(self.hoisted))]
        for m in range(self.components):
            lines.append(f"z{m} = {_at('NEW', m)}")
        for k in range(len(self.slopes)):
            lines += [f"k0_{k} = {_at('K6', k)}", f"{_at('K', k)} = k0_{k}"]
        lines += self.gathered(0)
        for stage in range(1, 7):
            if "t" in self.used:
                lines.append(f"t = fma({C[stage]!r}, h, t0)")
            needed = [m for m in range(self.components) if f"y{m}" in self.used or stage == 6]
            lines += [f"s{k} = {_sum(A[stage], k)}" for k in sorted(self.driving)]
            lines += [self.moved(f"y{m}", m, "h", "s", f"z{m}") for m in needed]
            lines += [f"n{m} = y{m}" for m in needed if stage == 6]
            lines += self.slope(stage)
            lines += self.gathered(stage)
            if stage < 6:
                lines += [f"{_at('K', k, stage)} = k{stage}_{k}" for k in range(len(self.slopes))]
        return _indented(lines, 8)

    @cached_property
    def driving(self) -> set[int]:
        """Slots of the components that slopes depend on."""
        return {slot for m, slot in enumerate(self.slots) if f"y{m}" in self.used}

    def gathered(self, stage: int) -> list[str]:
        """Add stage k<stage> to the sums that are needed only at the end, while it is still in a register."""
        lines = [_added(f"d{k}", ERROR[stage], f"k{stage}_{k}", stage == 0) for k in range(len(self.slopes))]
        if stage < 6:
            rest = (k for k in range(len(self.slopes)) if k not in self.driving)
            lines += [_added(f"s{k}", A[6][stage], f"k{stage}_{k}", stage == 0) for k in rest]
        return lines

    def error(self) -> str:
        lines = [f"c{m} = fma(rtol, max(abs(z{m}), abs(n{m})), atol)" for m in range(self.components)]
        for m in range(0, self.components - 1, 2):  # divisions are slow: two components share one
            lines.append(f"r = 1.0 / (c{m} * c{m + 1})")
            lines.append(f"r0 = (d{self.slots[m]} * c{m + 1}) * r")
            lines.append(f"r1 = (d{self.slots[m + 1]} * c{m}) * r")
            lines.append("e = fma(r1, r1, fma(r0, r0, e))")
        if self.components % 2:
            lines.append(f"r = d{self.slots[-1]} / c{self.components - 1}")
            lines.append("e = fma(r, r, e)")
        if self.nonnegative:
            lines += [f"low = min(low, n{m})" for m in range(len(self.initial))]
        return _indented(lines, 8)

    def commit(self) -> str:
        """Where the next step starts, and whether a watched component turns from rising to falling within this one."""
        lines = [f"{_at('NEW', m)} = n{m} if good else z{m}" for m in range(self.components)]
        lines += [f"{_at('K6', k)} = k6_{k} if good else k0_{k}" for k in range(len(self.slopes))]
        for m in self.watched:
            k = self.slots[m]
            lines.append(f"event = event | (taken & (k0_{k} > 0.0) & (k6_{k} <= 0.0))")
        return _indented(lines, 8)

    def interpolate(self) -> str:
        lines = []
        for i, ((r1, r2, r3, r4), whole) in enumerate(zip(INTERPOLANT, (*A[6], 0.0), strict=True)):
            inner = f"fma(x, fma(x, {r4!r}, {r3!r}), {r2!r})"
            part = f"x * fma(x, {inner}, {r1!r})" if r1 else f"xx * {inner}"
            lines.append(f"w{i} = h * ({part} - {whole!r})")
        for k in range(len(self.slopes)):
            text = f"w0 * {_at('K', k)}"
            for i in range(1, 7):
                text = f"fma(w{i}, {_at('K', k, i)}, {text})"
            lines.append(f"s{k} = {text}")
        for m in range(self.components):
            lines.append(f"{_at('AT', m)} = {_at('NEW', m)} {'+' if self.signs[m] > 0 else '-'} s{self.slots[m]}")
        return _indented(lines, 8)

    def peak(self) -> str:
        """Coefficients c0 ... c3 of the slope of component m over the position in the step."""
        lines = [f"k{i} = b[(K + {i} * D + SLOTS[m]) * W + l]" for i in range(7)]
        for power in range(4):
            terms = [f"{(power + 1) * row[power]!r} * k{i}" for i, row in enumerate(INTERPOLANT) if row[power]]
            lines.append(f"c{power} = {' + '.join(terms)}")
        return _indented(lines, 4)


def _at(group: str, offset: int, stage: int = 0) -> str:
    first = f"{group} + {stage} * D" if stage else group
    return f"b[({first} + {offset}) * W + l]"


def _sum(weights: Sequence[float], k: int) -> str:
    """The weighted sum of the slopes of slot k, the latest added last, for it is known last."""
    text = f"{weights[0]!r} * k0_{k}"
    for i, weight in enumerate(weights[1:], start=1):
        text = f"fma({weight!r}, k{i}_{k}, {text})"
    return text


def _added(target: str, weight: float, term: str, first: bool) -> str:
    return f"{target} = {weight!r} * {term}" if first else f"{target} = fma({weight!r}, {term}, {target})"


def _indented(lines: Iterable[str], indent: int) -> str:
    return "\n".join(" " * indent + line for line in lines)


def printed(expression: sympy.Expr, names: Mapping[sympy.Symbol, str] | None = None) -> str:
    """The expression as Python source, with symbols written as `names` says."""
    renamed = {symbol: sympy.Symbol(name, real=True) for symbol, name in (names or {}).items()}
    return str(_Printer({"fully_qualified_modules": True}).doprint(sympy.sympify(expression).xreplace(renamed)))


def _fused(expression: sympy.Expr) -> str:
    return str(_Fused({"fully_qualified_modules": True}).doprint(expression))
