"""How far a start carries: random, copied and solved operators on the activations of one site of a teacher.

    python grafting/benchmarks/starts.py fashion --block 5 --operators swa mlp:ratio=3 hyena_x --out starts.json

A random start gets its best of three learning rates and trains until its held-out error improves by less than 1 % over
the last fifth of its steps. The other starts then say in how many steps they reach that error, 0 if they begin below.
The site's activations are drawn once and held in memory, so that a step costs the operator alone. Steps are counted and
not timed, so a busy machine changes nothing. With ``--out`` every finished operator is kept, and the same command goes
on with the next one.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
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
RANDOM_RATES = (2e-3, 1e-3, 5e-4)
START_RATES = (5e-4, 1e-3, 2e-4)
WARMUP, EVERY, LEAST = 20, 20, 200
"""Steps of warm-up, between two held-out errors, and before a run may be at rest."""
CHUNK = 64


@dataclass(frozen=True)
class Run:
    """Held-out (step, error, share of variance explained) by step; whether the run ended at rest; seconds spent."""

    curve: list[tuple[int, float, float]]
    rested: bool
    seconds: float

    @property
    def best(self) -> tuple[float, int, float]:
        """(error, step, share explained) of the best held-out error."""
        return min((error, step, share) for step, error, share in self.curve)


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
                for index, (part, labels) in enumerate(zip(z.split(CHUNK), y.split(CHUNK), strict=True)):
                    noise, t = draw(part.shape, diffusion.steps, number, index)
                    host.call(model, diffusion.add_noise(part, t, noise), t, labels)
            self.kept[half] = torch.cat(inputs), torch.cat(outputs)

    def error(self, operator: Operator, loss: str) -> tuple[float, float]:
        """Held-out loss, and share of variance explained."""
        x, f = self.kept["held-out"]
        with torch.no_grad():
            g = torch.cat([operator(part, grid=self.grid) for part in x.split(CHUNK)])
        squared = (g - f).double().square().sum().item()
        variance = (f - f.mean((0, 1))).double().square().sum().item()
        return distance(g, f, loss, None).item(), explained(squared, variance)

    def solve(self, operator: Operator) -> float:
        """Solve the operator's last layer on the training half, in place; returns the seconds that it took."""
        began = time.perf_counter()
        x, f = self.kept["train"]
        moments: Moments | None = None
        with torch.no_grad():
            for part, wanted in zip(x.split(CHUNK), f.split(CHUNK), strict=True):
                features = operator.features(part, grid=self.grid)
                moments = moments or Moments(features.shape[-1], f.shape[-1])
                moments.add(features, wanted)
        assert moments is not None
        solve_output(operator, moments)
        return time.perf_counter() - began

    def train(self, start: Operator, loss: str, rate: float, batch: int, limit: int, goal: float | None) -> Run:
        """Train a copy of ``start``; ends at ``goal``, at ``limit`` or, without a goal, at rest."""
        operator = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(operator.parameters(), lr=rate, weight_decay=0.0, fused=True)
        x, f = self.kept["train"]
        curve = [(0, *self.error(operator, loss))]
        began = time.perf_counter()
        for step in range(1, limit + 1):
            if goal is not None and curve[-1][1] <= goal:
                break
            picked = torch.randint(0, len(x), (batch,), generator=generator(0, "starts", step))
            distance(operator(x[picked], grid=self.grid), f[picked], loss, None).backward()
            nn.utils.clip_grad_norm_(operator.parameters(), 10.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / WARMUP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # On the way to a goal the first steps count, so they are looked at one by one, then five by five.
            every = EVERY if goal is None or step > 100 else 5 if step > 10 else 1
            if step % every == 0:
                curve.append((step, *self.error(operator, loss)))
                earlier = min(error for at, error, _ in curve if at <= 0.8 * step)
                if goal is None and step >= LEAST and min(error for _, error, _ in curve) > 0.99 * earlier:
                    return Run(curve, True, time.perf_counter() - began)
        return Run(curve, False, time.perf_counter() - began)

    def steps_to(self, goal: float, start: Operator, loss: str, batch: int, limit: int) -> tuple[int, float] | None:
        """(steps, learning rate) of the fastest way from ``start`` to ``goal``; None where none gets there."""
        found = None
        for rate in START_RATES:
            run = self.train(start, loss, rate, batch, limit if found is None else found[0] - 1, goal)
            if run.curve[-1][1] <= goal:
                found = run.curve[-1][0], rate
            if found is not None and found[0] == 0:
                break
        return found


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``mlp:ratio=3`` as a name and its options."""
    name, _, rest = text.partition(":")
    pairs = (part.split("=", 1) for part in rest.split(",") if part)
    return name, {key: int(value) if value.isdigit() else value for key, value in pairs}


def compare(
    model: nn.Module, site: Site, activations: Activations, text: str, batch: int, limit: int
) -> dict[str, Any]:
    """One row: the random start's error at rest, and what the other starts need to reach it."""
    host, loss = host_for(model), LOSS[site.kind]
    sizes = {"width": host.width(model), "heads": host.heads(model), "tokens": host.tokens(model)}
    name, options = parse(text)
    torch.manual_seed(0)
    random = build(name, **sizes, **options)
    copied, original = copy.deepcopy(random), host.get(model, site)
    if site.kind == "attn":
        copies = copied.copy_from_attention(*host.attention_weights(original))
    else:
        copies = copied.copy_from_mlp(*host.mlp_weights(original))
    solved = copy.deepcopy(copied)
    solve_seconds = activations.solve(solved)
    runs = {rate: activations.train(random, loss, rate, batch, limit, None) for rate in RANDOM_RATES}
    rate = min(runs, key=lambda r: runs[r].best)
    goal, steps, share = runs[rate].best
    row: dict[str, Any] = {
        "operator": text,
        "site": site.name,
        "loss": loss,
        "random": {"rate": rate, "steps": steps, "rested": runs[rate].rested, "error": goal, "explained": share},
        "solve_seconds": solve_seconds,
    }
    for label, start in (("copy", copied if copies else None), ("solve", solved)):
        if start is None:
            row[label] = None
            continue
        error, share = activations.error(start, loss)
        found = activations.steps_to(goal, start, loss, batch, steps)
        reached = {"steps_to_goal": found and found[0], "rate": found and found[1]}
        row[label] = {"error": error, "explained": share, **reached}
    return row


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    random = row["random"]
    parts = [f"random {random['error']:.4f} ({random['explained']:.2f}) in {random['steps']} steps"]
    for label in ("copy", "solve"):
        found = row[label]
        if found is None:
            parts.append("nothing to copy")
            continue
        steps = found["steps_to_goal"]
        there = "not reached" if steps is None else f"there in {steps}"
        parts.append(f"{label} {found['error']:.4f} ({found['explained']:.2f}), {there}")
    return f"{row['operator']:<18}{row['site']:<15}" + "; ".join(parts)


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", nargs="?", default="fashion")
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--operators", nargs="+", default=["swa", "mlp:ratio=3", "hyena_x", "local_mean", "linear"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--heldout", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {key: getattr(arguments, key) for key in ("teacher", "samples", "heldout", "batch", "limit")}
    rows: list[dict[str, Any]] = []
    if arguments.out and arguments.out.is_file():
        before = json.loads(arguments.out.read_text())
        if before["settings"] != settings:
            raise SystemExit(f"{arguments.out} was measured with {before['settings']}, this is {settings}")
        rows = before["rows"]
    bundle, folder = load_bundle(arguments.teacher), teacher_folder(arguments.teacher)
    scale = bundle.autoencoder.config.scaling_factor  # type: ignore[union-attr]
    halves = {}
    for half, count in (("train", arguments.samples), ("held-out", arguments.heldout)):
        data = read_subset(folder / "images.npz", train=half == "train")
        halves[half] = encode(bundle.autoencoder, data.images[:count]) * scale, data.labels[:count]
    seen: dict[Site, Activations] = {}
    for text in arguments.operators:
        site = Site(arguments.block, "mlp" if get(parse(text)[0]).kind == "channel" else "attn")
        if any((row["operator"], row["site"]) == (text, site.name) for row in rows):
            continue
        if site not in seen:
            seen[site] = Activations(bundle.transformer, site, halves)
        row = compare(bundle.transformer, site, seen[site], text, arguments.batch, arguments.limit)
        rows.append(row)
        print(line(row), flush=True)
        if arguments.out:
            write_json_atomic(arguments.out, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
