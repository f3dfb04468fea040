"""Chapters on the declaration itself: the models, their thresholds and reproduction numbers, provenance."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import sympy as sp

from meningitis import symbolic
from meningitis.analysis import runs
from meningitis.analysis.adequacy import ATOL as EARLY_ATOL
from meningitis.analysis.adequacy import RTOL as EARLY_RTOL
from meningitis.chapters.work import Work
from meningitis.engine import ATOL, RTOL, simulate
from meningitis.model import Model
from meningitis.notation import FORCE, Notation, abbreviated, equations, per_person
from meningitis.report import figures, show
from meningitis.report.diagram import flow_diagram
from meningitis.symbolic.declared import refilled

DECLARED = (
    "What is needed to run the study again; more in results.json. The declarations, with the distributions that "
    "parameters are sampled from, are files of this folder: meningitis study --model takes each of them."
)
LIBRARIES = ("meningitis", "numpy", "scipy", "sympy", "numba", "pandas", "matplotlib")


def the_models(work: Work) -> None:
    """Flow diagram, equations and parameters of each model."""
    for model in work.models:
        work.report.figure(
            f"flow-{model.name}",
            flow_diagram(model, work.values(model)),
            f"{model.title or model.name}. Arrows carry rates per person and day; dashed arrows are zero at these "
            "values. Thick boxes are infected and enter the next-generation matrix.",
        )
        write = Notation(model)
        force, _ = per_person(model)
        rows = [] if force is None else [(write.math(FORCE), write.math(force))]
        derivative = {name: f"<mfrac><mrow><mi>d</mi>{write.math(s)}</mrow><mrow><mi>d</mi><mi>t</mi></mrow></mfrac>"
                      for name, s in model.symbols.items()}  # fmt: skip
        rows += [(derivative[name], write.math(rate)) for name, rate in equations(model).items()]
        work.report.formulas(rows, f"Equations of the {model.name} model: persons and days.")
        if not symbolic.moving_rates(model):
            work.report.text(_lasts(work, model))
    model, values = work.fullest, work.values(work.fullest)
    write = Notation(model)
    table = pd.DataFrame(
        [
            {
                "symbol": write.text(model.symbols[p.name]),
                "parameter": p.name,
                "value": values[p.name],
                "unit": p.unit,
                "distribution": p.distribution.kind,
                "low": p.distribution.low,
                "high": p.distribution.high,
                "meaning": p.meaning,
                "source": p.source,
            }
            for p in model.parameters
        ]
    )
    given = list(dict.fromkeys(source for source in table["source"] if source != "assumed"))
    number = {source: f"[{at}]" for at, source in enumerate(given, start=1)}
    sampled = [
        "fixed" if kind == "fixed" else f"{kind}, {show(low)} to {show(high)}"
        for kind, low, high in table[["distribution", "low", "high"]].itertuples(index=False)
    ]
    work.report.table(
        "parameters",
        table,
        f"Parameters of the {model.name} model. Sources: "
        + " ".join(f"{number[source]} {source}." for source in given)
        + " All others are assumed.",
        pd.DataFrame(
            {
                "": table["symbol"],
                "meaning": table["meaning"],
                "value": table["value"],
                "unit": table["unit"].replace("1", ""),
                "sampled": sampled,
                "source": [number.get(source, "assumed") for source in table["source"]],
                "name": table["parameter"],
            }
        ),
    )


def _lasts(work: Work, model: Model) -> str:
    """What the rates of the study's scenario mean: mean stays, the case-to-infection ratio, the case fatality."""
    found = symbolic.natural_history(model, work.values(model))
    stays = ", ".join(f"{show(days)} days in {name}" for name, days in found.mean_stay.items())
    words = f"With the values of the {model.scenario(work.scenario).name} scenario a stay lasts {stays} on average"
    if found.cases_per_infection and found.cases_per_infection < 1:
        words += f"; one in {show(1 / found.cases_per_infection)} infections becomes a case"
    if found.deaths_per_case is not None:
        words += f"; {show(100 * found.deaths_per_case)} % of cases die"
    return f"{words}."


