"""MODEL, as every command takes it: a bundled name, a folder, an original checkpoint, or an id of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..files import read_json
from ..graft import Grafted, handle_of
from ..hosts import host_for
from ..hosts.registry import class_named, set_schedule
from ..hosts.shapes import class_of, set_text_tokens, shape_of
from ..precision import WEIGHTS, learning_type
from ..teachers import PROMPTS, teacher_folder, teachers
from ..text import Embedded
from .configs import (
    HUB_ID,
    SCHEDULER,
    ModelError,
    check_schedule,
    graft_folder,
    hub_config,
    hub_file,
    text_tokens,
    told_schedule,
    unknown,
)
from .folder import import_original, load
from .manifest import MANIFEST, StoreError, read_manifest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..classifier import Classifier

KINDS = ("AutoencoderKL", "AutoencoderDC")
"""Classes of autoencoders; the second is SANA's."""
AUTOENCODERS = ("vae", "autoencoder")
"""Subfolders that hold an autoencoder: that of diffusers' pipelines, and ours."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer, grafted or not, and what came with it.

    name: as it was asked for. graft: its handle, where it is one. folder: where the pretrained model lies, None for one
    of the hub. images: an npz of :func:`grafting.data.write_subset`. prompts: the states of those that a text-to-image
    teacher's bundle holds. card: the bundle's ``teacher.json``, empty elsewhere.
    """

    name: str
    transformer: nn.Module
    graft: Grafted | None = None
    autoencoder: nn.Module | None = None
    classifier: Classifier | None = None
    folder: Path | None = None
    images: Path | None = None
    prompts: Embedded | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_teacher(self) -> Grafted | None:
        """The handle of a graft that can be switched back to its teacher; None for any other model."""
        return None if self.graft is None or self.graft.private else self.graft

    def to(self, device: torch.device | str) -> Model:
        """This model, its networks moved to ``device`` in place."""
        for network in (self.transformer, self.autoencoder, self.classifier):
            if network is not None:
                network.to(device)
        return self


def open_model(
    name: str | Path | DiffusionPipeline, *, base: str | Path | None = None, weights: str | None = None
) -> Model:
    """Load a model in eval mode, or take a live pipeline's.

    Args:
        name: a bundled teacher; a folder of diffusers (with ``config.json``, or ``transformer`` and ``vae`` in it), of
            this package's bundles, or of a graft; an original checkpoint's file; or ``owner/name`` on the hub, of a
            model of diffusers or of a graft, whose files are fetched. Of a
            pipeline of diffusers its own transformer and autoencoder, no copies, and what its scheduler says of the
            noise; nothing is loaded, so ``base`` and ``weights`` are refused.
        base: the pretrained model of a graft's delta, where it is not the one that the graft names.
        weights: how the transformer's are held: ``fp32``, the default, or ``bf16``, in which they take half the memory,
            do not learn, and all passes are of bfloat16. A graft's operators and adapters are in float32 either way.

    Raises:
        ModelError, StoreError, CheckpointError: nothing of that name, what is there cannot be read, or ``base`` or
            ``weights`` are given with a pipeline.
        ValueError: other ``weights``.
    """
    if not isinstance(name, (str, Path)):
        idle = [f"{key} {given!r}" for key, given in (("base", base), ("weights", weights)) if given is not None]
        if idle:
            raise ModelError(
                f"{type(name).__name__}: {', '.join(idle)}: a live pipeline is taken as it is, nothing of it is "
                "loaded; leave this out"
            )
        return _live(name)
    weights = "fp32" if weights is None else weights
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: {' or '.join(WEIGHTS)}")
    name, base = str(name), None if base is None else str(base)
    found = _opened(name, base, weights)
    if shape_of(found.transformer).context_tokens and (tokens := text_tokens(base or name)) is not None:
        set_text_tokens(found.transformer, tokens)
    return found


def _live(pipeline: DiffusionPipeline) -> Model:
    """What a pipeline holds. Raises ModelError where that is no transformer of a known class, or under other noise."""
    parts: Mapping[str, Any] = pipeline.components
    transformer, scheduler = parts.get("transformer"), parts.get("scheduler")
    if transformer is None:
        raise ModelError(f"{type(pipeline).__name__} has no transformer")
    own = host_for(transformer).schedule()
    if scheduler is not None:
        kind = type(scheduler).__name__
        # The family's own too: it may have been opened before, under another scheduler.
        told = told_schedule({**scheduler.config, "_class_name": kind}, f"the pipeline's {kind}", own)
        set_schedule(transformer, told)
    name = str(pipeline.name_or_path or type(pipeline).__name__)
    return Model(name=name, transformer=transformer, graft=handle_of(transformer), autoencoder=parts.get("vae"))


