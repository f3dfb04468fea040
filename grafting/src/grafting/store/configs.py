"""What a MODEL says of itself: its sizes, and the noise that it was trained under. Read from JSON, without torch.

An original checkpoint has no JSON: its sizes are those of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json
from ..hosts.shapes import TEXT_TOKENS
from ..teachers import prompt_tokens, teacher_folder, teachers
from .manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from ..diffusion import Schedule

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SCHEDULE = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""The noise that models of noise prediction are shown (Ho et al. 2020), in the words of a scheduler_config.json; its
defaults too."""
FLOWS = "FlowMatchEulerDiscreteScheduler"
SOLVER = "DPMSolverMultistepScheduler"
"""Which says with use_flow_sigmas that it walks a flow, as SANA's does."""
SCHEDULER = "scheduler/scheduler_config.json"
CONFIGS = ("config.json", "transformer/config.json")


class ModelError(ValueError):
    """A MODEL that cannot be found or read."""


def config_of(name: str) -> dict[str, Any]:
    """The configuration of a MODEL, without its weights; with ``text_tokens`` where its prompts are known.

    Raises:
        ModelError, StoreError, CheckpointError: nothing of that name, or what is there cannot be read.
    """
    found = _config_of(name)
    tokens = None if found.get("caption_channels") is None else text_tokens(name)
    return found if tokens is None else {"text_tokens": tokens, **found}


def _config_of(name: str) -> dict[str, Any]:
    folder = teacher_folder(name) if name in teachers() else graft_folder(name, weights=False) or Path(name)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        return {"_class_name": manifest["class"], **manifest["config"]}
    for part in CONFIGS:
        if (folder / part).is_file():
            return read_json(folder / part, error=ModelError)
    if folder.is_file():
        from .checkpoints import checkpoint_config

        return checkpoint_config(folder)
    if folder.exists():
        raise ModelError(f"{name}: neither {MANIFEST} nor config.json is there, so it is no model to plan for")
    if HUB_ID.fullmatch(name):
        return hub_config(name)
    raise ModelError(unknown(name))


def home_of(name: str) -> str:
    """The folder or hub id where a MODEL's companions are: a graft's are its pretrained model's.

    Raises ModelError where the hub is to say what it is, and cannot be reached.
    """
    if name in teachers():
        return str(teacher_folder(name))
    folder = graft_folder(name, weights=False)
    # The hub is not asked what a graft's pretrained model is: a path that is gone looks like an id.
    while folder is not None and (base := read_manifest(folder)["base"]["name"]) and base != name:
        if base in teachers():
            return str(teacher_folder(base))
        name, folder = base, Path(base) if (Path(base) / MANIFEST).is_file() else None
    return name


def graft_folder(name: str, *, weights: bool = True) -> Path | None:
    """Where the graft that a MODEL is lies: a folder here, or one of the hub's cache, into which its manifest and, as
    asked, its ``weights`` are fetched. None where it is no graft.

    Raises ModelError where the hub cannot be reached.
    """
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    if name in teachers() or Path(name).exists() or not HUB_ID.fullmatch(name):
        return None
    if hub_file(name, CONFIGS[1]) is not None:  # first, for a model of diffusers in the cache opens without the hub
        return None
    return hub_graft(name, weights=weights)


def hub_graft(name: str, *, weights: bool = True) -> Path | None:
    """The same of a repository on the hub. Raises ModelError also where it has a manifest and not what that names."""
    manifest = hub_file(name, MANIFEST)
    if manifest is None or not manifest.is_file():
        return None
    folder = manifest.parent
    if weights:
        wanted = str(read_manifest(folder)["file"]["name"])
        found = hub_file(name, wanted)
        if found is None:
            raise ModelError(f"{name} on the hub has a {MANIFEST} and no {wanted}, which that names")
        if found.parent != folder:
            raise ModelError(f"{name} changed on the hub while it was fetched: try again")
    return folder


def pipeline_of(home: str) -> str | None:
    """The class of the diffusers pipeline at a folder or hub id. Raises ModelError where it cannot be read."""
    path: Path | None = Path(home) / "model_index.json"
    if not Path(home).exists() and HUB_ID.fullmatch(home):
        path = hub_file(home, "model_index.json")
    return read_json(path, error=ModelError).get("_class_name") if path is not None and path.is_file() else None


def text_tokens(name: str) -> int | None:
    """Tokens of a MODEL's prompts: their mean, rounded, in a bundle, and what a pipeline pads to; None if unknown."""
    home = home_of(name)
    card = Path(home) / "teacher.json"
    if card.is_file():
        return prompt_tokens(read_json(card, error=ModelError))
    if home != name and not Path(home).exists():
        return None  # a graft can be read where its pretrained model is gone: the hub is not asked for that
    try:
        return TEXT_TOKENS.get(pipeline_of(home) or "")
    except ModelError:
        return None  # out of reach: what is in the hub's cache opens all the same


def unknown(name: str) -> str:
    """The words that refuse a MODEL which is nothing."""
    ships = ", ".join(teachers()) or "none ships"
    return f"{name!r} is no bundled teacher ({ships}), no folder or file, and no hub id such as owner/name"


def hub_config(name: str) -> dict[str, Any]:
    """The transformer's configuration of a repository on the hub. Raises ModelError."""
    path = hub_file(name, "transformer/config.json")
    if path is None:
        raise ModelError(f"{name} on the hub has no transformer/config.json and no {MANIFEST}, so it is no model")
    return read_json(path, error=ModelError)


def hub_file(name: str, file: str) -> Path | None:
    """A file of a repository on the hub, fetched or from the cache; None where the repository has no such file.

    Raises:
        ModelError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError, EntryNotFoundError) as error:
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if absent or try_to_load_from_cache(name, file) is _CACHED_NO_EXIST:
            return None
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name!r} is no folder here, and its {file} was not had from the hub: {reason}") from error


def check_schedule(path: Path, own: Schedule) -> Schedule:
    """``own``, the schedule of a model's family, as the scheduler_config.json at ``path`` describes it: a flow's shift.

    Raises ModelError where the model was trained under other noise than that.
    """
    return told_schedule(read_json(path, error=ModelError), str(path), own)


def told_schedule(content: Mapping[str, Any], path: str, own: Schedule) -> Schedule:
    """The same of what stands in such a file; ``path`` is what it is called in errors."""
    from ..diffusion import Flow

    name = str(content.get("_class_name"))
    if isinstance(own, Flow):
        if name == SOLVER and content.get("use_flow_sigmas"):
            told = {key: value for key, value in content.items() if not key.startswith("beta")}  # which it leaves alone
            content = {**told, "shift": content.get("flow_shift", 1.0)}
        elif name != FLOWS:
            raise ModelError(
                f"{path} has _class_name {name}: a flow's is {FLOWS}, or {SOLVER} with use_flow_sigmas, and no other "
                "is known here"
            )
        try:
            return own.told({"shift": 1.0, **content})  # diffusers' own default
        except ValueError as error:
            raise ModelError(f"{path} has {error}") from None
    if name.startswith("FlowMatch"):
        raise ModelError(f"{path} has _class_name {name}: this model predicts noise, and is no flow")
    odd = [f"{key} {content[key]}" for key, value in SCHEDULE.items() if (content.get(key) or value) != value]
    if odd:
        raise ModelError(
            f"{path} has {', '.join(odd)}: only linear noise from 0.0001 to 0.02 with epsilon is known here; "
            "another linear one goes into graft, distill and finetune in Python, as diffusion=Diffusion(beta_end=…)"
        )
    return own
