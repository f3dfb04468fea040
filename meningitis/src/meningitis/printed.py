"""A model's formulas as the command line prints them: symbols on lines of text, with a legend of the symbols."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sympy as sp

from meningitis import symbolic
from meningitis.model import Model
from meningitis.notation import FORCE, Notation, abbreviated, equations, per_person
from meningitis.report import NUMBER, show

if TYPE_CHECKING:
    import pandas as pd

    from meningitis.analysis import Events


def beside(left: str, block: str) -> str:
    """`left` in front of the middle line of a block of lines, the others indented as far."""
    lines = block.split("\n")
    middle = (len(lines) - 1) // 2
    return "\n".join((left if at == middle else " " * len(left)) + line for at, line in enumerate(lines))


def table_text(frame: pd.DataFrame, model: Model | None = None) -> str:
    """The table in columns, four significant figures, numbers flush right and words flush left; empty columns left out.

    With a model, a column `symbol` beside one of parameters is written in its symbols.
    """
    kept = frame.dropna(axis="columns", how="all")
    columns = {str(name): [show(cell) for cell in kept[name]] for name in kept.columns}
    if model is not None and "symbol" in columns:
        write = Notation(model)
        columns["symbol"] = [write.text(model.symbols[name]) for name in columns["parameter"]]
    set_out = []
    for name, cells in columns.items():
        width = max(len(name), *(len(cell) for cell in cells)) if cells else len(name)
        right = all(NUMBER.fullmatch(cell) for cell in cells)
        set_out.append([cell.rjust(width) if right else cell.ljust(width) for cell in (name, *cells)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*set_out, strict=True))


def equations_text(model: Model) -> str:
    """The force of infection and the differential equations, one a line."""
    write = Notation(model)
    force, _ = per_person(model)
    lines = [] if force is None else [f"{write.text(FORCE)} = {write.text(force)}"]
    lines += [f"d{write.text(model.symbols[name])}/dt = {write.text(e)}" for name, e in equations(model).items()]
    return "\n".join(lines)


def matrices_text(model: Model, values: Mapping[str, float] | None = None) -> str:
    """F, V, K and R0, the rates of leaving that they share, and a legend of the symbols.

    As they are where those parameters are 0 that `values` say (none: where all are positive).
    """
    derived = symbolic.next_generation(model, zeros=() if values is None else symbolic.zeros_at(model, values))
    write = Notation(model)
    expressions: dict[str, Any] = {"F": derived.F, "V": derived.V}
    if derived.r0 is not None:
        expressions |= {"K": derived.K, "R0": derived.r0}
    short, rates = abbreviated(model, expressions)
    names = sp.Matrix([[model.symbols[name] for name in derived.infected]])
    stopped = f" (where {' and '.join(derived.zeros)} is 0)" if derived.zeros else ""
    name = {"R0": "R₀"}.get(symbolic.reproduction_name(model, values), "R_c")
    parts = [beside("infected: ", write.text(names)) + stopped]
    parts += [beside(f"{name} = ", write.text(short[name])) for name in ("F", "V")]
    if derived.r0 is not None:
        parts += [beside("K = F V⁻¹ = ", write.text(short["K"])), f"{name} = {write.text(short['R0'])}"]
    parts += [derived.reason] if derived.reason else []
    return "\n\n".join([*parts, *_rates(write, rates), legend_text(model, expressions)])


def thresholds_text(model: Model, values: Mapping[str, float]) -> str:
    """The conditions under which carriage and illness spread, as sentences with symbols."""
    if symbolic.no_thresholds(model):
        return spread_text(model, values)
    found = symbolic.thresholds(model)
    write = Notation(model)
    expressions = {
        "carriers": found.carriers_spread, "cases": found.stage1_spreads, "critical": found.critical_ratio,
        "early": found.early_ratio, "q": found.q, "explicit": found.stage1_explicit, "own": found.always.lhs,
        "leaves": found.always.rhs,
    }  # fmt: skip
    short, rates = abbreviated(model, expressions)
    S, I, C = (write.text(model.symbols[name]) for name in (found.susceptible, found.case, found.carrier))
    q, s, r = (write.text(found.letters[name]) for name in "qsr")
    direct = short["cases"] != short["critical"]
    lines = [
        f"carriers spread while {S}/N > {write.text(short['carriers'])}, with {q} = {write.text(short['q'])}",
        f"cases spread while {I}/{C} < {write.text(short['cases'])}" + (f", with {s} = {S}/N" if direct else ""),
        *_explicit(f"{I}/{C}", *(write.text(short[name]) for name in ("explicit", "own", "leaves"))),
        f"critical ratio {I}/{C}{' (without direct infection)' if direct else ''}: {write.text(short['critical'])}",
        f"early ratio {I}/{C} during exponential growth at rate {r}: {write.text(short['early'])}",
    ]
    return "\n\n".join(["\n".join(lines), *_rates(write, rates), legend_text(model, expressions)])


def _explicit(ratio: str, threshold: str, own: str, leaves: str) -> list[str]:
    """The condition for cases to spread without the cases on its right, where they infect some to be ill at once."""
    if own == "0":
        return []
    return [f"that is while {ratio} < {threshold}; where {own} ≥ {leaves} cases always spread"]


def spread_text(model: Model, values: Mapping[str, float]) -> str:
    """The condition for a model without a case-carrier ratio: R(t) above 1, in symbols or as it is at the start."""
    few = " (this R(t) is that while few are infected)" if symbolic.only_while_few(model) else ""
    numeric = symbolic.effective_r_numeric(model)
    if numeric.method == "numeric":
        begun = float(numeric({**values, **symbolic.initial_state(model, values)}))
        return f"infection spreads while R(t) > 1; at the start R(t) = {show(begun)}{few}\n\n{numeric.reason}"
    write, reproduction = Notation(model), symbolic.effective_r(model)
    text = f"infection spreads while R(t) = {write.text(reproduction)} > 1{few}"
    return f"{text}\n\n{legend_text(model, {'R': reproduction})}"


def weeks_text(episodes: Iterable[tuple[int, int]]) -> str:
    """Episodes as the numbers of their first and last week."""
    return ", ".join(f"{first}–{last}" if first < last else str(first) for first, last in episodes)


def alert_text(happened: Events) -> str:
    """In how many weeks suspected cases are at the alert threshold or above, and in which."""
    count = len(happened.alert_weeks)
    if not count:
        return f"in none of {happened.weeks} weeks at or above the alert threshold"
    return f"at or above the alert threshold in {count} of {happened.weeks} weeks: {weeks_text(happened.episodes)}"


def outlook_text(happened: Events) -> list[str]:
    """What each ratio would have been worth as a warning, a sentence each."""

    def lead(days: float, threshold: str) -> list[str]:
        if days != days:
            return []
        return [f"{abs(days):.0f} days {'before' if days >= 0 else 'after'} the {threshold} threshold"]

    sentences = []
    for row in happened.outlook().fillna(math.nan).to_dict("records"):
        ending = "a false alarm, since no epidemic follows" if row["verdict"] == "false alarm" else ""
        parts = [*lead(row["before_alert"], "alert"), *lead(row["before_epidemic"], "epidemic")]
        when = f"attained on day {row['day']:.1f}" if row["day"] == row["day"] else "never attained"
        sentences.append(f"{row['ratio']}: " + ", ".join(part for part in (when, " and ".join(parts), ending) if part))
    return sentences


def legend_text(model: Model, expressions: Mapping[str, sp.Expr | sp.Matrix]) -> str:
    """What the parameters in the expressions are called and mean, one a line."""
    used = set().union(*(e.free_symbols for e in expressions.values()))
    write = Notation(model)
    rows = [
        (write.text(model.symbols[p.name]), p.name, p.meaning)
        for p in model.parameters
        if model.symbols[p.name] in used
    ]
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def _rates(write: Notation, rates: Mapping[sp.Symbol, sp.Expr]) -> list[str]:
    named = ", ".join(f"{write.text(symbol)} = {write.text(rate)}" for symbol, rate in rates.items())
    return [f"where {named}"] if named else []
