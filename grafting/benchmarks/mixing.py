"""What does a convolution begin from, where attention's values are at hand? How far off are its gates and filters?

    PYTHONPATH=grafting/benchmarks grafting study grafting/benchmarks/mixing.yaml --out out/mixing
    python grafting/benchmarks/mixing.py out/mixing --out grafting/benchmarks/results/mixing.json

The first is a table whose rows are operators of this module: ``hyena_x_2d`` and ``local_mean`` with other starts, all
copied and solved, taught and finetuned at one cost. The second keeps of it the held-out loss above the teacher's at the
start, after stage 1 and at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, ClassVar

import torch

from grafting.files import write_json_atomic
from grafting.operators.base import QKV, Weights
from grafting.operators.convolution import add_random_taps, make_identity
from grafting.operators.hyena import GATES, HyenaX2D
from grafting.operators.linear import LocalMean


class Started(HyenaX2D):
    """The operator's own start, but for ``gates`` of their random start in its gates, and for what ``mixes`` by random
    taps: nothing, values or everything."""

    gates: ClassVar[float]
    mixes: ClassVar[str]

    @torch.no_grad()
    def copy_from_attention(self, qkv: QKV, out: Weights) -> bool:
        copied, of_gates = super().copy_from_attention(qkv, out), slice(2 * self.width)
        self.in_proj.weight[of_gates] *= self.gates / GATES
        if self.mixes == "nothing":
            make_identity(self.short_filter, at=self.before)
        if self.mixes == "everything":
            add_random_taps(self.short_filter, of_gates)
        return copied


class Alike(Started):
    """Two gates of one and filters that pass: equal gradients, so that both gates stay one."""

    gates, mixes = 0.0, "nothing"


class GatesApart(Started):
    """Gates that differ, filters that pass."""

    gates, mixes = 0.3, "nothing"


class AllMix(Started):
    """Random taps for gates and values."""

    gates, mixes = 0.3, "everything"


class ValuesMix(Started):
    """Random taps for values alone."""

    gates, mixes = 0.3, "values"


class AlikeMix(Started):
    """The same with gates of one, which stay one; ``hyena_x_2d`` itself has 0.1."""

    gates, mixes = 0.0, "values"


class PlainMean(LocalMean):
    """A filter that passes and a gate of one, in the place of near ones."""

    @torch.no_grad()
    def start(self) -> None:
        make_identity(self.filter, at=self.options["kernel"] // 2)
        self.gate.weight.zero_()
        self.gate.bias.fill_(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table", type=Path, help="the folder of the study")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for path in sorted((arguments.table / "rows").glob("*.json")):
        outcome = json.loads(path.read_text()).get("outcome", {})
        if outcome.get("stages"):
            found[path.stem] = {key: estimate["value"] for key, estimate in outcome["stages"].items()} | {
                "end": _interval(outcome["differences"]["loss"]),
                "minus other": _interval(outcome["over_other"].get("loss")),
            }
    for name, row in found.items():
        print(name, row)
    if arguments.out:
        write_json_atomic(arguments.out, {"recipe": "mixing.yaml", "rows": found})


def _interval(estimate: dict[str, float] | None) -> list[float] | None:
    return None if estimate is None else [estimate[key] for key in ("value", "low", "high")]


if __name__ == "__main__":
    main()
