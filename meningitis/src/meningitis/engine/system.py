"""A system of ordinary differential equations as expressions: what the code generator and scipy read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from meningitis.model import CUMULATIVE, TIME, Model


@dataclass(frozen=True, kw_only=True)
class System:
    """Right-hand sides, integrands and initial values over symbols for time, states and parameters.

    `nonnegative` refuses states below -10 atol; `watched` are positions of states whose maxima are followed.
    """

    time: sympy.Symbol
    states: tuple[sympy.Symbol, ...]
    parameters: tuple[sympy.Symbol, ...]
    rhs: tuple[sympy.Expr, ...]
    integrands: tuple[sympy.Expr, ...] = ()
    initial: tuple[sympy.Expr, ...]
    nonnegative: bool = False
    watched: tuple[int, ...] = ()


def of_model(model: Model) -> System:
    """The system of a declared model: its compartments, then its cumulative integrals."""
    symbols = model.symbols
    return System(
        time=symbols[TIME],
        states=tuple(symbols[name] for name in model.state_names),
        parameters=tuple(symbols[name] for name in model.parameter_names),
        rhs=tuple(model.rhs().values()),
        integrands=tuple(model.cumulative[name] for name in CUMULATIVE),
        initial=tuple(model.initial_state().values()),
        nonnegative=True,
        watched=tuple(at for at, compartment in enumerate(model.compartments) if compartment.infected),
    )


def of_expressions(expressions: Mapping[str, sympy.Expr], parameters: tuple[str, ...]) -> System:
    """The system state' = expression, with a further parameter `initial_<state>` for each state.

    Symbols are matched by name; `t` is time. Raises ValueError for a name that is neither state nor parameter, and for
    one that stands for two things.
    """
    starts = tuple(f"initial_{name}" for name in expressions)
    names = (TIME, *expressions, *parameters, *starts)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        allowed = f"states, parameters, initial_<state> and time '{TIME}' must all have names of their own"
        raise ValueError(f"{', '.join(twice)} would stand for two things: {allowed}")
    table = {name: sympy.Symbol(name, real=True) for name in names}
    rhs = []
    for state, expression in expressions.items():
        free = {symbol: symbol.name for symbol in sympy.sympify(expression).free_symbols}
        unknown = sorted(set(free.values()) - set(table))
        if unknown:
            raise ValueError(f"{state}' uses {', '.join(unknown)}, which are neither states nor parameters")
        rhs.append(sympy.sympify(expression).xreplace({symbol: table[name] for symbol, name in free.items()}))
    return System(
        time=table[TIME],
        states=tuple(table[name] for name in expressions),
        parameters=tuple(table[name] for name in (*parameters, *starts)),
        rhs=tuple(rhs),
        initial=tuple(table[name] for name in starts),
    )
