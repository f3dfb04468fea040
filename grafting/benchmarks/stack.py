"""A stack of DiT blocks at many tokens, half of its attention swapped, beside its bounds, in one run.

    python grafting/benchmarks/stack.py --side 128 --blocks 2 --operator hyena_x --threads 2 --out stack.json

The hybrid and the plain stack are timed in turn; the time bound is the plain stack with the swapped cores left out,
the FLOP bound its ratio of operations. 128 x 128 tokens are an image of 2048 px.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from grafting.cost import plan_cost
from grafting.files import write_json_atomic
from grafting.graft import graft
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
    host, plan = host_for(model), Plan.interleaved(operator=arguments.operator, ratio=0.5)
    handle = graft(model, plan, init="copy")
    cores = [switch.original for switch in handle.switches.values() if switch.original is not None]
    z = torch.randn(1, 4, 2 * arguments.side, 2 * arguments.side, device=device, dtype=dtype)
    t, y = torch.tensor([500], device=device), torch.tensor([7], device=device)

    def hybrid() -> None:
        with without_cores([]), handle.student():
            host.call(model, z, t, y)

    def plain() -> None:
        with without_cores([]), handle.teacher():
            host.call(model, z, t, y)

    def bound() -> None:
        with without_cores(cores), handle.teacher():
            host.call(model, z, t, y)

    timed = latency({"plain": plain, "hybrid": hybrid, "bound": bound}, rounds=arguments.rounds, warmup=1)
    speedup = timed["hybrid"].speedup_over(timed["plain"])
    ceiling = timed["bound"].speedup_over(timed["plain"])
    cost = plan_cost(plan, {"_class_name": type(model).__name__, **config})
    result = {
        "operator": arguments.operator,
        "tokens": arguments.side**2,
        "blocks": arguments.blocks,
        "swapped": len(handle.switches),
        "width": arguments.heads * arguments.head_width,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "seconds": {name: vars(value) for name, value in timed.items()},
        "speedup": speedup,
        "time_bound": ceiling,
        "share_of_time_bound": speedup / ceiling,
        "flop_bound": cost.flop_ratio,
        "core_bound": cost.core_bound,
    }
    print(
        f"{arguments.operator} in {len(handle.switches)} of {arguments.blocks} blocks, {arguments.side**2} tokens, ",
        end="",
    )
    print(f"width {result['width']}, {arguments.dtype}, {arguments.threads} threads")
    for name, value in timed.items():
        print(f"  {name:<8}{value.minimum:9.3f} s   quartiles {value.low:.3f} to {value.high:.3f}")
    print(f"speed-up {speedup:.2f}x, time bound {ceiling:.2f}x ({speedup / ceiling:.0%} of it), ", end="")
    print(f"FLOP bound {cost.flop_ratio:.2f}x")
    if arguments.out:
        write_json_atomic(arguments.out, result)


if __name__ == "__main__":
    main()
