"""Memory of one block's analysis at DiT-XL/2's width, and the time of the whole analysis of a teacher, in one run.

    python grafting/benchmarks/analysis.py --side 64 --samples 256 --out analysis.json

Memory is what is held above the loaded model: the largest sum of live tensors, and how far the process grew (resident
set, workspace inside kernels included), of the forward pass alone and of the same pass with its analysis. The whole
attention matrices of that pass would be ``matrices`` large. Time is of all blocks of ``--teacher``, beside the same
walk without looking.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grafting.files import write_json_atomic
from grafting.measure.analysis import analyze
from grafting.measure.speed import peak_bytes
from grafting.sampling import Pipeline, Sampling, draw_labels
from grafting.teachers import load_teacher

STEPS = Sampling(steps=2)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth(call: Callable[[], object]) -> int:
    """Bytes by which the process's largest resident set of all time rose above what it was before ``call``."""
    before = resident()
    call()
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def memory(side: int, heads: int) -> dict[str, Any]:
    """One block of DiT-XL/2's head size over side x side tokens, one sample."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=side,
        patch_size=1,
        num_embeds_ada_norm=10,
    ).eval()
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: Pipeline(model).latents([0], sampling=STEPS),
        "analysis": lambda: analyze(model, samples=1, sampling=STEPS),
    }
    row: dict[str, Any] = {
        "tokens": side**2,
        "width": heads * 72,
        "heads": heads,
        "matrices_mib": heads * side**4 * 4 / 2**20,
    }
    for name, call in calls.items():  # the smaller first: the largest resident set never falls
        row[f"{name}_resident_mib"] = growth(call) / 2**20
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        row[f"{name}_seconds_per_pass"] = (time.perf_counter() - start) / STEPS.steps
        row[f"{name}_tensors_mib"] = peak_bytes(call) / 2**20
    return row


def whole(teacher: str, samples: int, steps: int) -> dict[str, Any]:
    """All blocks of a bundled teacher, along its own walk."""
    model, sampling = load_teacher(teacher), Sampling(steps=steps)
    labels = draw_labels(samples, Pipeline(model).null_class)
    start = time.perf_counter()
    Pipeline(model).latents(labels, sampling=sampling)
    walked = time.perf_counter()
    found = analyze(model, name=teacher, samples=samples, sampling=sampling)
    return {
        "teacher": teacher,
        "blocks": len(found.blocks),
        "samples": samples,
        "steps": steps,
        "walk_seconds": walked - start,
        "analysis_seconds": time.perf_counter() - walked,
    }


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, nargs="*", default=[64], help="tokens along one side")
    parser.add_argument("--heads", type=int, default=16, help="of 72 channels each")
    parser.add_argument("--teacher", default="fashion")
    parser.add_argument("--samples", type=int, default=256, help="0 leaves the teacher out")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = [memory(side, asked.heads) for side in sorted(asked.side)]
    for row in rows:
        print(f"one block, {row['tokens']:,} tokens, width {row['width']}: matrices {row['matrices_mib']:.0f} MiB")
        for name in ("forward", "analysis"):
            tensors, process, seconds = (
                row[f"{name}_{x}"] for x in ("tensors_mib", "resident_mib", "seconds_per_pass")
            )
            print(f"  {name:<9}{tensors:6.0f} MiB of tensors, process +{process:.0f} MiB, {seconds:.2f} s a pass")
    found = whole(asked.teacher, asked.samples, asked.steps) if asked.samples else None
    if found:
        told = f"{found['blocks']} blocks, {found['steps']} steps, {found['samples']} samples, {asked.threads} threads"
        seconds = f"{found['analysis_seconds']:.1f} s (the walk alone {found['walk_seconds']:.1f} s)"
        print(f"{found['teacher']}, {told}: {seconds}")
    if asked.out:
        write_json_atomic(asked.out, {"threads": asked.threads, "memory": rows, "whole": found})


if __name__ == "__main__":
    main()
