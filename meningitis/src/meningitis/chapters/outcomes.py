"""Chapters on totals: ever infected, whether p = 0 is adequate, control and uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meningitis import analysis, symbolic
from meningitis.analysis.adequacy import PHI, P
from meningitis.analysis.runs import within
from meningitis.chapters.work import NUMBERS, OUTCOME_WORDS, Work
from meningitis.frames import OUTCOME_UNITS
from meningitis.model import Model
from meningitis.notation import Notation
from meningitis.report import figures, show

YEARS = 3 * 365.0
"""Days after which an outbreak counts as over for the integrator; the exact relation needs none."""
EFFICACY = 0.9
"""Share of the vaccinated who are protected against infection, carriage included, in the example of a coverage."""
SHARES = (0.0, 0.0005, 0.001, 0.0015, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Proportions ill at once that are compared with none: close to it, where equal early cases are possible at all."""
FELT = 1e-6
"""Index from which a parameter counts as one to lower."""
SAME = 0.05
"""Relative difference below which p = 0 counts as adequate for an outcome."""


def infected(work: Work) -> None:
    """Total ever infected over carrier odds and the proportion ill at once, by integrator and exactly."""
    model = work.fullest
    if "carrier_odds" not in model.parameter_names:
        total = analysis.final_sizes(model, work.values(model), days=YEARS)
        work.results["ever_infected"] = {model.name: total.to_dict()}
        end = ", and exactly at the end" if np.isfinite(total.exact).all() else ""
        words = f"Share of the population ever infected: by integrator after {YEARS:g} days{end}. {total.note}"
        work.report.table("ever-infected", total.frame(), words)
        return
    epsilon = _points(model, "carrier_odds", 0.2, 2.0, 37)
    p = _points(model, "direct_fraction", 0.0, 1.0, 41) if "direct_fraction" in model.parameter_names else np.zeros(1)
    found = analysis.ever_infected(model, work.values(model), list(epsilon), list(p), days=YEARS)
    exact = bool(np.isfinite(found.exact).all())
    share = found.exact if exact else found.integrated
    way = "when the outbreak is over (exact relation)" if exact else f"within {YEARS:g} days"
    if epsilon.size > 1 and p.size > 1:
        basic = "; p = 0 is the basic model" if p[0] == 0 else ""
        work.report.figure(
            "ever-infected-curves",
            figures.ever_infected_curves(epsilon, p, share),
            f"Share of the population ever infected {way}{basic}.",
        )
        work.report.figure("ever-infected-map", figures.ever_infected_map(epsilon, p, share), "The same as a map.")
    some, few = slice(0, None, 4), [j for j in (0, 4, 10, 20, 40) if j < p.size]
    shown = pd.DataFrame(
        {"ε": [f"{x:.2g}" for x in epsilon[some]]}
        | {f"p = {p[j]:.2g}": [f"{100 * x:.1f}" for x in share[some, j]] for j in few}
    )
    work.report.table(
        "ever-infected",
        found.frame(),
        f"Share ever infected {way}, % of the population. The file has every point, by integrator (three years)"
        f"{' and exactly' if exact else ''}.",
        shown,
    )
    for other in work.models[:-1]:
        epsilon = _points(other, "carrier_odds", 0.2, 2.0, 37)
        table = analysis.ever_infected(other, work.values(other), list(epsilon), days=YEARS).frame()
        work.report.file(f"tables/ever-infected-{other.name}.csv", table.to_csv(index=False))
    gap = float(np.max(np.abs(found.integrated - found.exact))) if exact else None
    work.results["ever_infected"] = {model.name: found.to_dict(), "largest_gap": gap}
    if gap is None:
        work.report.text(f"By the integrator alone: {found.note}.")
        return
    work.report.text(
        f"Largest difference between three integrated years and the exact end over the whole map: {gap:.2g} of the "
        "population; near R = 1 an outbreak takes longer than that."
    )


def _points(model: Model, name: str, low: float, high: float, count: int) -> NDArray[np.float64]:
    """Even steps from low to high, or as far as the parameter's bounds reach; a single point where they hold it."""
    first, last = np.clip([low, high], *model.parameter(name).bounds).tolist()
    return np.unique(np.linspace(first, last, count))


def varies_p(model: Model) -> bool:
    """Whether the model has what the chapter on p = 0 varies."""
    return {P, PHI} <= set(model.parameter_names)


