"""Searched plans looked at whole, before any training: what they lose, and in what time they run.

A search adds up swaps that were looked at one by one, of loss and of latency. Here a plan is made as a study would
begin it, and measured beside the pretrained model: its loss on other triples than those that chose it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from math import prod
from pathlib import Path

import torch
from torch import nn

from ..conditions import rows
from ..graft import Grafted, ungraft
from ..hosts import host_for
from ..hosts.registry import schedule_of
from ..initialise import start_versions
from ..measure.denoising import Triples, denoising_losses, paired_difference
from ..measure.speed import latency
from ..progress import Progress
from ..store.models import Model
from ..study.material import Material
from ..study.parts import kept, key_of, part
from ..study.stages import begin, denoiser
from .costs import Side, grid_of, whole_pass
from .find import Found, Measured
from .scores import Scoring, settings_of


def spread(plans: Sequence[Found], count: int) -> list[int]:
    """Places of at most ``count`` plans of a front, evenly spaced, the first and the last among them."""
    count = min(count, len(plans))
    return sorted({round(k * (len(plans) - 1) / max(1, count - 1)) for k in range(count)})


def checked(
    model: Model,
    plans: Iterable[Found],
    out: Path,
    *,
    scoring: Scoring | None = None,
    data: Path | str | None = None,
    side: Side | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[Found]:
    """The same plans with what was :class:`~grafting.searching.find.Measured`; the model is as before.

    The held-out images are those that no score was of, where there are as many. Losses are kept in ``out/checked``, by
    a plan's edits; times, where latency is what was searched under, are not, and are of ``batch`` samples of the grid
    of ``side``. A plan that is bound to its number of tokens is timed at that alone.

    Raises ModelError where there are no images.
    """
    scoring, listed = scoring or Scoring(), list(plans)
    if not listed:
        return []
    material, network = Material(model, data), model.transformer
    z, y = material.latents(train=False), material.conditions(train=False)
    unseen = slice(scoring.triples if len(z) >= 2 * scoring.triples else 0, len(z))
    seed, schedule = scoring.seed + 1, schedule_of(network)
    triples = Triples.draw(z[unseen], rows(y, unseen), n=scoring.triples, seed=seed, schedule=schedule)
    theirs: list[torch.Tensor] = []
    shared = settings_of(scoring, model, material)
    found = []
    for done, one in enumerate(listed):
        settings = shared | start_versions(one.plan.edits, "solve") | {"plan": one.plan.to_dict()["edits"]}
        path, share = out / "checked" / f"{key_of(settings)[:16]}.json", None
        loss = kept(path, settings)
        if loss is None or one.cost == "latency":
            if loss is None and not theirs:
                theirs.append(denoising_losses(denoiser(network), triples, batch_size=scoring.batch))
            handle = begin(
                network, one.plan, material, init="solve", seed=scoring.seed, calibration=scoring.calibration
            )
            try:
                if loss is None:
                    mine = denoising_losses(denoiser(network), triples, batch_size=scoring.batch)
                    apart = asdict(paired_difference(mine, theirs[0], triples.image))
                    loss = part(path, settings, lambda apart=apart: apart)  # type: ignore[misc]
                share = _time(handle, side, batch) if one.cost == "latency" else None
            finally:
                ungraft(network)
        found.append(replace(one, measured=Measured(**loss, share=share)))
        if progress is not None:
            progress(done + 1, len(listed))
    return found


def _time(handle: Grafted, side: Side | None, batch: int) -> float | None:
    """Of a pass, over the pretrained model's, timed in turn; None where it does not run at that many tokens."""
    model: nn.Module = handle.model
    own = host_for(model).grid_of(model)
    grid = grid_of(side) or own
    if handle.tied and prod(grid) != prod(own):
        return None
    run = whole_pass(model, grid, batch)

    def timed(teacher: bool) -> Callable[[], None]:
        def call() -> None:
            with handle.teacher() if teacher else nullcontext():
                run()

        return call

    times = latency(
        {"pretrained": timed(True), "plan": timed(False)}, rounds=10, device=next(model.parameters()).device
    )
    return times["plan"].minimum / times["pretrained"].minimum
