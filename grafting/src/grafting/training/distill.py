"""Stage 1, activation distillation: every new operator learns to imitate the one it replaces, all in one teacher pass.

L = E over t, (z, c), z_t of reg(g(h), f(h)), with h the site's input inside the teacher (arXiv 2506.05340). A hook at
each site computes its loss, its gradient and its optimiser step while the teacher's pass waits there, so activation
memory grows with the largest site and not with their number, and nothing is written to disk but the state.

Everything random is drawn from counters by step: a run killed at any moment and started again gives the same bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..activations import Streams, visit_spans
from ..conditions import each
from ..diffusion import Levels, Schedule, draw, drop_labels
from ..graft import Answered, null_identity
from ..hosts import Site
from ..hosts.registry import schedule_of
from ..initialise import explained, start_versions
from ..modes import evaluating
from ..precision import PRECISIONS, autocast, in_half, refuse_float16, refuse_mixed
from ..progress import Progress, ProgressLine
from .distill_state import load_learners, save_learners
from .loop import deferred_interrupt, refuse_half, refuse_infinite
from .state import began
from .team import Team

if TYPE_CHECKING:
    from ..graft import Grafted

LOSSES = ("l1", "l2", "huber")
Batches = Callable[[int], Mapping[str, Any]]
Answer = Callable[[], Answered]
"""By stream what the student gives at a site or group, and what it should give; computed when called."""


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """How sites of one kind learn: learning rate, weight decay, and the distance ``l1``, ``l2`` or ``huber``."""

    lr: float
    weight_decay: float
    loss: str

    def problems(self) -> list[str]:
        """What is not allowed, in words."""
        found = [] if self.loss in LOSSES else [f"loss {self.loss!r}: one of {', '.join(LOSSES)}"]
        if not self.lr > 0:
            found.append(f"lr {self.lr}: above 0")
        if not self.weight_decay >= 0:
            found.append(f"weight_decay {self.weight_decay}: 0 or above")
        return found


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Stage 1's settings; the released ones are the defaults, their epochs turned into shares of the steps.

    warmup: share of the steps in which the rate rises linearly; a solved start needs it, which the first steps at full
    rate would undo. halve: shares of the steps that are left after the warm-up, at which the rate is halved (the paper
    has no warm-up: epochs 50, 100, 150 of 200). So the full rate is always reached, and held for a quarter of the rest.
    floor: a site stops early when its held-out error fell by less than this share over the last ``patience``
    evaluations; 0 never stops one.
    gate_weighted: weigh errors by the block's gate, that is measure what reaches the residual stream; of sites alone,
    for what groups learn is that already.
    levels: how often each noise level is drawn, in the held-out error too; None draws all alike.
    precision: of matrix products in the teacher's pass, in whose type DiT's residual stream is too, and in the
    operators, ``fp32`` or ``bf16``; errors, gradients' sums, weights and moments are float32.
    """

    steps: int
    attn: SiteConfig = SiteConfig(lr=5e-4, weight_decay=0.0, loss="l1")
    mlp: SiteConfig = SiteConfig(lr=1e-3, weight_decay=1e-5, loss="l2")
    group: SiteConfig = SiteConfig(lr=2e-4, weight_decay=0.0, loss="l2")
    clip: float = 10.0
    warmup: float = 0.1
    halve: tuple[float, ...] = (0.25, 0.5, 0.75)
    gate_weighted: bool = False
    levels: Levels | None = None
    label_dropout: float = 0.1
    evaluate_every: int = 50
    heldout_batches: int = 2
    floor: float = 0.0
    patience: int = 3
    save_every: int = 100
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [f"{kind}: {p}" for kind in ("attn", "mlp", "group") for p in getattr(self, kind).problems()]
        for name in ("steps", "evaluate_every", "heldout_batches", "patience", "save_every"):
            if getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)}: at least 1")
        if not self.clip > 0:
            problems.append(f"clip {self.clip}: above 0")
        for name in ("warmup", "label_dropout", "floor"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)}: from 0 to below 1")
        if self.precision not in PRECISIONS:
            problems.append(f"precision {self.precision!r}: {' or '.join(PRECISIONS)}")
        problems += [f"halve {share}: shares of the run, from 0 to 1" for share in self.halve if not 0 <= share <= 1]
        if problems:
            raise ValueError("; ".join(problems))

    def site(self, kind: str) -> SiteConfig:
        """The settings for sites of ``kind`` (attn or mlp), or for the groups of a restructured model."""
        return {"attn": self.attn, "mlp": self.mlp}.get(kind, self.group)

    def factor(self, step: int) -> float:
        """What multiplies the learning rate at step ``step`` (from 0)."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        return 0.5 ** sum(step - warm >= share * (self.steps - warm) for share in self.halve)


def distance(given: torch.Tensor, wanted: torch.Tensor, loss: str, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Mean distance of (B, N, D) activations; ``gate`` (B, 1, D) weighs both first. Raises ValueError, unknown loss."""
    functions: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "l1": F.l1_loss,
        "l2": F.mse_loss,
        "huber": F.huber_loss,
    }
    if loss not in functions:
        raise ValueError(f"loss {loss!r}: one of {', '.join(LOSSES)}")
    given, wanted = given.float(), wanted.float()
    if gate is not None:
        given, wanted = gate.float() * given, gate.float() * wanted
    return functions[loss](given, wanted)


