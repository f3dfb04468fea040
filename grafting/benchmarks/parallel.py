"""Two DiT blocks one after the other against the same two side by side, timed in turn in one run.

    python grafting/benchmarks/parallel.py --threads 2 --rounds 20 --out parallel.json

By default the bundled teacher's width (192) and DiT-XL/2's (1,152), batch 1 and 8, 64 and 256 tokens. ``branches`` is
the merged pair run branch by branch; ``scale`` and ``dense`` its wide form with either combination.
"""

from __future__ import annotations

import argparse
import platform
from itertools import product
from pathlib import Path
from typing import Any

import torch

from grafting.files import write_json_atomic
from grafting.graft import graft
from grafting.hosts import host_for
from grafting.measure.speed import latency
from grafting.plan import Plan
from grafting.restructure import Merge

WIDTHS = {192: (6, 32), 1152: (16, 72)}
"""Heads and channels of a head by width."""


def measure(width: int, batch: int, tokens: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Latencies of the pair's forms, as speed-ups over one block after the other."""
    from diffusers import DiTTransformer2DModel

    heads, channels = WIDTHS[width]
    torch.manual_seed(0)
    sides: dict[str, Any] = {}
    x = torch.randn(batch, tokens, width, device=device)
    call = {
        "timestep": torch.full((batch,), 500, device=device),
        "class_labels": torch.zeros(batch, dtype=torch.int64, device=device),
    }
    for combine in ("scale", "dense"):
        model = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=channels, num_layers=2, sample_size=8, num_embeds_ada_norm=10
        )
        model.eval().to(device)
        handle = graft(model, Plan(restructure=(Merge(combine=combine),)))
        (sides[combine],) = handle.groups.values()
        with handle.teacher():
            sides["sequence"] = list(host_for(model).blocks(model))

    def sequence() -> torch.Tensor:
        h = x
        for block in sides["sequence"]:
            h = block(h, **call)
        return h

    def merged(name: str, wide: bool) -> torch.Tensor:
        sides[name].wide = wide
        result: torch.Tensor = sides[name](x, **call)
        return result

    timed = latency(
        {
            "sequence": sequence,
            "branches": lambda: merged("scale", False),
            "scale": lambda: merged("scale", True),
            "dense": lambda: merged("dense", True),
        },
        rounds=rounds,
        warmup=5,
        device=device,
    )
    base = timed["sequence"]
    return {
        "width": width,
        "batch": batch,
        "tokens": tokens,
        "milliseconds": base.minimum * 1000,
        "quartiles": [base.low * 1000, base.high * 1000],
        "speedup": {name: value.speedup_over(base) for name, value in timed.items() if name != "sequence"},
        "of medians": {name: base.median / value.median for name, value in timed.items() if name != "sequence"},
    }


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU {platform.machine()}"
    print(f"float32, {name}, {arguments.threads} threads; speed-up over one after the other, minima (medians)")
    print(f"{'width':>6}{'batch':>6}{'tokens':>7}{'sequence':>12}{'branches':>15}{'scale':>15}{'dense':>15}")
    rows = []
    for width, batch, tokens in product(arguments.widths, arguments.batches, arguments.tokens):
        row = measure(width, batch, tokens, arguments.rounds, device)
        rows.append(row)
        told = "".join(f"  {row['speedup'][k]:>6.2f} ({row['of medians'][k]:.2f})" for k in row["speedup"])
        print(f"{width:>6}{batch:>6}{tokens:>7}{row['milliseconds']:>9.2f} ms{told}", flush=True)
    if arguments.out:
        facts = {"device": name, "threads": arguments.threads, "torch": torch.__version__, "dtype": "float32"}
        write_json_atomic(arguments.out, facts | {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
