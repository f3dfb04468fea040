"""The chapters of the study: each computes its results, adds tables, figures and words, and states its verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import sympy

from meningitis import analysis, symbolic
from meningitis.calendar import label
from meningitis.engine import simulate
from meningitis.model import Model
from meningitis.report import figures
from meningitis.report.diagram import flow_diagram
from meningitis.study import Work, global_sensitivity, provenance

OUTCOME_WORDS = {
    "R0": "$R_0$",
    "peak_weekly_incidence": "weekly peak",
    "peak_week": "week of the peak",
    "cases": "cases",
    "deaths": "deaths",
    "ever_infected": "ever infected",
}
KEY = {"transmission_rate": "β", "carrier_odds": "ε", "carrier_conversion_rate": "φ"}
"""The parameters that the paper names as key."""


def the_models(work: Work) -> None:
    for model in work.models:
        work.report.figure(
            f"flow-{model.name}",
            flow_diagram(model),
            f"{model.title}. Arrows carry rates per person and day; dashed arrows are zero at the default values. "
            "Thick boxes are infected and enter the next-generation matrix.",
        )
    general = work.models[1]
    equations = "\n".join(f"d{name}/dt = {sympy.sstr(rate)}" for name, rate in general.rhs().items())
    work.report.code(equations)
    rows = [
        {
            "parameter": p.name,
            "default": p.default,
            "unit": p.unit,
            "sampled": f"{p.distribution.kind} {p.distribution.low:.4g} to {p.distribution.high:.4g}",
            "meaning": p.meaning,
            "source": p.source,
        }
        for p in general.parameters
    ]
    work.report.table("parameters", pd.DataFrame(rows), "Parameters of the generalised model, in days and persons.")


def thresholds(work: Work) -> None:
    rows, found = [], {}
    for model in work.models:
        derived = symbolic.next_generation(model)
        found[model.name] = {"matrices": derived.to_dict(), "thresholds": symbolic.thresholds(model).to_dict()}
        work.report.text(f"Derived from the declaration of the {model.name} model; F holds new infections only.")
        work.report.code(f"R0 = {sympy.sstr(derived.r0)}\n\n{symbolic.thresholds(model).text()}")
        for scenario in model.scenarios:
            values = model.values(scenario.name)
            speed, control = symbolic.growth(model, values), symbolic.control(model, values)
            rows.append(
                {
                    "model": model.name,
                    "scenario": scenario.name,
                    "R0": control.r0,
                    "R_at_start": speed.reproduction,
                    "growth_per_day": speed.rate,
                    "doubling_days": speed.doubling_time if speed.rate > 0 else None,
                    "generation_days": speed.generation_time,
                    "immune_share_needed": control.herd_immunity,
                    "beta_at_R0_1": control.critical["transmission_rate"],
                }
            )
    table = pd.DataFrame(rows)
    work.results["thresholds"] = found
    work.results["reproduction"] = table.to_dict("records")
    work.report.table("reproduction", table, "R0 takes everyone as susceptible; R at the start counts the immune.")
    model = work.models[1]
    values = model.values()
    times = np.arange(0.0, 366.0)
    run = simulate(model, parameters=values, times=times)
    S, C, I1, I2 = (run[name][0] for name in ("S", "C", "I1", "I2"))
    q = (I1 + values["stage2_infectiousness"] * I2) / C
    p, beta = values["direct_fraction"], values["transmission_rate"]
    leaves = values["carrier_conversion_rate"] + values["carrier_immunity_rate"]
    needed = leaves / ((1 - p) * beta * (values["carrier_odds"] + q))
    share = S / values["population"]
    reproduction = float(symbolic.r0_numeric(model)(values)) * share
    work.report.figure(
        "spread-threshold",
        figures.spread_threshold(times, share, needed, reproduction, start=work.start, system=work.weeks),
        "Carriers spread while S/N is above (φ + γc)/((1 − p)β(ε + q)); generalised model, epidemic scenario. "
        "Lower panel: R(t) = R0 S/N.",
    )


def course(work: Work) -> None:
    rows = []
    for model in work.models:
        curves = {}
        for scenario in model.scenarios:
            values = model.values(scenario.name)
            found = {
                k: float(v[0])
                for k, v in analysis.outcomes(model, {k: np.array([v]) for k, v in values.items()}).items()
            }
            N = values["population"]
            rows.append(
                {
                    "model": model.name,
                    "scenario": scenario.name,
                    "season": scenario.season,
                    "weekly_peak_per_100000": found["peak_weekly_incidence"] / N * 1e5,
                    "peak_week": int(found["peak_week"]),
                    "cases": found["cases"],
                    "deaths": found["deaths"],
                    "ever_infected_%": 100 * found["ever_infected"] / N,
                }
            )
            run = simulate(model, scenario=scenario.name, times=np.arange(0.0, 365.0, 7.0))
            curves[scenario.name] = np.diff(run["cases"][0]) / N * 1e5
        work.report.figure(
            f"incidence-{model.name}",
            figures.incidence(curves, 3, 10, start=work.start, system=work.weeks),
            f"Weekly incidence of illness in the {model.name} model, with WHO's operational thresholds for "
            "districts of 30,000–100,000. Weeks are differences of the cumulative count. Log scale.",
        )
    table = pd.DataFrame(rows)
    work.results["course"] = table.to_dict("records")
    work.report.table("course", table, "One season of 365 days. The season is a label: the model knows none.")


def ratios(work: Work) -> None:
    rows: list[dict[str, Any]] = []
    verdicts: list[tuple[str, dict[str, bool | None]]] = []
    warnings: dict[str, None] = {}
    kept = {}
    for model in work.models:
        for scenario in model.scenarios:
            found = analysis.events(model, model.values(scenario.name), start=work.start)
            kept[model.name, scenario.name] = found
            verdicts.append((f"{model.name}/{scenario.name}", found.claim))
            warnings.update(dict.fromkeys(found.warnings))
            for event in found.events:
                when = "never" if event.day is None else label(event.day, work.start, work.weeks)
                where = {"model": model.name, "scenario": scenario.name}
                rows.append(where | {"event": event.name, "when": when, "value": event.value, "of": event.unit})
    for model in work.models:
        values = model.values()
        run = analysis.profiles(model, values, {"carrier_odds": [values["carrier_odds"]]})
        happened = [(e.name, e.day) for e in kept[model.name, "epidemic"].events]
        work.report.figure(
            f"ratio-{model.name}",
            figures.ratio_and_events(
                run.times,
                run.stage1[0],
                run.both[0],
                float(run.early[0]),
                float(run.critical[0]),
                happened,
                run.prevalence[0],
                start=work.start,
                system=work.weeks,
            ),
            f"Cases to carriers along the epidemic scenario, {model.name} model. The early and the critical ratio "
            "belong to I1/C, not to (I1 + I2)/C. Vertical lines are the events named above the panel.",
        )
        sweeps = {}
        for p in model.parameters:
            factors = {"transmission_rate": (0.7, 1, 1.3), "carrier_odds": (0.5, 1, 1.5)}.get(p.name, (0.1, 1, 10))
            if p.name in (*KEY, "direct_fraction"):
                grid = [values[p.name] * x for x in factors]
                part = analysis.profiles(model, values, {p.name: grid})
                words = [f"${p.symbol}$ = {x:.3g}" + ("/day" if p.kind == "rate" else "") for x in grid]
                sweeps[f"{p.name} (${p.symbol}$)"] = (words, part.stage1, part.critical, part.early)
        work.report.figure(
            f"ratio-sweeps-{model.name}",
            figures.ratio_sweeps(run.times, sweeps),
            f"I1/C over time for swept parameters, {model.name} model; dash-dotted the critical ratio φ/a1, dotted "
            "the early ratio, in each curve's colour (equal ones cover each other).",
        )
    table = pd.DataFrame(rows)
    work.results["events"] = table.to_dict("records")
    work.report.table("events", table, "Events in order. Surveillance events are dated at the end of their week.")
    for ratio in ("early ratio", "critical ratio"):
        told = [(where, claim[ratio]) for where, claim in verdicts if claim[ratio] is not None]
        yes, no = [w for w, c in told if c], [w for w, c in told if not c]
        work.results.setdefault("claims", {})[f"{ratio} before epidemic threshold"] = dict(told)
        work.report.claim(
            f"a critical case–carrier ratio is attained before cases grow to an epidemic level (read as: the {ratio}).",
            holds=bool(yes) and not no,
            verdict="Holds wherever an epidemic is declared."
            if yes and not no
            else "Does not hold."
            if not yes
            else "Mixed.",
            conditions=f"Attained before the epidemic threshold in {', '.join(yes) or 'none'}; after it or never in "
            f"{', '.join(no) or 'none'}. The other runs never reach it and say nothing.",
        )
    work.report.text(
        "φ/a1 is the critical ratio of the basic model only. With p > 0 direct infection lifts I1/C past it early on, "
        "long before illness stops growing, so crossing it early forewarns of nothing: the true condition is implicit."
    )
    for warning in warnings:
        work.report.text(f"Note: {warning}.")


def sensitivity(work: Work) -> None:
    bars, tables = {}, []
    for model in work.models:
        symbols = {p.name: p.symbol for p in model.parameters}
        index = symbolic.elasticities(model).evaluate(model.values())
        bars[model.name] = {symbols[name]: value for name, value in index.items() if value != 0}
        local = analysis.local_sensitivity(model, model.values()).frame()
        local.insert(0, "model", model.name)
        tables.append(local)
    work.report.figure(
        "tornado",
        figures.tornado(bars),
        "Normalised forward indices of R0 at the default values, derived symbolically; zero indices left out.",
    )
    everything = pd.concat(tables, ignore_index=True)
    wide = everything.pivot_table(
        index=["model", "parameter"], columns="outcome", values="index", sort=False
    ).reset_index()
    wide.columns.name = None
    work.report.table("local-indices", wide, "Normalised indices of every outcome: % change for 1 % of the parameter.")
    work.results["local_indices"] = everything.to_dict("records")
    for model in work.models:
        ranks, shares = global_sensitivity(
            model, model.values(), 365.0, lhs=work.lhs_n, sobol=work.sobol_n, seed=work.seed
        )
        work.results.setdefault("prcc", {})[model.name] = ranks.to_dict("records")
        work.results.setdefault("sobol", {})[model.name] = shares.to_dict("records")
        for name, table, draw in (
            ("prcc", ranks, lambda t: figures.dots(t, "prcc", "low", "high", "PRCC")),
            (
                "sobol",
                shares,
                lambda t: figures.dots(t, "first", "first_low", "first_high", "first order", second="total"),
            ),
        ):
            shown = table.assign(outcome=table["outcome"].map(OUTCOME_WORDS))
            words = (
                f"Partial rank correlation over {work.lhs_n:,} Latin hypercube samples"
                if name == "prcc"
                else f"Sobol indices of first and total order from {work.sobol_n:,} base samples"
            )
            caption = f"{words}, {model.name} model, 95 % intervals, parameters from their declared distributions."
            work.report.figure(f"{name}-{model.name}", draw(shown), caption)
            work.report.table(f"{name}-{model.name}", _leading(table, name), f"{caption} The five largest by outcome.")
            full = work.report.out / "tables" / f"{name}-{model.name}-all.csv"
            write_csv(full, table)
        _key_claim(work, model, shares, everything[everything["model"] == model.name])


def _key_claim(work: Work, model: Model, shares: pd.DataFrame, local: pd.DataFrame) -> None:
    for outcome in ("R0", "cases", "peak_weekly_incidence", "ever_infected"):
        part = shares[shares["outcome"] == outcome].sort_values("total", ascending=False)
        first = list(part["parameter"].head(3))
        place = {name: list(part["parameter"]).index(name) + 1 for name in KEY}
        at = local[local["outcome"] == outcome].set_index("parameter")["index"]
        holds = set(first) == set(KEY)
        work.results.setdefault("claims", {})[f"key parameters, {model.name}, {outcome}"] = {
            "holds": holds,
            "rank": place,
        }
        work.report.claim(
            f"β, ε and φ are the key parameters (tested for {outcome.replace('_', ' ')}, {model.name} model).",
            holds=holds,
            verdict="Holds." if holds else "Does not hold.",
            conditions=f"By Sobol total order the three largest are {', '.join(first)}; "
            + ", ".join(f"{KEY[name]} is in place {place[name]} (local index {at[name]:+.3g})" for name in KEY)
            + ".",
        )


def infected(work: Work) -> None:
    general = work.models[1]
    epsilon, p = np.linspace(0.2, 2.0, 37), np.linspace(0.0, 1.0, 41)
    found = analysis.ever_infected(general, general.values(), list(epsilon), list(p), days=1095.0)
    basic = analysis.ever_infected(work.models[0], work.models[0].values(), list(epsilon), days=1095.0)
    work.report.figure(
        "ever-infected-curves",
        figures.ever_infected_curves(epsilon, p, found.exact),
        "Share of the population ever infected when the outbreak is over (exact relation), epidemic scenario; "
        "p = 0 is the basic model.",
    )
    work.report.figure("ever-infected-map", figures.ever_infected_map(epsilon, p, found.exact), "The same as a map.")
    gap = float(np.max(np.abs(found.integrated - found.exact)))
    work.report.table(
        "ever-infected",
        found.frame().iloc[:: 41 * 4 + 8].reset_index(drop=True),
        "Share ever infected: integrated over three years and exact; a few rows (all in ever-infected-all.csv).",
    )
    write_csv(work.report.out / "tables" / "ever-infected-all.csv", found.frame())
    write_csv(work.report.out / "tables" / "ever-infected-basic-all.csv", basic.frame())
    work.results["ever_infected"] = {"generalised": found.to_dict(), "basic": basic.to_dict(), "largest_gap": gap}
    work.report.text(
        f"Largest difference between three integrated years and the exact end over the whole map: {gap:.2g} of the "
        "population; near R = 1 an outbreak takes longer than that."
    )


def adequacy(work: Work) -> None:
    general = work.models[1]
    found = analysis.adequacy(general, general.values())
    table = found.frame()
    work.results["adequacy"] = table.to_dict("records")

    def multiples(rows: dict[str, Any]) -> dict[str, Any]:
        return {OUTCOME_WORDS[name]: values / values[0] for name, values in rows.items()}

    work.report.figure(
        "adequacy",
        figures.relative_to_basic(found.p, multiples(found.equal), multiples(found.rescaled)),
        f"Outcomes against p = 0. Early cases are those of the first {found.early_days:g} days; where p alone gives "
        "more of them than p = 0 did, no φ makes them equal and the right panel ends.",
    )
    work.report.table("adequacy", table, "The same in persons.")
    last = {name: float(values[-1] / values[0]) for name, values in found.equal.items()}
    work.results.setdefault("claims", {})["p = 0 adequate"] = last
    work.report.claim(
        "is the basic model (p = 0) adequate?",
        holds=False,
        verdict="It depends on the outcome.",
        conditions=f"At p = {found.p[-1]:g} and equal φ the total infected is {last['ever_infected']:.3g} times "
        f"that at p = 0, but cases are {last['cases']:.3g} times "
        f"and the weekly peak {last['peak_weekly_incidence']:.3g} times.",
    )


def control(work: Work) -> None:
    general = work.models[1]
    values = general.values()
    other = {**values, "transmission_rate": 0.8 * values["transmission_rate"]}
    found = analysis.compare(general, values, other)
    work.results["compare"] = found.to_dict()
    work.report.table(
        "compare",
        found.frame(),
        "An example of two parameter sets: transmission as it is (a) and lowered by a fifth (b), epidemic scenario.",
    )
    for model in work.models:
        band = analysis.bands(model, n=min(work.lhs_n, 1000), seed=work.seed)
        series = 1e5 * band.series["weekly_cases"][:, 1:] / model.values()["population"]
        work.report.figure(
            f"bands-{model.name}",
            figures.percentile_bands(
                band.times[1:],
                dict(zip(band.percentiles, series, strict=True)),
                "cases per 100,000 per week",
                start=work.start,
                system=work.weeks,
            ),
            f"Weekly incidence over {band.n:,} draws from the declared distributions, {model.name} model. Pointwise "
            "bands, not curves: no single outbreak follows them.",
        )


def origins(work: Work) -> None:
    facts = provenance(work)
    work.results["provenance"] = facts
    flat = [{"item": f"hash of model {name}", "value": entry["hash"]} for name, entry in facts["models"].items()]
    flat += [
        {"item": key.replace("_", " "), "value": str(facts[key])} for key in ("seed", "sobol_n", "lhs_n", "tolerances")
    ]
    flat += [{"item": name, "value": version} for name, version in facts["versions"].items()]
    work.report.table("provenance", pd.DataFrame(flat), "What is needed to run the study again; more in results.json.")


def write_csv(path: Any, frame: pd.DataFrame) -> None:
    """Write a table that the page does not show in full."""
    from meningitis.report import write_atomically

    write_atomically(path, frame.to_csv(index=False))


def _leading(table: pd.DataFrame, name: str) -> pd.DataFrame:
    by = "prcc" if name == "prcc" else "total"
    order = table.assign(_size=table[by].abs()).sort_values("_size", ascending=False)
    top = order.groupby("outcome", sort=False).head(5).sort_values(["outcome", "_size"], ascending=[True, False])
    return top.drop(columns=["_size", "symbol"]).reset_index(drop=True)


CHAPTERS: tuple[tuple[str, Callable[[Work], None]], ...] = (
    ("The models", the_models),
    ("Thresholds and reproduction numbers", thresholds),
    ("The course of a season", course),
    ("Case–carrier ratios and the order of events", ratios),
    ("Which parameters matter", sensitivity),
    ("Total ever infected", infected),
    ("Is p = 0 adequate?", adequacy),
    ("Control and uncertainty", control),
    ("Provenance", origins),
)
