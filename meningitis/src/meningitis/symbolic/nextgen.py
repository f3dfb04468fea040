"""The next-generation matrix of a declared model, and the reproduction numbers that follow from it.

Infected compartments and new-infection flows are taken from the declaration; nothing about meningitis is assumed here.
Source: van den Driessche & Watmough, Math Biosci 180 (2002) 29-48.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from meningitis.model import TIME, Model
from meningitis.symbolic.caching import by_model
from meningitis.symbolic.declared import drained_states, infected_states, new_infections, refuse_time
from meningitis.symbolic.diseasefree import (
    disease_free_state,
    everyone_susceptible,
    flows_without_infection,
    nil,
    settled_state,
    settling_parameters,
    zeros_at,
)
from meningitis.symbolic.limits import tidy
from meningitis.symbolic.numbers import at_values, number
from meningitis.symbolic.radius import radius_within

SYMBOLIC_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class NextGeneration:
    """F (new infections), V (transfers) and K = F V^-1 at the disease-free state, all m x m, rows as in `infected`.

    F and V are in 1/day, K counts infections. `r0` is the spectral radius of K; it is None where symbols took too long,
    and `reason` then says so (the numeric form, `r0_numeric`, still answers). `reason` also says what the declaration
    leaves open about the disease-free state. `zeros` names the parameters taken as 0; `emptied` says that the
    disease-free state leaves nobody in the compartments that new infections drain, so that R0 = 0 tells of no outbreak.
    """

    F: sp.Matrix
    V: sp.Matrix
    K: sp.Matrix | None
    infected: tuple[str, ...]
    r0: sp.Expr | None
    disease_free: dict[str, sp.Expr]
    symbol_names: dict[sp.Symbol, str] = field(default_factory=dict, repr=False)
    reason: str = ""
    zeros: tuple[str, ...] = ()
    emptied: bool = False

    def text(self) -> str:
        """The matrices and R0 as plain text, one per paragraph."""
        parts = [f"infected: {', '.join(self.infected)}"]
        parts += [f"{name} = {sp.sstr(value)}" for name, value in self._items()]
        return "\n".join([*parts, self.reason] if self.reason else parts)

    def latex(self) -> dict[str, str]:
        """LaTeX source of F, V, K and R0 (those that are known)."""
        return {name: sp.latex(value, symbol_names=self.symbol_names) for name, value in self._items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every expression as text, matrices as lists of rows."""
        return {
            "infected": list(self.infected),
            **{name: _plain(value) for name, value in self._items()},
            "disease_free": {name: sp.sstr(value) for name, value in self.disease_free.items()},
            "reason": self.reason,
        }

    def _items(self) -> list[tuple[str, Any]]:
        pairs = (("F", self.F), ("V", self.V), ("K", self.K), ("R0", self.r0))
        return [(name, value) for name, value in pairs if value is not None]


def _plain(value: Any) -> Any:
    return [[sp.sstr(x) for x in row] for row in value.tolist()] if isinstance(value, sp.MatrixBase) else sp.sstr(value)


@by_model
def infection_jacobians(model: Model) -> tuple[sp.Matrix, sp.Matrix]:
    """F and V (m x m, 1/day) at any state, all compartments left as symbols.

    V = F - J, J being the Jacobian of the infected subsystem: a flow counts in F only where declared a new infection.
    Raises: ValueError where nobody is infected, nobody is newly infected, or the rates change with time.
    """
    refuse_time(model)
    names = infected_states(model)
    if not names:
        raise ValueError(f"model {model.name!r} declares no infected compartment; mark at least one with infected=True")
    symbols = [model.symbols[name] for name in names]
    rhs, gains = model.rhs(), new_infections(model)
    if all(gain == 0 for gain in gains):
        raise ValueError(f"model {model.name!r} declares no flow as a new infection into an infected compartment")
    new = sp.Matrix(gains).jacobian(symbols)
    return new, new - sp.Matrix([rhs[name] for name in names]).jacobian(symbols)