def adequacy(work: Work) -> None:
    """Outcomes over p, at equal conversion and at equal early cases, and whether p = 0 is adequate for each."""
    model = work.fullest
    shares = within(model, P, SHARES)
    if shares[0] > 0 or len(shares) == 1:
        low, high = model.parameter(P).bounds
        work.report.text(f"This chapter compares {P} with 0, for which its bounds, {low:g} to {high:g}, have no room.")
        return
    found = analysis.adequacy(model, work.values(model), shares, days=work.length(model))
    table = found.frame()
    work.results["adequacy"] = table.to_dict("records")
    names = {name: OUTCOME_WORDS[name] for name in found.equal}
    none = [name for name, values in found.equal.items() if values[0] == 0]  # nothing is a multiple of these
    if len(none) < len(names):
        work.report.figure(
            "adequacy",
            figures.relative_to_basic(
                found.p,
                *(
                    {names[name]: values / values[0] for name, values in part.items() if name not in none}
                    for part in (found.equal, found.rescaled)
                ),
            ),
            f"Outcomes against p = 0. Early cases are those of the first {found.early_days:g} days; where p alone "
            "gives more of them than p = 0 did, no φ makes them equal and the right panel ends. "
            + (f"Without a curve, being 0 at p = 0: {', '.join(names[name] for name in none)}." if none else "")
            + ("" if none else "Cases and deaths nearly cover each other."),
        )
    shown = table.dropna().rename(columns={"direct_fraction": "p", "carrier_conversion_rate": "φ (per day)", **names})
    shown["p"] = [f"{p:g}" for p in shown["p"]]
    words = "The same in persons, incidence in persons per week; rows where no φ gives equal early cases left out."
    work.report.table("adequacy", table, words, shown)
    work.results.setdefault("claims", {})["p = 0 adequate"] = {name: _times(x) for name, x in found.equal.items()}
    good, bad = _judged(found.equal, names)
    told = f"Going from p = 0 to p = {found.p[-1]:g} at equal φ changes {_changes(good, bad)}."
    reached = int(np.flatnonzero(np.isfinite(found.phi))[-1])  # where p is 0, φ is as it was
    kept: list[str] = []
    moved: list[str] = []
    if reached:
        part = {name: values[: reached + 1] for name, values in found.rescaled.items()}
        work.results["claims"]["p = 0 adequate, equal early cases"] = {name: _times(x) for name, x in part.items()}
        kept, moved = _judged(part, names)
        told += f" Going to p = {found.p[reached]:g} with φ rescaled to equal early cases changes "
        told += f"{_changes(kept, moved)}."
    if found.p[reached] < found.p[-1]:
        told += f" Beyond p = {found.p[reached]:g} no φ within its bounds gives the early cases of p = 0."
    differs = "the outcome" if (good and bad) or (kept and moved) else "whether φ is rescaled"
    mixed = bool(good + kept and bad + moved)
    work.report.claim(
        "Is the basic model (p = 0) adequate?",
        holds=None if mixed else bool(good),
        verdict=f"Depends on {differs}" if mixed else "Adequate" if good else "Not adequate",
        condition=told,
    )


