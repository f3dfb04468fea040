"""Stage 1 over k sites from one teacher pass, against one site at a time, in one run.

    python grafting/benchmarks/stage1.py --sites 1 3 6 --rounds 5 --out stage1.json

With T the teacher's pass over a batch and g a site's step, k sites one by one cost k(T + g) and together T + kg: the
bound on the gain is k(T + g)/(T + kg). T and g are measured in the same run, interleaved; the gain is given as a share
of that bound. Memory is what activations and gradients hold at the peak, above weights and optimiser state.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from grafting.diffusion import Diffusion
from grafting.files import write_json_atomic
from grafting.graft import graft, ungraft
from grafting.hosts import host_for
from grafting.measure.speed import _LiveStorages
from grafting.plan import Plan
from grafting.training.distill import Distillation, DistillConfig


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--operator", default="hyena_x")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=12,
        sample_size=8,
        patch_size=1,
        num_embeds_ada_norm=10,
    ).eval()
    host = host_for(model)
    z, y = torch.randn(arguments.batch, 4, 8, 8), torch.randint(0, 10, (arguments.batch,))
    t = torch.randint(0, 1000, (arguments.batch,))

    def batches(step: int) -> dict[str, torch.Tensor]:
        return {"z": z, "y": y}

    def run(count: int) -> Distillation:
        blocks = [round((i + 0.5) * 12 / count - 0.5) for i in range(count)]
        handle = graft(model, Plan.explicit(operator=arguments.operator, blocks=blocks), init="copy")
        config = DistillConfig(steps=10_000, evaluate_every=10_000)
        made = Distillation(handle, batches, 10, config, None, batches, Diffusion())
        made._advance()
        ungraft(model)
        return made

    def step(made: Distillation) -> float:
        for site, switch in made.handle.switches.items():
            host.set(model, site, switch)
        start = time.perf_counter()
        made._advance()
        spent = time.perf_counter() - start
        for site, switch in made.handle.switches.items():
            assert switch.original is not None
            host.set(model, site, switch.original)
        return spent

    def teacher() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            host.call(model, z, t, y)
        return time.perf_counter() - start

    runs = {count: run(count) for count in sorted({1, *arguments.sites})}
    seconds: dict[int, list[float]] = {0: [], **{count: [] for count in runs}}
    for _ in range(arguments.rounds):
        seconds[0].append(teacher())
        for count, made in runs.items():
            seconds[count].append(step(made))
    fastest = {count: min(values) for count, values in seconds.items()}
    whole, one = fastest[0], fastest[1] - fastest[0]
    rows = []
    for count in arguments.sites:
        gain = count * fastest[1] / fastest[count]
        bound = count * (whole + one) / (whole + count * one)
        with _LiveStorages() as live:
            step(runs[count])
        rows.append(
            {
                "sites": count,
                "samples_per_second": arguments.batch / fastest[count],
                "spread": statistics.pstdev(seconds[count]) / statistics.mean(seconds[count]),
                "gain": gain,
                "bound": bound,
                "share_of_bound": gain / bound,
                "peak_mib": live.peak / 2**20,
            }
        )
    print(
        f"teacher's pass {whole:.3f} s, a site's step {one:.3f} s, batch {arguments.batch}, {arguments.threads} threads"
    )
    for row in rows:
        print(
            f"  {row['sites']:>2} sites: {row['samples_per_second']:7.1f} samples/s, gain {row['gain']:.2f}x, "
            f"bound {row['bound']:.2f}x ({row['share_of_bound']:.0%}), peak {row['peak_mib']:.1f} MiB"
        )
    if arguments.out:
        settings = {key: value for key, value in vars(arguments).items() if key != "out"}
        write_json_atomic(arguments.out, {"settings": settings, "teacher": whole, "site": one, "rows": rows})


if __name__ == "__main__":
    main()
