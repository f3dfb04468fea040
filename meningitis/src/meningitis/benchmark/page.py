"""The figures of a page from the benchmark's numbers: `python -m meningitis.benchmark.page NUMBERS.json PAGE.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OPEN, CLOSE = "<!-- figures of the benchmark -->", "<!-- end of figures -->"
PEERS = ("numpy", "scipy", "numba", "libroadrunner", "numbalsoda", "diffrax", "jax")
LSODA = "scipy solve_ivp LSODA"
RATIOS = ((LSODA, "1", 400), (LSODA, "2", 700), ("diffrax Tsit5, vmap", "2", 8), ("roadrunner CVODE", "2", 50))
SECONDS = {
    "meningitis --help": 0.5,
    "meningitis r0": 1.5,
    "meningitis simulate": 2.5,
    "meningitis study": 60.0,
    "meningitis study, empty cache": 120.0,
}
"""What the commands may take."""


def figures(found: Mapping[str, Any]) -> str:
    """Return the numbers of `meningitis benchmark` as Markdown: machine, routes, goals, sizes."""
    machine, error = found["machine"], found["accuracy"]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in PEERS if name in found["versions"])
    return "\n".join(
        [
            f"{machine['cores']} cores of {machine['processor']}; load at the start {machine['load']:.2f};",
            f"Python {machine['python']}, {versions}.",
            "Medians of interleaved rounds, lowest and highest in brackets.",
            "",
            *_routes(found),
            "",
            f"Error over all components, as a part of the component's maximum, against DOP853 at 1e-11: at most "
            f"{error['worst']:.1e}",
            f"in {error['sets']:,} sets (allowed {error['allowed']:.0e}), median {error['median']:.1e}.",
            "",
            *_goals(found),
            "",
            *_sizes(found["sizes"]),
        ]
    )


def _routes(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "| route | threads | sets | µs per set | times ours on 1 and on 2 threads | differs from ours: most, median |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["routes"]:
        spread = f"{row['us']:,.1f} ({row['low_us']:,.1f}–{row['high_us']:,.1f})"
        ratios = ", ".join(f"{ratio:,.0f}" for ratio in row["ratios"].values())
        differs = f"{row['deviation']:.1e}, {row['median_deviation']:.1e}" if row["ratios"] else ""
        lines.append(f"| {row['route']} | {row['threads']} | {row['sets']:,} | {spread} | {ratios} | {differs} |")
    return [*lines, "", *(f"Absent: {name} ({reason})." for name, reason in found["absent"].items())]


def _goals(found: Mapping[str, Any]) -> list[str]:
    lines = ["| goal | asked | reached |", "|---|---|---|"]

    def row(name: str, asked: str, value: float, kept: bool, form: str) -> None:
        lines.append(f"| {name} | {asked} | {_judged(value, kept, form)} |")

    ratios = {route["route"]: route["ratios"] for route in found["routes"]}
    for peer, threads, asked in RATIOS:
        if threads in ratios.get(peer, {}):
            value = ratios[peer][threads]
            row(f"times {peer}, ours on {threads}", f"at least {asked}", value, value >= asked, ",.0f")
    for route in found["routes"]:
        if (route["route"], route["threads"]) == ("meningitis", 2):
            ms = route["us"] * 10
            row("10,000 sets on two threads, ms", "at most 80, better 60", ms, ms <= 80, ".0f")
    costs = [size["us"] for size in found["sizes"]]
    spread = 100 * (max(costs) / min(costs) - 1)
    row("cost of a set over the sizes below, spread in %", "at most 25", spread, spread <= 25, ".0f")
    for name, seconds in found["commands"].items():
        if name in SECONDS and seconds is not None:
            row(f"`{name}`, s", f"at most {SECONDS[name]:g}", seconds, seconds <= SECONDS[name], ".2f")
    return lines


def _sizes(sizes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| sets of a reduced sweep | µs per set, all threads | µs of the cores per set | peak memory of the process |",
        "|---|---|---|---|",
    ]
    for size in sizes:
        memory = "unknown" if size["peak_mb"] is None else f"{size['peak_mb']:.0f} MB"
        lines.append(f"| {size['sets']:,} | {size['us']:.2f} | {size['cpu_us']:.2f} | {memory} |")
    return lines


def _judged(value: float, kept: bool, form: str) -> str:
    return f"{value:{form}}" if kept else f"**{value:{form}}, missed**"


def filled(page: str, found: Mapping[str, Any]) -> str:
    """The page with its figures, between the two comments, replaced by those of `found`."""
    before, rest = page.split(OPEN)
    _, after = rest.split(CLOSE)
    return f"{before}{OPEN}\n{figures(found)}\n{CLOSE}{after}"


if __name__ == "__main__":
    numbers, path = Path(sys.argv[1]), Path(sys.argv[2])
    path.write_text(filled(path.read_text(encoding="utf-8"), json.loads(numbers.read_text())), encoding="utf-8")
