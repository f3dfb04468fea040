"""Large sweeps: each set reduced to a few numbers, chunk by chunk, so that memory does not grow with the sweep."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from meningitis import __version__
from meningitis.engine.compile import kernel
from meningitis.engine.ensemble import (
    ATOL,
    MAX_STEPS,
    RTOL,
    Array,
    Ensemble,
    longest_step,
    run_length,
    simulate,
    table,
    weekly_times,
)
from meningitis.engine.system import of_model
from meningitis.files import replacing
from meningitis.model import Model

CHUNK = 8_192
SAVED_EVERY = 5.0
"""Seconds between two writes of a checkpoint: each holds all that is done so far."""


def reduce(
    model: Model,
    samples: Mapping[str, ArrayLike],
    *,
    scenario: str | None = None,
    days: float | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | str | None = None,
    rtol: float = RTOL,
    atol: float = ATOL,
    threads: int | None = None,
    max_steps: int = MAX_STEPS,
    max_step: float | None = None,
) -> dict[str, Array]:
    """Run a model for n sets of parameters and keep, for each (n,):

    `cases`, `deaths`, `new_infections` (persons); `ever_infected` (new infections and those infected at the start,
    counting people again who are infected again);
    `final_<state>` for every state; `peak_weekly_incidence` (cases in the worst whole week) and `peak_week` (from 1);
    `peak_prevalence_<state>` and `peak_time_<state>` (days) for infected states; `status`. Failed sets are NaN.

    `progress(done, n)` is called after each chunk. With `checkpoint` the finished chunks are written to that file every
    few seconds and when the sweep stops, and the same call after an interruption goes on from there, to the same bits.
    Raises as `simulate` does; ValueError for no sets, an empty chunk, or a checkpoint of another sweep or of another
    version of the code.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 set, not {chunk}")
    values = table(model, scenario, samples)
    n = len(next(iter(values.values())))
    if not n:
        raise ValueError("there are no parameter sets to run: an array of values is empty")
    end = run_length(model, scenario, days)
    times = weekly_times(end)
    path = Path(checkpoint) if checkpoint is not None else None
    longest = longest_step(model) if max_step is None else max_step
    key = _key(model, values, end, rtol, atol, max_steps, longest) if path else ""
    results, done = _resume(path, key, n) if path else ({}, 0)
    saved, when = done, time.monotonic()
    try:
        while done < n:
            part = slice(done, min(done + chunk, n))
            solved = simulate(
                model,
                scenario=scenario,
                parameters={name: array[part] for name, array in values.items()},
                days=end,
                times=times,
                rtol=rtol,
                atol=atol,
                threads=threads,
                max_steps=max_steps,
                max_step=max_step,
            )
            for name, array in _reduced(model, solved).items():
                results.setdefault(name, np.full(n, np.nan))[part] = array
            done = part.stop
            if path and time.monotonic() - when > SAVED_EVERY:
                _save(path, key, results, done)
                saved, when = done, time.monotonic()
            if progress:
                progress(done, n)
    finally:  # interrupted as well
        if path and done > saved:
            _save(path, key, results, done)
    return results


def _reduced(model: Model, solved: Ensemble) -> dict[str, Array]:
    whole = int(solved.times[-1] // 7)
    weekly = np.diff(solved["cases"][:, : whole + 1], axis=1)
    infected = [c.name for c in model.compartments if c.infected]
    reduced = {name: solved[name][:, -1] for name in solved.cumulative_names}
    reduced["ever_infected"] = reduced["new_infections"] + sum(solved[name][:, 0] for name in infected)
    reduced |= {f"final_{name}": solved[name][:, -1] for name in solved.state_names}
    if whole:
        reduced["peak_weekly_incidence"] = weekly.max(axis=1)
        reduced["peak_week"] = np.argmax(np.nan_to_num(weekly, nan=-np.inf), axis=1) + 1.0
    for q, name in enumerate(solved.peak_names):
        reduced[f"peak_prevalence_{name}"] = solved.peaks[:, q, 0]
        reduced[f"peak_time_{name}"] = solved.peaks[:, q, 1]
    reduced = {name: np.where(solved.status > 0, np.nan, array) for name, array in reduced.items()}
    reduced["status"] = solved.status.astype(float)
    return reduced


def _key(model: Model, values: Mapping[str, Array], *settings: float) -> str:
    # What was reckoned by another kernel, or reduced to other outcomes, is not to stand beside today's.
    code = f"{__version__} {kernel(of_model(model)).__module__} {Path(__file__).read_text(encoding='utf-8')}"
    digest = hashlib.sha256(f"{model.hash} {settings} {code}".encode())
    for array in values.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _resume(path: Path, key: str, n: int) -> tuple[dict[str, Array], int]:
    if not path.exists():
        return {}, 0
    try:
        with np.load(path, allow_pickle=False) as stored:
            held = {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, EOFError):
        held = {}
    if not {"key", "done"} <= held.keys():
        raise ValueError(f"{path} is no checkpoint of a sweep: remove it or name another")
    if str(held.pop("key")) != key:
        other = "other model, samples, settings or version of the code"
        raise ValueError(f"{path} holds another sweep ({other}): remove it or name another")
    done = int(held.pop("done"))
    results = {name: np.full(n, np.nan) for name in held}
    for name, array in results.items():
        array[:done] = held[name]
    return results, done


def _save(path: Path, key: str, results: Mapping[str, Array], done: int) -> None:
    with replacing(path) as file:
        np.savez(file, key=np.array(key), done=np.array(done), **{k: v[:done] for k, v in results.items()})  # type: ignore[arg-type]