def distances(answered: Answered, loss: str, gate: torch.Tensor | None = None) -> torch.Tensor:
    """:func:`distance` of every stream, the picture's and the text's, added up; ``gate`` (B, S, D) has a row each."""
    gates = [None] * len(answered) if gate is None else gate.split(1, dim=1)
    return torch.stack([distance(*pair, loss, own) for pair, own in zip(answered, gates, strict=True)]).sum()


@dataclass(kw_only=True)
class Learner:
    """One site's or group's training: its parameters, optimiser, curve, and the best weights so far.

    curve: (step, training loss). heldout: (step, loss, share of variance explained) on fixed held-out draws.
    """

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    settings: SiteConfig
    best: dict[str, torch.Tensor]
    best_loss: float = math.inf
    best_step: int = 0
    stopped: int | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    heldout: list[tuple[int, float, float]] = field(default_factory=list)

    def judge(self, step: int, loss: float, share: float, floor: float, patience: int) -> None:
        """Note a held-out error: keep the weights if it is the best, stop if the site reached its floor."""
        self.heldout.append((step, loss, share))
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            for name, parameter in self.parameters.items():
                self.best[name].copy_(parameter.detach())
        if floor > 0 and len(self.heldout) > patience:
            earlier = min(entry[1] for entry in self.heldout[:-patience])
            if self.best_loss > (1 - floor) * earlier:
                self.stopped = step


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """What one site learnt: see :class:`Learner`; ``explained`` is the held-out share of variance at the best step."""

    curve: tuple[tuple[int, float], ...]
    heldout: tuple[tuple[int, float, float], ...]
    best_step: int
    explained: float
    stopped: int | None


def distill(
    handle: Grafted,
    batches: Batches,
    null: Any,
    *,
    config: DistillConfig,
    out: Path | str | None = None,
    heldout: Batches | None = None,
    diffusion: Schedule | None = None,
    team: Team | None = None,
    depends: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, SiteReport]:
    """Teach the operators of ``handle``; leave each at its best held-out step in the model.

    batches, heldout: batch(step) giving ``z`` (B, C, H, W) and ``y``, labels (B,) or as :mod:`grafting.conditions` has
    it. Without ``heldout`` the error is measured on fresh noise over the images of ``batches``. null: what stands for a
    dropped condition, a class or a dictionary of one row. out: a folder for the state; a run found there is continued
    to the same bits. diffusion: by default what the model was taught under. team: the processes that share the work;
    alone on the model's device by default. depends: what else the bits follow from, as plain JSON data, such as what
    ``batches`` are of. progress: called with (done, of all) steps by the process that leads, in the place of a line on
    standard error. Returns a report by site name.

    Raises ValueError where no site can learn, or none has the gate that is asked for, the model is in float16 or the
    precision another than that of weights in bfloat16, or ``out`` holds a run with other settings, of another plan or
    model, or that began from other weights: a caller's own start must be the same each time.
    """
    schedule, home = diffusion or schedule_of(handle.model), None if out is None else Path(out)
    run = Distillation(handle, batches, null, config, home, heldout or batches, schedule, team, depends, progress)
    return run.run()


