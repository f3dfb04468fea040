"""Equilibria and their stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from meningitis.model import Model
from meningitis.symbolic.declared import completed, infected_states, refilled, refuse_time, timed_rates
from meningitis.symbolic.diseasefree import flows_without_infection, still
from meningitis.symbolic.growth import initial_state
from meningitis.symbolic.nextgen import disease_free_at
from meningitis.symbolic.numbers import at_values

LONG = 1e6  # days: enough for a model with births to settle before the root is polished


@dataclass(frozen=True, kw_only=True)
class Equilibrium:
    """One equilibrium: kind ("disease-free" or "endemic"), persons by compartment, eigenvalues (1/day), stability.

    The eigenvalues are those of disturbances that keep every conserved total (that of a closed population, say).
    stable is None where one of them is zero: a continuum of equilibria, as in an outbreak without return to S.
    """

    kind: str
    state: dict[str, float]
    eigenvalues: tuple[complex, ...]
    stable: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data: eigenvalues as [real, imaginary]."""
        return {
            "kind": self.kind,
            "state": self.state,
            "eigenvalues": [[z.real, z.imag] for z in self.eigenvalues],
            "stable": self.stable,
        }


@dataclass(frozen=True, kw_only=True)
class Equilibria:
    """All equilibria found, the disease-free one first, and a note on what could not exist or was not found."""

    points: tuple[Equilibrium, ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"points": [point.to_dict() for point in self.points], "note": self.note}


def equilibria(model: Model, values: Mapping[str, float], *, starts: int = 12, seed: int = 0) -> Equilibria:
    """Disease-free and endemic equilibria at `values`.

    There is no disease-free one where infection comes in from elsewhere or the population dies out without it.
    Endemic ones are sought from a long run and from `starts` random states, with every conserved total (that of a
    closed population, say) held as at the start. Not sought where new infections drain compartments that no flow
    leads back into: nobody replaces those who were infected.
    """
    # Half a second of imports that no other fact of a model needs.
    from scipy.integrate import solve_ivp
    from scipy.optimize import root

    refuse_time(model, timed_rates(model))
    values = completed(model, values)
    gone = [c.name for c in model.compartments if c.dead and not c.infected]
    names = [name for name in model.state_names if name not in gone]
    at = at_values(model, {name: values[name] for name in model.parameter_names})
    at |= {model.symbols[name]: sp.Integer(0) for name in gone}  # as at the disease-free equilibrium
    symbols = [model.symbols[name] for name in names]
    rhs = model.rhs()
    field = sp.Matrix([rhs[name].xreplace(at) for name in names])
    rates = sp.lambdify([symbols], list(field), "numpy")
    jacobian = sp.lambdify([symbols], field.jacobian(symbols), "numpy")
    free = disease_free_at(model, values)
    laws = _conserved(model, names)
    # The rates of change along a basis of what is not conserved, and the totals in place of the redundant equations.
    free_part = _complement(laws, len(names))
    points, notes = [], []
    there = np.array([free[n] for n in names])
    moving, importing = flows_without_infection(model)
    if still(rates(there), there):
        points.append(_classify("disease-free", names, there, jacobian, free_part))
    else:
        why = f"{' and '.join(f.name for f in importing)} goes on" if importing else "the population dies out"
        notes.append(f"no disease-free equilibrium: {why} where nobody is infected")
    if not refilled(model):
        note = "nobody enters the compartments that new infections drain, so infection dies out and none is endemic"
        if not (moving or importing):
            note = f"closed population: {note}, and every state without infection is an equilibrium"
        return Equilibria(points=tuple(points), note="; ".join([*notes, note]))
    scale = max(sum(free.values()), 1.0)
    sick = [names.index(name) for name in infected_states(model)]
    begin = np.array([initial_state(model, values)[n] for n in names])
    totals = laws @ begin
    begin[sick] = np.maximum(begin[sick], 1e-6 * scale)
    settled = solve_ivp(lambda _t, y: rates(y), (0, LONG), begin, method="Radau", jac=lambda _t, y: jacobian(y))
    generator = np.random.default_rng(seed)
    guesses = [settled.y[:, -1], *(scale * generator.dirichlet(np.ones(len(names)), starts))]

    def equations(x: np.ndarray) -> np.ndarray:
        return np.concatenate([free_part @ np.asarray(rates(x)), laws @ x - totals])

    def slopes(x: np.ndarray) -> np.ndarray:
        return np.vstack([free_part @ np.asarray(jacobian(x), dtype=np.float64), laws])

    for guess in guesses:
        found = root(equations, guess, jac=slopes, tol=1e-12)
        x = np.asarray(found.x)
        endemic = found.success and x.min() > -1e-9 * scale and x[sick].sum() > 1e-9 * scale
        known = any(np.allclose(x, list(p.state.values()), rtol=1e-6, atol=1e-9 * scale) for p in points)
        if endemic and not known:
            points.append(_classify("endemic", names, x, jacobian, free_part))
    if not any(point.kind == "endemic" for point in points):
        notes.append("no endemic equilibrium found")
    return Equilibria(points=tuple(points), note="; ".join(notes))


def _conserved(model: Model, names: list[str]) -> np.ndarray:
    """Orthonormal rows (k, compartments): the totals that no flow changes, by the stoichiometry's left null space."""
    changes = np.zeros((len(names), len(model.flows)))
    for k, flow in enumerate(model.flows):
        for end, sign in ((flow.source, -1.0), (flow.target, 1.0)):
            if end in names:
                changes[names.index(end), k] += sign
    return _complement(changes.T, len(names))


def _complement(rows: np.ndarray, size: int) -> np.ndarray:
    """Orthonormal rows spanning everything orthogonal to `rows` (k, size)."""
    if not rows.size:
        return np.eye(size)
    _, strengths, basis = np.linalg.svd(rows)
    return np.asarray(basis[int((strengths > 1e-9).sum()) :])


def _classify(kind: str, names: list[str], x: np.ndarray, jacobian: Any, free_part: np.ndarray) -> Equilibrium:
    matrix = free_part @ np.asarray(jacobian(x), dtype=np.float64) @ free_part.T
    values = np.linalg.eigvals(matrix).astype(complex)
    order = values[np.argsort(-values.real)]
    largest = order[0].real
    negligible = 1e-12 + 1e-9 * np.abs(values).max()
    return Equilibrium(
        kind=kind,
        state=dict(zip(names, x.tolist(), strict=True)),
        eigenvalues=tuple(order.tolist()),
        stable=None if abs(largest) <= negligible else bool(largest < 0),
    )
