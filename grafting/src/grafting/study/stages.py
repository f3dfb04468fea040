"""Both stages over an opened model: how they begin, how they are called, what they leave unexplained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conditions import rows, to
from ..diffusion import Denoiser
from ..graft import Grafted, graft, ungraft
from ..hashes import tensors_hash
from ..hosts import Site, host_for
from ..hosts.registry import schedule_of
from ..joint import Joint
from ..lora import add_lora
from ..measure.denoising import Triples
from ..modes import evaluating
from ..operators import Operator
from ..plan import Plan
from ..precision import in_half, learning_type, refuse_mixed, widened
from ..switch import Switch
from ..training.distill import SiteReport, distill
from ..training.features import Unexplained, returned
from ..training.finetune import finetune
from ..training.loop import Loop
from ..training.team import Team
from .material import Material
from .recipe import DistillStage, FinetuneStage

CALIBRATION_BATCH = 64
LOOKED_AT = 256
"""Held-out triples on which blocks are compared with the teacher's."""


def denoiser(model: nn.Module) -> Denoiser:
    """The model as (z_t, t, y), wherever these are, to its output (B, C or 2C, H, W) on its own device, in evaluation
    mode."""
    host, device = host_for(model), next(model.parameters()).device

    def call(z: torch.Tensor, t: torch.Tensor, y: Any) -> torch.Tensor:
        with evaluating(model):
            return host.call(model, z.to(device), t.to(device), to(y, device))

    return call


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
