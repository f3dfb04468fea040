"""Whether an expression is zero, or depends on symbols: by its values, for simplifying may take any time."""

from __future__ import annotations

import random
from collections.abc import Collection

import sympy as sp

POINTS = 8
"""Points that an expression is evaluated at: more than one, for `max` and the like are zero in places."""
NOUGHT = 1e-12
"""What counts as zero where all symbols are of order 1: the rounding of the declaration's decimal numbers is below."""


def vanishes(expression: sp.Expr) -> bool:
    """Whether it is zero whatever its symbols are, by 30 digits at fixed points in general position.

    At points where it has no value (0/0, say) it says nothing; False where it has none anywhere.
    """
    if expression.is_zero:
        return True
    known = False
    for k in range(POINTS):
        value = expression.xreplace(_point(expression.free_symbols, k)).evalf(30)
        if value.is_number and value.is_finite:
            known = True
            if abs(value) > NOUGHT:
                return False
    return known


def depends(expression: sp.Expr, symbols: Collection[sp.Symbol]) -> bool:
    """Whether its value changes with any of the symbols, which may be written in it and cancel."""
    used = expression.free_symbols & set(symbols)
    return bool(used) and not vanishes(expression - expression.xreplace(_point(used, POINTS)))


def without(expression: sp.Expr, symbols: Collection[sp.Symbol]) -> sp.Expr:
    """An expression that does not depend on the symbols, without them: where they cancel, any values may stand."""
    return expression.xreplace(_point(expression.free_symbols & set(symbols), POINTS))


def _point(symbols: Collection[sp.Symbol], k: int) -> dict[sp.Symbol, sp.Rational]:
    """The k-th point, between 0 and 1: rational, so that nothing is rounded, and the same on every machine."""
    prime = 10**6 + 3
    return {x: sp.Rational(random.Random(f"{x.name} {k}").randrange(1, prime), prime) for x in symbols}
