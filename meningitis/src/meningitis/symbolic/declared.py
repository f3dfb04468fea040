"""What a declaration says of infection and of time, read off without solving anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy as sp

from meningitis.model import TIME, Model
from meningitis.symbolic.zero import vanishes


def completed(model: Model, values: Mapping[str, float]) -> dict[str, float]:
    """Every parameter's value: those given, quantities such as '70/year' read, on top of the default scenario's.

    Raises ModelError as `Model.values` does where some are missing or are no numbers; a whole set stands as it is.
    """
    if all(isinstance(values.get(name), int | float) for name in model.parameter_names):
        return dict(values)
    return model.values(None, values)


def infected_states(model: Model) -> tuple[str, ...]:
    """Names of the compartments declared infected, in declared order; of the dead too, who may infect until buried."""
    return tuple(c.name for c in model.compartments if c.infected)


def uninfected_states(model: Model) -> tuple[str, ...]:
    """Names of the compartments of living people without infection, in declared order."""
    return tuple(c.name for c in model.compartments if not (c.infected or c.dead))


def drained_states(model: Model) -> set[str | None]:
    """Uninfected compartments that new infections drain; None where people are infected outside."""
    return {flow.source for flow in model.flows if flow.new_infection} - set(infected_states(model))


def timed_rates(model: Model) -> tuple[str, ...]:
    """Names of the flows whose rate depends on time."""
    time = model.symbols[TIME]
    return tuple(name for name, rate in model.flow_rates().items() if time in rate.free_symbols)


def moving_rates(model: Model) -> tuple[str, ...]:
    """Names of the flows by which F or V depend on time: no single matrix then has the facts of the whole model.

    A dated campaign among people without infection is none of them: what one infected person does stays the same.
    """
    names, time, rates = infected_states(model), model.symbols[TIME], model.flow_rates()
    return tuple(
        flow.name
        for flow in model.flows
        if flow.source in names or flow.target in names
        if any(time in sp.diff(rates[flow.name], model.symbols[name]).free_symbols for name in names)
    )


def refuse_time(model: Model, moving: Sequence[str] | None = None) -> None:
    """Raise ValueError where rates that matter, by default those of F and V, depend on time."""
    moving = moving_rates(model) if moving is None else moving
    if moving:
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
    return any(not vanishes(rate) for rate in caused)


def new_infections(model: Model) -> list[sp.Expr]:
    """Persons newly infected per day by infected compartment, in the order of `infected_states`."""
    rates, names = model.flow_rates(), infected_states(model)
    return [
        sum((rates[f.name] for f in model.flows if f.new_infection and f.target == name), sp.Integer(0))
        for name in names
    ]
