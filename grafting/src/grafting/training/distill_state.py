"""A stage 1 run as its state on disk holds it, and back: of every site its weights, the best ones, and moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .state import Start, load_state, read_manifest, save_state

if TYPE_CHECKING:
    from .distill import DistillConfig, Learner

KIND = "distill"
"""Of the files: :mod:`grafting.training.state`."""
NOTES = ("best_loss", "best_step", "stopped", "curve", "heldout")


def save_learners(
    out: Path,
    step: int,
    learners: Mapping[Any, Learner],
    config: DistillConfig,
    depends: Mapping[str, Any],
    start: Start | None = None,
) -> None:
    """Write the state. depends: what else than ``config`` the bits follow from, as plain JSON data."""
    now, best = _weights(learners)
    tensors = now | best
    for site, learner in learners.items():
        for name, parameter in learner.parameters.items():
            for key, value in learner.optimizer.state.get(parameter, {}).items():
                tensors[f"{site.name}/{key}/{name}"] = value
    sites = {site.name: {note: getattr(learner, note) for note in NOTES} for site, learner in learners.items()}
    manifest = {"step": step, "config": asdict(config), "depends": dict(depends), "sites": sites}
    save_state(out, KIND, tensors, manifest | ({} if start is None else {"start": start}))


@torch.no_grad()
def load_learners(
    out: Path,
    learners: Mapping[Any, Learner],
    config: DistillConfig,
    depends: Mapping[str, Any],
    start: Start | None = None,
) -> tuple[int, Start | None]:
    """Put a saved run into ``learners``; returns the step to go on from, 0 where there is none, and the run's start.

    Raises ValueError as :func:`grafting.training.state.load_state`, or where the folder holds a run over other sites.
    """
    manifest = read_manifest(out, KIND, ("sites",))
    if manifest is None:
        return 0, start
    if [site.name for site in learners] != list(manifest["sites"]):
        raise ValueError(f"{out} holds a run over other sites ({', '.join(manifest['sites'])}): name another folder")
    wanted = _weights(learners)
    tensors = load_state(out, manifest, config, depends, start, wanted)
    places = wanted[0] | wanted[1]
    for key, value in places.items():
        value.copy_(tensors[key])
    named = {site.name: learner for site, learner in learners.items()}
    for key in tensors.keys() - places.keys():
        site, moment, name = key.split("/", 2)
        parameter = named[site].parameters[name]
        named[site].optimizer.state[parameter][moment] = tensors[key].to(parameter.device)
    for name, notes in manifest["sites"].items():
        for note, value in notes.items():
            pairs = note in ("curve", "heldout")
            setattr(named[name], note, [tuple(entry) for entry in value] if pairs else value)
    return manifest["step"], manifest.get("start")


def _weights(learners: Mapping[Any, Learner]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """By their names in a state, the weights and the best ones."""
    now, best = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for site, learner in learners.items():
        now |= {f"{site.name}/now/{name}": parameter.detach() for name, parameter in learner.parameters.items()}
        best |= {f"{site.name}/best/{name}": value for name, value in learner.best.items()}
    return now, best
