"""What a declaration says of infection and of time, read off without solving anything."""

from __future__ import annotations

import sympy as sp

from meningitis.model import TIME, Model
from meningitis.symbolic.limits import tidy


def infected_states(model: Model) -> tuple[str, ...]:
    """Names of the compartments declared infected, in declared order; of the dead too, who may infect until buried."""
    return tuple(c.name for c in model.compartments if c.infected)


def uninfected_states(model: Model) -> tuple[str, ...]:
    """Names of the compartments of living people without infection, in declared order."""
    return tuple(c.name for c in model.compartments if not (c.infected or c.dead))


def drained_states(model: Model) -> set[str | None]:
    """Uninfected compartments that new infections drain; None where people are infected outside."""
    return {flow.source for flow in model.flows if flow.new_infection} - set(infected_states(model))


def moving_rates(model: Model) -> tuple[str, ...]:
    """Names of the flows whose rate depends on time: no single matrix then has the facts of the whole model."""
    time = model.symbols[TIME]
    return tuple(name for name, rate in model.flow_rates().items() if time in rate.free_symbols)


def refuse_time(model: Model) -> None:
    """Raise ValueError where a rate depends on time."""
    if moving := moving_rates(model):
        raise ValueError(
            f"model {model.name!r}: {', '.join(moving)} depends on time {TIME}, so R0, growth and equilibria are not "
            "those of one matrix; runs, sizes and surveillance thresholds are still answered"
        )


def refilled(model: Model) -> bool:
    """Whether some flow, new infections aside, leads into a compartment that new infections drain.

    Then births or a return after infection make more infections possible than there are people at the start.
    """
    drained = drained_states(model)
    return any(flow.target in drained for flow in model.flows)


def uncounted_text(model: Model) -> str:
    """That cases, deaths or both are not counted, as a sentence; empty where they are."""
    if not model.uncounted:
        return ""
    flags = " or ".join({"cases": "a case", "deaths": "a death"}[name] for name in model.uncounted)
    return f"no flow of model {model.name!r} is declared {flags}: {' and '.join(model.uncounted)} are not counted"


def infects(model: Model, name: str) -> bool:
    """Whether those in infected compartment `name` cause new infections, few being infected."""
    nobody = {model.symbols[other]: 0 for other in infected_states(model)}
    caused = (sp.diff(gain, model.symbols[name]).subs(nobody) for gain in new_infections(model))
    return any(not tidy(rate).is_zero for rate in caused)


def new_infections(model: Model) -> list[sp.Expr]:
    """Persons newly infected per day by infected compartment, in the order of `infected_states`."""
    rates, names = model.flow_rates(), infected_states(model)
    return [
        sum((rates[f.name] for f in model.flows if f.new_infection and f.target == name), sp.Integer(0))
        for name in names
    ]
