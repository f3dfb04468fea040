"""PixArt-Sigma at 2048 px: half of a stack's self-attention swapped, beside the unswapped stack, in one run.

    python grafting/benchmarks/pixart.py --threads 2 --out pixart.json
    python grafting/benchmarks/pixart.py --threads 2 --whole --out pixart-whole.json
    python grafting/benchmarks/pixart.py --device cuda --dtype bfloat16 [--compile] [--whole]

True shapes: 16,384 latent tokens, 300 text tokens, width 1152, 16 heads, batch 1. A stack is timed round by round with
the time bound, the unswapped one without the swapped cores. ``--whole`` runs the transformer of 28 blocks, hyena_x in
the blocks of arXiv 2506.05340: on a CPU once each way (minutes), on a GPU as often as a stack. On a GPU softmax runs
through flash, the masked cross-attention through the memory-efficient kernel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from stack import compare, show, surroundings
from torch import nn

from grafting.cost import plan_cost
from grafting.files import write_json_atomic
from grafting.graft import Grafted, graft
from grafting.hosts import bundled_config
from grafting.measure.speed import parameters, peak_bytes
from grafting.plan import Plan

BLOCKS = (8, 10, 12, 14, 16, 18, *range(20, 28))
"""Of 28: the paper's choice for PixArt-Sigma."""
GOALS = {"speedup": 1.43, "share_of_time_bound": 0.95}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="all 28 blocks, with peak memory")
    parser.add_argument("--blocks", type=int, default=2, help="of the stack, every second one swapped")
    parser.add_argument("--operator", default="hyena_x")
    parser.add_argument("--side", type=int, default=128, help="tokens along a side of the square grid")
    parser.add_argument("--text", type=int, default=300, help="text tokens")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile both ways; then without the time bound")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = bundled_config("pixart-sigma-2048")
    depth = config["num_layers"] if arguments.whole else arguments.blocks
    width = arguments.heads * config["attention_head_dim"]
    config |= {"num_layers": depth, "num_attention_heads": arguments.heads, "cross_attention_dim": width}
    config["sample_size"] = arguments.side * config["patch_size"]
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    model = made(config, device, dtype)
    plan = Plan.interleaved(operator=arguments.operator, share=0.5)
    if arguments.whole:
        plan = Plan.explicit(site="attn", operator=arguments.operator, blocks=BLOCKS)
    handle = graft(model, plan, init="copy")
    call = caller(handle, arguments.text, compiled=arguments.compile)
    result = surroundings(device, arguments.dtype) | {
        "host": "PixArt-Sigma, 2048 px" if arguments.side == 128 else "PixArt-Sigma",
        "operator": arguments.operator,
        "tokens": arguments.side**2,
        "text_tokens": arguments.text,
        "blocks": depth,
        "swapped": len(handle.switches),
        "width": width,
        "compiled": arguments.compile,
    }
    with kernels(device):
        once = arguments.whole and device.type == "cpu"
        if once:
            result |= passes(handle, call)
        else:
            result |= compare(handle, call, rounds=arguments.rounds, bounded=not arguments.compile)
            result |= {"peak_bytes": peaks(handle, call)} if arguments.whole else {}
    cost = plan_cost(plan, config)
    weights = parameters(model) * dtype.itemsize
    result |= {"weight_bytes": weights, "flop_bound": cost.flop_ratio, "core_bound": cost.core_bound, "goals": GOALS}
    print(f"{result['host']}: {arguments.operator} in {result['swapped']} of {depth} blocks, ", end="")
    print(f"{result['tokens']} tokens, {arguments.text} of text, width {width}, {arguments.dtype}, ", end="")
    print(f"{result['device']}, {arguments.threads} threads{', compiled' if arguments.compile else ''}")
    show(result)
    for name, size in result.get("peak_bytes", {}).items():
        print(f"  {name:<8}peak {size / 2**30:.2f} GiB of activations beside {weights / 2**30:.2f} GiB of weights")
    print(f"goals: {GOALS['speedup']}x, {GOALS['share_of_time_bound']:.0%} of the time bound")
    if arguments.out:
        write_json_atomic(arguments.out, result)
    return result


def made(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A random PixArt of this configuration."""
    from diffusers import PixArtTransformer2DModel

    sizes = {key: value for key, value in config.items() if not key.startswith("_")}
    model: nn.Module = PixArtTransformer2DModel(**sizes).eval().to(device, dtype)
    return model.requires_grad_(False)


def caller(handle: Grafted, text: int, *, compiled: bool) -> Callable[[], object]:
    """One pass of the model, whichever side of its switches runs, on fixed random inputs."""
    model, host = handle.model, handle.host
    config: Any = model.config
    like = next(model.parameters())
    side = {"device": like.device, "dtype": like.dtype}
    z = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, **side)
    t = torch.tensor([500], device=like.device)
    condition = {
        "encoder_hidden_states": torch.randn(1, text, config.caption_channels, **side),
        "encoder_attention_mask": torch.ones(1, text, dtype=torch.int64, device=like.device),
    }
    run: Any = torch.compile(model) if compiled else model
    return lambda: host.call(run, z, t, condition)


def kernels(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU the fused attention kernels alone, so that nothing falls back to the plain one unseen."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused: AbstractContextManager[None] = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
    return fused


def passes(handle: Grafted, call: Callable[[], object]) -> dict[str, Any]:
    """Each way once, timed and its memory followed in the same pass."""
    seconds, peak = {}, {}
    for name, side in (("plain", handle.teacher), ("hybrid", handle.student)):
        with side():
            start = time.perf_counter()
            peak[name] = peak_bytes(call, next(handle.model.parameters()).device)
            seconds[name] = {"minimum": time.perf_counter() - start}
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "speedup": seconds["plain"]["minimum"] / seconds["hybrid"]["minimum"],
    }


def peaks(handle: Grafted, call: Callable[[], object]) -> dict[str, int]:
    """Peak memory of each way."""
    found = {}
    for name, side in (("plain", handle.teacher), ("hybrid", handle.student)):
        with side():
            found[name] = peak_bytes(call, next(handle.model.parameters()).device)
    return found


if __name__ == "__main__":
    main()
