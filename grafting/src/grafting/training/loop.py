"""The loop that pretraining and finetuning share: steps, warm-up, clipping, EMA, log, exact resume.

A run's folder holds ``state-STEP.safetensors`` (weights, EMA, optimiser moments), ``log.jsonl`` and ``state.json`` (the
step, written last). Everything random is drawn from counters by step, so a run killed at any moment and started again
gives the bits that an uninterrupted run gives (same machine, same thread count).
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_text_atomic
from ..progress import Progress, ProgressLine
from .muon import Muon, hidden_matrices
from .state import Start, load_state, read_manifest, save_state
from .team import Team

KIND = "state"
"""Of the files of a run's state: :mod:`grafting.training.state`."""
StepLosses = Callable[[int], Mapping[str, torch.Tensor] | Iterable[Mapping[str, torch.Tensor]]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast. ``warmup`` and ``ema_horizon`` are shares of the steps, so short runs scale by themselves.

    ema: decay per step; the horizon 1/(1 - decay) is cut to ``ema_horizon`` of the run, and early steps use
    (1 + step)/(10 + step) where that is smaller. schedule: ``cosine`` to a hundredth of ``lr``, or ``constant``.
    optimizer: ``adamw``, or ``muon`` for the matrices of attention, MLPs and the projection of captions, AdamW for the
    rest (:mod:`grafting.training.muon`).
    """

    steps: int
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float | None = 1.0
    ema: float = 0.999
    ema_horizon: float = 0.1
    save_every: int = 500
    log_every: int = 25
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        problems = []
        if self.steps < 1:
            problems.append(f"steps {self.steps}: at least 1")
        if not self.lr > 0:
            problems.append(f"lr {self.lr}: above 0")
        if self.schedule not in ("cosine", "constant"):
            problems.append(f"schedule {self.schedule!r}: cosine or constant")
        if self.optimizer not in ("adamw", "muon"):
            problems.append(f"optimizer {self.optimizer!r}: adamw or muon")
        if not 0 <= self.ema < 1:
            problems.append(f"ema {self.ema}: from 0 to below 1")
        if not 0 <= self.warmup < 1:
            problems.append(f"warmup {self.warmup}: a share of the steps, from 0 to below 1")
        if not 0 < self.ema_horizon <= 1:
            problems.append(f"ema_horizon {self.ema_horizon}: a share of the steps, above 0 to 1")
        if not self.weight_decay >= 0:
            problems.append(f"weight_decay {self.weight_decay}: 0 or more")
        if self.clip is not None and not self.clip > 0:
            problems.append(f"clip {self.clip}: above 0, or none")
        problems += [f"{n} {getattr(self, n)}: at least 1" for n in ("save_every", "log_every") if getattr(self, n) < 1]
        if problems:
            raise ValueError("; ".join(problems))

    def rate(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0)."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        progress = (step - warm) / max(1, self.steps - warm)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def decay(self, step: int) -> float:
        """EMA decay of step ``step`` (from 0)."""
        horizon = max(1.0, self.ema_horizon * self.steps)
        return min(self.ema, 1 - 1 / horizon, (1 + step) / (10 + step))


def refuse_infinite(label: str, step: int, loss: torch.Tensor, norm: torch.Tensor) -> float:
    """The loss as a number, after one look at the device. Raises FloatingPointError where it or the gradient's norm is
    none that a step could be taken by."""
    found = dict(zip(("loss", "gradient"), torch.stack([loss, norm]).tolist(), strict=True))
    for what, value in found.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{label}: the {what} is {value} at step {step}: try a lower lr")
    return found["loss"]


def refuse_half(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError for parameters below float32, in which the steps of a finetuning would round away."""
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} is {kind}: train a model in float32 (model.float()), or what is new in float32 beside weights "
                "in bfloat16 that do not learn (graft(..., dtype=torch.float32)); precision bf16 is for passes"
            )