def _opened(name: str, base: str | None, weights: str) -> Model:
    path = Path(name)
    if name in teachers():
        return _plain(teacher_folder(name), name, weights)
    if (folder := graft_folder(name)) is not None:
        found = _graft(folder, base, weights)
        return found if path.exists() else replace(found, name=name)
    if path.is_dir():
        return _plain(path, name, weights)
    if path.is_file():
        read = import_original(path)
        handle = read if isinstance(read, Grafted) else None
        model: nn.Module = handle.model if handle else read  # type: ignore[assignment]
        return Model(name=name, transformer=_held(model, handle, weights), graft=handle)
    if HUB_ID.fullmatch(name):
        return _hub(name, weights)
    raise ModelError(unknown(name))


def _held(model: nn.Module, handle: Grafted | None, weights: str) -> nn.Module:
    """``model``, its weights but a graft's operators and adapters held as ``weights`` says, in place."""
    new = set() if handle is None else {id(parameter) for parameter in handle.new()}
    for part in (model,) if handle is None else handle.parts():
        for parameter in part.parameters():
            if id(parameter) not in new:
                parameter.data = parameter.data.to(WEIGHTS[weights])
    return model


def with_autoencoder(model: Model, name: str) -> Model:
    """``model`` with the autoencoder that :func:`given_autoencoder` finds, for what it draws.

    Raises:
        ModelError: no autoencoder there, one for latents of other channels, or the model brings its own.
    """
    if model.autoencoder is not None:
        raise ModelError(f"{model.name} brings its own autoencoder: another is for a transformer without one")
    drawn = shape_of(model.transformer).channels
    return replace(model, autoencoder=given_autoencoder(name, channels=drawn))


def refuse_latents(model: Model) -> None:
    """Raises ModelError for a model of latents without an autoencoder, whose samples nobody can see."""
    drawn = shape_of(model.transformer).channels
    if model.autoencoder is None and drawn not in (1, 3):
        raise ModelError(
            f"{model.name} draws latents of {drawn} channels and brings no autoencoder to make images of them: "
            "give it with --vae (vae: in a recipe), or put it into a subfolder vae of its folder, beside transformer"
        )


def own_autoencoder(home: str) -> nn.Module | None:
    """The autoencoder in a subfolder of a folder or hub id, in eval mode, float32; None where there is none.

    Raises ModelError for one of another class, or where the hub cannot be reached.
    """
    return _autoencoder(home, AUTOENCODERS)


def given_autoencoder(name: str, *, channels: int | None = None) -> nn.Module:
    """The same of a folder or hub id that may be the autoencoder itself.

    Raises ModelError also where there is none, or one for latents of other than ``channels``.
    """
    found = _autoencoder(name, (*AUTOENCODERS, ""), channels)
    if found is None:
        raise ModelError(f"autoencoder {name}: no config.json there, nor in a subfolder {' or '.join(AUTOENCODERS)}")
    return found


def _autoencoder(home: str, parts: Sequence[str], channels: int | None = None) -> nn.Module | None:
    """From the first of ``parts`` that is there, "" for ``home`` itself."""
    import diffusers

    local = Path(home).exists()
    if not local and not HUB_ID.fullmatch(home):
        return None
    for part in parts:
        file = str(PurePosixPath(part, "config.json"))
        path = Path(home) / file if local else hub_file(home, file)
        if path is None or not path.is_file():
            continue
        config = read_json(path, error=ModelError)
        kind, latent = config.get("_class_name"), config.get("latent_channels")
        if kind not in KINDS:
            raise ModelError(f"autoencoder {path.parent} is {kind}: an {' or an '.join(KINDS)} is needed")
        if channels not in (None, latent):
            raise ModelError(f"autoencoder {path.parent} gives latents of {latent} channels: {channels} are needed")
        made: nn.Module = getattr(diffusers, kind).from_pretrained(home, **({"subfolder": part} if part else {}))
        return made.float().eval()
    return None


