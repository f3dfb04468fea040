"""Does a text-to-image teacher know which thing is which? What captions with one exchange do to its error.

    python grafting/benchmarks/binding.py scenes --scenes 128 --out binding.json

Of each of GenEval's tasks, true scenes of evaluation prompts are encoded and noised, and the squared error of the
model's noise is taken under the prompt and under a prompt of which one thing is exchanged: the two colours with each
other, the side for its opposite, a shape, a colour or a number for another one; where training never shows what would
be asked for, the scene is left out. The noise is the same. A model that reads all that a prompt says is worse under the
other one in nearly every scene; one that reads a bag of words is worse in half of them where colours change places.
Shown are that share, with its 95 % interval (Wilson), and how much the error rises. ``results/binding.json`` holds the
rows of the bundled teacher before its seventh part and after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grafting.diffusion import Diffusion
from grafting.files import write_json_atomic
from grafting.hosts import host_for
from grafting.measure.quality import wilson
from grafting.random import normal
from grafting.scenes import RELATIONS, TASKS, Prompt, Wanted, World, evaluation_prompts, render, scene_of
from grafting.scenes.prompts import caption, is_held_out
from grafting.store.models import open_model
from grafting.study.scenes import world_of
from grafting.text import TextEncoder, minilm
from grafting.training.pretrain import encode
from grafting.training.pretrain.pictures import scaled

LEVELS = (450, 520, 580, 650, 750)
STREAM = "benchmarks/binding"


def exchanged(prompt: Prompt, world: World) -> str | None:
    """The caption that says one thing otherwise; None where every such one is held out from training."""
    first, last = prompt.wanted[0], prompt.wanted[-1]
    others: list[tuple[Wanted, ...]]
    if prompt.task == "color_attr":
        others = [(replace(first, colour=last.colour), replace(last, colour=first.colour))]
    elif prompt.task == "position":
        opposite = RELATIONS[RELATIONS.index(str(last.relation)) ^ 1]
        others = [(first, replace(last, relation=opposite))]
    elif prompt.task == "counting":
        others = [(replace(first, count=n),) for n in range(world.most, 1, -1) if n != first.count]
    elif prompt.task == "colors":
        others = [(replace(first, colour=colour),) for colour in _after(world.colours, str(first.colour))]
    else:
        taken = {clause.shape for clause in prompt.wanted}
        shapes = [shape for shape in _after(world.shapes, last.shape) if shape not in taken]
        others = [(*prompt.wanted[:-1], replace(last, shape=shape)) for shape in shapes]
    seen = (wanted for wanted in others if not is_held_out(wanted, world))
    return next((caption(prompt.task, wanted) for wanted in seen), None)


def _after(among: Sequence[str], name: str) -> list[str]:
    """All others, from the one that follows ``name``."""
    place = among.index(name)
    return [*among[place + 1 :], *among[:place]]


def measure(where: str, count: int, encoder: TextEncoder, levels: Sequence[int] = LEVELS) -> list[dict[str, Any]]:
    """A row for each task and noise level, from ``count`` scenes of the task."""
    model = open_model(where)
    host, diffusion, world = host_for(model.transformer), Diffusion(), world_of(model)
    autoencoder: Any = model.autoencoder
    prompts = evaluation_prompts(count * len(TASKS), world=world)
    rows = []
    for task in TASKS:
        told = [(k, prompt, exchanged(prompt, world)) for k, prompt in enumerate(prompts) if prompt.task == task]
        mine = [(k, prompt, other) for k, prompt, other in told if other is not None]
        pictures = [torch.from_numpy(render(scene_of(prompt, 0, k, world=world))) for k, prompt, _ in mine]
        z = encode(autoencoder, scaled(torch.stack(pictures))) * autoencoder.config.scaling_factor
        said, other = [prompt.text for _, prompt, _ in mine], [text for *_, text in mine]
        states = encoder.embed([*said, *other])
        noise = torch.cat([normal((1, *z.shape[1:]), 0, STREAM, k) for k, *_ in mine])
        for level in levels:
            t = torch.full((len(z),), level)
            noised = diffusion.add_noise(z, t, noise)
            with torch.no_grad():
                guesses = [host.call(model.transformer, noised, t, states(texts)) for texts in (said, other)]
            right, wrong = ((guess[:, : z.shape[1]] - noise).square().mean((1, 2, 3)) for guess in guesses)
            share = (wrong > right).double().mean().item()
            low, high = wilson(share, len(z))
            rise = ((wrong - right).mean() / right.mean()).item()
            rows.append({"task": task, "level": level, "n": len(z), "worse": share, "low": low, "high": high})
            rows[-1] |= {"error": right.mean().item(), "rise": rise}
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Worse under the other caption, per cent of the scenes, and the rise of the error."""
    levels = sorted({row["level"] for row in rows})
    lines = [f"{'':<14}" + "".join(f"{f't = {level}':>18}" for level in levels)]
    for task in TASKS:
        found = {row["level"]: row for row in rows if row["task"] == task}
        cells = [f"{found[level]['worse']:.0%} ({found[level]['rise']:+.1%})" for level in levels]
        lines.append(f"{task:<14}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a text-to-image teacher of scenes: a bundle's name or folder")
    parser.add_argument("--scenes", type=int, default=128, help="of each task")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = measure(arguments.model, arguments.scenes, minilm())
    print(table(rows))
    if arguments.out:
        settings = {
            "model": arguments.model,
            "scenes": arguments.scenes,
            "levels": LEVELS,
            "threads": torch.get_num_threads(),
        }
        write_json_atomic(arguments.out, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