def thresholds(work: Work) -> None:
    """F, V, K, R0 and the conditions for growth, in symbols and, by scenario, in numbers."""
    rows, found = [], {}
    for model in work.models:
        if moving := symbolic.moving_rates(model):
            work.report.text(
                f"{', '.join(moving)} depends on time in the {model.name} model: F, V, R₀, growth and thresholds, "
                "which are those of one matrix, are left out. Runs and what is counted along them follow."
            )
            continue
        found[model.name] = _formulas(work, model)
        for scenario in work.scenarios(model):
            values = work.values(model, scenario)
            speed, control = symbolic.growth(model, values), symbolic.control(model, values)
            rows.append(
                {
                    "model": model.name,
                    "scenario": scenario or "default",
                    "R0": control.r0,
                    "R_at_start": speed.reproduction,
                    "growth_per_day": speed.rate,
                    "doubling_days": speed.doubling_time if speed.rate > 0 else None,
                    "generation_days": speed.generation_time,
                    "immune_share_needed": control.herd_immunity,
                    "beta_at_R0_1": control.critical.get("transmission_rate"),
                }
            )
    table = pd.DataFrame(rows)
    work.results["thresholds"] = found
    work.results["reproduction"] = table.to_dict("records")
    if not rows:
        return
    heads = (
        "model", "scenario", "R₀", "R at start", "growth (per day)", "doubling time (days)", "generation time (days)",
        "immune share needed", "β at R₀ = 1 (per day)",
    )  # fmt: skip
    shown = table.set_axis(list(heads), axis="columns").dropna(axis="columns", how="all")
    work.report.table(
        "reproduction",
        table,
        f"Reproduction numbers and control. R₀ takes everyone as susceptible{_controlled(work)}; R at the start counts "
        "the immune. The immune share needed is 1 − s/R₀, with s the susceptible share that R₀ takes (1 where that is "
        "everyone).",
        shown,
    )
    for model in work.models:
        if refilled(model) and not symbolic.timed_rates(model):
            _equilibria(work, model)
    if not symbolic.no_thresholds(work.fullest):
        _spread(work, work.fullest)


def _equilibria(work: Work, model: Model) -> None:
    """Where the model can stand still, and whether it returns there."""
    found = symbolic.equilibria(model, work.values(model))
    work.results.setdefault("equilibria", {})[model.name] = found.to_dict()
    if found.note:
        work.report.text(f"Equilibria of the {model.name} model: {found.note}.")
    if not found.points:
        return
    stable = {True: "yes", False: "no", None: "neither"}
    rows = [{"equilibrium": p.kind, "stable": stable[p.stable], **p.state} for p in found.points]
    work.report.table(
        f"equilibria-{model.name}",
        pd.DataFrame(rows),
        f"Equilibria of the {model.name} model, persons by compartment, {model.scenario(work.scenario).name} scenario; "
        "stable: whether small disturbances die out (neither: equilibria lie side by side).",
    )


def _controlled(work: Work) -> str:
    names = [
        model.name
        for model in work.models
        if any(symbolic.reproduction_name(model, work.values(model, s)) == "R_c" for s in work.scenarios(model))
    ]
    if not names:
        return " (or as they stand where flows without infection balance)"
    return (
        f", but in the {' and '.join(names)} model it is the control reproduction number R_c at the disease-free "
        "state, where flows without infection, such as vaccination, balance"
    )


def _formulas(work: Work, model: Model) -> dict[str, Any]:
    derived = symbolic.next_generation(model, zeros=symbolic.zeros_at(model, work.values(model)))
    write = Notation(model)
    expressions: dict[str, Any] = {"F": derived.F, "V": derived.V}
    if derived.r0 is not None:
        expressions |= {"K": derived.K, "R0": derived.r0}
    kept = {"matrices": derived.to_dict()}
    conditions = None if symbolic.no_thresholds(model) else symbolic.thresholds(model)
    if conditions is not None:
        kept["thresholds"] = conditions.to_dict()
        case, carrier = (model.symbols[name] for name in (conditions.case, conditions.carrier))
        ratio = write.math(case / carrier)
        expressions |= {
            "carriers": conditions.carriers_spread, "cases": conditions.stage1_spreads,
            "critical": conditions.critical_ratio, "early": conditions.early_ratio, "q": conditions.q,
            "explicit": conditions.stage1_explicit, "own": conditions.always.lhs, "leaves": conditions.always.rhs,
        }  # fmt: skip
    short, rates = abbreviated(model, expressions)
    infected = write.math(sp.Matrix([[model.symbols[name] for name in derived.infected]]))
    rows = [("<mi>x</mi>", infected), *((f"<mi>{name}</mi>", write.math(short[name])) for name in ("F", "V"))]
    if derived.r0 is not None:
        inverse = "<msup><mi>V</mi><mrow><mo>−</mo><mn>1</mn></mrow></msup>"
        rows.append((f"<mi>K</mi><mo>=</mo><mi>F</mi>{inverse}", write.math(short["K"])))
        below = "<mn>0</mn>" if symbolic.reproduction_name(model, work.values(model)) == "R0" else "<mi>c</mi>"
        rows.append((f"<msub><mi>R</mi>{below}</msub>", write.math(short["R0"])))
    rows += [(write.math(symbol), write.math(rate)) for symbol, rate in rates.items()]
    work.report.formulas(
        rows,
        f"The {model.name} model: new infections F, transfers V and next-generation matrix K for the infected "
        f"compartments x, derived from the declaration. {derived.reason}",
    )
    if conditions is not None:
        s = write.math(model.symbols[conditions.susceptible])
        q, fraction, rate = (conditions.letters[name] for name in "qsr")
        direct = f", with the {fraction} and {q} of that time" if short["cases"] != short["critical"] else ""
        own, always = conditions.always.lhs != 0, ""
        if own:
            always = (
                f" The third is the second with {conditions.case} on its left alone; where "
                f"{write.text(short['own'])} ≥ {write.text(short['leaves'])} infectives in stage I always spread."
            )
        share = f"<mfrac><mrow>{s}</mrow><mi>N</mi></mfrac>"
        work.report.formulas(
            [
                (f"{share}<mo>&gt;</mo>", write.math(short["carriers"])),
                (f"{ratio}<mo>&lt;</mo>", write.math(short["cases"])),
                *([(f"{ratio}<mo>&lt;</mo>", write.math(short["explicit"]))] if own else []),
                (f"<mtext>critical&nbsp;</mtext>{ratio}", write.math(short["critical"])),
                (f"<mtext>early&nbsp;</mtext>{ratio}", write.math(short["early"])),
                (write.math(q), write.math(short["q"])),
                (write.math(fraction), share),
            ],
            f"Carriers spread while the first holds, infectives in stage I while the second does. The critical ratio "
            f"is the second without direct infection; the early ratio is that of exponential growth at rate "
            f"{rate}{direct} ({model.name} model)."
            f"{always}{_living(model, conditions)}",
        )
    return kept


