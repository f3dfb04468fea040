"""The chapter on sensitivity: local, rank and Sobol indices, and whether beta, epsilon and phi are key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from meningitis import analysis, symbolic
from meningitis.chapters.work import KEY, OUTCOME_WORDS, Work
from meningitis.model import Model
from meningitis.notation import Notation
from meningitis.report import figures, write_atomically

TESTED = ("R0", "cases", "peak_weekly_incidence", "ever_infected")
"""The outcomes for which the paper's claim of key parameters is tested."""


def sensitivity(work: Work) -> None:
    """Indices of R0 and of the other outcomes, PRCC and Sobol indices of every sampled parameter."""
    _local(work)
    ranked = []
    for model in work.models:
        ranks, shares = analysis.global_sensitivity(
            model,
            work.values(model),
            work.length(model),
            lhs=work.lhs_n,
            sobol=work.sobol_n,
            seed=work.seed,
            pinned=work.pinned(model),
        )
        work.results.setdefault("prcc", {})[model.name] = ranks.to_dict("records")
        work.results.setdefault("sobol", {})[model.name] = shares.to_dict("records")
        end = f"{model.name} model, 95 % intervals, {work.draws(model)}"
        work.report.figure(
            f"prcc-{model.name}",
            figures.dots(_worded(ranks), "prcc", "low", "high", "PRCC"),
            f"Partial rank correlation over {work.lhs_n:,} Latin hypercube samples, {end}.",
        )
        work.report.figure(
            f"sobol-{model.name}",
            figures.dots(_worded(shares), "total", "total_low", "total_high", "total order", second="first"),
            f"Sobol indices from {work.sobol_n:,} base samples, {end}. What first orders leave of 1 is interaction.",
        )
        write_atomically(work.report.out / "tables" / f"prcc-{model.name}.csv", ranks.to_csv(index=False))
        work.report.table(
            f"sobol-{model.name}",
            shares,
            f"Total-order Sobol indices with 95 % intervals, {model.name} model; below 0.01 a dot. First orders are in "
            f"the file, rank correlations in prcc-{model.name}.csv beside it.",
            _matrix(model, shares),
        )
        ranked += _ranked(model, shares)
    held = [name for model in work.models for name in work.pinned(model) if name in KEY]
    if held:
        work.report.text(f"{', '.join(dict.fromkeys(held))} held as given: which parameters are key is not tested.")
    elif set(KEY) <= set(work.fullest.parameter_names):
        _key_claim(work, pd.DataFrame(ranked), shares)


def _local(work: Work) -> None:
    bars, parts = {}, []
    for model in work.models:
        symbols = {p.name: p.symbol for p in model.parameters}
        index = symbolic.elasticities(model).evaluate(work.values(model))
        bars[model.name] = {symbols[name]: value for name, value in index.items() if value != 0}
        found = analysis.local_sensitivity(model, work.values(model), days=work.length(model)).frame()
        found.insert(0, "model", model.name)
        parts.append(found)
    table = pd.concat(parts, ignore_index=True)
    work.results["local_indices"] = table.to_dict("records")
    work.report.figure(
        "tornado",
        figures.tornado(bars),
        "Normalised forward indices of R₀, derived symbolically; zero indices left out.",
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
        "without any effect there (a value of zero has no 1 %) are left out. The file has every model.",
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
    """For each tested outcome, the three largest total orders and the places of the paper's three."""
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
                "holds": set(names[:3]) == set(KEY),
                "settled": bool(len(names) < 4 or part["total_low"][2] > part["total_high"][3]),
            }
        )
    return rows


def _key_claim(work: Work, table: pd.DataFrame, shares: pd.DataFrame) -> None:
    write = Notation(work.fullest)
    letters = {name: write.text(work.fullest.symbols[name]) for name in work.fullest.parameter_names}
    for row in table.to_dict("records"):
        work.results.setdefault("claims", {})[f"key parameters, {row['model']}, {row['outcome']}"] = {
            "holds": row["holds"],
            "rank": {name: row[f"place_of_{name}"] for name in KEY},
            "settled": row["settled"],
        }
    shown = pd.DataFrame(
        {
            "model": table["model"],
            "outcome": table["outcome"].map(OUTCOME_WORDS),
            "three largest": [", ".join(letters[n] for n in row.split(", ")) for row in table["first_three"]],
            **{f"place of {letters[name]}": table[f"place_of_{name}"] for name in KEY},
            "the paper's three": table["holds"],
            "settled": table["settled"],
        }
    )
    work.report.table(
        "key-parameters",
        table,
        "The three largest total-order indices, and whether the interval of the third lies clear of the fourth's "
        "(settled).",
        shown,
    )
    where = [f"{OUTCOME_WORDS[o]} ({m})" for m, o in table.loc[table["holds"], ["model", "outcome"]].to_numpy()]
    count = len(where)
    share = {
        outcome: shares.set_index(["outcome", "parameter"])["total"][outcome, "carrier_conversion_rate"]
        for outcome in ("R0", "cases")
    }
    work.report.claim(
        "The key parameters are β, ε and φ.",
        holds=None if 0 < count < len(table) else bool(count),
        verdict="Holds" if count == len(table) else "Does not hold" if count == 0 else "Depends on the outcome",
        condition=f"By total-order Sobol indices over the declared distributions they are the first three for "
        f"{', '.join(where) or 'no outcome'}, out of {len(table)} pairs of model and outcome. φ has a total index of "
        f"{share['R0']:.2g} for R₀ and of {share['cases']:.2g} for cases ({work.fullest.name} model).",
    )
