"""The outcomes that sensitivity, comparison and bands speak of, over arrays of parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from meningitis.analysis.runs import Array, all_solved, length
from meningitis.engine import RTOL, reduce
from meningitis.engine.ensemble import table
from meningitis.model import Model
from meningitis.symbolic import moving_rates, nobody_left, r0_numeric, reproduction_at_start
from meningitis.symbolic.declared import uncounted_text

OUTCOMES = ("R0", "peak_weekly_incidence", "peak_week", "cases", "deaths", "ever_infected")
"""R0, NaN where F or V depends on time; highest weekly cases, persons; its week (1 is the first); cases, deaths and
ever infected, persons. All but R0 within the days of the run: an outbreak that takes longer is cut short."""

COMPARED = ("R0", "R_at_start", *OUTCOMES[1:])
"""The outcomes that sets are compared by: R at the start too, where people stand as the run begins and not as at the
disease-free state that R0 is of."""

NOISE = 10 * RTOL
"""Relative spread that the solver's own error makes."""


def outcomes(
    model: Model,
    samples: Mapping[str, ArrayLike],
    *,
    scenario: str | None = None,
    days: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Array]:
    """Every one of COMPARED for each parameter set, shape (n,); `progress` and `checkpoint` as in `engine.reduce`.

    Parameters that `samples` leave out, and the days, are those of the scenario (None: the default one). What the model
    does not count is not known (NaN): cases and what follows from them where no flow is a case, deaths where none is a
    death, and R0 where it is 0 only because nobody stays susceptible without infection; `unknown` says so in words.
    Raises: ModelError as `engine.simulate` does; ValueError for a checkpoint of another sweep, or less than a week;
    RuntimeError where a trajectory fails, naming how many did: a sensitivity measure over part of its design would be
    wrong.
    """
    end = length(model, days, scenario)
    if end < 7:
        raise ValueError(f"days is {end:g}, but weekly incidence needs at least 7")
    full = table(model, scenario, samples)
    size = next(iter(full.values())).size
    found = reduce(model, full, days=end, progress=progress, checkpoint=checkpoint)
    all_solved(found["status"], full)
    known = {name: np.asarray(found[name], dtype=np.float64) for name in OUTCOMES[1:]}
    blind = {"cases": ("cases", "peak_weekly_incidence", "peak_week"), "deaths": ("deaths",)}
    known |= {name: np.full(size, np.nan) for count in model.uncounted for name in blind[count]}
    return {**_reproduction(model, full, size), **known}


def _reproduction(model: Model, full: Mapping[str, Array], size: int) -> dict[str, Array]:
    """R0 and R at the start."""
    if moving_rates(model):
        return {"R0": np.full(size, np.nan), "R_at_start": np.full(size, np.nan)}
    settled = np.where(nobody_left(model, full), np.nan, r0_numeric(model)(full))
    begun = reproduction_at_start(model, full)
    return {"R0": settled + np.zeros(size), "R_at_start": begun + np.zeros(size)}


def unknown(model: Model, samples: Mapping[str, ArrayLike], *, scenario: str | None = None) -> tuple[str, ...]:
    """Why some of the outcomes are not known, a sentence each; none where all are."""
    told = [uncounted_text(model)]
    if not moving_rates(model) and nobody_left(model, table(model, scenario, samples)).any():
        told.append("R0 is not given where it is 0 only because nobody stays susceptible without infection")
    return tuple(sentence for sentence in told if sentence)


def varies(found: Array) -> bool:
    """Whether an outcome (n,) varies by more than the solver errs; False where any is NaN."""
    return bool(np.ptp(found) > NOISE * abs(np.mean(found)))


def distributed(model: Model) -> tuple[str, ...]:
    """Names of the parameters whose distribution is not a single value, in declared order."""
    return tuple(p.name for p in model.parameters if np.ptp(p.distribution.ppf(np.array([0.01, 0.5, 0.99]))) > 0)


def sampled(model: Model, pinned: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the parameters that have a distribution and are not pinned, in declared order.

    Raises: ValueError where there are none.
    """
    varying = distributed(model)
    left = tuple(name for name in varying if name not in pinned)
    if not varying:
        raise ValueError(f"model {model.name!r} declares no distribution of a parameter, so there is none to sample")
    if not left:
        raise ValueError(f"every sampled parameter of model {model.name!r} is given a value, so none is left to sample")
    return left


def draw(model: Model, names: tuple[str, ...], uniform: Array, base: Mapping[str, float]) -> dict[str, Array]:
    """Parameter sets (n,) from uniform numbers (n, len(names)); parameters not named stay at `base`."""
    size = uniform.shape[0]
    held = {name: np.full(size, float(value)) for name, value in base.items()}
    return held | {
        name: np.asarray(model.parameter(name).distribution.ppf(uniform[:, k])) for k, name in enumerate(names)
    }
