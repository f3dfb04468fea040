"""Declarations as YAML: reading with every problem named, writing what reads back the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from meningitis.grammar import nearest
from meningitis.model import (
    Compartment,
    Distribution,
    Flow,
    InitialState,
    Model,
    ModelError,
    Parameter,
    Problem,
    Scenario,
    unit_of,
)
from meningitis.tables import TwiceError, read_yaml
from meningitis.units import UnitError, parse_quantity, quantity_in

_TYPES: Mapping[str, tuple[Any, str]] = {
    "str": (str, "text"),
    "str | None": (str | None, "text"),
    "bool": (bool, "true or false"),
    "int": (int | float, "a number"),
}
"""What a field of that type may hold in YAML, and in words."""

ENDS = ("low", "high", "mode")
"""The entries of a distribution that are quantities."""


def to_dict(model: Model) -> dict[str, Any]:
    """The declaration as plain dictionaries and lists; fields at their defaults are left out.

    Quantities are floats, as they are when read back, so that 1 and 1.0 are one declaration with one hash.
    """
    return {
        "name": model.name,
        "title": model.title,
        "description": model.description,
        "closed": model.closed,
        **({} if model.max_step is None else {"max_step": float(model.max_step)}),
        "compartments": [_plain(compartment) for compartment in model.compartments],
        "parameters": [
            {
                **_plain(p),
                "default": float(p.default),
                "kind": p.kind,
                "bounds": [float(end) for end in p.bounds],
                "distribution": {k: float(v) if k in ENDS else v for k, v in _plain(p.distribution).items()},
            }
            for p in model.parameters
        ],
        "flows": [{**_plain(f), "rate": str(f.rate)} for f in model.flows],
        "initial": {k: v if isinstance(v, str) else float(v) for k, v in model.initial.values.items()},
        "scenarios": [_scenario(s) for s in model.scenarios],
    }


def to_yaml(model: Model) -> str:
    """The declaration as YAML text."""
    import yaml

    return yaml.safe_dump(to_dict(model), sort_keys=False, allow_unicode=True, width=120)


def from_yaml(source: str | Path) -> Model:
    """Read a declaration from YAML text, or from a file given by a Path or by a one-line text."""
    import yaml

    is_file = isinstance(source, Path) or ("\n" not in source and ":" not in source)
    where = str(source) if is_file else "declaration"
    try:
        data = read_yaml(Path(source).read_text(encoding="utf-8") if is_file else str(source))
    except UnicodeDecodeError as error:
        raise ModelError([Problem(code="E010", where=where, message="it is not text in UTF-8")]) from error
    except TwiceError as error:
        raise ModelError([Problem(code="E010", where=where, message=str(error))]) from error
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise ModelError([Problem(code="E010", where=where, message=f"not YAML: {message}")]) from error
    return _Reader().model(data)


def _scenario(scenario: Scenario) -> dict[str, Any]:
    plain = _plain(scenario) | {"overrides": {name: float(value) for name, value in scenario.overrides.items()}}
    if "days" in plain and scenario.days == int(scenario.days):
        plain["days"] = int(scenario.days)
    return plain


def _plain(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item) if getattr(item, f.name) != f.default}


class _Reader:
    """Builds the frozen classes from plain data and collects what does not fit."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.units: dict[str, str] = {}  # by parameter; those of scenarios are read after the parameters

    def model(self, data: Any) -> Model:
        entries = self.entries(Model, data, "declaration")
        for name, read in (
            ("compartments", self.compartment),
            ("parameters", self.parameter),
            ("flows", self.flow),
            ("scenarios", self.scenario),
        ):
            if name in entries:
                entries[name] = self.items(entries[name], name, read)
        if "max_step" in entries:
            entries["max_step"] = self.number(entries["max_step"], "max_step", "day")
        if "initial" in entries:
            values = entries["initial"]
            if isinstance(values, Mapping):
                entries["initial"] = InitialState(values={k: self.value(v, k) for k, v in values.items()})
            else:
                self.bad("initial", "must be a table of compartment: persons")
        if self.problems:
            raise ModelError(self.problems)
        return Model(**entries)

    def bad(self, where: str, message: str) -> None:
        self.problems.append(Problem(code="E010", where=where, message=message))

    def value(self, value: Any, where: str) -> str | float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            self.bad(f"initial.{where}", f"must be persons, a number or text over the parameters, not '{value}'")
        return float(value) if isinstance(value, int | float) else str(value)

    def items(self, data: Any, where: str, read: Callable[[Any, str], Any]) -> tuple[Any, ...]:
        if not isinstance(data, list):
            self.bad(where, "must be a list")
            return ()
        return tuple(read(item, f"{where}[{at}]") for at, item in enumerate(data))

    def entries(self, cls: type, data: Any, where: str) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            self.bad(where, f"must be a table, not '{data}'")
            return {}
        known = {f.name: f for f in fields(cls)}
        for name in data:
            if name not in known:
                self.bad(where, f"unknown entry '{name}'{nearest(str(name), known)}")
        for name, value in data.items():
            wanted, words = _TYPES.get(str(known[name].type) if name in known else "", (object, ""))
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool and words):
                self.bad(where, f"'{name}' must be {words}, not '{value}'")
        for name, f in known.items():
            if name not in data and f.default is MISSING and f.default_factory is MISSING:
                self.bad(where, f"'{name}' is missing")
        return {name: value for name, value in data.items() if name in known}

    def make(self, cls: type, data: Any, where: str) -> Any:
        before = len(self.problems)
        entries = self.entries(cls, data, where)
        return cls(**entries) if len(self.problems) == before else None

    def number(self, value: Any, where: str, unit: str | None = None) -> float:
        text = value if isinstance(value, int | float) else str(value)
        try:
            return parse_quantity(text) if unit is None else quantity_in(unit, text)
        except UnitError as error:
            self.bad(where, str(error))
            return 0.0

    def compartment(self, data: Any, where: str) -> Any:
        return self.make(Compartment, data, where)

    def flow(self, data: Any, where: str) -> Any:
        if isinstance(data, Mapping):
            rate = {} if data.get("rate") is None else {"rate": str(data["rate"])}  # else it is told as missing
            data = {name: value for name, value in data.items() if name != "rate"} | rate
        return self.make(Flow, data, where)

    def scenario(self, data: Any, where: str) -> Any:
        if isinstance(data, Mapping):
            given = data.get("overrides", {})
            if not isinstance(given, Mapping):
                self.bad(where, "'overrides' must be a table of parameter: value")
                given = {}
            given = {k: self.number(v, f"{where}.{k}", self.units.get(k)) for k, v in given.items()}
            data = {**data, "overrides": given}
        return self.make(Scenario, data, where)

    def parameter(self, data: Any, where: str) -> Any:
        """The numbers are read in the parameter's unit; what is left out, `Parameter` fills."""
        if not isinstance(data, Mapping) or "name" not in data or "default" not in data:
            self.bad(where, "a parameter is a table with at least name and default")
            return None
        unit = str(data.get("unit", unit_of(str(data.get("kind", "rate")))))
        self.units[str(data["name"])] = unit
        read = {"unit": unit, "default": self.number(data["default"], f"{where}.default", unit)}
        if "bounds" in data:
            bounds = data["bounds"]
            if not isinstance(bounds, list) or len(bounds) != 2:
                self.bad(where, "bounds are a list of two values, low and high")
                bounds = [0.0, 0.0]
            read["bounds"] = tuple(self.number(bound, f"{where}.bounds", unit) for bound in bounds)
        if "distribution" in data:
            distribution = data["distribution"]
            if isinstance(distribution, Mapping):
                ends = {k: self.number(v, f"{where}.{k}", unit) for k, v in distribution.items() if k in ENDS}
                distribution = {**distribution, **ends}
            read["distribution"] = self.make(Distribution, distribution, f"{where}.distribution")
        return self.make(Parameter, {**data, **read}, where)
