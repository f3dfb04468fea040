"""The spectral radius of F V^-1 in symbols, where it has a short closed form."""

from __future__ import annotations

import sympy as sp
from sympy.matrices.exceptions import NonInvertibleMatrixError

from meningitis.symbolic.limits import TimeLimit, time_limit


def spectral_radius(F: sp.Matrix, V: sp.Matrix) -> tuple[sp.Matrix, sp.Expr]:
    """K = F V^-1 and its spectral radius, for non-negative K with at most two non-zero blocks of new infections.

    Raises: NotImplementedError where more than two independent kinds of new infection leave no closed form.
    """
    # LUsolve keeps the products of a nearly triangular V nested, where inv() would multiply them out.
    K = (F * V.LUsolve(sp.eye(V.rows))).applyfunc(short_form)
    # Rows of F that are zero are zero in K: the other eigenvalues are those of the remaining square block.
    rows = [i for i in range(F.rows) if any(entry != 0 for entry in F.row(i))]
    if not rows:
        return K, sp.Integer(0)
    block = K.extract(rows, rows)
    if block.rows == 1:
        return K, block[0, 0]
    determinants = [
        sp.simplify(block.extract([i, j], [i, j]).det()) for i in range(block.rows) for j in range(i + 1, block.rows)
    ]
    if all(d == 0 for d in determinants) and _rank_one(block):
        return K, short_form(block.trace())
    if block.rows == 2:
        half = block.trace() / 2
        return K, sp.simplify(half + sp.sqrt(sp.simplify(half**2 - block.det())))
    raise NotImplementedError(f"the {block.rows} x {block.rows} next-generation matrix has no short closed form")


def short_form(expression: sp.Expr) -> sp.Expr:
    """The shortest of a few equal forms: a full `simplify` multiplies out sums of rates and hides the structure."""
    forms = (expression, sp.factor_terms(expression), sp.factor(expression))
    return min(forms, key=lambda form: (sp.count_ops(form), len(str(form))))


def _rank_one(block: sp.Matrix) -> bool:
    n = block.rows
    pivot = next(((i, j) for i in range(n) for j in range(n) if block[i, j] != 0), None)
    if pivot is None:
        return True
    a, b = pivot
    return all(
        sp.simplify(block[i, j] * block[a, b] - block[i, b] * block[a, j]) == 0 for i in range(n) for j in range(n)
    )


def radius_within(F: sp.Matrix, V: sp.Matrix, seconds: float) -> tuple[sp.Matrix | None, sp.Expr | None, str]:
    """K and R0, or why there are none: they took too long, or have no closed form."""
    try:
        with time_limit(seconds):
            K, radius = spectral_radius(F, V)
        return K, radius, ""
    except TimeLimit:
        return None, None, f"R0 is numeric: its symbols took longer than {seconds:g} s"
    except NonInvertibleMatrixError:
        return None, None, "R0 is infinite: someone infected never leaves"
    except NotImplementedError as error:
        return None, None, f"R0 is numeric: {error}"