def _judged(part: Mapping[str, NDArray[np.float64]], names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The outcomes whose last value is the first within SAME, and the others with what becomes of them, in words."""
    good, bad = [], []
    for name, values in part.items():
        ratio = _times(values)
        if abs(ratio - 1) <= SAME:
            good.append(names[name])
        elif not math.isnan(ratio):
            bad.append(f"{names[name]} ({f'{ratio:.3g} times' if values[0] else f'from none to {show(values[-1])}'})")
    return good, bad


def _changes(good: Sequence[str], bad: Sequence[str]) -> str:
    return f"by at most {100 * SAME:g} %: {', '.join(good) or 'nothing'}; by more: {', '.join(bad) or 'nothing'}"


def _times(values: NDArray[np.float64]) -> float:
    """The last value as a multiple of the first: 1 where both are 0, infinite where the first alone is."""
    first, last = float(values[0]), float(values[-1])
    return last / first if first else math.inf if last else 1.0


def _minimum(share: float) -> str:
    """A share that has to be reached, rounded up to the per cent (but not by what rounding adds to a whole one)."""
    return f"{math.ceil(100 * share - 1e-9)}%"


def _reached(coverage: float | None) -> str:
    """Whom a vaccine has to reach (None: everyone would not do)."""
    if coverage is None:
        return "more than everyone"
    return f"at least {_minimum(coverage)}" if coverage > 0 else "nobody"


def _gained(found: analysis.Comparison) -> str:
    """The cases and deaths averted, of those that the model counts."""
    averted = {"cases": found.cases_averted, "deaths": found.deaths_averted}
    told = ", ".join(f"{name} averted {persons:,.0f}" for name, persons in averted.items() if not np.isnan(persons))
    return f"{told.capitalize()}." if told else ""


def _postponed(unfinished: tuple[str, ...]) -> str:
    if not unfinished:
        return ""
    return f" Not over by then: {' and '.join(unfinished)}, so that what is averted may be postponed."


def _critical(work: Work, model: Model, values: dict[str, float]) -> None:
    """What would bring R0 to one."""
    facts = symbolic.control(model, values, efficacy=EFFICACY)
    write = Notation(model)
    table = pd.DataFrame(
        [
            {"parameter": p.name, "value": values[p.name], "value_at_R0_1": facts.critical[p.name], "unit": p.unit}
            for p in model.parameters
            if facts.critical[p.name] is not None
        ]
    )
    work.results["control"] = facts.to_dict()
    coverage, begun = (_reached(share) for share in (facts.coverage, facts.coverage_at_start))
    share = 1.0 if facts.susceptible is None else facts.susceptible
    name = NUMBERS[symbolic.reproduction_name(model, values)]
    carriage = symbolic.case_and_carrier(model) is not None
    against = "acquiring carriage" if carriage else "being infected"
    needed = (
        f"{facts.reason[0].upper()}{facts.reason[1:]}."
        if facts.herd_immunity is None
        else f"Infection cannot spread where {_minimum(facts.herd_immunity)} of the population are immune. "
        f"A vaccine that keeps {EFFICACY:.0%} of the vaccinated from {against} has to reach {coverage} where "
        f"nobody is immune yet, and {begun} where people are immune as at the start"
        f"{f'; one that prevents illness alone leaves {name} as it is' if carriage else ''}."
    )
    settled = ""
    if name != NUMBERS["R0"]:
        immune = f", where {1 - share:.0%} of the population are immune," if share < 1 else ""
        at_start = symbolic.growth(model, values).reproduction
        settled = (
            f" This is the control reproduction number at the disease-free state{immune} to which flows without "
            f"infection, such as vaccination, lead; R at the start is {at_start:.2f}."
        )
    work.report.text(f"{name} = {facts.r0:.2f} in the {model.name} model.{settled} {needed}")
    if len(table):
        work.report.table(
            "critical-values",
            table,
            f"The value of each parameter at which {name} = 1, all others as they are ({model.name} model). Parameters "
            "without such a value within their bounds are left out.",
            pd.DataFrame(
                {
                    "": [write.text(model.symbols[name]) for name in table["parameter"]],
                    "meaning": [model.parameter(name).meaning for name in table["parameter"]],
                    "now": table["value"],
                    f"at {name} = 1": table["value_at_R0_1"],
                    "unit": table["unit"].replace("1", ""),
                }
            ),
        )


def _lever(model: Model, values: dict[str, float], days: float) -> str | None:
    """The rate that the example lowers: one of infection before others, by the index of R0, or of the ever infected."""
    index = (
        analysis.local_sensitivity(model, values, days=days).indices["ever_infected"]
        if symbolic.moving_rates(model)
        else symbolic.elasticities(model).evaluate(values)
    )
    rates = model.flow_rates()
    infecting = set().union(*(rates[flow.name].free_symbols for flow in model.flows if flow.new_infection))
    able = [
        p.name for p in model.parameters if p.kind == "rate" and index[p.name] > FELT and p.bounds[0] < values[p.name]
    ]
    return min(able, key=lambda name: (model.symbols[name] not in infecting, -index[name]), default=None)


def _averted(work: Work, model: Model, values: dict[str, float]) -> None:
    """Two parameter sets side by side, as an example."""
    days = work.length(model)
    lever = _lever(model, values, days)
    if lever is None:
        work.report.text("No rate can be lowered, within its bounds, to less infection: no two sets are compared.")
        return
    lowest = model.parameter(lever).bounds[0]
    other = {**values, lever: max(0.8 * values[lever], lowest)}
    found = analysis.compare(model, values, other, days=days)
    names = {symbolic.reproduction_name(model, each) for each in (values, other)}
    reproduction = NUMBERS["R_c" if "R_c" in names else "R0"]
    changed = "lowered by a fifth" if other[lever] > lowest else f"lowered to the end of its bounds, {lowest:g}"
    work.results["compare"] = found.to_dict()
    work.report.table(
        "compare",
        found.frame(),
        f"An example of two parameter sets of the {model.name} model, {model.scenario(work.scenario).name} scenario, "
        f"{found.days:g} days: {lever} as it is (a) and {changed} (b). "
        f"{_gained(found)}{_postponed(found.unfinished)}",
        found.frame().assign(
            outcome=[{**OUTCOME_WORDS, "R0": reproduction}[name] for name in found.a],
            unit=[OUTCOME_UNITS[name].replace("1", "") for name in found.a],
        ),
    )


def control(work: Work) -> None:
    """What would bring R0 to one, what an intervention averts, and percentile bands over sampled parameters."""
    model = work.fullest
    values = work.values(model)
    if moving := symbolic.moving_rates(model):
        work.report.text(f"{', '.join(moving)} depends on time: no value of a parameter is the one at which R₀ = 1.")
    else:
        _critical(work, model, values)
    _averted(work, model, values)
    for each in work.models:
        if none := work.undrawn(each):
            work.report.text(f"{none} There are no bands.")
            continue
        band = analysis.bands(
            each,
            n=min(work.lhs_n, 1000),
            seed=work.seed,
            values=work.values(each),
            days=work.length(each),
            pinned=work.pinned(each),
        )
        persons = sum(symbolic.initial_state(each, work.values(each)).values())
        work.report.figure(
            f"bands-{each.name}",
            figures.percentile_bands(
                band.times[1:] - 3.5,  # the middle of each week, as the weeks of single runs are drawn
                dict(zip(band.percentiles, 1e5 * band.series["weekly_cases"][:, 1:] / persons, strict=True)),
                "cases per 100,000 per week",
                start=work.start,
                system=work.weeks,
            ),
            f"Weekly incidence over {band.n:,} draws, {each.name} model, {work.draws(each)}. Pointwise "
            "bands, not curves: no single outbreak follows them. The file has every compartment too, in persons.",
            band.frame(),
        )
