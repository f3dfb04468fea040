"""The state of a stage 1 run on disk: tensors first, then the small manifest that makes them valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from ..claims import differing
from ..files import misfits, read_json, save_safetensors_atomic, sha256, write_json_atomic

if TYPE_CHECKING:
    from .distill import DistillConfig, Learner

MANIFEST = "distill.json"
NOTES = ("best_loss", "best_step", "stopped", "curve", "heldout")


def save_state(
    out: Path, step: int, learners: Mapping[Any, Learner], config: DistillConfig, depends: Mapping[str, Any]
) -> None:
    """Write every site's weights, best weights and optimiser moments; the manifest, last, names their hash.

    depends: what else than ``config`` the bits follow from, as plain JSON data.
    """
    tensors: dict[str, torch.Tensor] = {}
    for site, learner in learners.items():
        for name, parameter in learner.parameters.items():
            tensors[f"{site.name}/now/{name}"] = parameter
            tensors[f"{site.name}/best/{name}"] = learner.best[name]
            for key, value in learner.optimizer.state.get(parameter, {}).items():
                tensors[f"{site.name}/{key}/{name}"] = value
    # A name per step, so that a kill between the two files leaves the older pair whole.
    path = out / f"distill-{step}.safetensors"
    save_safetensors_atomic(path, tensors)
    sites = {site.name: {note: getattr(learner, note) for note in NOTES} for site, learner in learners.items()}
    manifest = {"step": step, "file": path.name, "sha256": sha256(path), "config": asdict(config)}
    manifest |= {"depends": dict(depends), "sites": sites}
    write_json_atomic(out / MANIFEST, manifest)
    for old in out.glob("distill-*.safetensors"):
        if old != path:
            old.unlink()


def load_state(out: Path, learners: Mapping[Any, Learner], config: DistillConfig, depends: Mapping[str, Any]) -> int:
    """Put a saved run into ``learners``; returns the step to go on from, 0 where there is none.

    Raises ValueError where the folder holds a run with other settings or sites, or a file that changed since.
    """
    if not (out / MANIFEST).is_file():
        return 0
    manifest = read_json(out / MANIFEST, ("step", "file", "sha256", "config", "sites"))
    there = manifest["config"] | {"save_every": config.save_every}  # says when to write, not what
    if named := differing(there, asdict(config)):
        raise ValueError(f"{out} holds a run with other settings ({named}): name another folder or remove it")
    names = [site.name for site in learners]
    if names != list(manifest["sites"]):
        raise ValueError(f"{out} holds a run over other sites ({', '.join(manifest['sites'])}): name another folder")
    path = out / manifest["file"]
    if not path.is_file() or sha256(path) != manifest["sha256"]:
        raise ValueError(f"{path} is not the file that {MANIFEST} names: it is missing or its hash differs")
    tensors = load_file(path)
    wanted = {
        f"{site.name}/{kind}/{name}": parameter
        for site, learner in learners.items()
        for name, parameter in learner.parameters.items()
        for kind in ("now", "best")
    }
    if problems := misfits({k: v for k, v in tensors.items() if k.split("/")[1] in ("now", "best")}, wanted):
        raise ValueError(f"{path} is the state of another model: {problems}")
    if named := differing(manifest.get("depends", {}), depends):
        raise ValueError(f"{out} holds a run of another start ({named}): name another folder or remove it")
    for site, learner in learners.items():
        for name, parameter in learner.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"{site.name}/now/{name}"])
                learner.best[name].copy_(tensors[f"{site.name}/best/{name}"])
            state = {
                key: tensors[f"{site.name}/{key}/{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{site.name}/{key}/{name}" in tensors
            }
            if state:
                learner.optimizer.state[parameter] = state
        for note, value in manifest["sites"][site.name].items():
            pairs = note in ("curve", "heldout")
            setattr(learner, note, [tuple(entry) for entry in value] if pairs else value)
    step: int = manifest["step"]
    return step
