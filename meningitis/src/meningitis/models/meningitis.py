"""The basic and the generalised model of meningitis with carriers and two stages of illness.

Structure after Yaga & Saporu (arXiv 2304.00148). Our own readings of it stand here and nowhere else: a carrier
transmits at carrier_odds x transmission_rate, the force of infection is divided by the constant size of the closed
population, stage II is as infectious as stage I by default, and nobody dies in stage I by default.
"""

from __future__ import annotations

from dataclasses import replace

from meningitis.model import Compartment, Distribution, Flow, InitialState, Kind, Model, Parameter, Scenario

_YEAR = 365.0
_SCRIPT = "T. Koutangni's published script of a seasonal carrier model for Burkina Faso (unfitted)"

_FORCE = "transmission_rate * (carrier_odds * C + I1 + stage2_infectiousness * I2) / population"  # per day


def _parameter(
    name: str,
    symbol: str,
    default: float,
    bounds: tuple[float, float],
    sampled: tuple[str, float, float],
    meaning: str,
    *,
    unit: str = "1/day",
    kind: Kind = "rate",
    source: str = "assumed",
) -> Parameter:
    shape, low, high = sampled
    distribution = Distribution(kind=shape, low=low, high=high)  # type: ignore[arg-type]
    return Parameter(
        name=name,
        symbol=symbol,
        unit=unit,
        default=default,
        bounds=bounds,
        distribution=distribution,
        kind=kind,
        meaning=meaning,
        source=source,
    )


_PARAMETERS = (
    _parameter(
        "transmission_rate",
        r"\beta",
        70 / _YEAR,
        (0.0, 10.0),
        ("uniform", 40 / _YEAR, 100 / _YEAR),
        "infection transmission rate of an infective",
        source=_SCRIPT,
    ),
    _parameter(
        "carrier_odds",
        r"\varepsilon",
        1.0,
        (0.0, 100.0),
        ("uniform", 0.5, 1.5),
        "odds in favour of a carrier, over an infective, transmitting to a susceptible",
        unit="1",
        kind="multiplier",
    ),
    _parameter(
        "stage2_infectiousness",
        r"\eta",
        1.0,
        (0.0, 100.0),
        ("uniform", 0.5, 1.5),
        "infectiousness of stage II relative to stage I",
        unit="1",
        kind="multiplier",
    ),
    _parameter(
        "carrier_conversion_rate",
        r"\varphi",
        0.12 / _YEAR,
        (0.0, 1.0),
        ("loguniform", 0.012 / _YEAR, 1.2 / _YEAR),
        "rate at which carriers become infectives in stage I",
        source=f"ten times the baseline 0.012/year of {_SCRIPT}",
    ),
    _parameter(
        "carrier_immunity_rate",
        r"\gamma_c",
        26 / _YEAR,
        (0.0, 10.0),
        ("uniform", 13 / _YEAR, 39 / _YEAR),
        "rate at which carriers become immune (14 days of carriage; 9 to 28 sampled)",
        source=_SCRIPT,
    ),
    _parameter(
        "stage1_immunity_rate",
        r"\gamma_1",
        0.0,
        (0.0, 10.0),
        ("uniform", 0.0, 0.05),
        "rate at which infectives in stage I become immune",
    ),
    _parameter(
        "stage2_immunity_rate",
        r"\gamma_2",
        0.225,
        (0.0, 10.0),
        ("uniform", 0.15, 0.3),
        "rate at which infectives in stage II become immune (with stage2_death_rate: 4 days, 10 % fatality)",
    ),
    _parameter(
        "stage_progression_rate",
        r"\sigma",
        1 / 3,
        (0.0, 10.0),
        ("uniform", 0.2, 0.5),
        "rate from stage I to stage II (3 days; 2 to 5 sampled)",
    ),
    _parameter(
        "stage1_death_rate",
        r"\delta_1",
        0.0,
        (0.0, 10.0),
        ("uniform", 0.0, 0.02),
        "rate of death of the disease in stage I",
    ),
    _parameter(
        "stage2_death_rate",
        r"\delta_2",
        0.025,
        (0.0, 10.0),
        ("uniform", 0.0125, 0.05),
        "rate of death of the disease in stage II",
    ),
    _parameter(
        "population",
        "N",
        111_540.0,
        (1.0, 1e10),
        ("fixed", 111_540.0, 111_540.0),
        "size of the closed population, the dead included",
        unit="persons",
        kind="count",
        source=_SCRIPT,
    ),
    _parameter(
        "initial_immune_fraction",
        r"\rho",
        0.2,
        (0.0, 1.0),
        ("uniform", 0.1, 0.5),
        "proportion of the population immune at the start",
        unit="1",
        kind="proportion",
    ),
    _parameter(
        "initial_carrier_fraction",
        "c_0",
        0.001,
        (0.0, 1.0),
        ("loguniform", 0.0002, 0.005),
        "proportion of the population carrying at the start",
        unit="1",
        kind="proportion",
    ),
    _parameter(
        "initial_stage1_fraction",
        "i_1",
        0.0,
        (0.0, 1.0),
        ("fixed", 0.0, 0.0),
        "proportion of the population in stage I at the start",
        unit="1",
        kind="proportion",
    ),
    _parameter(
        "initial_stage2_fraction",
        "i_2",
        0.0,
        (0.0, 1.0),
        ("fixed", 0.0, 0.0),
        "proportion of the population in stage II at the start",
        unit="1",
        kind="proportion",
    ),
)

