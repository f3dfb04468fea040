"""The state of a training on disk: tensors first, then the small manifest that makes them valid.

A folder holds ``KIND-STEP.safetensors`` and ``KIND.json``, written last, which names their hash. Stage 1's kind is
``distill``, that of stage 2 and of pretraining ``state``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..claims import differing
from ..files import misfits, read_json, remove_unfinished, save_safetensors_atomic, sha256, write_json_atomic

ROUNDING = 1e-3
"""By which two computations of one start may be apart, as a share of its norm. Of a solved one they were 1e-9 apart on
one thread and on two, and from one of other calibration a half and more."""

Start = Mapping[str, float]


def began(parameters: Mapping[str, torch.Tensor]) -> Start:
    """What tells a start from another one, whatever its rounding: the norm of all weights, and a sum of them.

    No hash: a solved start is computed again where a run goes on, and on other threads to other last bits.
    """
    total = square = 0.0
    for k, name in enumerate(sorted(parameters)):
        value = parameters[name].detach()
        rows = value.reshape(len(value) if value.ndim else 1, -1)  # float64 along them would take ten times as long
        # A factor of its own for every tensor, so that two that changed places are another start.
        total += math.cos(k) * rows.sum(1).double().sum().item()
        square += torch.linalg.vector_norm(rows, dim=1).double().square().sum().item()
    return {"sum": total, "norm": math.sqrt(square)}


def save_state(out: Path, kind: str, tensors: Mapping[str, torch.Tensor], manifest: Mapping[str, Any]) -> None:
    """Write ``tensors`` and then ``manifest``, which holds the ``step``, the settings ``config``, what else the bits
    follow from, ``depends``, and ``start`` where that is known; remove what was there before."""
    # A name per step, so that a kill between the two files leaves the older pair whole.
    path = out / f"{kind}-{manifest['step']}.safetensors"
    remove_unfinished(out, f"{kind}-*.safetensors")
    save_safetensors_atomic(path, tensors)
    write_json_atomic(out / f"{kind}.json", {**manifest, "file": path.name, "sha256": sha256(path)})
    for old in out.glob(f"{kind}-*.safetensors"):
        if old != path:
            old.unlink()


def read_manifest(out: Path | None, kind: str, needed: Sequence[str] = ()) -> dict[str, Any] | None:
    """The manifest of the state in ``out``; None where there is none. Raises ValueError where it lacks a key."""
    path = None if out is None else out / f"{kind}.json"
    if path is None or not path.is_file():
        return None
    return read_json(path, ("step", "file", "sha256", "config", *needed))


def load_state(
    out: Path,
    manifest: Mapping[str, Any],
    config: Any,
    depends: Mapping[str, Any],
    start: Start | None,
    wanted: Sequence[Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """The tensors that ``manifest`` names, of a run that is the same.

    config: the settings, a dataclass. start: not compared where there is none here or there. wanted: by name in the
    file what has to be there, in these shapes: the weights at hand, once as what learns, once as what will be kept.

    Raises ValueError where the run there has other settings, depends on anything else or began from other weights, or
    its file is another or does not fit.
    """
    unnamed = {f.name: f.default for f in fields(config) if f.default is not MISSING}  # when the run there began
    there = unnamed | manifest["config"] | manifest.get("depends", {})
    if named := differing(there, {**asdict(config), **depends}):
        raise ValueError(f"{out} holds a run with other settings ({named}): name another folder or remove it")
    path = out / manifest["file"]
    if not path.is_file() or sha256(path) != manifest["sha256"]:
        raise ValueError(f"{path} is not the file that its manifest names: it is missing or its hash differs")
    tensors = load_file(path)
    whole = {key: value for part in wanted for key, value in part.items()}
    if problems := misfits({k: v for k, v in tensors.items() if k in whole or not _of_optimizer(k)}, whole):
        raise ValueError(f"{path} is the state of another model: {problems}")
    before = manifest.get("start")
    moved = start and before and any(abs(start[key] - before[key]) > ROUNDING * before["norm"] for key in start)
    # A model that learns on after Ctrl-C, in the same process, stands where that run left it.
    if moved and not any(all(torch.equal(tensors[k], v.cpu()) for k, v in part.items()) for part in wanted):
        raise ValueError(f"{out} holds a run that began from other weights: name another folder or remove it")
    return tensors


def _of_optimizer(key: str) -> bool:
    """Whether a tensor is an optimiser's, of the loop's or of a site of stage 1: not every parameter has them yet."""
    first, _, rest = key.partition("/")
    return first == "optimizer" or rest.partition("/")[0] in ("step", "exp_avg", "exp_avg_sq")