@by_model
def infection_matrices(model: Model) -> tuple[sp.Matrix, sp.Matrix]:
    """The same with every infected compartment at zero: F and V while few are infected."""
    nobody = {model.symbols[name]: 0 for name in infected_states(model)}
    F, V = (matrix.subs(nobody).applyfunc(tidy) for matrix in infection_jacobians(model))
    return F, V


def _at(model: Model, state: Mapping[str, sp.Expr]) -> dict[sp.Symbol, sp.Expr]:
    return {model.symbols[name]: sp.sympify(value) for name, value in state.items()}


def _remarks(model: Model, free: Mapping[str, sp.Expr], zeros: tuple[str, ...]) -> list[str]:
    """What a reader of R0 has to know of the disease-free state: who is gone from it, and whether it lasts."""
    begun, (moving, importing) = everyone_susceptible(model, zeros), flows_without_infection(model, zeros)
    gone = [name for name, value in free.items() if value.is_zero and not begun[name].is_zero]
    remarks = [f"without infection nobody stays in {' or '.join(gone)}"] if gone else []
    if timed := [flow.name for flow, rate in moving.items() if model.symbols[TIME] in rate.free_symbols]:
        remarks.append(f"{' and '.join(timed)} depends on time, so R0 takes everyone as susceptible, as at the start")
    if importing:
        names = " and ".join(flow.name for flow in importing)
        remarks.append(f"R0 leaves out {names}: it goes on where nobody is infected, so no state is disease-free")
    if born := _born_infected(model):
        words = (
            f"R0 takes {' and '.join(born)} for no new infection, though it brings in infected people for those there"
        )
        remarks.append(words)
    return remarks


def _born_infected(model: Model) -> list[str]:
    """Flows from outside into an infected compartment at a rate of the infected, not declared a new infection."""
    rates, names = model.flow_rates(), infected_states(model)
    people = {model.symbols[name] for name in names}
    return [
        flow.name
        for flow in model.flows
        if flow.source is None and flow.target in names and not flow.new_infection
        if rates[flow.name].free_symbols & people
    ]


@by_model
def next_generation(model: Model, *, seconds: float = SYMBOLIC_SECONDS, zeros: tuple[str, ...] = ()) -> NextGeneration:
    """Derive F, V, K and R0 from the declaration at the disease-free state.

    That is everyone susceptible, or where flows without infection move people on, the state in which these balance
    (unless rates divide by people who are gone from it; `reason` then says so). Where it has no symbols, F and V keep
    those of the uninfected compartments and R0 is numeric.
    Parameters are positive, except those named in `zeros` (see `zeros_at`): a vaccination at rate 0 empties nothing.
    Raises: ValueError where no compartment is infected or no flow a new infection.
    """
    without = nil(model, zeros)
    F, V = (matrix.xreplace(without) for matrix in infection_matrices(model))
    try:
        free = disease_free_state(model, seconds=SYMBOLIC_SECONDS, zeros=zeros)
    except ValueError as error:
        return NextGeneration(
            F=F, V=V, K=None, infected=infected_states(model), r0=None, disease_free={},
            symbol_names=model.latex_names, reason=f"R0 is numeric: {error}", zeros=zeros,
        )  # fmt: skip
    remarks = _remarks(model, free, zeros)
    if any(matrix.xreplace(_at(model, free)).has(sp.nan, sp.zoo) for matrix in (F, V)):
        free = everyone_susceptible(model, zeros)
        remarks.append("rates divide by those who are gone, so R0 takes everyone as susceptible")
    F, V = (matrix.xreplace(_at(model, free)).applyfunc(tidy) for matrix in (F, V))
    K, r0_expression, reason = radius_within(F, V, seconds)
    reason = "; ".join(part for part in (reason, *remarks) if part)
    return NextGeneration(
        F=F,
        V=V,
        K=K,
        infected=infected_states(model),
        r0=r0_expression,
        disease_free=free,
        symbol_names=model.latex_names,
        reason=reason,
        zeros=zeros,
        emptied=_emptied(model, free, zeros),
    )


