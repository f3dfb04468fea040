"""Stage 2: finetune a grafted model end to end, on the noise, on the teacher's own output, or on a mixture.

The noise target is the teacher's own objective and the paper's (arXiv 2506.05340): of a flow it is the velocity. The
teacher's output on the same input (after LiT, arXiv 2501.12976) carries less noise in its gradient, and an untouched
model already is its optimum. What the teacher's blocks return says where an error began, which its output alone does
not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..activations import plain
from ..conditions import each, rows
from ..diffusion import Denoiser, Levels, Schedule, draw, drop_labels
from ..graft import Grafted, handle_of, null_identity
from ..hosts.registry import host_for, schedule_of
from ..modes import evaluating
from ..precision import PRECISIONS, autocast, in_half, refuse_float16, refuse_mixed
from ..progress import Progress
from ..switch import Switch
from .features import Pairs, match_features, returned
from .loop import Loop, LoopConfig
from .objective import teacher_objective
from .state import began
from .team import Team

CAP = 1000.0
"""Of the weights by noise level, where nothing else is said."""
MOST_FADE = 0.8
"""The averaged weights, whose horizon is a tenth of the steps, are of those after it."""

LATER = ("weight_power", "weight_cap", "fade", "micro_batch")
"""Settings that runs begun before there were any do not name: not told where they are the defaults."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Stage 2's settings.

    teacher_share: weight of the teacher's output against the noise as target, at the first and at the last step, linear
    in between: (1, 1) is the teacher's output alone, (0, 0) the noise alone, which for a flow is the velocity, here and
    below. variance_weight: weight of the learned variance's half in the match with the teacher's output. features:
    weight, beside the teacher's output and fading with its share, of what the student's blocks leave unexplained of the
    teacher's; 0 for none. levels: how often each noise level is drawn; None draws all alike. weight_power, weight_cap:
    the squared error of the noise, the teacher's and the true one, is weighted by one over alpha_bar of the level to
    this power, up to this; the velocity's, which a flow has, by none. checkpointing: keep the input of every block
    alone and compute the rest again on the way back: the same gradients, a fraction of the activation memory, one more
    forward pass of the student. fade: over this share of the steps what was replaced goes out of the outputs of its
    sites, linearly, as the new operators come in; 0 replaces it at once. micro_batch: samples of a pass at most; a
    batch of more is taken in parts whose gradients add up (gradient accumulation), and the variance that ``features``
    are a share of is that of a part; None: the whole batch at once.
    """

    loop: LoopConfig
    teacher_share: tuple[float, float] = (1.0, 1.0)
    variance_weight: float = 0.05
    features: float = 0.0
    levels: Levels | None = None
    weight_power: float = 0.0
    weight_cap: float = CAP
    label_dropout: float = 0.1
    precision: str = "fp32"
    checkpointing: bool = False
    fade: float = 0.0
    micro_batch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"teacher_share {share}: from 0 (the noise) to 1 (the teacher's output)"
            for share in self.teacher_share
            if not 0 <= share <= 1
        ]
        if not self.weight_power >= 0:
            problems.append(f"weight_power {self.weight_power}: 0 (alike at every level) or more")
        if not self.weight_cap >= 1:
            problems.append(f"weight_cap {self.weight_cap}: 1 or more")
        if self.weight_cap != CAP and not self.weight_power:
            problems.append(f"weight_cap {self.weight_cap}: of weights, and there are none without weight_power")
        if not self.features >= 0:
            problems.append(f"features {self.features}: a weight, 0 or more")
        if not 0 <= self.fade <= MOST_FADE:
            problems.append(f"fade {self.fade}: from 0 to {MOST_FADE}, so that the hybrid learns alone at the end")
        if self.micro_batch is not None and self.micro_batch < 1:
            problems.append(f"micro_batch {self.micro_batch}: at least 1")
        if not 0 <= self.label_dropout < 1:
            problems.append(f"label_dropout {self.label_dropout}: from 0 to below 1")
        if self.precision not in PRECISIONS:
            problems.append(f"precision {self.precision!r}: {' or '.join(PRECISIONS)}")
        if problems:
            raise ValueError("; ".join(problems))

    def share(self, step: int) -> float:
        """The teacher's share at step ``step`` (from 0)."""
        first, last = self.teacher_share
        return first + (last - first) * step / max(1, self.loop.steps - 1)

    def faded(self, step: int) -> float:
        """The share that what was replaced has in its site's output at step ``step`` (from 0)."""
        return max(0.0, 1 - (step + 1) / (self.fade * self.loop.steps)) if self.fade else 0.0


