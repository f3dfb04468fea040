"""From expressions to numbers, every symbol at once: one after another, their order would decide what 0/0 is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from meningitis.model import Model


def at_values(model: Model, values: Mapping[str, float]) -> dict[sp.Symbol, sp.Expr]:
    """Parameters and compartments of the model that `values` name, as `number` wants them."""
    return {model.symbols[name]: sp.Float(value) for name, value in values.items() if name in model.symbols}


def number(expression: sp.Expr, at: Mapping[sp.Symbol, sp.Expr]) -> float:
    """The value of an expression: NaN where it is 0/0, infinite at a pole. Raises: TypeError where a symbol is left."""
    found = expression.xreplace(dict(at))
    return math.inf if found is sp.zoo else float(found)


def numbers(matrix: sp.Matrix, at: Mapping[sp.Symbol, sp.Expr]) -> NDArray[np.float64]:
    """The same for each entry, in the shape of the matrix."""
    return np.array([number(entry, at) for entry in matrix], dtype=np.float64).reshape(matrix.shape)
