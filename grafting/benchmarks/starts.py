"""How far a start carries: random, copied and solved operators on the activations of one site of a teacher.

    python grafting/benchmarks/starts.py fashion --block 5 --operators swa mlp:ratio=3 hyena_x --out starts.json

A random start gets its best of three learning rates and trains until its held-out error improves by less than 1 % over
the last fifth of its steps. The other starts then say in how many steps they reach that error, 0 if they begin below.
The site's activations are drawn once and held in memory, so that a step costs the operator alone.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grafting.activations import visit
from grafting.data import read_subset
from grafting.diffusion import Diffusion, draw
from grafting.files import write_json_atomic
from grafting.hosts import Site, host_for
from grafting.initialise import Moments, explained, solve_output
from grafting.operators import Operator, build, get
from grafting.random import generator
from grafting.teachers import load_bundle, teacher_folder
from grafting.training.distill import distance
from grafting.training.pretrain import encode

LOSS = {"attn": "l1", "mlp": "l2"}
RATES = (2e-3, 1e-3, 5e-4)
SIZE = 32


class Activations:
    """Inputs and outputs (n, N, D) of a site, for training and held out."""

    def __init__(self, model: nn.Module, site: Site, halves: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        host, diffusion = host_for(model), Diffusion()
        self.grid = host.grid_of(model)
        self.kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for number, (half, (z, y)) in enumerate(halves.items()):
            inputs: list[torch.Tensor] = []
            outputs: list[torch.Tensor] = []

            def keep(_: Site, x: torch.Tensor, f: torch.Tensor, xs: Any = inputs, fs: Any = outputs) -> None:
                xs.append(x)
                fs.append(f)

            with torch.no_grad(), visit({site: host.get(model, site)}, keep):
                for index, (part, labels) in enumerate(zip(z.split(64), y.split(64), strict=True)):
                    noise, t = draw(part.shape, diffusion.steps, number, index)
                    host.call(model, diffusion.add_noise(part, t, noise), t, labels)
            self.kept[half] = torch.cat(inputs), torch.cat(outputs)

    def error(self, operator: Operator, loss: str) -> tuple[float, float]:
        """Held-out loss, and share of variance explained."""
        x, f = self.kept["held-out"]
        with torch.no_grad():
            g = torch.cat([operator(part, grid=self.grid) for part in x.split(64)])
        squared = (g - f).double().square().sum().item()
        variance = (f - f.mean((0, 1))).double().square().sum().item()
        return distance(g, f, loss, None).item(), explained(squared, variance)

    def train(
        self, operator: Operator, loss: str, rate: float, limit: int, goal: float | None, every: int = 20
    ) -> tuple[list[tuple[int, float, float]], float]:
        """Held-out errors by step, and seconds spent; ends at ``goal``, at ``limit``, or, without a goal, at rest."""
        optimizer = torch.optim.AdamW(operator.parameters(), lr=rate, weight_decay=0.0, fused=True)
        x, f = self.kept["train"]
        curve = [(0, *self.error(operator, loss))]
        start = time.perf_counter()
        for step in range(1, limit + 1):
            if goal is not None and curve[-1][1] <= goal:
                break
            picked = torch.randint(0, len(x), (SIZE,), generator=generator(0, "starts", step))
            distance(operator(x[picked], grid=self.grid), f[picked], loss, None).backward()
            nn.utils.clip_grad_norm_(operator.parameters(), 10.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / 20)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % every == 0 or (goal is not None and step < 60):
                curve.append((step, *self.error(operator, loss)))
                earlier = min(e for s, e, _ in curve if s <= 0.8 * step)
                if goal is None and step >= 200 and min(e for _, e, _ in curve) > 0.99 * earlier:
                    break
        return curve, time.perf_counter() - start


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``mlp:ratio=3`` as a name and its options."""
    name, _, rest = text.partition(":")
    pairs = (part.split("=", 1) for part in rest.split(",") if part)
    return name, {key: int(value) if value.isdigit() else value for key, value in pairs}


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", nargs="?", default="fashion")
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--operators", nargs="+", default=["swa", "mlp:ratio=3", "hyena_x", "local_mean", "linear"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle, folder = load_bundle(arguments.teacher), teacher_folder(arguments.teacher)
    scale = bundle.autoencoder.config.scaling_factor  # type: ignore[union-attr]
    halves = {}
    for half, count in (("train", arguments.samples), ("held-out", 256)):
        data = read_subset(folder / "images.npz", train=half == "train")
        halves[half] = encode(bundle.autoencoder, data.images[:count]) * scale, data.labels[:count]
    host = host_for(bundle.transformer)
    sizes = {
        "width": host.width(bundle.transformer),
        "heads": host.heads(bundle.transformer),
        "tokens": host.tokens(bundle.transformer),
    }
    seen: dict[str, Activations] = {}
    rows = []
    for text in arguments.operators:
        name, options = parse(text)
        kind: Any = "mlp" if get(name).kind == "channel" else "attn"
        site = Site(arguments.block, kind)
        if kind not in seen:
            seen[kind] = Activations(bundle.transformer, site, halves)
        activations, loss = seen[kind], LOSS[kind]
        original = host.get(bundle.transformer, site)
        torch.manual_seed(0)
        random = build(name, **sizes, **options)
        copied = copy.deepcopy(random)
        if kind == "attn":
            copied.copy_from_attention(*host.attention_weights(original))
        else:
            copied.copy_from_mlp(*host.mlp_weights(original))
        began = time.perf_counter()
        solved, moments = copy.deepcopy(copied), None
        x, f = activations.kept["train"]
        with torch.no_grad():
            for part, wanted in zip(x.split(64), f.split(64), strict=True):
                features = solved.features(part, grid=activations.grid)
                moments = moments or Moments(features.shape[-1], f.shape[-1])
                moments.add(features, wanted)
            assert moments is not None
            solve_output(solved, moments)
        spent = time.perf_counter() - began
        tried = {rate: activations.train(copy.deepcopy(random), loss, rate, arguments.limit, None) for rate in RATES}
        rate = min(tried, key=lambda r: min(e for _, e, _ in tried[r][0]))
        curve, seconds = tried[rate]
        goal, at, _ = min((e, s, v) for s, e, v in curve)
        row: dict[str, Any] = {
            "operator": text,
            "site": site.name,
            "loss": loss,
            "random": {"rate": rate, "steps": at, "error": goal, "explained": curve[-1][2], "seconds": seconds},
            "solve_seconds": spent,
        }
        for start, operator in (("copy", copied), ("solve", solved)):
            begin = activations.error(operator, loss)
            reached, _ = min(
                (activations.train(copy.deepcopy(operator), loss, r, at, goal) for r in (5e-4, 2e-4)),
                key=lambda result: (result[0][-1][1] > goal, result[0][-1][0]),
            )
            steps = reached[-1][0] if reached[-1][1] <= goal else None
            row[start] = {"error": begin[0], "explained": begin[1], "steps_to_goal": steps}
        rows.append(row)
        shown = {
            s: "not reached" if row[s]["steps_to_goal"] is None else row[s]["steps_to_goal"] for s in ("copy", "solve")
        }
        print(
            f"{text:<16}random: {goal:.4f} after {at} steps (lr {rate:g}); copy begins at {row['copy']['error']:.4f} "
            f"(explains {row['copy']['explained']:.2f}), there in {shown['copy']}; solve in {spent:.1f} s at "
            f"{row['solve']['error']:.4f} ({row['solve']['explained']:.2f}), there in {shown['solve']}",
            flush=True,
        )
        if arguments.out:
            write_json_atomic(arguments.out, {"teacher": arguments.teacher, "batch": SIZE, "rows": rows})


if __name__ == "__main__":
    main()
