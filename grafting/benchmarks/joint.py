"""Speed of one block of Stable Diffusion 3.5 with another operator in its joint attention, measured in one run.

    python grafting/benchmarks/joint.py --model sd3.5-medium-1024 --threads 1 --out joint.json

Every round runs the same block once with each operator and once as it is, so that a disturbance meets all; the ratio is
of the fastest rounds, its range that of the rounds one by one. Beside it stands the ratio of the FLOPs of a block.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from grafting import Plan
from grafting.cost import block_cost, plan_cost
from grafting.files import write_json_atomic
from grafting.graft import graft
from grafting.hosts import bundled_config, host_for, shape_of


def measure(config: dict[str, Any], names: list[str], *, side: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of a forward pass of one sample through the second of three blocks, for each operator and round."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    # Three blocks: one that is like most of the model's, between one with a second attention and the last.
    dual = [0] if config.get("dual_attention_layers") else []
    made = {**{k: v for k, v in config.items() if k != "_class_name"}, "num_layers": 3, "dual_attention_layers": dual}

    def fresh() -> SD3Transformer2DModel:
        return SD3Transformer2DModel(**made | {"sample_size": 2 * side, "pos_embed_max_size": side}).eval()

    model = fresh()
    shape, host, plain = shape_of(model), host_for(model), "as it is"
    whole = block_cost(shape)
    picture = torch.randn(1, shape.tokens, shape.width)
    given = {
        "encoder_hidden_states": torch.randn(1, shape.context_tokens, shape.width),
        "temb": torch.randn(1, shape.width),
    }
    plans = {name: Plan.explicit(operator=name, blocks=[1]) for name in names}
    blocks: dict[str, torch.nn.Module] = {plain: host.blocks(model)[1]}
    for name, plan in plans.items():
        blocks[name] = host.blocks(graft(fresh(), plan, init="copy").own_copy().model)[1]
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(rounds + 1):
        for name, block in blocks.items():
            start = time.perf_counter()
            block(picture, **given)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in names:
        (site,) = plan_cost(plans[name], shape).sites
        single = sorted(a / b for a, b in zip(seconds[plain], seconds[name], strict=True))
        rows.append(
            {
                "operator": name,
                "seconds_fastest": min(seconds[name]),
                "seconds_fastest_as_it_is": min(seconds[plain]),
                "ratio": min(seconds[plain]) / min(seconds[name]),
                "ratio_lowest": single[0],
                "ratio_highest": single[-1],
                "flop_ratio": whole.total / (whole.total - site.flops_before + site.flops_after),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd3.5-medium-1024", help="a bundled configuration of SD3")
    parser.add_argument("--side", type=int, default=64, help="tokens along a side of the picture")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--operators", nargs="+", default=["swa", "swa_2d", "linear", "hyena_x_2d"])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with torch.inference_mode():
        rows = measure(bundled_config(asked.model), asked.operators, side=asked.side, rounds=asked.rounds)
    print(f"a block of {asked.model}, {asked.side**2} tokens and its text, float32, {asked.threads} thread(s)")
    for row in rows:
        print(
            f"  {row['operator']:16} {row['seconds_fastest']:7.2f} s  {row['ratio']:5.2f}x"
            f"  [{row['ratio_lowest']:.2f}, {row['ratio_highest']:.2f}]  by FLOPs {row['flop_ratio']:.2f}x"
        )
    if asked.out:
        protocol = {
            "model": asked.model,
            "tokens": asked.side**2,
            "batch": 1,
            "dtype": "float32",
            "device": "cpu",
            "threads": asked.threads,
            "rounds": asked.rounds,
            "load_average": os.getloadavg(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "what": "one block forward, rounds interleaved after one to warm up; ratio of the fastest rounds",
        }
        write_json_atomic(asked.out, {"protocol": protocol, "rows": rows})


if __name__ == "__main__":
    main()
