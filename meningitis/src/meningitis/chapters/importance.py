"""The chapter on sensitivity: local, rank and Sobol indices, and whether beta, epsilon and phi are key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from meningitis import analysis, symbolic
from meningitis.analysis.sobol import REPLICATES
from meningitis.chapters.work import KEY, OUTCOME_WORDS, Work
from meningitis.model import Model
from meningitis.notation import Notation
from meningitis.progress import estimated
from meningitis.report import figures

SCRAMBLES = f"Intervals are Student's t over {REPLICATES} independent scrambles that share the base samples."
TESTED = ("R0", "cases", "peak_weekly_incidence", "ever_infected")
"""The outcomes for which the paper's claim of key parameters is tested."""


def sensitivity(work: Work) -> None:
    """Indices of R0 and of the other outcomes, PRCC and Sobol indices of every sampled parameter."""
    _local(work)
    ranked = []
    for model in work.models:
        if none := work.undrawn(model):
            work.report.text(f"{none} There are no rank correlations and no Sobol indices.")
            continue
        days = work.length(model)
        ranks, shares, drawn = analysis.global_sensitivity(
            model,
            work.values(model),
            days,
            lhs=work.lhs_n,
            sobol=work.sobol_n,
            seed=work.seed,
            pinned=work.pinned(model),
            progress=estimated(work.say, f"outbreaks of the {model.name} model") if work.say else None,
            checkpoint=work.checkpoint / model.name if work.checkpoint else None,
        )
        work.results.setdefault("prcc", {})[model.name] = ranks.to_dict("records")
        work.results.setdefault("sobol", {})[model.name] = shares.to_dict("records")
        work.results.setdefault("still_growing", {})[model.name] = drawn.growing
        work.results.setdefault("peak_within_the_run", {})[model.name] = drawn.peaked
        end = f"{model.name} model, outbreaks of {days:g} days, 95 % intervals, {work.draws(model)}"
        work.report.figure(
            f"prcc-{model.name}",
            figures.dots(
                _worded(ranks).rename(columns={"low": "prcc_low", "high": "prcc_high"}), {"prcc": "PRCC"}, "PRCC"
            ),
            f"Partial rank correlation over {work.lhs_n:,} Latin hypercube samples, {end}. Cases still rise at the end "
            f"in {100 * drawn.growing:.2g} % of them: what comes later is not counted. It tells of what rises or falls "
            f"throughout, so the week of peak incidence is correlated over the {100 * drawn.peaked:.3g} % in which "
            "that lies within the run.",
        )
        work.report.figure(
            f"sobol-{model.name}",
            figures.dots(_worded(shares), {"total": "total order", "first": "first order"}, "share of the variance"),
            f"Sobol indices from {work.sobol_n:,} base samples, {end}. {SCRAMBLES} What first orders "
            f"leave of 1 is interaction.{_early(drawn)}",
        )
        work.report.file(f"tables/prcc-{model.name}.csv", ranks.to_csv(index=False))
        work.report.table(
            f"sobol-{model.name}",
            shares,
            f"Total-order Sobol indices with 95 % intervals, {model.name} model, {days:g} days; below 0.01 a dot. "
            f"{SCRAMBLES} "
            f"First orders are in the file, rank correlations in prcc-{model.name}.csv beside it.",
            _matrix(model, shares),
        )
        ranked += _ranked(model, shares)
    held = [name for model in work.models for name in work.pinned(model) if name in KEY]
    if held:
        work.report.text(f"{', '.join(dict.fromkeys(held))} held as given: which parameters are key is not tested.")
    elif ranked and set(KEY) <= set(work.fullest.parameter_names):
        _key_claim(work, pd.DataFrame(ranked), shares)


def _early(drawn: analysis.PRCC) -> str:
    """Why the week of peak incidence has much interaction, where some draws have no outbreak."""
    flat = 1 - drawn.peaked - drawn.growing
    if flat < 0.01:
        return ""
    return (
        f" About {100 * flat:.0f} % of the draws have the most cases in the first week, as without an outbreak: the "
        "week of peak incidence jumps there, which no parameter explains alone."
    )


def _local(work: Work) -> None:
    bars, parts = {}, []
    for model in work.models:
        symbols = {p.name: p.symbol for p in model.parameters}
        if moving := symbolic.moving_rates(model):
            work.report.text(f"{', '.join(moving)} depends on time: R₀ of the {model.name} model has no indices.")
        else:
            index = symbolic.elasticities(model).evaluate(work.values(model))
            bars[model.name] = {symbols[name]: value for name, value in index.items() if value != 0}
        found = analysis.local_sensitivity(model, work.values(model), days=work.length(model)).frame()
        found.insert(0, "model", model.name)
        parts.append(found)
    table = pd.concat(parts, ignore_index=True)
    work.results["local_indices"] = table.to_dict("records")
    if bars:
        work.report.figure(
            "tornado",
            figures.tornado(bars),
            "Normalised forward indices of R₀, derived symbolically; zero indices left out.",
            pd.DataFrame(
                [
                    {"model": name, "symbol": symbol, "index": index}
                    for name, indices in bars.items()
                    for symbol, index in indices.items()
                ]
            ),
        )
    write, model = Notation(work.fullest), work.fullest
    cells: dict[str, dict[str, str]] = {}
    for row in parts[-1].to_dict("records"):
        cells.setdefault(row["parameter"], {})[OUTCOME_WORDS[row["outcome"]]] = _index(row["index"])
    felt = [name for name in model.parameter_names if not set(cells[name].values()) <= {"0", "–"}]
    work.report.table(
        "local-indices",
        table,
        f"Normalised indices of every outcome, {model.name} model: % change for 1 % of the parameter. Parameters "
        "without any effect there (a value of zero has no 1 %, nor has one without room in its bounds) are left out. "
        "The file has every model.",
        pd.DataFrame([{"": write.text(model.symbols[name]), **cells[name]} for name in felt]),
    )


