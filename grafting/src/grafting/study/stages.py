"""Both stages over an opened model: what they learn from, how they are called, what they cost.

Shapes: images (n, C, H, W) in [-1, 1], latents (n, C', h, w), labels (n,) int64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conditions import rows, to
from ..cost import PlanCost, adapter_cost, host_flops
from ..data import Batches, LabelledImages, read_subset
from ..data.encode import scaled
from ..data.encoders import misfit
from ..data.shards import Encoded, Rows, is_encoded
from ..diffusion import Denoiser
from ..files import sha256
from ..graft import Grafted, graft, ungraft
from ..hashes import tensors_hash
from ..hosts import Site, host_for
from ..hosts.registry import schedule_of
from ..hosts.shapes import ROLES, shape_of
from ..joint import Joint
from ..lora import add_lora
from ..measure.denoising import Triples
from ..modes import evaluating
from ..operators import Operator
from ..plan import Plan
from ..precision import in_half, learning_type, refuse_mixed, widened
from ..store.configs import ModelError
from ..store.models import Model
from ..switch import Switch
from ..training.distill import SiteReport, distill
from ..training.features import Unexplained, returned
from ..training.finetune import finetune
from ..training.loop import Loop
from ..training.pretrain import encode
from ..training.team import Team
from .recipe import DistillStage, FinetuneStage

CALIBRATION_BATCH = 64
LOOKED_AT = 256
"""Held-out triples on which blocks are compared with the teacher's."""
PASSES = 3
"""A training step costs a forward pass and a backward one of twice that."""


def null_class(model: nn.Module) -> int:
    """The label that stands for "no class". Raises ModelError for a model that is not class-conditional."""
    config: Any = model.config
    classes = host_for(model).classes(dict(config))
    if classes is None:
        raise ModelError(f"{type(model).__name__} is not conditioned on classes: this works on DiTs")
    return int(classes)


