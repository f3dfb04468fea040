"""Normalised forward sensitivity indices of R0: (dR0/dx)(x/R0)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sympy as sp

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import completed
from meningitis.symbolic.diseasefree import zeros_at
from meningitis.symbolic.nextgen import next_generation, r0_numeric
from meningitis.symbolic.numbers import at_values, number

STEP = 1e-5
TINY = 1e-12
"""A value beside 0, where a parameter is 0: R0 may jump there."""
JUMP = 1e-6
"""Relative change of R0 between the two that is a jump."""


@dataclass(frozen=True, kw_only=True)
class Elasticities:
    """Indices by parameter name: `expressions` is empty where R0 has no closed form (then `reason` says why)."""

    model: Model
    expressions: dict[str, sp.Expr]
    reason: str = ""

    def evaluate(self, values: Mapping[str, float]) -> dict[str, float]:
        """Indices at `values`, dimensionless, ranked by size; parameters that are 0 or absent from R0 have 0.

        NaN, ranked last, where R0 has no relative change: where it is 0, and with a parameter at whose 0 it jumps.
        Parameters that `values` leave out are as in the default scenario.
        """
        values = completed(self.model, values)
        zeros = zeros_at(self.model, values)
        here = elasticities(self.model, zeros=zeros) if zeros else self
        if here.expressions:
            at = at_values(self.model, {name: values[name] for name in self.model.parameter_names})
            found = {name: number(index, at) for name, index in here.expressions.items()}
        else:
            found = {name: self._difference(name, values) for name in self.model.parameter_names}
        found |= {name: math.nan for name in zeros if self._jumps(name, values)}
        return dict(sorted(found.items(), key=lambda item: -1.0 if item[1] != item[1] else abs(item[1]), reverse=True))

    def _jumps(self, name: str, values: Mapping[str, float]) -> bool:
        numeric = r0_numeric(self.model)
        there, beside = float(numeric(values)), float(numeric({**values, name: TINY}))
        return not abs(beside - there) <= JUMP * abs(there)

    def _difference(self, name: str, values: Mapping[str, float]) -> float:
        numeric, x = r0_numeric(self.model), values[name]
        up, down = (float(numeric({**values, name: x * (1 + sign * STEP)})) for sign in (1, -1))
        here = float(numeric(values))
        return (up - down) / (2 * STEP) / here if here else math.nan

    def frame(self, values: Mapping[str, float]) -> pd.DataFrame:
        """Table parameter, symbol, value, index, ranked."""
        values = completed(self.model, values)
        symbols = {p.name: p.symbol for p in self.model.parameters}
        rows = [(name, symbols[name], values[name], index) for name, index in self.evaluate(values).items()]
        return pd.DataFrame(rows, columns=["parameter", "symbol", "value", "index"])

    def latex(self) -> dict[str, str]:
        """LaTeX source by parameter."""
        return {name: sp.latex(index, symbol_names=self.model.latex_names) for name, index in self.expressions.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data: expressions as text."""
        return {"indices": {name: sp.sstr(e) for name, e in self.expressions.items()}, "reason": self.reason}


@by_model
def elasticities(model: Model, *, zeros: tuple[str, ...] = ()) -> Elasticities:
    """Indices of R0 for every parameter, in symbols where R0 has a closed form and by central differences elsewhere.

    The symbols hold where the parameters named in `zeros` are 0 and the others positive; `evaluate` chooses by itself.
    """
    result = next_generation(model, zeros=zeros)
    if result.r0 is None:
        return Elasticities(model=model, expressions={}, reason=result.reason)
    symbols = {name: model.symbols[name] for name in model.parameter_names}
    return Elasticities(
        model=model,
        expressions={name: _index(result.r0, x) for name, x in symbols.items()},
    )


def _index(r0: sp.Expr, x: sp.Symbol) -> sp.Expr:
    # Factor by factor: a parameter that only scales R0 gets its exact exponent, without simplification.
    terms = []
    for base, power in r0.as_powers_dict().items():
        terms.append(power * x * sp.diff(base, x) / base)
        if power.has(x):
            terms.append(x * sp.diff(power, x) * sp.log(base))
    return sp.Add(*terms)
