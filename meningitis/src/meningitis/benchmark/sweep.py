"""A reduced sweep in a process of its own: `python -m meningitis.benchmark.sweep SETS` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from meningitis.benchmark.routes import ATOL, DAYS, RTOL, Task
from meningitis.engine import reduce
from meningitis.models import GENERALISED


def measure(sets: int) -> dict[str, Any]:
    """Cost of `engine.reduce` on all threads: microseconds per set by the clock (`us`) and of the cores (`cpu_us`).

    `peak_mb` is the process's peak memory (None: unknown).
    """
    task = Task.drawn(sets, seed=2)
    reduce(GENERALISED, {name: array[:64] for name, array in task.values.items()}, days=DAYS)
    seconds, cores = [], []
    for _ in range(max(5, min(100, 1_000_000 // sets))):
        cpu, start = time.process_time(), time.perf_counter()
        reduce(GENERALISED, task.values, days=DAYS, rtol=RTOL, atol=ATOL)
        seconds.append((time.perf_counter() - start) / sets * 1e6)
        cores.append((time.process_time() - cpu) / sets * 1e6)
    return {"sets": sets, "us": median(seconds), "cpu_us": median(cores), "peak_mb": peak_mb()}


def peak_mb() -> float | None:
    """Highest resident memory of this process so far. Linux's own record: getrusage also counts the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