def _plain(folder: Path, name: str, weights: str) -> Model:
    source = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (source / "config.json").is_file():
        raise ModelError(f"{name}: neither {MANIFEST} nor config.json is in {folder}, so it holds no model")
    config = read_json(source / "config.json", error=ModelError)
    schedule = folder / SCHEDULER if (folder / SCHEDULER).is_file() else None
    return Model(name=name, transformer=_transformer(config, schedule, str(source), weights), **_companions(folder))


def _graft(folder: Path, base: str | None, weights: str) -> Model:
    manifest = read_manifest(folder)
    wanted = base or manifest["base"]["name"]
    if manifest["whole"]:
        handle = load(folder)
        # The companions are a convenience: a whole graft is readable where its teacher is gone.
        home = teacher_folder(wanted) if wanted in teachers() else Path(wanted or "")
        companions = _companions(home) if wanted and home.is_dir() else {}
        asked = "schedule" not in manifest  # of older folders; what a manifest says of its schedule holds
        if asked and companions and (home / SCHEDULER).is_file():
            with suppress(ModelError):
                _tell(handle.model, home / SCHEDULER)
        # A relative path that is gone looks like an id, and is no business of the hub's.
        if not companions and HUB_ID.fullmatch(wanted or "") and not Path(wanted).parent.exists():
            with suppress(ModelError, OSError):
                companions = {"autoencoder": own_autoencoder(wanted)}
                if asked and (schedule := hub_file(wanted, SCHEDULER)) is not None:
                    _tell(handle.model, schedule)
        return Model(name=str(folder), transformer=_held(handle.model, handle, weights), graft=handle, **companions)
    if not wanted:
        raise ModelError(f"{folder} holds the changes only and names no pretrained model: give it with --base")
    try:
        teacher = open_model(wanted, weights=weights)
    except ModelError as error:
        raise ModelError(f"{error}; {folder} holds the changes of it only: say with --base where it is") from error
    try:
        handle = load(folder, teacher.transformer, dtype=learning_type(teacher.transformer))
    except StoreError:
        if weights == "fp32":
            raise
        teacher = open_model(wanted)  # of older folders, which do not note its rounding
        handle = load(folder, teacher.transformer)
    return Model(
        name=str(folder),
        transformer=_held(handle.model, handle, weights),
        graft=handle,
        autoencoder=teacher.autoencoder,
        classifier=teacher.classifier,
        folder=teacher.folder,
        images=teacher.images,
        prompts=teacher.prompts,
        card=teacher.card,
    )


def _companions(folder: Path) -> dict[str, Any]:
    """What lies beside a transformer, as keyword arguments of :class:`Model`."""
    found: dict[str, Any] = {"folder": folder, "autoencoder": own_autoencoder(str(folder))}
    if (folder / "classifier" / "config.json").is_file():
        from ..classifier import Classifier

        found["classifier"] = Classifier.from_pretrained(folder / "classifier").float().eval()
    if (folder / "images.npz").is_file():
        found["images"] = folder / "images.npz"
    if (folder / PROMPTS).is_file():
        found["prompts"] = Embedded.load(folder / PROMPTS)
    if (folder / "teacher.json").is_file():
        found["card"] = read_json(folder / "teacher.json", error=ModelError)
    return found


def _hub(name: str, weights: str) -> Model:
    """As a folder: the transformer, its autoencoder if there is one, and the same check of its noise."""
    schedule = hub_file(name, SCHEDULER)
    transformer = _transformer(hub_config(name), schedule, name, weights, subfolder="transformer")
    return Model(name=name, transformer=transformer, autoencoder=own_autoencoder(name))


def _transformer(
    config: Mapping[str, Any], schedule: Path | None, source: str, weights: str, **where: str
) -> nn.Module:
    """The model of ``config`` at ``source``, under the noise that the file ``schedule`` describes."""
    name = class_of(config)  # refuses a class that no descriptor knows
    if schedule is not None:
        check_schedule(schedule, host_for(config).schedule())  # before its weights are fetched
    model: nn.Module = class_named(name).from_pretrained(source, torch_dtype=WEIGHTS[weights], **where)
    if schedule is not None:
        _tell(model, schedule)
    return _held(model, None, weights).eval()


def _tell(model: nn.Module, schedule: Path) -> None:
    """Keep on a model what the file ``schedule`` says beyond its family's own. Raises ModelError."""
    own = host_for(model).schedule()
    told = check_schedule(schedule, own)
    if told != own:
        set_schedule(model, told)