def _emptied(model: Model, free: Mapping[str, sp.Expr], zeros: tuple[str, ...]) -> bool:
    """Whether nobody is left to be infected, though there were some to begin with."""
    drained, begun = drained_states(model) - {None}, everyone_susceptible(model, zeros)
    left = any(not free[str(name)].is_zero for name in drained)
    return not left and any(not begun[str(name)].is_zero for name in drained)


def r0(model: Model) -> sp.Expr:
    """R0 as an expression of the model's parameters. Raises: ValueError where only the numeric form exists."""
    result = next_generation(model)
    if result.r0 is None:
        raise ValueError(f"model {model.name!r}: {result.reason}; use r0_numeric")
    return result.r0


@dataclass(frozen=True, kw_only=True)
class NumericR0:
    """R0 over arrays of parameters: call it with a mapping name -> float or array (all broadcast together).

    `reason` says why the method is numeric. R is infinite where V is singular: someone infected never leaves.
    """

    method: str
    reason: str
    names: tuple[str, ...]
    function: Callable[..., NDArray[np.float64]]

    def __call__(self, values: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """R0, shape of the broadcast inputs. Raises: KeyError naming a missing parameter."""
        arrays = np.broadcast_arrays(*(np.asarray(values[name], dtype=np.float64) for name in self.names))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.function(*arrays), dtype=np.float64)


@by_model
def r0_numeric(model: Model, *, symbolic: bool = True) -> NumericR0:
    """Fast R0 over arrays: the compiled expression, or eigenvalues of F V^-1 without one (or symbolic=False).

    Each set by what holds where those of its parameters are 0 that are (`zeros_at`).
    """
    usual = _where_positive(model, symbolic=symbolic)
    return replace(usual, function=partial(_by_zeros, model, symbolic))


def zero_patterns(model: Model, values: Mapping[str, ArrayLike]) -> Iterator[tuple[tuple[str, ...], NDArray[np.bool_]]]:
    """The `zeros_at` of many sets: each that occurs, with the sets (of the broadcast shape) where it does."""
    settling = settling_parameters(model)
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values()))
    zero = np.empty((*shape, len(settling)), dtype=bool)
    for k, name in enumerate(settling):
        zero[..., k] = np.asarray(values[name]) == 0
    if not zero.any():
        yield (), np.ones(shape, dtype=bool)
        return
    for pattern in np.unique(zero.reshape(-1, len(settling)), axis=0):
        yield tuple(compress(settling, pattern)), np.asarray((zero == pattern).all(axis=-1))


def nobody_left(model: Model, values: Mapping[str, ArrayLike]) -> NDArray[np.bool_]:
    """Where the disease-free state leaves nobody to be infected (`NextGeneration.emptied`), shape as broadcast."""
    found = np.zeros(np.broadcast_shapes(*(np.shape(value) for value in values.values())), dtype=bool)
    for zeros, sets in zero_patterns(model, values):
        found |= sets & next_generation(model, zeros=zeros).emptied
    return found


def r0_everyone_susceptible(model: Model, values: Mapping[str, float]) -> float:
    """R0 at `values` were everyone susceptible, whether that lasts without infection or not."""
    at = at_values(model, values)
    begun = everyone_susceptible(model, zeros_at(model, values))
    return float(_without_infected(model)({**values, **{name: number(people, at) for name, people in begun.items()}}))


