"""A graft on disk: ``graft.json`` (the manifest, written last, which names the weights), ``graft.safetensors`` and a
model card ``README.md``.

The delta holds the new operators and adapters only and needs the pretrained model to load; a whole folder holds every
weight, adapters merged. There is no ``config.json`` and no ``diffusion_pytorch_model.safetensors``, so that diffusers'
own ``from_pretrained`` stops with an error instead of dropping the graft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from .. import __version__
from ..conventions import CONVENTIONS, conventions, described, remade, restore
from ..diffusion import BySize, Diffusion, Flow, Schedule
from ..files import (
    misfits,
    remove_unfinished,
    save_safetensors_atomic,
    sha256,
    write_json_atomic,
    write_text_atomic,
)
from ..graft import Grafted, graft, remember, ungraft
from ..hashes import held_in, is_of, tensors_hash
from ..hosts import host_for
from ..hosts.registry import class_named, schedule_of, set_schedule
from ..lora import Lora, add_lora
from ..plan import Edit, Plan
from ..restructure import Group
from ..settings import build
from ..switch import Switch
from ..teachers import load_teacher, teachers
from .card import card
from .checkpoints import read_checkpoint, translate, unshift_timesteps
from .configs import HUB_ID, hub_graft
from .manifest import MANIFEST, StoreError, read_manifest

WEIGHTS = ("graft.safetensors", "graft-2.safetensors")
"""By turns: those of a graft that is saved over stay until the manifest names the new ones."""
SCHEDULES: dict[str, type[Diffusion | Flow]] = {kind.__name__: kind for kind in (Diffusion, Flow)}
"""That a manifest can name."""


def save(
    handle: Grafted,
    folder: Path | str,
    *,
    whole: bool | None = None,
    base: str | Path | None = None,
    protocol: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write a graft.

    whole: every weight, or the new operators and adapters only (the default, unless the graft has its own copy of all
    weights). A whole folder holds merged adapters, of a copy: ``handle`` stays as it is.
    base: what the pretrained model is called, for people. protocol, results: JSON data for the manifest and the card.
    folder: what it holds of an earlier graft is replaced: whatever ends this, it holds the earlier one or this one.
    Raises StoreError where only the operators are asked for and the other weights were finetuned too, or for a schedule
    that is not this package's.
    """
    folder = Path(folder)
    if whole is False and handle.private:
        raise StoreError("this graft was finetuned as a whole: its delta is the whole model, save it with whole=True")
    everything, schedule = handle.private or bool(whole), schedule_told(handle.model)
    if everything and handle.adapters is not None:
        handle = handle.own_copy("cpu")  # beside the model on a GPU there may be no room for a second one
    tensors = {f"{site.name}.{key}": value for site, op in handle.operators().items() for key, value in _state(op)}
    tensors |= {} if everything else _groups(handle) | _adapters(handle)
    if everything:
        tensors |= {f"shared.{key}": value for key, value in shared_tensors(handle).items()}
    weights = _next(folder)
    remove_unfinished(folder, "graft*.safetensors")
    save_safetensors_atomic(weights, tensors)
    manifest = {
        "format": 1,
        "whole": everything,
        "base": {"name": None if base is None else str(base), "sha256": handle.source_hash, "rounded": handle.rounded},
        "class": type(handle.model).__name__,
        "config": described(handle.model),
        "schedule": schedule,
        "conventions": handle.facts if handle.student_blocks is not None else conventions(handle.model),
        "plan": handle.plan.to_dict(),
        "lora": None if handle.adapters is None else asdict(handle.adapters.settings),
        "init": handle.init,
        "seed": handle.seed,
        "copied": {site.name: found for site, found in handle.copied.items()},
        "explained": {site.name: share for site, share in handle.explained.items()},
        "versions": _versions(),
        "file": {"name": weights.name, "sha256": sha256(weights), "bytes": weights.stat().st_size},
        "protocol": dict(protocol or {}),
        "results": dict(results or {}),
    }
    _describe(folder, manifest)
    for name in WEIGHTS:
        if name != weights.name:
            (folder / name).unlink(missing_ok=True)


def _next(folder: Path) -> Path:
    """Where the weights of a graft go, which is not where those of the one that is there are."""
    try:
        there = read_manifest(folder)["file"]["name"]
    except StoreError:  # none is there, or none that could be opened
        there = None
    return folder / WEIGHTS[there == WEIGHTS[0]]