def match_teacher(
    student: torch.Tensor,
    teacher: torch.Tensor,
    channels: int,
    variance_weight: float,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Squared distance of two outputs (B, C or 2C, H, W): of the noise and, where it is learned, of the variance.

    weights: (B, 1, 1, 1), of the noise's; all 1 by default.
    """
    error = (student.float() - teacher.float()).square()
    noise = error[:, :channels]
    losses = {"teacher_noise": (noise if weights is None else noise * weights).mean()}
    if error.shape[1] == 2 * channels:
        losses["teacher_variance"] = variance_weight * error[:, channels:].mean()
    return losses


@contextmanager
def fading(switches: Mapping[Switch, nn.Module]) -> Iterator[None]:
    """While open, each switch has what it replaced at hand, by its fade: a copy of what learns, which no step moves."""
    for switch, original in switches.items():
        learns = any(parameter.requires_grad for parameter in original.parameters())
        switch.fading = (copy.deepcopy(original).requires_grad_(False).eval() if learns else original,)
    try:
        yield
    finally:
        for switch in switches:
            switch.fade, switch.fading = 0.0, ()


@contextmanager
def checkpointed(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """While open, the blocks of a diffusers ``model`` keep their inputs alone and run again in the backward pass;
    afterwards they do as before, whether or not that was checkpointing of the caller's own.

    Raises ValueError for a model that cannot.
    """
    host: Any = model
    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise ValueError(f"checkpointing: {type(model).__name__} is no diffusers model with gradient checkpointing")

    def again(block: nn.Module, *inputs: Any) -> Any:
        # The backward pass runs outside of the step's autocast: what is computed again must be computed alike.
        def contexts() -> Any:
            return nullcontext(), autocast(device, precision)

        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    theirs = [(m, {n: getattr(m, n, None) for n in names}) for m in model.modules() if hasattr(m, names[0])]
    host.enable_gradient_checkpointing(again)
    try:
        yield
    finally:
        for module, before in theirs:
            vars(module).update(before)


def _refuse_shared(handle: Grafted) -> None:
    """Weights of the teacher that trained along would be the teacher no more, and no delta would hold them."""
    if handle.private:
        return
    mine = {id(parameter) for parameter in handle.new()}
    shared = [name for name, p in handle.model.named_parameters() if p.requires_grad and id(p) not in mine]
    if shared:
        raise ValueError(
            f"{shared[0]} and {len(shared) - 1} more weights belong to the teacher inside this graft too: train "
            "handle.own_copy().model, or the operators alone after handle.train_grafted()"
        )


def finetune(
    model: nn.Module,
    student: Denoiser,
    teacher: Denoiser | None,
    *,
    batches: Callable[[int], Mapping[str, Any]],
    null: Any,
    config: FinetuneConfig,
    out: Path | str | None = None,
    diffusion: Schedule | None = None,
    team: Team | None = None,
    pairs: Pairs = (),
    replaced: Mapping[Switch, nn.Module] | None = None,
    depends: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Loop:
    """Train the parameters of ``model`` that require a gradient; leave their EMA in the model.

    student, teacher: (z_t, t, y) to outputs (B, C or 2C, H, W); the student's run through ``model``. The model, and
    either where it is a module, is in evaluation mode meanwhile; another model that a function closes over is the
    caller's to put there. batches: batch(step) giving ``z`` (B, C, H, W) and ``y``, as :mod:`grafting.conditions` has
    it. null: what stands for a dropped condition, a class or a dictionary of one row. out: a folder for state and log;
    a run found there is continued to the same bits, one of other settings refused. team: the processes that share the
    work; alone on the model's device by default. pairs: (student's, teacher's) blocks in the order in which they run,
    whose outputs are matched where the settings give ``features`` a weight. diffusion: by default what the model was
    taught under. replaced: by switch of the student what it stands for, which fades out where the settings say so.
    depends: what else the bits follow from, as plain JSON data, such as what ``batches`` are of. progress: called with
    (done, of all) steps by the process that leads, in the place of a line on standard error.

    Raises ValueError where the settings need a teacher, pairs or what was replaced and none are given, weights that a
    graft shares with its teacher would train, a flow's error would be weighted by level, the model is in float16 or the
    precision another than that of weights in bfloat16, or ``out`` holds a run of other settings, of another graft or
    that began from other weights: a caller's own start must be the same each time.
    """
    if teacher is None and any(config.teacher_share):
        raise ValueError(
            f"teacher_share {config.teacher_share} needs a teacher: give one, or (0, 0) for the noise alone"
        )
    if config.features and any(config.teacher_share) and not pairs:
        raise ValueError(f"features {config.features} needs pairs of blocks to match: give them, or features 0")
    if config.fade and replaced is None:
        raise ValueError(f"fade {config.fade} needs what was replaced, by switch: give it, or fade 0")
    refuse_float16(model)
    handle = handle_of(model)
    if handle is not None:
        _refuse_shared(handle)
    switches = replaced if config.fade and replaced else {}
    watched = pairs if config.features else ()
    read = host_for(model).streams if watched else plain
    schedule = diffusion or schedule_of(model)
    workers = team or Team(device=next(model.parameters()).device)
    shares = schedule.level_shares(config.levels)
    weights = schedule.level_weights(config.weight_cap, config.weight_power) if config.weight_power else None

    def losses(step: int) -> Iterator[dict[str, torch.Tensor]]:
        batch, share = batches(step), config.share(step)
        for switch in switches:
            switch.fade = config.faded(step)
        noise, t = draw(batch["z"].shape, schedule, config.seed, step, shares)
        y = drop_labels(batch["y"], config.label_dropout, null, config.seed, step)
        mine = [each(part, workers.rows) for part in (batch["z"], t, y, noise)]
        size = len(mine[0])
        most = config.micro_batch or size
        for start in range(0, size, most):
            some = [rows(part, slice(start, start + most)) for part in mine]
            found = one_pass(share, *some)
            yield {name: part * (len(some[0]) / size) for name, part in found.items()} if most < size else found

    def one_pass(
        share: float, z: torch.Tensor, t: torch.Tensor, y: Any, noise: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        parts: dict[str, torch.Tensor] = {}
        with autocast(z.device, config.precision):
            if share == 0 or teacher is None:
                return teacher_objective(student, schedule, z, t, y, noise, weights)
            zt = schedule.add_noise(z, t, noise)
            with torch.no_grad(), returned([module for _, module in watched], read) as shown:
                wanted = teacher(zt, t, y)
            with returned([module for module, _ in watched], read) as done:
                given = student(zt, t, y)
            weighed = None if weights is None else schedule.at(weights, t, z)
            matched = match_teacher(given, wanted, z.shape[1], config.variance_weight, weighed)
            if watched:
                matched["features"] = config.features * match_features(done, shown, workers)
            parts |= {name: share * part for name, part in matched.items()}
            if share < 1:
                own = teacher_objective(lambda *_: given, schedule, z, t, y, noise, weights)
                parts |= {name: (1 - share) * part for name, part in own.items()}
        return parts

    how = ("loop", "checkpointing")  # compared by the loop itself; the same gradients either way
    later = {f.name: f.default for f in fields(config) if f.name in LATER}
    told = {k: v for k, v in asdict(config).items() if k not in how and (k not in later or v != later[k])}
    depends = told | dict(depends or {}) | {"null": null_identity(null), "schedule": repr(schedule)}
    depends |= {"weights": "bf16"} if in_half(model) else {}
    if handle is not None:
        depends["graft"] = f"{handle.plan.digest} {handle.source_hash}"
        if handle.adapters is not None:
            depends["lora"] = asdict(handle.adapters.settings)
    loop = Loop(model, losses, config.loop, None if out is None else Path(out), "finetune", workers, depends, progress)
    refuse_mixed(model, config.precision)
    loop.start = None if out is None else began(loop.parameters)  # the first process's, which all have by now
    parts = (model,) if handle is None else handle.parts()
    lean = checkpointed(model, workers.device, config.precision) if config.checkpointing else nullcontext()
    with evaluating(*parts, student, teacher), lean, fading(switches):
        loop.run()
    loop.use_ema()
    loop.release()
    return loop
