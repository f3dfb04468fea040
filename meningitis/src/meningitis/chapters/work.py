"""What every chapter of the study is given: the models, the values in force, the page and the results so far."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meningitis.analysis.events import Events, events
from meningitis.analysis.outcomes import COMPARED, distributed
from meningitis.calendar import WeekSystem
from meningitis.model import Model

if TYPE_CHECKING:
    from meningitis.report import Report

OUTCOME_WORDS = dict(
    zip(
        COMPARED,
        ("R₀", "R at the start", "peak weekly incidence", "week of peak incidence", "cases", "deaths", "ever infected"),
        strict=True,
    )
)
NUMBERS = {"R0": "R₀", "R_c": "R_c"}
"""How the names of reproduction numbers are written."""
KEY = {"transmission_rate": "β", "carrier_odds": "ε", "carrier_conversion_rate": "φ"}
"""The parameters that the paper names as key."""


@dataclass(kw_only=True)
class Work:
    """The models, the fuller one last; the settings; the page; the results, which chapters add to.

    scenario: the one that the analyses of a single parameter set take (None: each model's first); overrides: values on
    top of every scenario's, where a model has the parameter; days: the length of every run (None: the scenario's);
    reporting_fraction: suspected cases reported for each case of the model; say: hears how far long work is, in words;
    checkpoint: a folder that keeps finished runs of the global sensitivity (None: none are kept).
    """

    report: Report
    models: tuple[Model, ...]
    seed: int
    sobol_n: int
    lhs_n: int
    start: dt.date | None
    weeks: WeekSystem
    scenario: str | None = None
    overrides: Mapping[str, float | str] = field(default_factory=dict)
    days: float | None = None
    reporting_fraction: float = 1.0
    say: Callable[[str], None] | None = None
    checkpoint: Path | None = None
    results: dict[str, Any] = field(default_factory=dict)
    found: dict[tuple[str, str], Events] = field(default_factory=dict, repr=False)

    @property
    def fullest(self) -> Model:
        """The model that has the parameters of all."""
        return self.models[-1]

    def values(self, model: Model, scenario: str | None = None) -> dict[str, float]:
        """Values of a scenario (None: the study's) with the overrides that the model knows."""
        known = {name: value for name, value in self.overrides.items() if name in model.parameter_names}
        return model.values(scenario or self.scenario, known)

    def pinned(self, model: Model) -> tuple[str, ...]:
        """Parameters that the overrides hold at one value, so that no analysis samples them."""
        return tuple(name for name in model.parameter_names if name in self.overrides)

    def undrawn(self, model: Model) -> str:
        """Why nothing is sampled, as a sentence; empty where something is."""
        return "" if distributed(model) else f"No parameter of the {model.name} model has a distribution to sample."

    def draws(self, model: Model) -> str:
        """How parameters are sampled, for a caption: what is held, and that a scenario does not reach the sampled."""
        held = ", ".join(self.pinned(model))
        kept = f" except {held}, held as given" if held else ""
        return f"parameters from their declared distributions{kept} (sampled parameters ignore the scenario)"

    def length(self, model: Model, scenario: str | None = None) -> float:
        """Days of a run."""
        return float(model.scenario(scenario or self.scenario).days) if self.days is None else self.days

    def events(self, model: Model, scenario: str | None = None) -> Events:
        """What happens along the run of a scenario (None: the study's); found once."""
        key = (model.name, model.scenario(scenario or self.scenario).name)
        if key not in self.found:
            self.found[key] = events(
                model,
                self.values(model, scenario),
                self.length(model, scenario),
                start=self.start,
                reporting_fraction=self.reporting_fraction,
            )
        return self.found[key]

    def scenarios(self, model: Model) -> tuple[str | None, ...]:
        """Names of the model's scenarios; a model without any has one that is not named."""
        return tuple(scenario.name for scenario in model.scenarios) or (None,)
