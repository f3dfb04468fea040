"""Figures in the documents are those of the committed measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
PAGE = (HOME / "docs" / "what-to-expect.md").read_text(encoding="utf-8")


def measured(name: str) -> Any:
    return json.loads((HOME / "benchmarks" / "results" / f"{name}.json").read_text())


def cells(first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    row = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", PAGE, re.MULTILINE)
    assert row is not None, first
    return [cell.strip() for cell in row[1].split("|")]


def test_operators_and_their_targets() -> None:
    content = measured("operators")
    assert content["protocol"]["tokens"] == 4096 and content["protocol"]["width"] == 1152
    one, two = ({row["operator"]: row for row in run["rows"]} for run in content["runs"])
    for name in one.keys() - {"mha"}:
        wanted = [
            f"{r['ratio']:.2f}x ({r['ratio_lowest']:.2f} to {r['ratio_highest']:.2f})" for r in (one[name], two[name])
        ]
        assert cells(name) == [*wanted, f"{one[name]['flop_bound']:.2f}x"]
        assert min(one[name]["ratio"], two[name]["ratio"]) >= one[name]["target"]


def test_stack() -> None:
    content = measured("stack")
    assert content["tokens"] == 16_384 and content["swapped"] * 2 == content["blocks"]
    found = re.search(r"\*\*(.+?)x\*\*, (\d+) % of the time bound of (.+?)x; FLOP bound (.+?)x\.", PAGE)
    assert found is not None
    assert found[1] == f"{content['speedup']:.2f}" and content["speedup"] >= 1.5
    assert found[2] == f"{100 * content['share_of_time_bound']:.0f}" and content["share_of_time_bound"] >= 0.95
    assert (found[3], found[4]) == (f"{content['time_bound']:.2f}", f"{content['flop_bound']:.2f}")


def test_stage_one() -> None:
    for row in measured("stage1")["rows"]:
        wanted = [f"{row['samples_per_second']:.0f}", f"{row['gain']:.2f}x", f"{row['bound']:.2f}x"]
        assert cells(str(row["sites"])) == [*wanted, f"{row['peak_mib']:.1f} MiB"]
        assert row["share_of_bound"] >= 0.85
