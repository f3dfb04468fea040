"""How far a start carries: random, copied and solved operators on the activations of one site of a teacher.

    python grafting/benchmarks/starts.py fashion --block 5 --operators swa mlp:ratio=3 hyena_x --out starts.json

A random start gets its best of three learning rates and trains at that rate until its held-out error improves by less
than 1 % over the last fifth of its steps; the steps of its best error are the whole, and that error is the goal. Then
copied and solved starts, and the random one beside them, run for a tenth of those steps under stage 1's own schedule
(warm-up, then the rate halved three times), again with their best of three rates; where a tenth does not reach the
goal, a fifth and a half are tried. The site's activations are drawn once and held in memory, so that a step costs the
operator alone. Steps are counted and not timed, so a busy machine changes nothing. With ``--out`` every finished
operator is kept, and the same command goes on with the next one.
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

from grafting.activations import Streams, visit_spans
from grafting.data import read_subset
from grafting.diffusion import Diffusion, draw
from grafting.files import write_json_atomic
from grafting.hosts import Site, host_for
from grafting.initialise import Moments, explained, solve_output
from grafting.operators import Operator, build, get
from grafting.random import generator
from grafting.teachers import load_bundle, teacher_folder
from grafting.training.distill import DistillConfig, distance
from grafting.training.pretrain import encode

LOSS = {"attn": "l1", "mlp": "l2"}
RATES = (1e-3, 2e-3, 5e-4)
SHARES = (0.1, 0.2, 0.5)
"""Of the random start's steps, tried in turn."""
WARMUP, EVERY, LEAST = 20, 20, 300
"""Steps of warm-up, between two held-out errors, and before a run may end."""
BEHIND = 1.03
"""A rate whose error after ``LEAST`` steps is this many times that of the best rate there is given up."""
CHUNK = 64


@dataclass(frozen=True)
class Run:
    """Held-out (step, error, share of variance explained) by step, and whether the run ended at rest."""

    curve: list[tuple[int, float, float]]
    rested: bool = False

    @property
    def best(self) -> tuple[float, int, float]:
        """(error, step, share explained) of the best held-out error."""
        return min((error, step, share) for step, error, share in self.curve)

    def error_by(self, step: int) -> float:
        """The best error up to a step."""
        return min(error for at, error, _ in self.curve if at <= step)


