"""The checks of a declaration and of the values given to it; all problems are collected, none is repaired."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from meningitis.glyphs import glyph
from meningitis.grammar import CONSTANTS, FUNCTIONS, GrammarError, nearest, nearest_or_all, parse
from meningitis.model import (
    CUMULATIVE,
    TIME,
    Distribution,
    Flow,
    Model,
    ModelError,
    Parameter,
    Problem,
    Scenario,
    is_number,
    out_of_bounds,
    unknown_parameter,
)
from meningitis.units import (
    DIMENSIONLESS,
    PERSONS,
    PERSONS_PER_DAY,
    Dimension,
    UnitError,
    dimension,
    parse_unit,
    quantity_in,
    spell,
)

ROUNDING = 1e-7
"""Persons below zero that are rounding, as for the engine at its default atol."""

CODES: Mapping[str, str] = {
    "E001": "a rate or initial value uses a name that is declared nowhere",
    "E002": "two things have the same name or symbol, or a name is not usable",
    "E003": "a rate or initial value cannot be read",
    "E004": "a flow is not in persons per day, or an initial value not in persons",
    "E005": "a default, bound, distribution or length is outside what it may be",
    "E006": "a closed model has a flow from or to outside",
    "E007": "a flow names a compartment that does not exist, or goes nowhere",
    "E008": "a unit cannot be read",
    "E009": "something is missing",
    "E010": "a YAML declaration has an unknown or malformed entry",
    "E011": "an unknown parameter was given a value",
    "E012": "there is no such scenario",
    "E013": "a given value is outside its bounds or cannot be read",
    "E014": "the values given leave a compartment below zero at the start",
    "E015": "a flow by which people are infected is not declared a new infection",
    "E016": "a new infection does not lead to an infected compartment",
    "E017": "a flow from the infected to the dead is not declared a death",
    "E018": "a parameter's kind and its unit disagree",
}
"""What each code of a Problem means."""


@dataclass(kw_only=True)
class Checked:
    """The parsed expressions of a valid declaration, and its scenarios with their values as numbers."""

    rates: dict[str, sympy.Expr] = field(default_factory=dict)
    initial: dict[str, sympy.Expr] = field(default_factory=dict)
    scenarios: tuple[Scenario, ...] = ()


def check(model: Model) -> Checked:
    """Check a whole declaration; raise ModelError with every problem, or return what was read in it."""
    problems: list[Problem] = []
    _names(model, problems)
    units = _parameters(model, problems)
    checked = Checked()
    _flows(model, units, checked, problems)
    _initial(model, units, checked, problems)
    if model.max_step is not None and (amiss := _amiss(model.max_step)):
        message = f"max_step is {model.max_step!r}, but must be {amiss}"
        problems.append(Problem(code="E005", where=f"model {model.name}", message=message))
    for scenario in model.scenarios:
        where = f"scenario {scenario.name}"
        if amiss := _amiss(scenario.days):
            message = f"days is {scenario.days!r}, but must be {amiss}"
            problems.append(Problem(code="E005", where=where, message=message))
        read = replace(scenario, overrides=_values(model, scenario.overrides, where, problems))
        checked.scenarios += (read,)
    if problems:
        raise ModelError(problems)
    return checked


def _amiss(days: float) -> str:
    """What a length in days must be and is not; empty where it is."""
    if not is_number(days):
        return "a number of days"
    return "" if math.isfinite(days) and days > 0 else "above 0"


def check_values(model: Model, base: Mapping[str, float], overrides: Mapping[str, float | str]) -> dict[str, float]:
    """Return `base` updated by `overrides`; raise ModelError with every unknown name and bad value."""
    problems: list[Problem] = []
    given = _values(model, overrides, f"model {model.name}", problems)
    if problems:
        raise ModelError(problems)
    values = {**base, **given}
    _starts(model, values, problems)
    if problems:
        raise ModelError(problems)
    return values


def _starts(model: Model, values: Mapping[str, float], problems: list[Problem]) -> None:
    at = {model.symbols[name]: value for name, value in values.items()}
    for state, expression in model.initial_state().items():
        persons = expression.evalf(subs=at) if expression.free_symbols else expression
        if persons.is_Float and persons < -ROUNDING:
            used = [name for name in model.parameter_names if model.symbols[name] in expression.free_symbols]
            with_values = ", ".join(f"{name} {values[name]:g}" for name in used)
            message = f"{state} at the start is {float(persons):g} persons, below zero: {expression} with {with_values}"
            problems.append(Problem(code="E014", where=f"model {model.name}", message=message))


def _names(model: Model, problems: list[Problem]) -> None:
    def unique(what: str, names: Sequence[str]) -> None:
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(Problem(code="E002", where=f"{what} {name}", message=f"'{name}' is declared twice"))

    unique("compartment or parameter", [*model.state_names, *model.parameter_names])
    unique("flow", [flow.name for flow in model.flows])
    unique("scenario", [scenario.name for scenario in model.scenarios])
    for name in (*model.state_names, *model.parameter_names):
        if not re.fullmatch(r"[^\W\d]\w*", name) or name == TIME or name in FUNCTIONS or name in CONSTANTS:
            message = f"'{name}' must be a word that is neither time '{TIME}' nor a function or constant of the grammar"
            problems.append(Problem(code="E002", where=f"name {name}", message=message))
    by_glyph: dict[tuple[str, str], str] = {}
    for parameter in model.parameters:
        other = by_glyph.setdefault(glyph(parameter.symbol), parameter.name)
        if other != parameter.name:
            message = f"symbol '{parameter.symbol}' is shown as that of {other}: figures could not tell them apart"
            problems.append(Problem(code="E002", where=f"parameter {parameter.name}", message=message))
    # Columns of every table beside the compartments' and the swept parameters'.
    for what, names in (("compartment", model.state_names), ("parameter", model.parameter_names)):
        for name in sorted({*CUMULATIVE, "set", "time"} & set(names)):
            message = f"a {what} cannot be called '{name}': tables of runs have a column of that name"
            problems.append(Problem(code="E002", where=f"{what} {name}", message=message))
    if not model.compartments:
        problems.append(Problem(code="E009", where=f"model {model.name}", message="a model needs a compartment"))
    if not model.flows:
        problems.append(Problem(code="E009", where=f"model {model.name}", message="a model needs a flow"))


def _parameters(model: Model, problems: list[Problem]) -> dict[sympy.Symbol, Dimension]:
    units = {model.symbols[name]: PERSONS for name in model.state_names}
    units[model.symbols[TIME]] = parse_unit("day")
    for parameter in model.parameters:
        where = f"parameter {parameter.name}"
        try:
            units[model.symbols[parameter.name]] = parse_unit(parameter.unit)
        except UnitError as error:
            problems.append(Problem(code="E008", where=where, message=str(error)))
            units[model.symbols[parameter.name]] = parse_unit("1")
        else:
            if amiss := _kind(parameter.kind, units[model.symbols[parameter.name]]):
                message = f"a {parameter.kind} {amiss}, but its unit is {parameter.unit} (a multiplier may have any)"
                problems.append(Problem(code="E018", where=where, message=message))
        problems += [Problem(code="E005", where=where, message=message) for message in _range(parameter)]
    return units


def _kind(kind: str, unit: Dimension) -> str:
    """What the unit of such a parameter must be and is not; empty where it is. A multiplier may have any."""
    if kind == "rate" and unit[1] >= 0:
        return "is per time, such as 1/day"
    if kind == "count" and unit != PERSONS:
        return "is in persons"
    return "has the unit 1" if kind == "proportion" and unit != DIMENSIONLESS else ""


def _range(parameter: Parameter) -> list[str]:
    if parameter.kind not in ("rate", "count", "proportion", "multiplier"):
        return [f"kind '{parameter.kind}' is not rate, count, proportion or multiplier"]
    bounds: Any = parameter.bounds
    d: Any = parameter.distribution
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2):
        return [f"bounds are {bounds!r}, but must be a pair of numbers, low and high"]
    if not isinstance(d, Distribution):
        return [f"distribution is {d!r}, but must be a Distribution"]
    low, high = bounds
    numbers = {"default": parameter.default, "lower bound": low, "upper bound": high, "low": d.low, "high": d.high}
    numbers |= {} if d.mode is None else {"mode": d.mode}
    found = [
        f"{what} is {value!r}, but must be a number (parse_quantity makes one of text such as 70/year)"
        for what, value in numbers.items()
        if not is_number(value)
    ]
    if found:
        return found
    if not low <= high:
        found.append(f"bounds {low:g} to {high:g} are not in order")
    if low < 0:
        found.append(f"lower bound {low:g} is below 0")
    if parameter.kind == "proportion" and high > 1:
        found.append(f"a proportion lies in [0, 1], but its bounds reach {high:g}")
    if not low <= parameter.default <= high:
        found.append(f"default {parameter.default:g} is outside {low:g} to {high:g}")
    if d.kind not in ("uniform", "loguniform", "triangular", "fixed"):
        found.append(f"distribution '{d.kind}' is not uniform, loguniform, triangular or fixed")
    if not low <= d.low <= d.high <= high:
        found.append(f"distribution {d.low:g} to {d.high:g} is not within {low:g} to {high:g}")
    if d.kind == "loguniform" and not d.low > 0:
        found.append("a loguniform distribution starts above 0")
    if d.mode is not None and not d.low <= d.mode <= d.high:
        found.append(f"mode {d.mode:g} is outside the distribution's {d.low:g} to {d.high:g}")
    return found


def _flows(model: Model, units: Mapping[Any, Dimension], checked: Checked, problems: list[Problem]) -> None:
    for flow in model.flows:
        where = f"flow {flow.name}"
        for end in (flow.source, flow.target):
            if end is not None and end not in model.state_names:
                message = f"there is no compartment '{end}'{nearest_or_all(end, model.state_names)}"
                problems.append(Problem(code="E007", where=where, message=message))
        if flow.source == flow.target:
            message = f"it goes from {flow.source or 'outside'} to {flow.target or 'outside'}, which changes nothing"
            problems.append(Problem(code="E007", where=where, message=message))
        if model.closed and (flow.source is None or flow.target is None):
            side = "from" if flow.source is None else "to"
            message = f"the model is declared closed, but this flow goes {side} outside: mass is not conserved"
            problems.append(Problem(code="E006", where=where, message=message))
        rate = _expression(model, flow.rate, where, model.symbols, problems)
        if rate is not None:
            _unit(rate, units, PERSONS_PER_DAY, where, "its rate", problems)
            checked.rates[flow.name] = rate
            _infection(model, flow, rate, problems)
        _death(model, flow, problems)


def _infection(model: Model, flow: Flow, rate: sympy.Expr, problems: list[Problem]) -> None:
    """Refuse an infection that is not declared one: R0 would take it for a transfer and ever infected would miss it."""
    infected = [c.name for c in model.compartments if c.infected]
    by = [name for name in infected if model.symbols[name] in rate.free_symbols]
    outside = flow.source is None or flow.source in infected
    if by and flow.target in infected and not (outside or flow.new_infection):
        message = (
            f"it leads from {flow.source} to infected {flow.target} at a rate that depends on {' and '.join(by)}, so "
            "it must be declared new_infection: true"
        )
        problems.append(Problem(code="E015", where=f"flow {flow.name}", message=message))
    if flow.new_infection and flow.target not in infected:
        to = "outside" if flow.target is None else f"{flow.target}, which is not marked infected: true"
        message = f"it is declared a new infection, but leads to {to}: R0 would miss those whom they infect"
        problems.append(Problem(code="E016", where=f"flow {flow.name}", message=message))


def _death(model: Model, flow: Flow, problems: list[Problem]) -> None:
    """Refuse a death of the disease that is not declared one: it would not be counted. A burial is none."""
    of = {c.name: c for c in model.compartments}
    source, target = (of.get(str(end)) for end in (flow.source, flow.target))
    if source and target and source.infected and not source.dead and target.dead and not flow.death:
        message = (
            f"it leads from infected {source.name} to {target.name}, which is dead: true, so it must be declared "
            "death: true (deaths of other causes lead outside)"
        )
        problems.append(Problem(code="E017", where=f"flow {flow.name}", message=message))


def _initial(model: Model, units: Mapping[Any, Dimension], checked: Checked, problems: list[Problem]) -> None:
    allowed = {name: model.symbols[name] for name in model.parameter_names}
    for name in model.initial.values:
        if name not in model.state_names:
            message = f"there is no compartment '{name}'{nearest_or_all(name, model.state_names)}"
            problems.append(Problem(code="E007", where="initial state", message=message))
    for name in model.state_names:
        value = model.initial.values.get(name, 0.0)
        where = f"initial state {name}"
        if not isinstance(value, str):
            if not (math.isfinite(value) and value >= 0):
                problems.append(Problem(code="E005", where=where, message=f"{value:g} persons is not 0 or more"))
            checked.initial[name] = sympy.Float(value)
            continue
        expression = _expression(model, value, where, allowed, problems)
        if expression is not None:
            for term in sympy.Add.make_args(expression):
                if not term.is_number:  # in `N - 1` the 1 is a person
                    _unit(term, units, PERSONS, where, "it", problems)
            checked.initial[name] = expression


def _expression(
    model: Model, rate: str | sympy.Expr, where: str, allowed: Mapping[str, sympy.Expr], problems: list[Problem]
) -> sympy.Expr | None:
    if isinstance(rate, str):
        try:
            return parse(rate, allowed)
        except GrammarError as error:
            code = "E001" if error.unknown else "E003"
            problems.append(Problem(code=code, where=where, message=str(error)))
            return None
    # A caller's own symbols may lack our assumptions: they are matched by name.
    free = {symbol: symbol.name for symbol in sympy.sympify(rate).free_symbols}
    unknown = sorted(name for name in free.values() if name not in allowed)
    if unknown:
        message = "undeclared name " + "; ".join(f"'{name}'{nearest(name, allowed)}" for name in unknown)
        problems.append(Problem(code="E001", where=where, message=message))
        return None
    return sympy.sympify(rate).xreplace({symbol: allowed[name] for symbol, name in free.items()})


def _unit(
    expression: sympy.Expr,
    units: Mapping[Any, Dimension],
    wanted: Dimension,
    where: str,
    what: str,
    problems: list[Problem],
) -> None:
    try:
        found = dimension(expression, units)
    except UnitError as error:
        problems.append(Problem(code="E004", where=where, message=str(error)))
        return
    if found is not None and found != wanted:
        has = f"is in {spell(found)}" if found != DIMENSIONLESS else "has no unit"
        message = f"{what} '{expression}' {has}, but must be in {spell(wanted)}"
        problems.append(Problem(code="E004", where=where, message=message))


def _values(model: Model, given: Mapping[str, float | str], where: str, problems: list[Problem]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, quantity in given.items():
        if name not in model.parameter_names:
            problems.append(unknown_parameter(name, model.parameter_names, where=where))
            continue
        try:
            value = quantity_in(model.parameter(name).unit, quantity)
        except UnitError as error:
            problems.append(Problem(code="E013", where=f"{where}, {name}", message=str(error)))
            continue
        low, high = model.parameter(name).bounds
        if not low <= value <= high:
            problems.append(out_of_bounds(model.parameter(name), value, where=where))
        values[name] = value
    return values
