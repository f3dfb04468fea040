"""The declaration of a compartmental model: frozen data, validated once, read by everything else.

States are in persons and rates per day. A flow's rate is its *total*, in persons per day, written as text in the safe
grammar (`meningitis.grammar`) or as a SymPy expression over `Model.symbols`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import sympy

from meningitis.grammar import nearest, nearest_or_all
from meningitis.units import parse_quantity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Compartment",
    "Distribution",
    "Flow",
    "InitialState",
    "Model",
    "ModelError",
    "Parameter",
    "Problem",
    "Scenario",
    "parse_quantity",
]

TIME = "t"
"""The name of time, in days since the start, in every rate."""

CUMULATIVE = ("new_infections", "cases", "deaths")
"""The integrals that every model accumulates, in this order, each zero at the start."""

Kind = Literal["rate", "count", "proportion", "multiplier"]

_FILLED: Any = None
"""The default of a field that `__post_init__` fills from the others."""


class _Declared:
    """Pickled and copied by what it was declared with, and checked again: views of tables can be neither."""

    def __reduce__(self) -> tuple[Any, ...]:
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return _declare, (type(self), {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in given.items()})


def _declare(cls: type, given: Mapping[str, Any]) -> Any:
    return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a declaration: a stable code, where it is, and a sentence."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} {self.where}: {self.message}"


class ModelError(ValueError):
    """Everything wrong with a declaration or with values given to it, at once, in `problems`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How a parameter is sampled for sensitivity work, in the parameter's own unit (per day for rates)."""

    kind: Literal["uniform", "loguniform", "triangular", "fixed"]
    low: float
    high: float
    mode: float | None = None

    def ppf(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map uniform numbers of any shape to values of the same shape (the inverse distribution function)."""
        import numpy as np

        u = np.asarray(u, dtype=float)
        width = self.high - self.low
        if self.kind == "fixed" or width == 0:
            return np.full_like(u, self.low)
        if self.kind == "uniform":
            return self.low + width * u
        if self.kind == "loguniform":
            return np.exp(math.log(self.low) + (math.log(self.high) - math.log(self.low)) * u)
        mode = (self.low + self.high) / 2 if self.mode is None else self.mode
        rising = self.low + np.sqrt(u * width * (mode - self.low))
        falling = self.high - np.sqrt((1 - u) * width * (self.high - mode))
        return np.where(u * width < mode - self.low, rising, falling)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A quantity that the rates or the initial state use. `default` and `bounds` are numbers in days and persons.

    What is left out: `symbol` is the name; `unit` 1/day for a rate, persons for a count, else 1; `bounds` 0 to 1 for a
    proportion, else 0 to ten times the default (1 at least); `distribution` the default alone, so nothing is sampled.
    """

    name: str
    symbol: str = _FILLED
    unit: str = _FILLED
    default: float
    bounds: tuple[float, float] = _FILLED
    distribution: Distribution = _FILLED
    kind: Kind = "rate"
    meaning: str = ""
    source: str = "assumed"

    def __post_init__(self) -> None:
        default = self.default if is_number(self.default) else 0.0  # anything else is refused with the model
        filled = {
            "symbol": rf"\mathrm{{{self.name}}}".replace("_", r"\_"),
            "unit": unit_of(self.kind),
            "bounds": (0.0, 1.0 if self.kind == "proportion" else max(1.0, 10 * default)),
            "distribution": Distribution(kind="fixed", low=default, high=default),
        }
        for name, value in filled.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Compartment:
    """A group of persons. `infected` ones enter the next-generation matrix; `dead` ones are not among the living.

    Both at once are bodies that infect until they are buried.
    """

    name: str
    meaning: str = ""
    infected: bool = False
    dead: bool = False


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Persons per day from `source` to `target`; None stands for outside (births, removal).

    `new_infection`, `case` (entry to illness) and `death` say which integrals count the flow.
    """

    name: str
    source: str | None = None
    target: str | None = None
    rate: str | sympy.Expr
    new_infection: bool = False
    case: bool = False
    death: bool = False


@dataclass(frozen=True, kw_only=True)
class InitialState(_Declared):
    """Persons per compartment at the start, as numbers or text over parameters; those not named start empty."""

    values: Mapping[str, str | float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __hash__(self) -> int:
        return hash(frozenset(self.values.items()))


@dataclass(frozen=True, kw_only=True)
class Scenario(_Declared):
    """A named set of parameter values. `season` is a label: the model knows no seasons. `gives` says what it shows.

    `overrides` may be quantities such as '70/year'; those of a model's scenarios are numbers (days, persons).
    """

    name: str
    title: str = ""
    overrides: Mapping[str, float | str] = field(default_factory=dict)
    days: int = 365
    season: str = ""
    gives: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", MappingProxyType(dict(self.overrides)))

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.overrides.items())))


@dataclass(frozen=True, kw_only=True)
class Model(_Declared):
    """A compartmental model. Construction checks everything and raises ModelError with all problems at once.

    The first scenario is the default one. `closed` promises that no flow enters or leaves the population. `max_step`
    (days) is the longest step of every run, for rates that do something on few days: what the shortest of it lasts.
    """

    name: str
    compartments: tuple[Compartment, ...]
    parameters: tuple[Parameter, ...]
    flows: tuple[Flow, ...]
    initial: InitialState
    title: str = ""
    description: str = ""
    scenarios: tuple[Scenario, ...] = ()
    closed: bool = False
    max_step: float | None = None

    def __hash__(self) -> int:
        return hash(self.hash)

    def __post_init__(self) -> None:
        from meningitis.validation import check

        for part in ("compartments", "parameters", "flows", "scenarios"):
            object.__setattr__(self, part, tuple(getattr(self, part)))
        checked = check(self)
        object.__setattr__(self, "scenarios", checked.scenarios)
        object.__setattr__(self, "_rates", MappingProxyType(checked.rates))
        object.__setattr__(self, "_initial", MappingProxyType(checked.initial))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the compartments, in the order of every array of states."""
        return tuple(compartment.name for compartment in self.compartments)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in declared order."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def symbols(self) -> dict[str, sympy.Symbol]:
        """SymPy symbol of each compartment (nonnegative), parameter (positive) and of time `t`."""
        table = {name: sympy.Symbol(name, nonnegative=True) for name in (TIME, *self.state_names)}
        table.update({name: sympy.Symbol(name, positive=True) for name in self.parameter_names})
        return table

    @cached_property
    def latex_names(self) -> dict[sympy.Symbol, str]:
        """LaTeX of each symbol, as `sympy.latex(expression, symbol_names=...)` wants it."""
        names = {self.symbols[parameter.name]: parameter.symbol for parameter in self.parameters}
        for name in self.state_names:
            head = name.rstrip("0123456789")
            names[self.symbols[name]] = f"{head}_{{{name[len(head) :]}}}" if head and head != name else name
        return names

    def parameter(self, name: str) -> Parameter:
        """Return a parameter by name; ModelError names the nearest one otherwise."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise ModelError([unknown_parameter(name, self.parameter_names, where=f"model {self.name}")])

    def scenario(self, name: str | None = None) -> Scenario:
        """Return a scenario by name, the default one for None; ModelError names the nearest one otherwise."""
        if name is None:
            return self.scenarios[0] if self.scenarios else Scenario(name="default", title="Default values")
        for scenario in self.scenarios:
            if scenario.name == name:
                return scenario
        known = [scenario.name for scenario in self.scenarios]
        message = f"there is no scenario '{name}'{nearest(name, known)}; allowed are {', '.join(known) or 'none'}"
        raise ModelError([Problem(code="E012", where=f"model {self.name}", message=message)])

    def flow_rates(self) -> dict[str, sympy.Expr]:
        """Total rate of each flow, in persons per day."""
        return dict(self._rates)  # type: ignore[attr-defined]

    def initial_state(self) -> dict[str, sympy.Expr]:
        """Persons in each compartment at the start, over the parameters."""
        return dict(self._initial)  # type: ignore[attr-defined]

    def rhs(self) -> dict[str, sympy.Expr]:
        """Time derivative of each compartment, in persons per day."""
        derivative = {name: sympy.Integer(0) for name in self.state_names}
        for flow, rate in zip(self.flows, self.flow_rates().values(), strict=True):
            if flow.source is not None:
                derivative[flow.source] -= rate
            if flow.target is not None:
                derivative[flow.target] += rate
        return derivative

    @property
    def cumulative(self) -> dict[str, sympy.Expr]:
        """Integrands, in persons per day, of `new_infections`, `cases` and `deaths`."""
        rates = self.flow_rates()

        def total(flag: str) -> sympy.Expr:
            return sympy.Add(*(rates[flow.name] for flow in self.flows if getattr(flow, flag)))

        return dict(zip(CUMULATIVE, (total("new_infection"), total("case"), total("death")), strict=True))

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Which of `cases` and `deaths` no flow is declared to be, so that their integrals, 0, say nothing."""
        flags = {"cases": "case", "deaths": "death"}
        return tuple(n for n, flag in flags.items() if not any(getattr(flow, flag) for flow in self.flows))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the whole declaration, the same on every machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def values(
        self, scenario: str | None = None, overrides: Mapping[str, float | str] | None = None
    ) -> dict[str, float]:
        """Value of every parameter (days, persons): defaults, then the scenario's, then `overrides` (`'70/year'` too).

        Raises ModelError for unknown names, unreadable quantities and values outside their bounds, all at once, and for
        values that leave a compartment below zero at the start.
        """
        from meningitis.validation import check_values

        merged: dict[str, Any] = {parameter.name: parameter.default for parameter in self.parameters}
        merged.update(self.scenario(scenario).overrides)  # read as numbers at construction
        return check_values(self, merged, overrides or {})

    def to_dict(self) -> dict[str, Any]:
        """The declaration as plain dictionaries and lists."""
        from meningitis.declaration import to_dict

        return to_dict(self)

    def to_yaml(self) -> str:
        """The declaration as YAML text that `from_yaml` reads back to an equal hash."""
        from meningitis.declaration import to_yaml

        return to_yaml(self)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Model:
        """Read a declaration from a YAML file (a Path, or a one-line text naming one) or from YAML text.

        Raises ModelError with everything that is wrong, OSError for a file that cannot be read.
        """
        from meningitis.declaration import from_yaml

        return from_yaml(source)


def unit_of(kind: str) -> str:
    """The unit of a parameter that declares none."""
    return {"rate": "1/day", "count": "persons"}.get(kind, "1")


def is_number(value: object) -> bool:
    """Whether a value is a plain number, which text such as '70/year' and True are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def out_of_bounds(parameter: Parameter, value: float, *, where: str) -> Problem:
    """That a value is outside the parameter's bounds, in its own unit."""
    low, high = parameter.bounds
    message = f"{value:g} is outside {low:g} to {high:g} ({parameter.unit})"
    return Problem(code="E013", where=f"{where}, {parameter.name}", message=message)


def unknown_parameter(name: str, known: Iterable[str], *, where: str) -> Problem:
    """That there is no such parameter, with the nearest one or all there are."""
    message = f"there is no parameter '{name}'{nearest_or_all(name, known)}"
    return Problem(code="E011", where=where, message=message)