def _by_zeros(model: Model, symbolic: bool, *arrays: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.empty(np.shape(arrays[0]))
    for zeros, sets in zero_patterns(model, dict(zip(model.parameter_names, arrays, strict=True))):
        part = _where_positive(model, zeros=zeros, symbolic=symbolic)
        found[sets] = part.function(*(array[sets] for array in arrays))
    return found


@by_model
def _where_positive(model: Model, *, symbolic: bool, zeros: tuple[str, ...] = ()) -> NumericR0:
    """R0 over arrays of parameters, where those named in `zeros` are 0 and the others that settle the state are not."""
    result = next_generation(model, zeros=zeros)
    if not result.disease_free:
        return NumericR0(
            method="numeric", reason=result.reason, names=model.parameter_names, function=partial(_row_by_row, model)
        )
    closed = over_arrays(
        model, model.parameter_names, (result.F, result.V), result.r0 if symbolic else None, result.reason
    )
    return replace(closed, function=partial(_where_defined, model, closed.function))


@by_model
def _without_infected(model: Model) -> NumericR0:
    """R over parameters and persons by compartment, nobody being infected."""
    matrices, names = infection_matrices(model), (*model.parameter_names, *model.state_names)
    _, radius, reason = radius_within(*matrices, SYMBOLIC_SECONDS)
    return over_arrays(model, names, matrices, radius, reason)


def _row_by_row(model: Model, *arrays: NDArray[np.float64]) -> NDArray[np.float64]:
    """R0 of each parameter set at its own disease-free state, found in numbers.

    Sets that differ in other parameters than those of that state, as most of a design do, share it.
    """
    along, settling = _without_infected(model), settling_parameters(model)
    found, known = np.empty(np.shape(arrays[0])), dict[tuple[float, ...], dict[str, float]]()
    for at in np.ndindex(found.shape):
        values = {name: float(array[at]) for name, array in zip(model.parameter_names, arrays, strict=True)}
        key = tuple(values[name] for name in settling)
        if key not in known:
            known[key] = disease_free_at(model, values)
        found[at] = along({**values, **known[key]})
    return found


def _where_defined(
    model: Model, closed: Callable[..., NDArray[np.float64]], *arrays: NDArray[np.float64]
) -> NDArray[np.float64]:
    """R0 in closed form, and row by row where that is 0/0, as where the flows that balance without infection are 0."""
    found = np.array(closed(*arrays), dtype=np.float64)
    for at in map(tuple, np.argwhere(np.isnan(found))):
        with suppress(ValueError, ZeroDivisionError):  # no disease-free state: R0 stays unknown
            found[at] = _row_by_row(model, *(array[at] for array in arrays))
    return found


def disease_free_at(model: Model, values: Mapping[str, float]) -> dict[str, float]:
    """The disease-free state at `values`, persons: from symbols, or where everyone susceptible settles without disease.

    Raises: ValueError where it does not settle.
    """
    at = at_values(model, {name: values[name] for name in model.parameter_names})
    symbolic = next_generation(model, zeros=zeros_at(model, values)).disease_free
    found = {name: number(value, at) for name, value in symbolic.items()}
    if found and np.isfinite(list(found.values())).all():
        return found
    return settled_state(model, values)


def over_arrays(
    model: Model, names: tuple[str, ...], matrices: tuple[sp.Matrix, sp.Matrix], radius: sp.Expr | None, reason: str
) -> NumericR0:
    """The spectral radius of F V^-1 over arrays of `names`: the expression `radius` or, without it, by eigenvalues."""
    arguments = [model.symbols[name] for name in names]
    if radius is not None:
        compiled = sp.lambdify(arguments, radius, "numpy", cse=True)
        return NumericR0(
            method="symbolic",
            reason="",
            names=names,
            function=lambda *arrays: np.broadcast_to(compiled(*arrays), np.shape(arrays[0])),
        )
    size = matrices[0].rows
    entries = sp.lambdify(arguments, [entry for matrix in matrices for entry in matrix], "numpy", cse=True)

    def radii(*arrays: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = np.stack([np.broadcast_to(e, np.shape(arrays[0])) for e in entries(*arrays)], axis=-1)
        F = flat[..., : size * size].reshape(*flat.shape[:-1], size, size)
        V = flat[..., size * size :].reshape(*flat.shape[:-1], size, size)
        unknown = ~np.isfinite(flat).all(axis=-1)
        F, V = (np.where(unknown[..., None, None], np.eye(size), matrix) for matrix in (F, V))
        singular = np.linalg.slogdet(V)[0] == 0
        V = np.where(singular[..., None, None], np.eye(size), V)
        # F V^-1 has the eigenvalues of V^-1 F.
        found = np.abs(np.linalg.eigvals(np.linalg.solve(V, F))).max(axis=-1)
        return np.asarray(np.where(unknown, np.nan, np.where(singular, np.inf, found)))

    return NumericR0(method="numeric", reason=reason or "asked for", names=names, function=radii)
