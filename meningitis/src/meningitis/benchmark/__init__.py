"""`meningitis benchmark`: the engine beside its peers, in one run, interleaved, with spread and threads.

The task: sets of the generalised model drawn from its sampling distributions, one year, 53 weekly outputs, rtol 1e-6,
atol 1e-8 persons. Peers that are not installed (extra `bench`) are named as absent.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from meningitis.benchmark.accuracy import deviations
from meningitis.benchmark.routes import DAYS, PEERS, Absent, Route, Task, engine_route
from meningitis.files import write_atomically

Say = Callable[[str], None]
PACKAGES = ("meningitis", "numpy", "scipy", "numba", "libroadrunner", "numbalsoda", "diffrax", "jax")
"""The packages whose versions belong to the numbers, where they are installed."""
SIZES = {False: (1_000, 10_000, 100_000, 1_000_000), True: (1_000, 4_000)}
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "meningitis --help": ("--help",),
    "meningitis r0": ("r0",),
    "meningitis simulate": ("simulate",),
}


def run(*, quick: bool = False, path: Path | str | None = None, seed: int = 1, say: Say = print) -> dict[str, Any]:
    """Measure, print a table through `say`, and return it as plain data; `path` gets it as JSON.

    `quick` takes minutes down to seconds: fewer sets, rounds and sizes, and no study. Times are wall-clock; `cpu_us` is
    the processors' time, which other work on the machine disturbs less.
    """
    sets, rounds = (1_000, 3) if quick else (10_000, 7)
    task = Task.drawn(sets, seed)
    say(f"{sets:,} sets of the generalised model, {DAYS:g} days, {task.times.size} outputs, rtol 1e-6, atol 1e-8")
    found: dict[str, Any] = {"machine": _machine(), "quick": quick, "seed": seed, "sets": sets}
    found["versions"] = _versions()
    say("; ".join(f"{name} {value}" for name, value in {**found["machine"], **found["versions"]}.items()))
    found["routes"], found["absent"] = _race(task, rounds, quick)
    for line in _table(found["routes"]):
        say(line)
    for name, reason in found["absent"].items():
        say(f"absent: {name} ({reason})")
    number = sets if not quick else 100
    error = deviations(task, number)
    worst, middle = float(error.max()), float(np.median(error))
    found["accuracy"] = {"sets": number, "worst": worst, "median": middle, "allowed": 1e-5}
    say(
        f"accuracy: worst of {number:,} sets and all components, max |y - ref| / max |ref|, against DOP853 at 1e-11: "
        f"{worst:.2e} (allowed 1e-5), median {middle:.2e}"
    )
    found["sizes"] = [_sweep(size) for size in SIZES[quick]]
    for row in found["sizes"]:
        peak = "unknown" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
        each = f"{row['us']:.2f} us per set by the clock, {row['cpu_us']:.2f} us of the cores"
        say(f"reduced sweep of {row['sets']:>9,} sets: {each}; peak memory of the process {peak}")
    found["commands"] = _commands(COMMANDS, 1 if quick else 3)
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            found["commands"] |= _commands({"meningitis study": ("study", "--out", folder)}, 1)
        found["commands"]["meningitis study, empty cache"] = _cold_study()
    for name, seconds in found["commands"].items():
        say(f"{name}: {'failed' if seconds is None else f'{seconds:.2f} s'}")
    if path is not None:
        write_atomically(Path(path), json.dumps(found, indent=2))
    return found


def _machine() -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(load, 2),  # above 0 at the start: other work shares the cores
        "python": platform.python_version(),
    }


def _processor(record: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and, where Linux tells, its family and model: the name alone may be vague."""
    if not record.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in record.read_text().split("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    name = facts.get("model name", platform.machine())
    return f"{name}, family {facts['cpu family']}, model {facts['model']}" if "cpu family" in facts else name


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _race(task: Task, rounds: int, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Time every route once a round, one after the other, so that all meet the same machine."""
    import numba

    threads = [1, 2] if numba.config.NUMBA_NUM_THREADS > 1 else [1]
    routes: list[Route] = [engine_route(task, count) for count in threads]
    absent = {} if len(threads) > 1 else {"meningitis on 2 threads": "numba has a single thread here"}
    truth = routes[0].outputs(routes[0].solve())
    deviation = [_differences(route.outputs(route.solve()), truth) for route in routes]
    for name, build in PEERS.items():
        try:
            route = build(task, quick)
            deviation.append(_differences(route.outputs(route.solve()), truth))  # also warms it up
        except Absent as reason:
            absent[name] = str(reason)
        except Exception as error:  # a peer of another version must not cost the other numbers
            absent[name] = f"failed with {type(error).__name__}: {error}"
        else:
            routes.append(route)
    walls: dict[int, list[float]] = {at: [] for at in range(len(routes))}
    cpus: dict[int, list[float]] = {at: [] for at in range(len(routes))}
    for _ in range(rounds):
        for at, route in enumerate(routes):
            cpu, wall = time.process_time(), time.perf_counter()
            route.solve()
            walls[at].append((time.perf_counter() - wall) / route.sets * 1e6)
            cpus[at].append((time.process_time() - cpu) / route.sets * 1e6)
    rows = []
    for at, route in enumerate(routes):
        rows.append(
            {
                "route": route.name,
                "threads": route.threads,
                "sets": route.sets,
                "us": median(walls[at]),
                "low_us": min(walls[at]),
                "high_us": max(walls[at]),
                "cpu_us": median(cpus[at]),
                "deviation": float(deviation[at].max()),
                "median_deviation": float(np.median(deviation[at])),
                "ratios": {
                    str(count): median(walls[at]) / median(walls[k])
                    for k, count in enumerate(threads)
                    if at >= len(threads)
                },
            }
        )
    return rows, absent


def _differences(mine: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Largest |difference| over the largest |value| of each component, by set: did it solve the same problem?"""
    n = len(mine)
    scale = np.abs(truth[:n]).max(axis=1)
    return np.asarray((np.abs(mine - truth[:n]).max(axis=1) / np.where(scale > 0, scale, 1.0)).max(axis=1))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'route':<28}{'threads':>8}{'sets':>8}{'us per set':>12}{'lowest':>10}{'highest':>10}{'cpu us':>10}"
        f"{'differs by':>12}{'times ours (1 thread, 2 threads)':>34}"
    ]
    for row in rows:
        ratios = ", ".join(f"{value:.0f}" for value in row["ratios"].values())
        lines.append(
            f"{row['route']:<28}{row['threads']:>8}{row['sets']:>8,}{row['us']:>12.2f}{row['low_us']:>10.2f}"
            f"{row['high_us']:>10.2f}{row['cpu_us']:>10.2f}{row['deviation']:>12.1e}{ratios:>34}"
        )
    total = "; ".join(f"{r['threads']}: {r['us'] * 10:.0f} ms" for r in rows if r["route"] == "meningitis")
    lines.append(f"meningitis, 10,000 sets by thread count: {total}; peers with fewer sets are scaled from those")
    return lines


def _sweep(size: int) -> dict[str, Any]:
    """A reduced sweep in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "meningitis.benchmark.sweep", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _commands(commands: Mapping[str, tuple[str, ...]], rounds: int) -> dict[str, float | None]:
    """Median wall time in seconds of command lines, started afresh after one start that warms the caches."""
    found: dict[str, float | None] = {}
    for name, arguments in commands.items():
        seconds = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "meningitis.cli", *arguments], capture_output=True)
            seconds.append(time.perf_counter() - start)
            if done.returncode:
                break
        found[name] = None if done.returncode else median(seconds[1:])
    return found


def _cold_study() -> float | None:
    """Seconds of one study by a process that finds no kernel, font list or anything else of an earlier one."""
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "meningitis.cli", "study", "--out", folder]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, env={**os.environ, "XDG_CACHE_HOME": cache})
        seconds = time.perf_counter() - start
    return None if done.returncode else seconds