def annotate(folder: Path | str, *, protocol: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write figures and their protocol, JSON data, into the manifest and the card of a saved graft, in the place of
    those there; its weights are not read. Raises StoreError where the folder is no graft."""
    folder = Path(folder)
    there = {"lora": None} | read_manifest(folder)  # which older folders do not say
    _describe(folder, there | {"protocol": dict(protocol), "results": dict(results)})


def _describe(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the card, then the manifest."""
    write_text_atomic(folder / "README.md", card(manifest))
    write_json_atomic(folder / MANIFEST, manifest)


def load(folder: Path | str, base: nn.Module | None = None, *, dtype: torch.dtype | None = None) -> Grafted:
    """Read what :func:`save` wrote.

    folder: or ``owner/name`` of the hub, from which its files are fetched.
    base: the pretrained model, which a delta is put into in place; needed unless the delta names a bundled teacher. It
    may be the delta's model in half precision, which the delta is cast to then; where the delta was made from its
    rounding it is that model too (:func:`~grafting.hashes.is_of`).
    dtype: of a delta's tensors, where not the base's own, as :func:`~grafting.graft.graft` has it.
    Raises StoreError where the folder is no graft, its weights changed or do not fit, or ``base`` is missing, another
    model, or given to a whole folder, which would leave it as it is; LoraError where it holds adapters and peft is
    missing; ModelError where the hub cannot be reached. ``base`` is then as it was, as it is whatever else ends this,
    such as Ctrl-C.
    """
    name, folder = str(folder), Path(folder)
    if not folder.exists() and HUB_ID.fullmatch(name):
        folder = hub_graft(name) or folder
    manifest = read_manifest(folder)
    if manifest["whole"] and base is not None:
        raise StoreError(
            f"{folder} holds a whole model, and nothing of it would go into base: load it without base, and give its "
            "model to a pipeline, as pipe.transformer = grafting.load(folder).model"
        )
    path = folder / manifest["file"]["name"]
    if not path.is_file() or sha256(path) != manifest["file"]["sha256"]:
        raise StoreError(f"{path} is not the file that {MANIFEST} names: it is missing or its hash differs")
    plan, tensors = Plan.from_dict(manifest["plan"]), load_file(path)
    wanted, rounded = manifest["base"]["sha256"], manifest["base"].get("rounded", {})  # which older folders lack
    schedule = _schedule(manifest["schedule"], folder) if manifest.get("schedule") else None
    lora = _lora(manifest["lora"], folder) if manifest.get("lora") else None  # older folders say nothing of it
    if manifest["whole"]:
        shared = {k.removeprefix("shared."): v for k, v in tensors.items() if k.startswith("shared.")}
        facts = manifest["conventions"]
        handle = assemble(manifest["class"], manifest["config"], shared, plan, facts, path, source_hash=wanted)
    else:
        called = f" ({manifest['base']['name']})" if manifest["base"]["name"] else ""
        if base is None and manifest["base"]["name"] in teachers():
            base = load_teacher(manifest["base"]["name"])
        if base is None:
            raise StoreError(f"{folder} holds the changes only: give base, the model of hash {wanted[:12]}{called}")
        if not is_of(base, wanted, rounded):
            raise StoreError(_another(base, folder, wanted, called, noted=bool(rounded)))
        if odd := other_constant(base, manifest):
            raise StoreError(f"base is of other constants than {folder} was made with: {odd}")
        handle = graft(base, plan, init="random", dtype=dtype, source_hash=wanted)
    try:
        if lora is not None:
            add_lora(handle, lora, dtype=dtype)
        slots = {f"{site.name}.{key}": value for site, op in handle.operators().items() for key, value in _state(op)}
        slots |= {} if manifest["whole"] else _groups(handle) | _adapters(handle)
        own = {key: value for key, value in tensors.items() if not key.startswith("shared.")}
        _fill(slots, own, path)
        if manifest["whole"]:
            for site, operator in handle.operators().items():
                _as_stored(operator, own, f"{site.name}.")
    except BaseException:
        if not handle.private:
            ungraft(handle.model)
        raise
    if schedule is not None:
        set_schedule(handle.model, schedule)
    handle.init, handle.seed, handle.rounded = manifest["init"], manifest["seed"], dict(rounded)
    copied = manifest.get("copied", {})  # which older folders do not say
    handle.copied = {s: copied[s.name] for s in handle.switches if s.name in copied}
    handle.explained = {s: manifest["explained"][s.name] for s in handle.switches if s.name in manifest["explained"]}
    return handle


def assemble(
    class_name: str,
    config: Mapping[str, Any],
    shared: Mapping[str, torch.Tensor],
    plan: Plan,
    facts: Mapping[str, Any],
    source: Path,
    *,
    source_hash: str | None = None,
) -> Grafted:
    """A graft with its own weights from a configuration, the tensors outside of its sites, and its conventions.

    source: where the tensors are from, for errors. source_hash: of the pretrained model, where it is known. Raises
    StoreError where they do not fit.
    """
    host_for({"_class_name": class_name, **config})  # refuses a class that no descriptor knows
    model: Any = remade(class_named(class_name), config).eval()
    for path in facts:
        if path.rpartition(".")[2] not in CONVENTIONS:
            raise StoreError(f"convention {path!r}: known are {', '.join(CONVENTIONS)}")
    restore(model, facts)
    handle = graft(model, plan, init="random", source_hash=source_hash)
    handle.forget_teacher()
    _refuse(misfits(shared, shared_tensors(handle)), source)
    nn.Module.to(model, next(iter(shared.values())).dtype)  # what is not stored; diffusers' own warns at every cast
    _as_stored(model, shared)
    remember(handle)
    return handle


def _another(base: nn.Module, folder: Path, wanted: str, called: str, *, noted: bool) -> str:
    """Why ``base`` is not the model of the hash ``wanted``. noted: whether hashes of its roundings are."""
    given, halves = tensors_hash(base.state_dict(), halves_as=torch.float32), held_in(base)
    told = f"base has hash {given[:12]}, {folder} was made from {wanted[:12]}{called}"
    if noted or not halves:
        return told
    return (
        f"{told}; base is in {halves[0]}, in which the folder does not know its model: load the base in float32, give "
        "it the graft, then cast it"
    )


def other_constant(base: nn.Module, manifest: Mapping[str, Any]) -> str:
    """The first constant beside the weights in which a pretrained model is not the one that a graft was made from, in
    words; empty where all are alike. Timestep embeddings of diffusers' class are not those of the original DiT."""
    mine, wanted = conventions(base), manifest.get("conventions", {})
    for path in (*wanted, *(path for path in mine if path.endswith("downscale_freq_shift"))):
        if mine.get(path) != wanted.get(path):
            told = ["the class's own" if value is None else value for value in (mine.get(path), wanted.get(path))]
            return f"{path} is {told[0]} there, {told[1]} in the graft"
    return ""


def _as_stored(module: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    """Give those of a module's tensors that are stored their values and their own type: a graft can hold several."""
    for name, held in (*module.named_parameters(), *module.named_buffers()):
        if (stored := tensors.get(f"{prefix}{name}")) is not None:
            held.data = stored.to(held.device, copy=True)


def shared_tensors(handle: Grafted) -> dict[str, torch.Tensor]:
    """The student's tensors outside of its new operators, those of new blocks among them; originals are left out."""
    inside = [name for name, module in handle.model.named_modules() if isinstance(module, Switch)]
    state = handle.model.state_dict()
    return {key: value for key, value in state.items() if not any(key.startswith(f"{name}.") for name in inside)}


def _fill(slots: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy ``tensors``, which are from ``path``, into ``slots`` of the same names."""
    _refuse(misfits(tensors, slots), path)
    with torch.no_grad():
        for name, slot in slots.items():
            slot.copy_(tensors[name])


def _refuse(problems: str, path: Path) -> None:
    if problems:
        raise StoreError(f"{path} does not fit the model it is for: {problems}")


def _groups(handle: Grafted) -> dict[str, nn.Parameter]:
    """What a delta holds of a restructured model, by name."""
    return {
        f"{key.name}.{name}": parameter
        for key, parameters in handle.learnable().items()
        if isinstance(key, Group)
        for name, parameter in parameters.items()
    }


def _adapters(handle: Grafted) -> dict[str, nn.Parameter]:
    """What a delta holds of adapters, by name."""
    found = {} if handle.adapters is None else handle.adapters.parameters()
    return {f"lora.{name}": parameter for name, parameter in found.items()}


def beside_weights(model: nn.Module) -> dict[str, Any]:
    """What a model computes with and learns under that a hash of its weights leaves out, as plain data to go into a key
    beside that: ``schedule`` and ``conventions``, each where it is not its family's own and its class's."""
    schedule, facts = repr(schedule_of(model)), conventions(model)
    found: dict[str, Any] = {} if schedule == repr(host_for(model).schedule()) else {"schedule": schedule}
    return found | ({"conventions": facts} if facts else {})


def walked(model: nn.Module) -> dict[str, Any]:
    """The same of what a model's samples depend on besides, where a sampler stays: nothing is trained by that."""
    told = schedule_told(model)
    return {} if told is None else {"walked": told}


def schedule_told(model: nn.Module) -> dict[str, Any] | None:
    """The schedule of a model as plain data; None where it is its family's own.

    Raises StoreError for one that is not this package's.
    """
    schedule = schedule_of(model)
    if schedule == host_for(model).schedule():
        return None
    name = type(schedule).__name__
    if not isinstance(schedule, Diffusion | Flow) or name not in SCHEDULES:
        raise StoreError(f"schedule {name}: a folder can name {' or '.join(SCHEDULES)} alone")
    told: dict[str, Any] = {"class": name} | {f.name: getattr(schedule, f.name) for f in fields(schedule) if f.init}
    if isinstance(told.get("shift"), BySize):
        told["shift"] = asdict(told["shift"])
    return told if told.get("even", True) else {key: value for key, value in told.items() if key != "even"}


def _schedule(told: Any, folder: Path) -> Schedule:
    where = f"{folder / MANIFEST}: schedule"
    if not isinstance(told, Mapping):
        raise StoreError(f"{where} is {told!r}, must be a mapping")
    name = told.get("class", Flow.__name__)  # older folders say a flow's shift alone
    if name not in SCHEDULES:
        raise StoreError(f"{where}: class {name!r}: known are {', '.join(SCHEDULES)}")
    try:
        given = {key: value for key, value in told.items() if key != "class"}
        if isinstance(given.get("shift"), Mapping):
            given["shift"] = BySize(**given["shift"])
        return SCHEDULES[name](**given)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where}: {str(error).splitlines()[0]}") from None


def _lora(told: Any, folder: Path) -> Lora:
    problems: list[str] = []
    made = build(Lora, told, f"{folder / MANIFEST}: lora", problems)
    if made is None:
        raise StoreError("; ".join(problems))
    return made


def _state(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(module.state_dict().items())


def _versions() -> dict[str, str]:
    import diffusers

    return {"grafting": __version__, "torch": str(torch.__version__), "diffusers": diffusers.__version__}


def import_original(
    path: Path | str,
    *,
    heads: int | None = None,
    weights: str = "ema",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Grafted | nn.Module:
    """An original DiT checkpoint as a plain diffusers model, or a released graft as a handle with its own weights.

    heads: where the width does not tell (see :func:`grafting.store.checkpoints.translate`). weights: the entry of a
    training dictionary. options: by operator, what no tensor's shape tells, such as ``{"swa": {"window": 8}}``; the
    default is the paper's, a window of 4. Raises CheckpointError for a file that is not understood, StoreError for
    tensors that do not fit together, PlanError for options that an operator does not take.
    """
    import diffusers

    path = Path(path)
    found = translate(read_checkpoint(path, weights), heads)
    named = {name for name, _, _ in found.grafts.values()}
    if idle := [name for name in options or {} if name not in named]:
        raise StoreError(f"options for {', '.join(idle)}: {path} holds {', '.join(sorted(named)) or 'no operator'}")
    model = diffusers.DiTTransformer2DModel(**found.config).eval()
    unshift_timesteps(model)
    if not found.grafts:
        _refuse(misfits(found.shared, model.state_dict()), path)
        model.load_state_dict(found.shared)
        return model
    edits = tuple(
        Edit(
            site="attn" if site == "attn" else "mlp",
            blocks=(block,),
            operator=name,
            options={**told, **(options or {}).get(name, {})},
        )
        for (block, site), (name, told, _) in found.grafts.items()
    )
    plan, facts = Plan(edits=edits), conventions(model)
    handle = assemble("DiTTransformer2DModel", found.config, found.shared, plan, facts, path)
    for site, operator in handle.operators().items():
        own = {f"{site.name}.{key}": value for key, value in found.grafts[site.block, site.kind][2].items()}
        _fill({f"{site.name}.{key}": value for key, value in _state(operator)}, own, path)
    handle.init = "imported"
    return handle
