"""Speed of whole operators against softmax attention, measured in one run.

    python grafting/benchmarks/operators.py --tokens 4096 --width 1152 --heads 16 --threads 1 2 --out operators.json

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
from pathlib import Path
from typing import Any

import torch

from grafting import operators
from grafting.files import write_json_atomic

TARGETS = {"hyena_x": 2.0, "hyena_y": 2.4, "swa": 2.7, "linear": 2.4}  # at 4,096 tokens, width 1152, on a CPU
ONLY_SQUARE = "local_mean and hyena_x_2d read the tokens as a square"


def measure(names: list[str], *, tokens: int, width: int, heads: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Seconds of a forward pass of one sample for each operator and round, and the ratios to `mha`."""
    torch.manual_seed(0)
    x = torch.randn(1, tokens, width, device=device)
    built = {n: operators.build(n, width=width, heads=heads, tokens=tokens).to(device).eval() for n in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            start = time.perf_counter()
            built[name](x)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in names:
        single = sorted(a / b for a, b in zip(seconds["mha"], seconds[name], strict=True))
        flops = {n: operators.get(n).flops(width, heads, tokens) for n in ("mha", name)}
        rows.append(
            {
                "operator": name,
                "seconds_fastest": min(seconds[name]),
                "seconds_median": statistics.median(seconds[name]),
                "ratio": min(seconds["mha"]) / min(seconds[name]),
                "ratio_lowest": single[0],
                "ratio_highest": single[-1],
                "flop_bound": flops["mha"] / flops[name],
                "target": TARGETS.get(name) if (tokens, width) == (4096, 1152) else None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help=f"tokens of the sample; {ONLY_SQUARE}")
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--operators", nargs="+", default=["hyena_x", "hyena_y", "swa", "linear"], help="beside mha")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    names = ["mha", *(name for name in asked.operators if name != "mha")]
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
            )
        runs.append({"threads": threads, "rows": rows})
        print(f"{asked.tokens} tokens, width {asked.width}, float32, {asked.device}")
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
            "dtype": "float32",
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
