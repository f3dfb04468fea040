"""Speed of whole operators against softmax attention, measured in one run.

    python grafting/benchmarks/operators.py --tokens 4096 --width 1152 --heads 16 --threads 1 2 --out operators.json
    python grafting/benchmarks/operators.py --operators swa:window=8 hyena_x --dtype bfloat16 --device cuda

Every round times each operator once, so that a disturbance meets all of them; the ratio is that of the fastest rounds
and its spread that of the rounds one by one. Beside it stands the FLOP bound: what the ratio would be if every operator
ran at attention's speed per operation.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grafting import operators
from grafting.files import write_json_atomic
from grafting.measure.speed import wait
from grafting.plan import named_operator
from grafting.verbs.shared import at_least

BASE = "mha"
"""What ratios are to."""
DTYPES = ("float32", "bfloat16", "float16")
TARGETS = {"hyena_x": 2.0, "hyena_y": 2.4, "swa": 2.7, "linear": 2.4}  # at 4,096 tokens, width 1152, on a CPU
ONLY_SQUARE = "operators of the grid read the tokens as a square"


def measure(
    names: Sequence[str], *, tokens: int, width: int, heads: int, rounds: int, device: str, dtype: str
) -> list[dict[str, Any]]:
    """Seconds of a forward pass of one sample for each operator and round, and the ratios to `mha`, the first of them.

    names: an operator, or with options such as ``swa:window=8``. Raises ValueError for one that cannot be made, or that
    does not take so many tokens.
    """
    torch.manual_seed(0)
    how: Any = {"device": device, "dtype": getattr(torch, dtype)}
    x = torch.randn(1, tokens, width).to(**how)
    named = {name: named_operator(name) for name in names}
    built = {
        name: operators.build(operator, width=width, heads=heads, tokens=tokens, **options).to(**how).eval()
        for name, (operator, options) in named.items()
    }
    flops = {
        name: operators.get(operator).flops(width, heads, tokens, **options)
        for name, (operator, options) in named.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            start = time.perf_counter()
            built[name](x)
            wait(x.device)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in names:
        single = sorted(a / b for a, b in zip(seconds[BASE], seconds[name], strict=True))
        rows.append(
            {
                "operator": name,
                "seconds_fastest": min(seconds[name]),
                "seconds_median": statistics.median(seconds[name]),
                "ratio": min(seconds[BASE]) / min(seconds[name]),
                "ratio_lowest": single[0],
                "ratio_highest": single[-1],
                "flop_bound": flops[BASE] / flops[name],
                "target": TARGETS.get(name) if (tokens, width, x.device.type) == (4096, 1152, "cpu") else None,
            }
        )
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Raises SystemExit 2, with a sentence, for what cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--operators",
        nargs="+",
        metavar="NAME",
        default=["hyena_x", "hyena_y", "swa", "linear"],
        help="beside mha, such as swa or swa:window=8",
    )
    parser.add_argument("--tokens", type=at_least(1), default=4096, help=f"tokens of the sample; {ONLY_SQUARE}")
    parser.add_argument("--width", type=at_least(1), default=1152)
    parser.add_argument("--heads", type=at_least(1), default=16)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--threads", type=at_least(1), nargs="+", default=[1])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda:1")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args(given)
    try:
        if asked.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {asked.device}: there is no GPU that torch can use here")
        run(asked)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def run(asked: argparse.Namespace) -> None:
    """Measure with each number of threads, print, and write where that is asked for."""
    names = list(dict.fromkeys([BASE, *asked.operators]))
    runs = []
    for threads in asked.threads:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            rows = measure(
                names,
                tokens=asked.tokens,
                width=asked.width,
                heads=asked.heads,
                rounds=asked.rounds,
                device=asked.device,
                dtype=asked.dtype,
            )
        runs.append({"threads": threads, "rows": rows})
        print(f"{asked.tokens} tokens, width {asked.width}, {asked.dtype}, {asked.device}")
        print(f"{threads} thread(s), {asked.rounds} rounds: fastest, ratio to mha [over single rounds]")
        for row in rows:
            target = f"   target {row['target']}x" if row["target"] else ""
            print(
                f"  {row['operator']:16} {row['seconds_fastest'] * 1e3:9.1f} ms  {row['ratio']:5.2f}x"
                f"  [{row['ratio_lowest']:.2f}, {row['ratio_highest']:.2f}]"
                f"  FLOP bound {row['flop_bound']:.2f}x{target}"
            )
    if asked.out:
        protocol = {
            "tokens": asked.tokens,
            "width": asked.width,
            "heads": asked.heads,
            "batch": 1,
            "dtype": asked.dtype,
            "device": asked.device,
            "rounds": asked.rounds,
            "load_average": os.getloadavg(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "what": "forward with projections, rounds interleaved after one to warm up; ratio of the fastest rounds",
        }
        write_json_atomic(asked.out, {"protocol": protocol, "runs": runs})


if __name__ == "__main__":
    main()
