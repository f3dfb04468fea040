"""Where carriage and illness spread: conditions in symbols, derived from the declaration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import completed, infected_states
from meningitis.symbolic.force import linear_force, without_name
from meningitis.symbolic.growth import case_and_carrier
from meningitis.symbolic.limits import tidy
from meningitis.symbolic.numbers import at_values, number


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Conditions for growth, as right-hand sides.

    carriers_spread: carriers grow while S/N is above it; stage1_spreads: cases grow while I1/C is below it, with
    s = S/N and q = infectiousness of the ill over that of the carriers' unit, (I1 + eta I2)/C, 0 where carriers alone
    infect; stage1_explicit: the same without the I1 that is in q, (phi + p beta s (eps + eta I2/C))/(a1 - p beta s),
    which holds unless `always`: where p beta s >= a1, cases grow whatever their ratio to carriers;
    critical_ratio: the threshold without direct infection, phi/a1; early_ratio: that of exponential growth at rate r,
    with the s and q of that time: phi/(r + a1) without direct infection.
    population: N, the initial one or, where the force of infection divides by the living, the sum of those.
    letters: the symbols of q, s and r in the expressions: these letters, primed where the model has such a name.
    """

    carriers_spread: sp.Expr
    stage1_spreads: sp.Expr
    stage1_explicit: sp.Expr
    always: sp.Ge
    critical_ratio: sp.Expr
    early_ratio: sp.Expr
    carrier: str
    case: str
    susceptible: str
    q: sp.Expr
    population: sp.Expr
    letters: dict[str, sp.Symbol]
    symbol_names: dict[sp.Symbol, str] = field(default_factory=dict, repr=False)

    def _items(self) -> dict[str, sp.Expr]:
        return {
            "carriers_spread": self.carriers_spread,
            "stage1_spreads": self.stage1_spreads,
            "stage1_explicit": self.stage1_explicit,
            "critical_ratio": self.critical_ratio,
            "early_ratio": self.early_ratio,
        }

    def text(self) -> str:
        """The conditions as sentences in plain text."""
        s, i, c = self.susceptible, self.case, self.carrier
        q, share, rate = (self.letters[name] for name in "qsr")
        own = f"that is while {i}/{c} < {sp.sstr(self.stage1_explicit)}, and always where {sp.sstr(self.always)}"
        return "\n".join(
            (
                f"carriers spread while {s}/N > {sp.sstr(self.carriers_spread)}, {q} = {sp.sstr(self.q)}, "
                f"N = {sp.sstr(self.population)}",
                f"cases spread while {i}/{c} < {sp.sstr(self.stage1_spreads)}, {share} = {s}/N",
                *([] if self.always.lhs == 0 else [own]),
                f"critical ratio {i}/{c} (no direct infection): {sp.sstr(self.critical_ratio)}",
                f"early ratio {i}/{c} in exponential growth at rate {rate}: {sp.sstr(self.early_ratio)}",
            )
        )

    def latex(self) -> dict[str, str]:
        """LaTeX source by name."""
        return {name: sp.latex(value, symbol_names=self.symbol_names) for name, value in self._items().items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data: expressions as text."""
        return {name: sp.sstr(value) for name, value in self._items().items()} | {
            "q": sp.sstr(self.q),
            "always": sp.sstr(self.always),
            "population": sp.sstr(self.population),
        }

    def evaluate(self, model: Model, values: Mapping[str, float], **symbols: float) -> dict[str, float]:
        """The conditions as numbers; `symbols` gives q, s and r (those left out leave their conditions out)."""
        values = completed(model, values)
        at = at_values(model, {name: values[name] for name in model.parameter_names})
        at |= {self.letters[name]: sp.Float(value) for name, value in symbols.items()}
        return {name: number(value, at) for name, value in self._items().items() if value.free_symbols <= at.keys()}

    def along(
        self, model: Model, values: Mapping[str, float], states: Mapping[str, ArrayLike]
    ) -> dict[str, NDArray[np.float64]]:
        """`susceptible_share`, `carriers_spread` (shares of N), `stage1_spreads` (persons per carrier) at each state.

        `states` holds persons by compartment (T,). Where there are no carriers, q is infinite and so is what follows.
        """
        values = completed(model, values)
        at = at_values(model, {name: values[name] for name in model.parameter_names})
        symbols = [model.symbols[name] for name in model.state_names]
        letters = [self.letters["q"], self.letters["s"]]
        people = [np.asarray(states[name], dtype=np.float64) for name in model.state_names]
        susceptible = np.asarray(states[self.susceptible], dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            population, q = sp.lambdify(symbols, [self.population.xreplace(at), self.q.xreplace(at)], "numpy")(*people)
            share = susceptible / population
            return {"susceptible_share": share} | {
                name: np.broadcast_to(
                    sp.lambdify([*letters, *symbols], value.xreplace(at), "numpy")(q, share, *people), share.shape
                )
                for name, value in self._items().items()
                if name in ("carriers_spread", "stage1_spreads")
            }


@by_model
def thresholds(model: Model) -> Thresholds:
    """Derive the thresholds for carriage and for illness.

    Raises: ValueError where the declaration has no single case compartment fed by a carrier compartment, or where
    infection does not come from a single susceptible compartment in a force linear in the infected (per head of the
    population or of the living).
    """
    pair = case_and_carrier(model)
    if pair is None:
        raise ValueError(
            f"model {model.name!r} has no single case compartment fed by a carrier compartment that infects"
        )
    case, carrier = pair
    try:
        force = linear_force(model)
    except ValueError as missing:
        why = without_name(model, missing)
        raise ValueError(f"model {model.name!r} has no thresholds of carriage and illness: {why}") from missing
    names, V = infected_states(model), force.V
    i, c = names.index(case), names.index(carrier)
    letters = {letter: _unused(model, letter) for letter in "qsr"}
    Q, SHARE, RATE = letters.values()
    X, C = [model.symbols[name] for name in names], model.symbols[carrier]
    # The infectiousness of all infected per carrier, by q = (all but carriers, in units of a case)/carriers; in units
    # of another one who infects where a case, isolated say, does not.
    infectious = [j for j in (i, *range(len(names))) if j != c and force.weights[j] != 0]
    unit = force.weights[infectious[0]] if infectious else sp.Integer(0)
    others = sum((force.weights[j] / unit * X[j] for j in dict.fromkeys(infectious)), sp.Integer(0))

    def gain(index: int) -> sp.Expr:
        return tidy(force.entry[index] * (force.weights[c] + unit * Q) * SHARE, sp.factor)

    loss = sum((V[c, j] * X[j] for j in range(len(names))), sp.Integer(0)) / C
    spread = tidy(tidy(loss / (gain(c) / SHARE)), sp.factor)
    other_feeds = sum((-V[i, j] * X[j] for j in range(len(names)) if j not in (i, c)), sp.Integer(0)) / C
    feeds = -V[i, c] + gain(i) + other_feeds
    own = force.entry[i] * force.weights[i] * SHARE
    rest = sum((force.weights[j] * X[j] / C for j in range(len(names)) if j not in (i, c)), force.weights[c])
    return Thresholds(
        carriers_spread=spread,
        stage1_spreads=tidy(feeds / V[i, i]),
        stage1_explicit=(-V[i, c] + sp.factor_terms(force.entry[i] * SHARE * rest) + other_feeds) / (V[i, i] - own),
        always=sp.Ge(own, V[i, i], evaluate=False),
        critical_ratio=tidy(-V[i, c] / V[i, i]),
        early_ratio=tidy(feeds / (RATE + V[i, i])),
        carrier=carrier,
        case=case,
        susceptible=force.susceptible,
        q=tidy(others / C),
        population=force.population,
        letters=letters,
        symbol_names=model.latex_names,
    )


def _unused(model: Model, letter: str) -> sp.Symbol:
    """The letter as a symbol, with as many primes as tell it apart from the model's names and symbols."""
    used = {*model.symbols, *(parameter.symbol for parameter in model.parameters)}
    while letter in used:
        letter += "'"
    return sp.Symbol(letter)


@by_model
def no_thresholds(model: Model) -> str:
    """Why the model has no thresholds for carriage and for illness; empty where it has them."""
    try:
        thresholds(model)
    except ValueError as missing:
        return str(missing)
    return ""
