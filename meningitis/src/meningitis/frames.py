"""Results with their units: columns of a table that say theirs, and xarray datasets with named dimensions.

xarray is optional (the extra `xarray`) and imported only by `to_xarray`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from meningitis.analysis import Bands, EverInfected, Profiles
from meningitis.engine import Ensemble
from meningitis.model import CUMULATIVE, Model

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

UNITS = {
    "day": "days", "time": "days", "days": "days", "prevalence": "persons",
    "weekly_cases_per_100000": "per 100,000 per week", "weekly_suspected_cases": "persons/week",
    **dict.fromkeys(CUMULATIVE, "persons"), **{f"weekly_{name}": "persons/week" for name in CUMULATIVE},
}  # fmt: skip
"""Units of columns that every model's tables may have; those of parameters and compartments follow the model."""

OUTCOME_UNITS = {
    "R0": "1", "R_at_start": "1", "peak_weekly_incidence": "persons/week", "peak_week": "week", "cases": "persons",
    "deaths": "persons", "ever_infected": "persons",
}  # fmt: skip
"""Units of the outcomes of `meningitis.analysis.outcomes`; a week is counted from 1."""


def units(model: Model) -> dict[str, str]:
    """Unit by name of column: parameters as declared, compartments in persons, and what all models share."""
    return {**UNITS, **{p.name: p.unit for p in model.parameters}, **dict.fromkeys(model.state_names, "persons")}


def with_units(frame: pd.DataFrame, model: Model) -> pd.DataFrame:
    """The same table with `S [persons]` for `S`; columns without a unit, or with the unit 1, keep their names."""
    known = units(model)
    named = {c: f"{c} [{known[c]}]" for c in map(str, frame.columns) if known.get(c, "1") != "1"}
    return frame.rename(columns=named)


def to_xarray(result: Ensemble | Profiles | EverInfected | Bands, model: Model) -> xr.Dataset:
    """A result as a dataset whose variables and coordinates carry `units` and, where declared, `long_name`.

    Dimensions: an ensemble has set and time, its parameters being coordinates of set; profiles the same, with the swept
    parameters; ever infected has carrier_odds and direct_fraction; bands have percentile and time.
    Raises ImportError where xarray is not installed.
    """
    import xarray as xr

    known = units(model) | {"percentile": "%"}
    meaning = {p.name: p.meaning for p in model.parameters} | {c.name: c.meaning for c in model.compartments}

    def variable(
        dims: str | tuple[str, ...], values: Any, name: str, unit: str = ""
    ) -> tuple[Any, Any, dict[str, str]]:
        extra = {"long_name": meaning[name]} if meaning.get(name) else {}
        return dims, np.asarray(values), {"units": unit or known.get(name, "1"), **extra}

    coordinates: dict[str, Any]
    if isinstance(result, Ensemble):
        axes: tuple[str, ...] = ("set", "time")
        data = {name: variable(axes, result[name], name) for name in (*result.state_names, *result.cumulative_names)}
        data["status"] = variable("set", result.status, "status")
        coordinates = {"time": variable("time", result.times, "time")}
        coordinates |= {name: variable("set", values, name) for name, values in result.parameters.items()}
    elif isinstance(result, Profiles):
        axes = ("set", "time")
        ratios = {name: getattr(result, name) for name in ("stage1", "both", "threshold", "prevalence")}
        data = {name: variable(axes, values, name) for name, values in ratios.items()}
        data |= {name: variable("set", getattr(result, name), name) for name in ("critical", "early")}
        coordinates = {"time": variable("time", result.times, "time")}
        coordinates |= {name: variable("set", values, name) for name, values in result.sweep.items()}
    elif isinstance(result, EverInfected):
        axes = ("carrier_odds", "direct_fraction")
        data = {name: variable(axes, getattr(result, name), name) for name in ("integrated", "exact")}
        coordinates = {
            name: variable(name, at, name) for name, at in zip(axes, (result.epsilon, result.p), strict=True)
        }
    else:
        axes = ("percentile", "time")
        data = {name: variable(axes, band, name) for name, band in result.series.items()}
        coordinates = {"percentile": variable("percentile", result.percentiles, "percentile")}
        coordinates["time"] = variable("time", result.times, "time")
    return xr.Dataset(data, coordinates, {"model": model.name, "model_hash": model.hash})