def _index(value: float) -> str:
    if value == 0 or np.isnan(value):
        return "0" if value == 0 else "–"
    return "≈ 0" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "−")


def _worded(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(outcome=table["outcome"].map({**OUTCOME_WORDS, "R0": "$R_0$"}))


def _matrix(model: Model, shares: pd.DataFrame) -> pd.DataFrame:
    """Rows of parameters, columns of outcomes, cells such as 0.42 (0.40–0.45)."""
    write = Notation(model)

    def cell(row: Any) -> str:
        if pd.isna(row.total) or row.total < 0.01:
            return "·"
        return f"{row.total:.2f} ({max(row.total_low, 0):.2f}–{row.total_high:.2f})"

    cells: dict[str, dict[str, str]] = {}
    for row in shares.itertuples(index=False):
        symbol = write.text(model.symbols[str(row.parameter)])
        cells.setdefault(symbol, {"": symbol})[OUTCOME_WORDS[str(row.outcome)]] = cell(row)
    return pd.DataFrame(list(cells.values()))


def _ranked(model: Model, shares: pd.DataFrame) -> list[dict[str, Any]]:
    """For each tested outcome, the three largest total orders, the places of the paper's three, and whether they hold.

    None where intervals overlap so that either may be.
    """
    rows: list[dict[str, Any]] = []
    for outcome in TESTED:
        part = shares[shares["outcome"] == outcome].sort_values("total", ascending=False).reset_index(drop=True)
        names = list(part["parameter"])
        rows.append(
            {
                "model": model.name,
                "outcome": outcome,
                "first_three": ", ".join(names[:3]),
                **{f"place_of_{name}": names.index(name) + 1 if name in names else None for name in KEY},
                "holds": _are_first(part.set_index("parameter")),
            }
        )
    return rows


def _are_first(part: pd.DataFrame) -> bool | None:
    """Whether the paper's three have the largest indices of `part`, by parameter, as far as intervals tell."""
    low, high = part["total_low"], part["total_high"]
    if not set(KEY) <= set(part.index):
        return False
    others = high.drop(list(KEY))
    if others.empty or low[list(KEY)].min() > others.max():
        return True
    return False if any((low > high[name]).sum() >= len(KEY) for name in KEY) else None


def _key_claim(work: Work, table: pd.DataFrame, shares: pd.DataFrame) -> None:
    write = Notation(work.fullest)
    letters = {name: write.text(work.fullest.symbols[name]) for name in work.fullest.parameter_names}
    for row in table.to_dict("records"):
        work.results.setdefault("claims", {})[f"key parameters, {row['model']}, {row['outcome']}"] = {
            "holds": row["holds"],
            "rank": {name: row[f"place_of_{name}"] for name in KEY},
            "settled": row["holds"] is not None,
        }
    shown = pd.DataFrame(
        {
            "model": table["model"],
            "outcome": table["outcome"].map(OUTCOME_WORDS),
            "three largest": [", ".join(letters[n] for n in row.split(", ")) for row in table["first_three"]],
            **{f"place of {letters[name]}": table[f"place_of_{name}"] for name in KEY},
            "the paper's three": ["not settled" if row is None else row for row in table["holds"]],
        }
    )
    work.report.table(
        "key-parameters",
        table,
        "The three largest total-order indices, and whether the paper's three are they: yes where their intervals lie "
        "clear above all others, no where those of three others lie clear above one of theirs, else not settled.",
        shown,
    )
    pairs = [f"{OUTCOME_WORDS[o]} ({m})" for m, o in table[["model", "outcome"]].to_numpy()]
    told = list(zip(pairs, table["holds"], strict=True))
    yes, no, unsettled = ([pair for pair, holds in told if holds is x] for x in (True, False, None))
    words = "Depends on the outcome" if yes and no else "Holds" if yes else "Does not hold" if no else "Not settled"
    part = shares[shares["parameter"] == "carrier_conversion_rate"].set_index("outcome")
    conversion = " and ".join(
        f"{row.total:.2g} ({row.total_low:.2g} to {row.total_high:.2g}) for {OUTCOME_WORDS[str(row.Index)]}"
        for row in part.loc[["R0", "cases"]].itertuples()
    )
    condition = (
        f"By total-order Sobol indices over the declared distributions they are the first three for "
        f"{', '.join(yes) or 'no outcome'} and are not for {', '.join(no) or 'none'}: {len(yes) + len(no)} of "
        f"{len(pairs)} pairs of model and outcome are settled"
    )
    if unsettled:
        condition += f"; 95 % intervals overlap for {', '.join(unsettled)}"
    work.report.claim(
        "The key parameters are β, ε and φ.",
        holds=bool(yes) if bool(yes) != bool(no) and not unsettled else None,
        verdict=f"{words}, where settled" if unsettled and (yes or no) else words,
        condition=f"{condition}. φ has a total index of {conversion} ({work.fullest.name} model, 95 % intervals).",
    )
