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
from meningitis.symbolic.growth import case_and_carrier
from meningitis.symbolic.limits import tidy
from meningitis.symbolic.nextgen import infected_states, infection_matrices

Q = sp.Symbol("q")
SHARE = sp.Symbol("s")
RATE = sp.Symbol("r")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Conditions for growth, as right-hand sides.

    carriers_spread: carriers grow while S/N is above it; stage1_spreads: cases grow while I1/C is below it, with
    s = S/N and q = infectiousness of the ill over that of the carriers' unit, (I1 + eta I2)/C;
    critical_ratio: the latter without direct infection, phi/a1; early_ratio: that of exponential growth at rate r, with
    the s and q of that time: phi/(r + a1) without direct infection. q is 0 where carriers alone infect.
    """

    carriers_spread: sp.Expr
    stage1_spreads: sp.Expr
    critical_ratio: sp.Expr
    early_ratio: sp.Expr
    carrier: str
    case: str
    susceptible: str
    q: sp.Expr
    symbol_names: dict[sp.Symbol, str] = field(default_factory=dict, repr=False)

    def _items(self) -> dict[str, sp.Expr]:
        return {
            "carriers_spread": self.carriers_spread,
            "stage1_spreads": self.stage1_spreads,
            "critical_ratio": self.critical_ratio,
            "early_ratio": self.early_ratio,
        }

    def text(self) -> str:
        """The conditions as sentences in plain text."""
        s, i, c = self.susceptible, self.case, self.carrier
        return "\n".join(
            (
                f"carriers spread while {s}/N > {sp.sstr(self.carriers_spread)}, q = {sp.sstr(self.q)}",
                f"cases spread while {i}/{c} < {sp.sstr(self.stage1_spreads)}, s = {s}/N",
                f"critical ratio {i}/{c} (no direct infection): {sp.sstr(self.critical_ratio)}",
                f"early ratio {i}/{c} in exponential growth at rate r: {sp.sstr(self.early_ratio)}",
            )
        )

    def latex(self) -> dict[str, str]:
        """LaTeX source by name."""
        return {name: sp.latex(value, symbol_names=self.symbol_names) for name, value in self._items().items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data: expressions as text."""
        return {name: sp.sstr(value) for name, value in self._items().items()} | {"q": sp.sstr(self.q)}

    def evaluate(self, model: Model, values: Mapping[str, float], **symbols: float) -> dict[str, float]:
        """The conditions as numbers; `symbols` gives q, s and r (those left out leave their conditions out)."""
        at = {model.symbols[name]: values[name] for name in model.parameter_names}
        at |= {sp.Symbol(name): value for name, value in symbols.items()}
        numbers = {name: value.subs(at) for name, value in self._items().items()}
        return {name: float(value) for name, value in numbers.items() if not value.free_symbols}

    def along(
        self, model: Model, values: Mapping[str, float], states: Mapping[str, ArrayLike]
    ) -> dict[str, NDArray[np.float64]]:
        """`carriers_spread` (share of the population) and `stage1_spreads` (persons per carrier) at each state (T,).

        `states` holds persons by compartment. Where there are no carriers, q is infinite and so is what follows of it.
        """
        at = {model.symbols[name]: values[name] for name in model.parameter_names}
        names = model.state_names
        people = [np.asarray(states[name], dtype=np.float64) for name in names]
        population = float(sp.Add(*model.initial_state().values()).subs(at))
        share = np.asarray(states[self.susceptible], dtype=np.float64) / population
        symbols = [model.symbols[name] for name in names]
        with np.errstate(divide="ignore", invalid="ignore"):
            q = sp.lambdify(symbols, self.q.subs(at), "numpy")(*people)
            return {
                name: np.broadcast_to(sp.lambdify([Q, SHARE], value.subs(at), "numpy")(q, share), share.shape)
                for name, value in self._items().items()
                if name in ("carriers_spread", "stage1_spreads")
            }


@by_model
def thresholds(model: Model) -> Thresholds:
    """Derive the thresholds for carriage and for illness.

    Raises: ValueError where the declaration has no single case compartment fed by a carrier compartment, or where
    infection does not come from a single susceptible compartment in a force linear in the infected.
    """
    pair = case_and_carrier(model)
    if pair is None:
        raise ValueError(f"model {model.name!r} has no single case compartment fed by a carrier compartment")
    case, carrier = pair
    names = infected_states(model)
    i, c = names.index(case), names.index(carrier)
    sources = {flow.source for flow in model.flows if flow.new_infection}
    if len(sources) != 1 or None in sources:
        raise ValueError(f"model {model.name!r} has no single susceptible compartment")
    susceptible = str(sources.pop())
    S, C = model.symbols[susceptible], model.symbols[carrier]
    F, V = infection_matrices(model)
    X = sp.Matrix([model.symbols[name] for name in names])
    population = tidy(sum(model.initial_state().values(), sp.Integer(0)))
    # The infectiousness of all infected per carrier, by q = (all but carriers, in units of a case)/carriers; in units
    # of another one who infects where a case, isolated say, does not.
    row = F.row(c) if F[c, c] != 0 else F.row(i)
    infectious = [j for j in (i, *range(len(names))) if j != c and row[j] != 0]
    others = sum((row[j] / row[infectious[0]] * X[j] for j in dict.fromkeys(infectious)), sp.Integer(0))
    per_share = {S: SHARE * population}

    def gain(index: int) -> sp.Expr:
        ill = F[index, infectious[0]] * Q if infectious else 0
        return tidy(tidy((F[index, c] + ill).subs(per_share)), sp.factor)

    loss = sum((V[c, j] * X[j] for j in range(len(names))), sp.Integer(0)) / C
    spread = tidy(tidy(loss / (gain(c) / SHARE)), sp.factor)
    other_feeds = sum((-V[i, j] * X[j] for j in range(len(names)) if j not in (i, c)), sp.Integer(0)) / C
    feeds = -V[i, c] + gain(i) + other_feeds
    return Thresholds(
        carriers_spread=spread,
        stage1_spreads=tidy(feeds / V[i, i]),
        critical_ratio=tidy(-V[i, c] / V[i, i]),
        early_ratio=tidy(feeds / (RATE + V[i, i])),
        carrier=carrier,
        case=case,
        susceptible=susceptible,
        q=tidy(others / C),
        symbol_names=model.latex_names,
    )