_DIRECT = _parameter(
    "direct_fraction",
    "p",
    0.01,
    (0.0, 1.0),
    ("uniform", 0.0, 0.05),
    "proportion of the newly infected who go straight to stage I",
    unit="1",
    kind="proportion",
)

_COMPARTMENTS = (
    Compartment(name="S", meaning="susceptible"),
    Compartment(name="C", meaning="carriers", infected=True),
    Compartment(name="I1", meaning="infectives in stage I", infected=True),
    Compartment(name="I2", meaning="infectives in stage II", infected=True),
    Compartment(name="R", meaning="immune"),
    Compartment(name="D", meaning="dead of the disease", dead=True),
)

_AFTER_INFECTION = (
    Flow(name="conversion", source="C", target="I1", rate="carrier_conversion_rate * C", case=True),
    Flow(name="carrier_immunity", source="C", target="R", rate="carrier_immunity_rate * C"),
    Flow(name="progression", source="I1", target="I2", rate="stage_progression_rate * I1"),
    Flow(name="stage1_immunity", source="I1", target="R", rate="stage1_immunity_rate * I1"),
    Flow(name="stage2_immunity", source="I2", target="R", rate="stage2_immunity_rate * I2"),
    Flow(name="stage1_death", source="I1", target="D", rate="stage1_death_rate * I1", death=True),
    Flow(name="stage2_death", source="I2", target="D", rate="stage2_death_rate * I2", death=True),
)

_INITIAL = InitialState(
    values={
        "S": "population * (1 - initial_immune_fraction - initial_carrier_fraction"
        " - initial_stage1_fraction - initial_stage2_fraction)",
        "C": "population * initial_carrier_fraction",
        "I1": "population * initial_stage1_fraction",
        "I2": "population * initial_stage2_fraction",
        "R": "population * initial_immune_fraction",
    }
)

_SCENARIOS = (
    Scenario(
        name="epidemic",
        title="Epidemic season",
        overrides={
            "transmission_rate": 70 / _YEAR,
            "carrier_conversion_rate": 0.12 / _YEAR,
            "initial_immune_fraction": 0.2,
        },
        season="dry season of an epidemic year",
        gives="R at the start 2.15, peak weekly incidence 33 per 100,000 in week 12, 342 cases, 34 deaths, "
        "67 % ever infected",
    ),
    Scenario(
        name="hyperendemic",
        title="Hyperendemic season",
        overrides={
            "transmission_rate": 70 / _YEAR,
            "carrier_conversion_rate": 0.12 / _YEAR,
            "initial_immune_fraction": 0.5,
        },
        season="dry season",
        gives="peak weekly incidence 4.3 per 100,000 in week 26, 117 cases",
    ),
    Scenario(
        name="endemic",
        title="Endemic rainy season",
        overrides={
            "transmission_rate": 40 / _YEAR,
            "carrier_conversion_rate": 0.012 / _YEAR,
            "initial_immune_fraction": 0.4,
        },
        season="rainy season",
        gives="R at the start 0.92, 0.02 per 100,000 per week",
    ),
    Scenario(
        name="severe",
        title="Severe epidemic season",
        overrides={
            "transmission_rate": 70 / _YEAR,
            "carrier_conversion_rate": 1.2 / _YEAR,
            "initial_immune_fraction": 0.4,
        },
        season="dry season of an epidemic year",
        gives="peak weekly incidence 107 per 100,000, 1.7 % fall ill",
    ),
)

BASIC = Model(
    name="basic",
    title="Basic model: every infection starts as carriage",
    description="Susceptible, carriers, two stages of illness, immune and dead, in a closed population.",
    compartments=_COMPARTMENTS,
    parameters=_PARAMETERS,
    flows=(Flow(name="infection", source="S", target="C", rate=f"{_FORCE} * S", new_infection=True), *_AFTER_INFECTION),
    initial=_INITIAL,
    scenarios=_SCENARIOS,
    closed=True,
)
"""The basic model (p = 0)."""

_GIVES_GENERALISED = (
    "R at the start 2.14, peak weekly incidence 112 per 100,000 in week 11, 1078 cases, 108 deaths, 66 % ever infected",
    "peak weekly incidence 13 per 100,000, 366 cases",
    "R at the start 0.92, 0.5 per 100,000 per week",
    "peak weekly incidence 129 per 100,000, 2.0 % fall ill",
)
"""What the scenarios give where a hundredth of the newly infected fall ill at once."""

GENERALISED = Model(
    name="generalised",
    title="Generalised model: a proportion of the newly infected fall ill at once",
    description="The basic model in which a proportion direct_fraction of new infections skips carriage.",
    compartments=_COMPARTMENTS,
    parameters=(*_PARAMETERS[:4], _DIRECT, *_PARAMETERS[4:]),
    flows=(
        Flow(
            name="infection",
            source="S",
            target="C",
            rate=f"(1 - direct_fraction) * {_FORCE} * S",
            new_infection=True,
        ),
        Flow(
            name="direct_infection",
            source="S",
            target="I1",
            rate=f"direct_fraction * {_FORCE} * S",
            new_infection=True,
            case=True,
        ),
        *_AFTER_INFECTION,
    ),
    initial=_INITIAL,
    scenarios=tuple(replace(s, gives=gives) for s, gives in zip(_SCENARIOS, _GIVES_GENERALISED, strict=True)),
    closed=True,
)
"""The generalised model (0 <= p <= 1)."""