def _optimizers(
    model: nn.Module, parameters: Iterable[nn.Parameter], config: LoopConfig
) -> list[torch.optim.Optimizer]:
    """One, or two that share the parameters out between them. Raises ValueError where Muon would have none."""
    matrices = hidden_matrices(model) if config.optimizer == "muon" else set()
    if config.optimizer == "muon" and not matrices:
        raise ValueError("optimizer muon: the model trains no matrix of a transformer's blocks; give adamw")
    kept = list(parameters)
    inside, rest = [p for p in kept if p in matrices], [p for p in kept if p not in matrices]
    made: list[torch.optim.Optimizer] = []
    if inside:
        made.append(Muon(inside, config.lr, weight_decay=config.weight_decay))
    if rest:
        made.append(
            torch.optim.AdamW(rest, config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        )
    return made


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back so that no step is cut in half; the function given says whether it came.

    SIGTERM, by which a cluster takes its machine back, is held as well, however often it comes: launchers pass it on.
    A second Ctrl-C interrupts at once. Outside the main thread, where signals cannot be handled, nothing is held back.
    """
    asked = False

    def hold(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Loop:
    """Train ``model``'s parameters that require a gradient; keep an EMA of them in ``self.ema``.

    losses(step) returns the named parts of the training loss; their sum is minimised. Where it yields several such, one
    for each part of a batch, their gradients add up, and only one pass is held at a time. With a ``team`` of several
    processes each computes them on its own rows of the batch, and gradients are averaged. With ``out`` the state is
    saved there every ``save_every`` steps, at the end and on Ctrl-C, and a run found there is continued. depends: what
    else the bits follow from, as plain JSON data; a run found there that depends on anything else is refused, and so is
    one of another ``start`` where that is set before the run. progress: called with (done, of all) steps by the process
    that leads, in the place of a line on standard error.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: StepLosses,
        config: LoopConfig,
        out: Path | None,
        label: str,
        team: Team | None = None,
        depends: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.losses, self.config, self.out, self.label = model, losses, config, out, label
        self.progress = progress
        self.depends = dict(depends or {})
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("nothing to train: no parameter requires a gradient")
        refuse_half(self.parameters)
        self.team = team or Team(device=next(iter(self.parameters.values())).device)
        with torch.no_grad():
            self.team.share(self.parameters.values())
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizers = _optimizers(model, self.parameters.values(), config)
        self.start: Start | None = None
        self.step = 0
        self.whole = True  # false while a step is being written into weights and moments
        self.log: list[dict[str, float]] = []

    def run(self, until: int | None = None) -> None:
        """Train up to step ``until`` (default: the configured number)."""
        self._resume()
        for optimizer in self.optimizers:  # of what a training of these weights that was cut within a step left behind
            optimizer.zero_grad(set_to_none=True)
        last = min(until or self.config.steps, self.config.steps)
        line = ProgressLine(self.config.steps, self.step, self.label)
        try:
            with deferred_interrupt() as interrupted:
                while self.step < last:
                    self._advance()
                    if self.team.leads and self.progress is not None:
                        self.progress(self.step, self.config.steps)
                    elif self.team.leads:
                        line.show(self.step, f"loss {self.log[-1]['loss']:.4f}" if self.log else "")
                    if self.team.any(interrupted()):
                        raise KeyboardInterrupt
                    if self.out and self.step % self.config.save_every == 0 and self.step < last:
                        self.save()
        except KeyboardInterrupt:
            if self.whole:
                self.save()
            where = f": saved in {self.out}; the same command continues" if self.out and self.whole else ""
            if self.team.leads:
                print(f"\n{self.label} stopped after step {self.step}{where}", file=sys.stderr)
            raise
        self.save()

    def _advance(self) -> None:
        found = self.losses(self.step)
        shown, parts = torch.zeros(()), list[str]()
        for part in [found] if isinstance(found, Mapping) else found:
            values = torch.stack([value.float() for value in part.values()])
            values.sum().backward()
            told = torch.cat([values.detach().sum()[None], values.detach()])
            shown, parts = (shown + told if parts else told), list(part)
        self.team.average([shown, *(p.grad for p in self.parameters.values() if p.grad is not None)])
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip or math.inf)
        refuse_infinite(self.label, self.step, shown[0], norm)
        self.whole = False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.rate(self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = self.config.decay(self.step)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)
        self.step += 1
        self.whole = True
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            row = {"step": self.step, "loss": shown[0].item(), "grad_norm": float(norm)}
            self.log.append(row | dict(zip(parts, shown[1:].tolist(), strict=True)))

    def save(self) -> None:
        """Write the whole state, its log first."""
        if self.out is None or not self.team.leads:
            self.team.wait()
            return
        now, averaged = self._weights()
        tensors = now | averaged
        for name, p in self.parameters.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    tensors[f"optimizer/{key}/{name}"] = value
        write_text_atomic(self.out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.log))
        state = {"step": self.step, "config": asdict(self.config), "depends": self.depends}
        save_state(self.out, KIND, tensors, state | ({} if self.start is None else {"start": self.start}))
        self.team.wait()

    def _weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """By their names in a state, the weights and their averages."""
        now = {f"model/{name}": p.detach() for name, p in self.parameters.items()}
        return now, {f"ema/{name}": p for name, p in self.ema.items()}

    @torch.no_grad()
    def _resume(self) -> None:
        state = read_manifest(self.out, KIND)
        if self.out is None or state is None:
            return
        wanted = self._weights()
        tensors = load_state(self.out, state, self.config, self.depends, self.start, wanted)
        places = wanted[0] | wanted[1]
        for key, value in places.items():
            value.copy_(tensors[key])
        for key in tensors.keys() - places.keys():
            _, moment, name = key.split("/", 2)
            p = self.parameters[name]
            (mine,) = (one for one in self.optimizers if any(p is q for q in one.param_groups[0]["params"]))
            mine.state[p][moment] = tensors[key].to(p.device)
        self.step, self.start = state["step"], state.get("start")  # the run's, wherever this process went on from
        lines = (self.out / "log.jsonl").read_text().splitlines()
        self.log = [row for row in map(json.loads, lines) if row["step"] <= self.step]

    def use_ema(self) -> None:
        """Put the averaged weights into the model."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.ema[name])

    def release(self) -> None:
        """Let go of the averages and the optimisers' moments, three times the weights, once training is over."""
        self.ema, self.optimizers = {}, []