class Activations:
    """Inputs and outputs (n, N, D) of a site, for training and held out."""

    def __init__(self, model: nn.Module, site: Site, halves: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        host, diffusion = host_for(model), Diffusion()
        self.grid = host.grid_of(model)
        self.kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for number, (half, (z, y)) in enumerate(halves.items()):
            inputs: list[torch.Tensor] = []
            outputs: list[torch.Tensor] = []

            def keep(_: Site, x: torch.Tensor, f: Streams, call: Any, xs: Any = inputs, fs: Any = outputs) -> None:
                xs.append(x)
                fs.append(f[0])

            module = host.get(model, site)
            with torch.no_grad(), visit_spans({site: ((module, module),)}, keep):
                for index, (part, labels) in enumerate(zip(z.split(CHUNK), y.split(CHUNK), strict=True)):
                    noise, t = draw(part.shape, diffusion, number, index)
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

    def step(self, operator: Operator, optimizer: torch.optim.Optimizer, loss: str, batch: int, step: int) -> None:
        """Train on the rows of step ``step``."""
        x, f = self.kept["train"]
        picked = torch.randint(0, len(x), (batch,), generator=generator(0, "starts", step))
        distance(operator(x[picked], grid=self.grid), f[picked], loss, None).backward()
        nn.utils.clip_grad_norm_(operator.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def to_rest(self, start: Operator, loss: str, rate: float, batch: int, limit: int, rivals: list[Run]) -> Run:
        """Train a copy of ``start`` at one rate until it is at rest, or hopelessly behind, or at ``limit``."""
        operator = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(operator.parameters(), lr=rate, weight_decay=0.0, fused=True)
        run = Run([(0, *self.error(operator, loss))])
        for step in range(1, limit + 1):
            optimizer.param_groups[0]["lr"] = rate * min(1.0, step / WARMUP)
            self.step(operator, optimizer, loss, batch, step)
            if step % EVERY:
                continue
            run.curve.append((step, *self.error(operator, loss)))
            if step >= LEAST and run.best[0] > 0.99 * run.error_by(int(0.8 * step)):
                return Run(run.curve, True)
            if step == LEAST and any(run.best[0] > BEHIND * rival.error_by(step) for rival in rivals):
                break
        return run

    def after(self, start: Operator, loss: str, rate: float, batch: int, steps: int) -> tuple[float, float]:
        """Held-out error and share explained after ``steps`` under stage 1's schedule."""
        operator, schedule = copy.deepcopy(start), DistillConfig(steps=steps)
        optimizer = torch.optim.AdamW(operator.parameters(), lr=rate, weight_decay=0.0, fused=True)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * schedule.factor(step)
            self.step(operator, optimizer, loss, batch, step + 1)
        return self.error(operator, loss)


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
    runs: dict[float, Run] = {}
    for rate in RATES:
        runs[rate] = activations.to_rest(random, loss, rate, batch, limit, list(runs.values()))
    rate = min(runs, key=lambda r: runs[r].best)
    goal, steps, share = runs[rate].best
    row: dict[str, Any] = {
        "operator": text,
        "site": site.name,
        "loss": loss,
        "goal": {"rate": rate, "steps": steps, "rested": runs[rate].rested, "error": goal, "explained": share},
        "solve_seconds": solve_seconds,
    }
    for label, start in (("random", random), ("copy", copied if copies else None), ("solve", solved)):
        row[label] = start and reach(
            activations, start, loss, batch, goal, steps, SHARES[:1] if start is random else SHARES
        )
    return row


def reach(
    activations: Activations, start: Operator, loss: str, batch: int, goal: float, whole: int, shares: tuple[float, ...]
) -> dict[str, Any]:
    """Where a start begins, where a tenth of ``whole`` steps takes it, and the smallest share that reaches ``goal``."""
    error, share = activations.error(start, loss)
    found = {rate: activations.after(start, loss, rate, batch, round(shares[0] * whole)) for rate in RATES}
    rate = min(found, key=lambda r: found[r])
    row = {"error": error, "explained": share, "rate": rate, "tenth": found[rate][0], "tenth_explained": found[rate][1]}
    reached = 0.0 if error <= goal else shares[0] if found[rate][0] <= goal else None
    for more in shares[1:]:
        if reached is None and activations.after(start, loss, rate, batch, round(more * whole))[0] <= goal:
            reached = more
    return row | {"reached": reached}


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    goal = row["goal"]
    parts = [f"random {goal['error']:.4f} ({goal['explained']:.2f}) in {goal['steps']} steps"]
    for label in ("random", "copy", "solve"):
        found = row[label]
        if found is not None:
            share = "more than tried" if found["reached"] is None else f"{found['reached']:.0%}"
            parts.append(f"{label} {found['error']:.4f}, after a tenth {found['tenth']:.4f}, goal in {share}")
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
        kind = get(parse(text)[0])
        site, version = Site(arguments.block, "mlp" if kind.kind == "channel" else "attn"), kind.start_version("solve")
        mine = [row for row in rows if (row["operator"], row["site"]) == (text, site.name)]
        if any(row.get("start", 1) == version for row in mine):
            continue
        rows = [row for row in rows if row not in mine]  # of a start that the operator no longer has
        if site not in seen:
            seen[site] = Activations(bundle.transformer, site, halves)
        row = compare(bundle.transformer, site, seen[site], text, arguments.batch, arguments.limit)
        rows.append(row | {"start": version})
        print(line(row), flush=True)
        if arguments.out:
            write_json_atomic(arguments.out, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