def denoiser(model: nn.Module) -> Denoiser:
    """The model as (z_t, t, y), wherever these are, to its output (B, C or 2C, H, W) on its own device, in evaluation
    mode."""
    host, device = host_for(model), next(model.parameters()).device

    def call(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with evaluating(model):
            return host.call(model, z.to(device), t.to(device), to(y, device))

    return call


class Material:
    """What a study learns from: images of an npz, encoded when first asked for, or a folder of encoded pictures.

    Raises ModelError where neither the model nor ``data`` has any, or they do not fit the model.
    """

    def __init__(self, model: Model, data: Path | str | None = None) -> None:
        path = Path(data) if data else model.images
        if path is None:
            raise ModelError(
                f"{model.name} brings no images: name as data a folder of grafting encode "
                "or grafting.write_latents, or an npz of grafting.data.write_subset"
            )
        if not path.exists():
            raise ModelError(f"data {path}: no such file or folder")
        if path.is_dir() and not is_encoded(path):
            raise ModelError(f"data {path}: a folder of pictures is encoded by grafting encode first")
        self.model, self.path = model, path
        self.learnt: int | None = None
        self.encoded = Encoded(path) if path.is_dir() else None
        self._images: dict[bool, LabelledImages] = {}
        self._latents: dict[bool, torch.Tensor | Rows] = {}
        self._conditions: dict[bool, Any] = {}
        if self.encoded is not None:
            self._check(self.encoded)

    def _check(self, encoded: Encoded) -> None:
        config: Any = self.model.transformer.config
        wanted = host_for(self.model.transformer).condition
        if encoded.condition not in (wanted, "none"):
            raise ModelError(f"data {self.path} has {encoded.condition}, {self.model.name} is conditioned on {wanted}")
        if encoded.condition == "captions" and (problem := misfit(encoded.null, config, "captions")) is not None:
            raise ModelError(
                f"data {self.path} has {problem[0]}, {self.model.name} takes {problem[1]}: "
                "they were embedded for another model"
            )
        if encoded.condition == "labels" and (there := encoded.manifest.get("known_classes")) is not None:
            classes = null_class(self.model.transformer)
            if there != classes:
                raise ModelError(
                    f"data {self.path} was made for a model of {there} classes, {self.model.name} knows {classes}"
                )
        shape = shape_of(self.model.transformer)
        if encoded.shape[0] != shape.channels or (shape.square and encoded.shape[1:] != shape.latents):
            raise ModelError(
                f"{self.path}: latents of {encoded.shape}, the transformer takes {(shape.channels, *shape.latents)}"
            )
        made, network = encoded.manifest["encoders"]["autoencoder"], self.model.autoencoder
        if made and network is not None and made["sha256"] != tensors_hash(network.state_dict()):
            raise ModelError(f"data {self.path} was encoded by another autoencoder than {self.model.name} brings")

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """Hashes of the images, or of the shards' manifest, and of the autoencoder."""
        autoencoder = self.model.autoencoder
        hashed = None if autoencoder is None else tensors_hash(autoencoder.state_dict())
        return {"images": self.encoded.identity if self.encoded else sha256(self.path), "autoencoder": hashed}

    @property
    def null(self) -> Any:
        """What stands for no condition: a class, or the empty prompt. Raises ModelError where no caption is known."""
        if host_for(self.model.transformer).condition == "labels":
            return null_class(self.model.transformer)
        if self.encoded is None or self.encoded.condition != "captions":
            raise ModelError(f"{self.path} has no captions, and {self.model.name} is conditioned on text")
        return self.encoded.null

    def images(self, *, train: bool) -> LabelledImages:
        """The training half or the held-out half, in pixels. Raises ModelError where latents are all there is."""
        if self.encoded is not None:
            raise ModelError(f"{self.path} holds latents and no pictures: name these as reference and floor")
        if train not in self._images:
            found = read_subset(self.path, train=train)
            classes = null_class(self.model.transformer)
            if int(found.labels.max()) >= classes:
                raise ModelError(f"{self.path}: label {int(found.labels.max())}, the model knows 0 to {classes - 1}")
            self._images[train] = found
        return self._images[train]

    def count(self, *, train: bool) -> int:
        """Samples of a half."""
        return len(self.encoded.half(train=train)) if self.encoded else len(self.images(train=train).labels)

    def latents(self, *, train: bool) -> Any:
        """Scaled latents (n, C, h, w); the images themselves where there is no autoencoder.

        The training half of an encoded folder is read row by row; all else is a tensor.
        """
        if train not in self._latents:
            if self.encoded is not None:
                rows = self.encoded.latents(self.encoded.half(train=train))
                self._latents[train] = rows if train else rows.all()
                return self._latents[train]
            images, autoencoder = self.images(train=train).images, self.model.autoencoder
            z = images if autoencoder is None else scaled(autoencoder, encode(autoencoder, images))
            shape = shape_of(self.model.transformer)
            wanted = (shape.channels, *shape.latents)
            if tuple(z.shape[1:]) != wanted:
                raise ModelError(f"{self.path}: latents of {tuple(z.shape[1:])}, the transformer takes {wanted}")
            self._latents[train] = z
        return self._latents[train]

    def conditions(self, *, train: bool) -> Any:
        """Labels (n,), or captions as :mod:`grafting.conditions` has them; read as :meth:`latents` are.

        Pictures that were encoded without are all of the null condition.
        """
        if self.encoded is None:
            return self.images(train=train).labels
        if train not in self._conditions:
            half = self.encoded.half(train=train)
            if self.encoded.condition == "none":
                self._conditions[train] = torch.full((len(half),), int(self.null))
            else:
                rows = self.encoded.conditions(half)
                self._conditions[train] = rows if train else rows.all()
        return self._conditions[train]

    def first(self, count: int | None) -> Material:
        """The same images, of which training sees the first ``count`` alone (None: all); all else sees all of them."""
        fewer = copy.copy(self)  # shares what was read and encoded
        fewer.learnt = count
        return fewer

    def batches(self, size: int, seed: int, *, train: bool = True) -> Batches:
        """Latents and conditions by step."""
        z, y = self.latents(train=train), self.conditions(train=train)
        if train:
            z, y = z[: self.learnt], y[: self.learnt]
        return Batches(inputs=z, labels=y, size=size, seed=seed)


def begin(
    model: nn.Module,
    plan: Plan,
    material: Material,
    *,
    init: str,
    seed: int,
    calibration: int,
    room: int | None = None,
) -> Grafted:
    """Graft ``plan`` into ``model``, in place, started by ``init`` over ``calibration`` samples (none for 0).

    room: samples of a pass at most, such as a stage that follows has; more than 64 are never taken.
    """
    size = min(CALIBRATION_BATCH, max(calibration, 1))
    batches = material.batches(size, seed) if calibration and init in ("default", "solve") else None
    count = -(-calibration // size)

    def shown(step: int) -> dict[str, Any]:
        """A batch; of the last one as many samples as are left."""
        assert batches is not None
        batch, left = batches(step), slice(calibration - step * size)
        return {"z": batch["z"][left], "y": rows(batch["y"], left)}

    return graft(
        model,
        plan,
        init=init,
        seed=seed,
        calibration=None if batches is None else shown,
        calibration_batches=count,
        calibration_room=room,
        dtype=learning_type(model),
    )


def learns(handle: Grafted) -> bool:
    """Whether any new operator or group has weights; the control *none* has not."""
    return bool(handle.learnable())


def uncopied(handle: Grafted) -> list[str]:
    """A line for every operator that was to begin with the original's weights and found none that fit."""
    sites: dict[str, dict[Site, bool]] = {}
    for site, placed in handle.operators().items():
        operator = placed.operator if isinstance(placed, Joint) else placed
        if isinstance(operator, Operator) and site in handle.copied:
            sites.setdefault(operator.name, {})[site] = handle.copied[site]
    lines = []
    for name, found in sites.items():
        bare = [site for site, any_ in found.items() if not any_]
        where = "" if len(bare) == len(found) else f" at {', '.join(site.name for site in bare)}"
        solved = ", its last layer solved" if any(site in handle.explained for site in bare) else ""
        lines += [f"{name}{where}: nothing to copy, random start{solved}"] if bare else []
    return lines


def stage_one(
    handle: Grafted,
    stage: DistillStage,
    material: Material,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    team: Team | None = None,
) -> dict[str, SiteReport]:
    """Distil every site; held-out errors are those of the held-out images. out, team: as in :func:`distill`."""
    return distill(
        handle,
        material.batches(stage.batch, seed),
        material.null,
        config=stage.config(seed=seed),
        out=out,
        heldout=material.batches(stage.batch, seed, train=False),
        team=team,
        depends=_of(material),
    )


def stage_two(
    source: Grafted | nn.Module,
    stage: FinetuneStage,
    material: Material,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    teacher: nn.Module | None = None,
    team: Team | None = None,
) -> tuple[Grafted | nn.Module, Loop]:
    """Finetune a hybrid, or a plain model as the control *procedure*; returns what was trained and its loop.

    With ``train: all`` a private copy is trained and ``source`` stays; with ``train: lora`` adapters are put into
    ``source`` and trained beside its new operators. So they are into a plain model, which is as it was where this ends
    in an error. teacher: where there is none inside ``source``, that is for a graft whose weights are its own. out,
    team: as in :func:`finetune`. Raises ValueError where nothing can be trained, a teacher to match is missing, or what
    is to fade is: a restructured model has none at its sites; or where weights in bfloat16 are to learn, or stand
    beside another precision; LoraError where adapters cannot be had.
    """
    if isinstance(source, nn.Module) and stage.train == "lora":
        handle = graft(source, Plan())
        try:
            return stage_two(handle, stage, material, seed=seed, out=out, teacher=teacher, team=team)
        except BaseException:
            ungraft(source)
            raise
    taught = source if isinstance(source, nn.Module) else source.model
    refuse_mixed(taught, stage.precision)
    if isinstance(source, Grafted):
        refuse_half_whole(source)
    trained: Grafted | nn.Module = source
    wanted: Denoiser | None
    replaced: dict[Switch, nn.Module] = {}
    if isinstance(source, nn.Module):
        blocks = host_for(source).blocks
        wanted = denoiser(source)
        network = trained = widened(copy.deepcopy(source))
        network.requires_grad_(True)
        pairs = list(zip(blocks(network), blocks(source), strict=True))
    else:
        originals: nn.ModuleList | None
        if not source.private:
            wanted, originals = _inner_teacher(source), source.originals
        else:
            wanted = None if teacher is None else denoiser(teacher)
            originals = None if teacher is None else source.host.blocks(teacher)
        if stage.train == "all":
            trained = source.own_copy()
            widened(trained.model)  # where nothing that is new has weights
        elif stage.adapters is None:
            source.train_grafted()
        else:
            # Adapters of the same settings, of a stage before, are trained on.
            if source.adapters is None or source.adapters.settings != stage.adapters:
                add_lora(source, stage.adapters, seed=seed, dtype=learning_type(source.model))
            source.train_grafted(adapters=True)
        assert isinstance(trained, Grafted)
        network, pairs = trained.model, [] if originals is None else trained.meetings(originals)
        if stage.fade:
            replaced = _replaced(trained, originals)
    batches = material.batches(stage.batch, seed)
    depends = _of(material) | ({} if teacher is None else {"taught by": tensors_hash(teacher.state_dict())})
    loop = finetune(
        network,
        denoiser(network),
        wanted,
        batches=batches,
        null=material.null,
        config=stage.config(seed=seed),
        out=out,
        team=team,
        pairs=pairs,
        replaced=replaced,
        depends=depends,
    )
    return trained, loop


def _of(material: Material) -> dict[str, Any]:
    """What batches are of, for a run to be continued on the same alone."""
    return {"material": material.identity, "learnt from": material.learnt}


def refuse_half_whole(handle: Grafted) -> None:
    """Raises ValueError for a graft that learns as a whole in bfloat16, in which its steps would round away."""
    if handle.private and in_half(handle.model):
        raise ValueError("this graft was finetuned as a whole, and all of its weights learn: open it in float32")


def _replaced(handle: Grafted, originals: nn.ModuleList | None) -> dict[Switch, nn.Module]:
    """By switch, the teacher's operator. originals: the teacher's blocks."""
    if originals is None or handle.plan.restructure:
        why = "there is no teacher" if originals is None else "blocks were restructured"
        raise ValueError(f"fade: of the teacher's operators at the sites, and {why}; give fade 0")
    found = {}
    for site, switch in handle.switches.items():
        there = handle.host.get_in(handle.host.bare_block(originals[site.block]), site.kind)
        before = there.original if isinstance(there, Switch) else there
        assert before is not None
        found[switch] = before
    return found


def _inner_teacher(handle: Grafted) -> Denoiser:
    call: Callable[..., torch.Tensor] = denoiser(handle.model)

    def teacher(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with handle.teacher():
            return call(z, t, y)

    return teacher


@torch.no_grad()
def left_unexplained(
    model: nn.Module, handle: Grafted | None, teacher: nn.Module, triples: Triples, batch: int
) -> dict[str, float]:
    """By the teacher's block, what the block of ``model`` that stands for it leaves unexplained on the first triples:
    its squared distance as a share of the variance that the teacher's outputs have over samples and tokens.

    handle: of a graft, whose switches may lie in ``teacher``; None for a plain model.
    """
    host, schedule = host_for(teacher), schedule_of(teacher)
    inner = handle is not None and not handle.private
    originals = list(handle.originals if handle is not None and inner else host.blocks(teacher))
    wanted = _inner_teacher(handle) if handle is not None and inner else denoiser(teacher)
    pairs = handle.meetings(originals) if handle is not None else zip(host.blocks(model), originals, strict=True)
    mine, theirs = zip(*pairs, strict=True)
    sums = [Unexplained() for _ in theirs]
    for start in range(0, min(LOOKED_AT, len(triples)), batch):
        part = slice(start, min(start + batch, LOOKED_AT))
        zt, t = schedule.add_noise(triples.z[part], triples.t[part], triples.noise[part]), triples.t[part]
        y = triples.asked(part)
        with evaluating(model, teacher):
            with returned(theirs, host.streams) as shown:
                wanted(zt, t, y)
            with returned(mine, host.streams) as done:
                denoiser(model)(zt, t, y)
        for found, given, right in zip(sums, done, shown, strict=True):
            found.add(given, right)
    return {str(originals.index(block)): found.share for block, found in zip(theirs, sums, strict=True)}


def training_flops(model: Any, samples: int) -> float:
    """FLOPs of the own training of a model, or of one of a configuration, which took ``samples`` with repetition."""
    return float(PASSES * host_flops(shape_of(model)) * samples)


def start_flops(cost: PlanCost, calibration: int) -> float:
    """A teacher pass, the new operators' features and the sums that they are regressed by, per calibration sample."""
    tokens, width = cost.shape.tokens, cost.shape.width
    sums = sum(2 * tokens * site.features * (site.features + width) for site in cost.sites)
    return calibration * (cost.flops_before + _operators(cost) + sums)


def stage_one_flops(cost: PlanCost, stage: DistillStage) -> float:
    """The teacher's pass, the operators forward and backward (twice the forward), and the held-out passes."""
    evaluations = 1 + -(-stage.steps // stage.evaluate_every)
    taught = stage.steps * stage.batch * (cost.flops_before + 3 * cost.taught_flops)
    return taught + evaluations * stage.heldout_batches * stage.batch * (cost.flops_before + cost.taught_flops)


def stage_two_flops(cost: PlanCost, stage: FinetuneStage) -> float:
    """The student forward and backward, and the teacher's pass where the target needs it.

    A backward pass costs two forward ones, but for products with frozen weights: these have a gradient of their input
    alone, which is one. The cores of attention have no weights and two gradients. A checkpointed pass runs once more.
    What fades out is billed as if it learnt, in the share of the steps that it lasts.
    Of passes alone: what the optimiser does is not counted. AdamW's is nothing beside them; for Muon's see
    :func:`grafting.training.muon.step_flops`.
    """
    forward, frozen = float(cost.flops_after), 0.0
    if stage.train != "all":
        frozen = max(0.0, forward - cost.cores_after - cost.taught_flops)
    if stage.adapters is not None:
        forward += adapter_cost(cost, stage.adapters.rank, stage.adapters.targets or ROLES).flops
    again = 4 if stage.checkpointing else 3
    passes = again * (forward + stage.fade * sum(site.runs * site.flops_before for site in cost.sites)) - frozen
    return stage.steps * stage.batch * (passes + (cost.flops_before if stage.target != "noise" else 0))


def part_flops(
    cost: PlanCost, *, calibration: int, one: DistillStage | None, two: FinetuneStage | None
) -> dict[str, float]:
    """FLOPs of making one hybrid, by part; a start without ``calibration`` samples and a stage of None cost nothing."""
    parts: dict[str, float] = {}
    if calibration:
        parts["solved start"] = start_flops(cost, calibration)
    if one is not None:
        parts["stage 1"] = stage_one_flops(cost, one)
    if two is not None:
        parts["stage 2"] = stage_two_flops(cost, two)
    return parts


def _operators(cost: PlanCost) -> int:
    return sum(site.flops_after for site in cost.sites)
