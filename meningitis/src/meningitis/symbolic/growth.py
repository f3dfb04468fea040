"""Early growth from the leading eigenvector of the infected subsystem."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meningitis.model import Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import completed, infected_states, infects
from meningitis.symbolic.nextgen import NumericR0, infection_matrices, over_arrays
from meningitis.symbolic.numbers import at_values, number, numbers


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Exponential phase at the given uninfected state, few being infected.

    rate: 1/day; doubling_time: days (negative: halving time; infinite at rate 0); generation_time: mean days from being
    infected to infecting; early_ratio: cases over carriers, None where the declaration has no such pair;
    eigenvector: shares of the infected compartments (sum 1). Where someone infected never leaves, reproduction and
    generation_time are infinite.
    """

    rate: float
    doubling_time: float
    generation_time: float
    reproduction: float
    early_ratio: float | None
    eigenvector: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@by_model
def case_and_carrier(model: Model) -> tuple[str, str] | None:
    """(case compartment, carrier compartment): the infected target of a flow declared a case, and the source it comes
    from, whose people infect. None where the declaration has no single such pair: those who incubate carry nothing."""
    infected = infected_states(model)
    pairs = {
        (flow.target, flow.source)
        for flow in model.flows
        if flow.case and flow.target in infected and flow.source in infected and infects(model, flow.source)
    }
    if len(pairs) != 1:
        return None
    case, carrier = pairs.pop()
    assert case is not None
    return case, carrier


def ill_states(model: Model) -> tuple[str, ...]:
    """The case compartment and the living infected that people reach from it, carriers aside, in declared order.

    None of them where the declaration has no single pair of case and carrier compartment.
    """
    pair = case_and_carrier(model)
    if pair is None:
        return ()
    living = {c.name for c in model.compartments if c.infected and not c.dead} - {pair[1]}
    reached: set[str] = set()
    coming = {pair[0]} & living
    while coming:
        reached |= coming
        coming = {str(flow.target) for flow in model.flows if flow.source in coming} & living - reached
    return tuple(name for name in model.state_names if name in reached)


def initial_state(model: Model, values: Mapping[str, float]) -> dict[str, float]:
    """The initial condition at `values`, persons by compartment."""
    values = completed(model, values)
    at = at_values(model, {name: values[name] for name in model.parameter_names})
    return {name: number(expr, at) for name, expr in model.initial_state().items()}


def numeric_matrices(
    model: Model, values: Mapping[str, float], state: Mapping[str, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """F and V (m x m, 1/day) as numbers, uninfected compartments at `state` (default: the initial condition).

    NaN where a rate is 0/0 there, as where it divides by people of whom there are none.
    """
    values = completed(model, values)
    state = initial_state(model, values) if state is None else state
    at = at_values(model, {**{name: values[name] for name in model.parameter_names}, **state})
    F, V = infection_matrices(model)
    return numbers(F, at), numbers(V, at)


def growth(model: Model, values: Mapping[str, float], *, state: Mapping[str, float] | None = None) -> Growth:
    """Growth rate, doubling and generation time and the ratio of cases to carriers while growth is exponential.

    `state` (persons by compartment) fixes the susceptibles; by default they stand as at the start of the run.
    The generation time is the mean of the generation-interval distribution of F exp(-V a). All is NaN where F or V is.
    Parameters that `values` leave out are as in the default scenario.
    """
    F, V = numeric_matrices(model, values, state)
    if not np.isfinite([F, V]).all():
        unknown = dict.fromkeys(infected_states(model), math.nan)
        return Growth(
            rate=math.nan, doubling_time=math.nan, generation_time=math.nan, reproduction=math.nan, early_ratio=None,
            eigenvector=unknown,
        )  # fmt: skip
    eigenvalues, vectors = np.linalg.eig(F - V)
    lead = int(np.argmax(eigenvalues.real))
    rate = float(eigenvalues[lead].real)
    shares = np.abs(vectors[:, lead].real)
    shares /= shares.sum()
    names = infected_states(model)
    vector = dict(zip(names, shares.tolist(), strict=True))
    pair = case_and_carrier(model)
    ratio = vector[pair[0]] / vector[pair[1]] if pair is not None and vector[pair[1]] > 0 else None
    radius, generation = _generations(F, V)
    return Growth(
        rate=rate,
        doubling_time=math.log(2) / rate if rate != 0 else math.inf,
        generation_time=generation,
        reproduction=radius,
        early_ratio=ratio,
        eigenvector=vector,
    )


def reproduction_at_start(model: Model, values: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """R at the initial condition, few being infected, over arrays of every parameter (broadcast together)."""
    return _at_start(model)(values)


@by_model
def _at_start(model: Model) -> NumericR0:
    begun = {model.symbols[name]: people for name, people in model.initial_state().items()}
    F, V = (matrix.xreplace(begun) for matrix in infection_matrices(model))
    return over_arrays(model, model.parameter_names, (F, V), None, "by eigenvalues")


def _generations(F: np.ndarray, V: np.ndarray) -> tuple[float, float]:
    """The reproduction number and the mean generation time, both infinite where someone never leaves (V singular)."""
    if np.linalg.slogdet(V)[0] == 0:
        return math.inf, math.inf
    inverse = np.linalg.inv(V)
    K = F @ inverse
    radius, right = _leading(K)
    _, left = _leading(K.T)
    weight = float(left @ K @ right)
    return radius, float(left @ K @ inverse @ right) / weight if weight > 0 else math.nan


def _leading(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    values, vectors = np.linalg.eig(matrix)
    lead = int(np.argmax(values.real))
    return float(values[lead].real), np.abs(vectors[:, lead].real)
