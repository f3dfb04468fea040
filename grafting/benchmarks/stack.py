"""A stack of DiT blocks at many tokens, half of its attention swapped, beside its bounds, in one run.

    python grafting/benchmarks/stack.py --side 128 --blocks 2 --operator hyena_x --threads 2 --out stack.json

The hybrid and the plain stack are timed in turn; the time bound is the plain stack with the swapped cores left out,
the FLOP bound its ratio of operations. 128 x 128 tokens are an image of 2048 px.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grafting.cost import plan_cost
from grafting.files import write_json_atomic
from grafting.graft import Grafted, graft
from grafting.hosts import host_for
from grafting.measure.speed import latency, without_cores
from grafting.plan import Plan


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="tokens along a side of the square grid")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-width", type=int, default=72)
    parser.add_argument("--operator", default="hyena_x")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    from diffusers import DiTTransformer2DModel

    config = {
        "num_attention_heads": arguments.heads,
        "attention_head_dim": arguments.head_width,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": arguments.blocks,
        "sample_size": 2 * arguments.side,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
    }
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    model = DiTTransformer2DModel(**config).eval().to(device, dtype)
    host, plan = host_for(model), Plan.interleaved(operator=arguments.operator, share=0.5)
    handle = graft(model, plan, init="copy")
    z = torch.randn(1, 4, 2 * arguments.side, 2 * arguments.side, device=device, dtype=dtype)
    t, y = torch.tensor([500], device=device), torch.tensor([7], device=device)
    cost = plan_cost(plan, {"_class_name": type(model).__name__, **config})
    result = surroundings(device, arguments.dtype) | {
        "operator": arguments.operator,
        "tokens": arguments.side**2,
        "blocks": arguments.blocks,
        "swapped": len(handle.switches),
        "width": arguments.heads * arguments.head_width,
        **compare(handle, lambda: host.call(model, z, t, y), rounds=arguments.rounds),
        "flop_bound": cost.flop_ratio,
        "core_bound": cost.core_bound,
    }
    print(
        f"{arguments.operator} in {len(handle.switches)} of {arguments.blocks} blocks, {arguments.side**2} tokens, ",
        end="",
    )
    print(f"width {result['width']}, {arguments.dtype}, {arguments.threads} threads")
    show(result)
    if arguments.out:
        write_json_atomic(arguments.out, result)


def surroundings(device: torch.device, dtype: str) -> dict[str, Any]:
    """What figures of time are of."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU {platform.machine()}",
        "torch": torch.__version__,
    }


def compare(handle: Grafted, call: Callable[[], object], *, rounds: int, bounded: bool = True) -> dict[str, Any]:
    """``call`` both ways in turn, and, where ``bounded``, the unswapped way without the swapped cores.

    All go through the interception that leaves cores out, so its cost is on every side.
    """
    cores = [switch.original for switch in handle.switches.values() if switch.original is not None]

    def way(side: Callable[[], AbstractContextManager[nn.Module]], skipped: Sequence[nn.Module]) -> None:
        # A compiled model is not intercepted.
        with without_cores(skipped) if bounded else nullcontext(), side():
            call()

    calls = {"plain": partial(way, handle.teacher, ()), "hybrid": partial(way, handle.student, ())}
    if bounded:
        calls["bound"] = partial(way, handle.teacher, cores)
    timed = latency(calls, rounds=rounds, warmup=1, device=next(handle.model.parameters()).device)
    found: dict[str, Any] = {
        "seconds": {name: vars(value) for name, value in timed.items()},
        "speedup": timed["hybrid"].speedup_over(timed["plain"]),
    }
    if bounded:
        ceiling = timed["bound"].speedup_over(timed["plain"])
        found |= {"time_bound": ceiling, "share_of_time_bound": found["speedup"] / ceiling}
    return found


def show(result: Mapping[str, Any]) -> None:
    """The figures of :func:`compare` beside the FLOP bound, as lines."""
    for name, value in result["seconds"].items():
        spread = f"   quartiles {value['low']:.3f} to {value['high']:.3f}" if "low" in value else ""
        print(f"  {name:<8}{value['minimum']:9.3f} s{spread}")
    print(f"speed-up {result['speedup']:.2f}x, ", end="")
    if "time_bound" in result:
        print(f"time bound {result['time_bound']:.2f}x ({result['share_of_time_bound']:.0%} of it), ", end="")
    print(f"FLOP bound {result['flop_bound']:.2f}x")


if __name__ == "__main__":
    main()