def _living(model: Model, conditions: symbolic.Thresholds) -> str:
    living = conditions.population.free_symbols & {model.symbols[name] for name in model.state_names}
    return " N is the number of the living." if living else ""


def _spread(work: Work, model: Model) -> None:
    values = work.values(model)
    days = work.length(model)
    run = simulate(model, parameters=values, times=np.arange(0.0, days + 1e-9), days=days)
    states = {name: run[name][0] for name in model.state_names}
    conditions = symbolic.thresholds(model)
    along = conditions.along(model, values, states)
    reproduction = symbolic.reproduction_along(model, values, states)
    work.report.figure(
        "spread-threshold",
        figures.spread_threshold(
            run.times,
            along["susceptible_share"],
            along["carriers_spread"],
            reproduction,
            start=work.start,
            system=work.weeks,
        ),
        f"Carriers spread while S/N is above {Notation(model).text(conditions.carriers_spread)}."
        f"{_living(model, conditions)} Lower panel: R(t). {model.name.capitalize()} model, "
        f"{model.scenario(work.scenario).name} scenario.",
        pd.DataFrame({"day": run.times, **along, "R": reproduction}),
    )


def origins(work: Work) -> None:
    """What is needed to run the study again."""
    facts = provenance(work)
    work.results["provenance"] = facts
    flat = [{"item": f"hash of model {name}", "value": entry["hash"]} for name, entry in facts["models"].items()]
    for model in work.models:
        work.report.file(facts["models"][model.name]["declaration"], model.to_yaml())
    flat += [
        {"item": f"declaration of model {name}", "value": entry["declaration"]}
        for name, entry in facts["models"].items()
    ]
    given = (
        "scenario",
        "days",
        "overrides",
        "seed",
        "sobol_n",
        "lhs_n",
        "start",
        "weeks",
        "reporting_fraction",
        "tolerances",
    )
    flat += [{"item": key.replace("_", " "), "value": _in_words(facts[key])} for key in given]
    flat += [{"item": name, "value": version} for name, version in facts["versions"].items()]
    work.report.table("provenance", pd.DataFrame(flat), DECLARED)


def _in_words(fact: Any) -> str:
    if isinstance(fact, dict):
        return "; ".join(f"{name.replace('_', ' ')} {_in_words(value)}" for name, value in fact.items()) or "none"
    return "not given" if fact is None else str(fact)


def provenance(work: Work) -> dict[str, Any]:
    """Declarations, values, lengths, what was given on top, seed, sizes, tolerances, versions."""
    return {
        "models": {
            m.name: {
                "hash": m.hash,
                "declaration": f"models/{m.name}.yaml",
                "scenarios": {name or "default": work.values(m, name) for name in work.scenarios(m)},
                "days": {name or "default": work.length(m, name) for name in work.scenarios(m)},
            }
            for m in work.models
        },
        "scenario": work.scenario,
        "days": work.days,
        "overrides": dict(work.overrides),
        "seed": work.seed,
        "sobol_n": work.sobol_n,
        "lhs_n": work.lhs_n,
        "tolerances": {
            "rtol": RTOL,
            "atol_persons": ATOL,
            "events": {"rtol": runs.RTOL, "atol_persons": runs.ATOL},
            "early_cases": {"rtol": EARLY_RTOL, "atol_persons": EARLY_ATOL},
        },
        "start": work.start,
        "weeks": work.weeks,
        "reporting_fraction": work.reporting_fraction,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}},
    }