class Distillation:
    """The run behind :func:`distill`, step by step."""

    def __init__(
        self,
        handle: Grafted,
        batches: Batches,
        null: Any,
        config: DistillConfig,
        out: Path | None,
        heldout: Batches,
        diffusion: Schedule,
        team: Team | None = None,
        depends: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.progress = progress
        self.handle, self.batches, self.null, self.config = handle, batches, null, config
        self.out, self.heldout, self.diffusion = out, heldout, diffusion
        self.shares = diffusion.level_shares(config.levels)
        self.team = team or Team(device=next(handle.model.parameters()).device)
        self.depends: dict[str, Any] = dict(depends or {})
        self.depends |= {"plan": handle.plan.digest, "teacher": handle.source_hash, "init": handle.init}
        self.depends |= start_versions(handle.plan.edits, handle.init)
        self.depends |= {"start's seed": handle.seed, "null": null_identity(null), "schedule": repr(diffusion)}
        self.depends |= {"weights": "bf16"} if in_half(handle.model) else {}
        self.step = 0
        self.whole = True  # false while a step is being written into weights and moments
        refuse_float16(handle.model)
        handle.train_grafted()
        self.learners: dict[Any, Learner] = {}
        for site, parameters in handle.learnable().items():
            settings = config.site(site.kind)
            refuse_half(parameters)
            with torch.no_grad():
                self.team.share(parameters.values())
            self.learners[site] = Learner(
                parameters=parameters,
                optimizer=torch.optim.AdamW(
                    parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
                ),
                settings=settings,
                best={name: p.detach().clone() for name, p in parameters.items()},
            )
        if not self.learners:
            raise ValueError("nothing to distil: no site or group of this plan has weights to learn")
        refuse_mixed(handle.model, config.precision)
        if config.gate_weighted and not any(isinstance(site, Site) for site in self.learners):
            raise ValueError(
                "gate_weighted: no site of this plan has weights to learn, and groups, which learn the update of the "
                "residual stream itself, have no gate; give gate_weighted false"
            )
        weights = {
            f"{site.name}.{name}": p for site, one in self.learners.items() for name, p in one.parameters.items()
        }
        self.start = None if out is None else began(weights)

    def run(self) -> dict[str, SiteReport]:
        """Train to the last step, or until every site has stopped; the model is in evaluation mode meanwhile."""
        with evaluating(*self.handle.parts()):
            self._run()
        return self._finish()

    def _run(self) -> None:
        if self.out is not None:
            self.step, self.start = load_learners(self.out, self.learners, self.config, self.depends, self.start)
        if self.step == 0 and not all(learner.heldout for learner in self.learners.values()):
            self._evaluate()
        line = ProgressLine(self.config.steps, self.step, "distill")
        try:
            with deferred_interrupt() as interrupted:
                while self.step < self.config.steps and self._active():
                    self._advance()
                    share = sum(learner.heldout[-1][2] for learner in self.learners.values()) / len(self.learners)
                    if self.team.leads and self.progress is not None:
                        self.progress(self.step, self.config.steps)
                    elif self.team.leads:
                        line.show(self.step, f"{len(self._active())} sites learn, mean explained {share:.3f}")
                    if self.team.any(interrupted()):
                        raise KeyboardInterrupt
                    if self.step % self.config.save_every == 0:
                        self._save()
        except KeyboardInterrupt:
            if self.whole:
                self._save()
            where = f": saved in {self.out}; the same command continues" if self.out and self.whole else ""
            if self.team.leads:
                print(f"\ndistill stopped after step {self.step}{where}", file=sys.stderr)
            raise
        self._save()

    def _active(self) -> dict[Any, Learner]:
        return {site: learner for site, learner in self.learners.items() if learner.stopped is None}

    def _advance(self) -> None:
        """One batch through the teacher; every site learns while the pass stands at it."""
        batch = self.batches(self.step)
        y = drop_labels(batch["y"], self.config.label_dropout, self.null, self.config.seed, self.step)
        factor = self.config.factor(self.step)

        def learn(site: Any, answer: Answer, gate: torch.Tensor | None) -> None:
            learner = self.learners[site]
            parameters = list(learner.parameters.values())
            with torch.enable_grad():
                loss = distances(answer(), learner.settings.loss, gate)
                # Not backward: operators within a group are taught at their own sites.
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            shown = loss.detach()
            self.team.average([shown, *(gradient for gradient in gradients if gradient is not None)])
            norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
            value = refuse_infinite(site.name, self.step, shown, norm)
            for group in learner.optimizer.param_groups:
                group["lr"] = learner.settings.lr * factor
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            learner.curve.append((self.step, value))

        # Sites learn one by one and the evaluation belongs to the step: cut between them, it is no state to go on from.
        self.whole = False
        self._teach(self._active(), batch["z"], y, self.step, learn)
        self.step += 1
        if self.step % self.config.evaluate_every == 0 or self.step == self.config.steps:
            self._evaluate()
        self.whole = True

    def _evaluate(self) -> None:
        """Held-out error of every learning site on fixed draws, again in one pass per batch."""
        active = self._active()
        # By site: the loss, the squared error, and the sums over rows of the outputs and of their squares.
        sums: dict[Any, list[torch.Tensor]] = {}
        visits: dict[Any, int] = dict.fromkeys(active, 0)  # a shared block is seen at each of its places
        rows: dict[Any, int] = dict.fromkeys(active, 0)

        def measure(site: Any, answer: Answer, gate: torch.Tensor | None) -> None:
            answered = answer()
            given, outputs = answered[0]  # what is explained is said of the picture
            y = outputs.double().flatten(0, -2)
            rows[site] += len(y)
            visits[site] += 1
            loss = distances(answered, self.learners[site].settings.loss, gate).double()
            error = (given.double() - outputs.double()).square().sum()
            parts = (loss, error, y.sum(0), y.square().sum(0))
            sums[site] = [a + b for a, b in zip(sums[site], parts, strict=True)] if site in sums else list(parts)

        for index in range(self.config.heldout_batches):
            batch = self.heldout(index)
            # Counters far below those of calibration: noise that neither a start nor a step has seen.
            self._teach(active, batch["z"], batch["y"], -1_000_000 - index, measure)
        for site, learner in active.items():
            # Means over the processes of sums over equally many rows: their number cancels in the share.
            self.team.average(sums[site])
            loss, error, total, square = sums[site]
            share = explained(error.item(), (square - total.square() / rows[site]).sum().item())
            mean = loss.item() / visits[site]
            learner.judge(self.step, mean, share, self.config.floor, self.config.patience)

    @torch.no_grad()
    def _teach(
        self,
        active: Mapping[Any, Learner],
        z: torch.Tensor,
        y: Any,
        counter: int,
        visitor: Callable[[Any, Answer, torch.Tensor | None], None],
    ) -> None:
        """A teacher pass over this process's part of noised ``z`` that calls ``visitor`` at every active site, with
        what the student gives there and what it should give, and the gate that weighs both."""
        handle, host = self.handle, self.handle.host
        noise, t = draw(z.shape, self.diffusion, self.config.seed, counter, self.shares)
        z, y, noise, t = (each(part, self.team.rows) for part in (z, y, noise, t))
        zt = self.diffusion.add_noise(z, t, noise)
        pupils = handle.pupils()

        def at_site(site: Any, inputs: torch.Tensor, outputs: Streams, call: Mapping[str, Any]) -> None:
            visitor(site, lambda: pupils[site].answer(inputs, outputs, call), gates.get(site))

        with handle.teacher(), autocast(self.team.device, self.config.precision):
            gates = host.gates(handle.model, z, t, y) if self.config.gate_weighted else {}
            with visit_spans({site: pupils[site].spans for site in active}, at_site, host.streams):
                host.call(handle.model, zt, t, y)

    def _save(self) -> None:
        if self.out is not None and self.team.leads:
            save_learners(self.out, self.step, self.learners, self.config, self.depends, self.start)
        self.team.wait()

    def _finish(self) -> dict[str, SiteReport]:
        reports = {}
        for site, learner in self.learners.items():
            with torch.no_grad():
                for name, parameter in learner.parameters.items():
                    parameter.copy_(learner.best[name])
            at_best = next(share for step, _, share in learner.heldout if step == learner.best_step)
            reports[site.name] = SiteReport(
                curve=tuple(learner.curve),
                heldout=tuple(learner.heldout),
                best_step=learner.best_step,
                explained=at_best,
                stopped=learner.stopped,
            )
        return reports
