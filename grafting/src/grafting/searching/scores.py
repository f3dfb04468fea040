"""How much each operator costs in quality at each site, before any training: two predictors, from a solved start.

``loss``: by how much the held-out denoising loss grows when that one site alone is swapped, paired over fixed triples.
``carried``: the operator's squared error at the site on held-out activations, weighted by the gate through which it
enters the residual stream, relative to the mean square of that stream after the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..activations import Streams, visit_spans
from ..conditions import to
from ..graft import Grafted, ungraft
from ..hashes import tensors_hash
from ..hosts import Site
from ..hosts.registry import schedule_of
from ..initialise import start_versions
from ..measure.denoising import Triples, denoising_losses, paired_difference
from ..modes import evaluating
from ..progress import Progress
from ..store.folder import beside_weights
from ..store.models import Model
from ..study.material import Material
from ..study.parts import part
from ..study.stages import begin, denoiser
from .candidates import Candidate
from .solve import SearchError

VERSION = 1
"""Of the predictors' definitions: scores of another one are found again."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One operator at one site. low, high: the 95 % interval of ``loss`` over triples."""

    block: int
    kind: str
    candidate: str
    loss: float
    low: float
    high: float
    carried: float

    @property
    def site(self) -> Site:
        return Site(self.block, self.kind)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What scores depend on. triples: of the held-out loss; calibration: samples that the solved start sees."""

    triples: int = 256
    calibration: int = 256
    seed: int = 0
    batch: int = 128

    def __post_init__(self) -> None:
        if self.triples < 2 or self.calibration < 1 or self.batch < 1:
            raise SearchError(
                f"triples {self.triples}, calibration {self.calibration}, batch {self.batch}: at least 2, 1 and 1"
            )


def settings_of(scoring: Scoring, model: Model, material: Material) -> dict[str, Any]:
    """What scores and checks of one model have in common, as plain data; the batch changes nothing beyond rounding."""
    return {
        "version": VERSION,
        "teacher": tensors_hash(model.transformer.state_dict()),
        **beside_weights(model.transformer),
        "material": material.identity,
        "triples": scoring.triples,
        "calibration": scoring.calibration,
        "seed": scoring.seed,
    }


def score(
    model: Model,
    operators: Sequence[Candidate],
    out: Path,
    *,
    scoring: Scoring | None = None,
    data: Path | str | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Every operator at every site of its kind; each operator's scores are kept in ``out/scores``, and found once.

    Scores of the same settings that lie beside a bundled teacher are taken. The model is the same afterwards. Raises
    SearchError for a grafted model, ModelError where there are no images.
    """
    scoring = scoring or Scoring()
    if model.graft is not None:
        raise SearchError(f"{model.name} is grafted already: search the pretrained model")
    material, network = Material(model, data), model.transformer
    for one in operators:
        one.plan("all").check(network).raise_if_any()
    shared = settings_of(scoring, model, material)
    triples: list[Triples] = []
    losses: list[torch.Tensor] = []

    def drawn() -> Triples:
        if not triples:
            z, y = material.latents(train=False), material.conditions(train=False)
            seen = Triples.draw(z, y, n=scoring.triples, seed=scoring.seed, schedule=schedule_of(network))
            triples.append(seen)
            losses.append(denoising_losses(denoiser(network), triples[0], batch_size=scoring.batch))
        return triples[0]

    found: list[Score] = []
    for done, one in enumerate(operators):

        def make(one: Candidate = one) -> dict[str, Any]:
            held = drawn()
            handle = begin(
                network,
                one.plan("all"),
                material,
                init="solve",
                seed=scoring.seed,
                calibration=scoring.calibration,
            )
            try:
                return {"scores": [asdict(s) for s in _scores(handle, one, held, losses[0], scoring.batch)]}
            finally:
                ungraft(network)

        settings = (
            shared
            | start_versions([one], "solve")
            | {"kind": one.kind, "operator": one.operator, "options": dict(one.options)}
        )
        path = out / "scores" / f"{one.kind}-{one.name.replace(':', '-')}.json"
        kept = part(path, settings, make, model.folder and model.folder / "scores")
        found += [Score(**entry) for entry in kept["scores"]]
        if progress is not None:
            progress(done + 1, len(operators))
    return found


def _scores(handle: Grafted, one: Candidate, held: Triples, teacher: torch.Tensor, batch: int) -> Iterator[Score]:
    carried = carried_errors(handle, held, batch_size=batch)
    for site in sorted(handle.switches):
        with only(handle, site):
            losses = denoising_losses(denoiser(handle.model), held, batch_size=batch)
        change = paired_difference(losses, teacher, held.image)
        assert change.low is not None and change.high is not None
        yield Score(
            block=site.block,
            kind=site.kind,
            candidate=one.name,
            loss=change.value,
            low=change.low,
            high=change.high,
            carried=carried[site],
        )


@contextmanager
def only(handle: Grafted, site: Site) -> Iterator[None]:
    """While open, the operator of this site runs, and the original of every other one."""
    with handle.teacher():
        handle.switches[site].grafted = True
        yield


@torch.no_grad()
def carried_errors(handle: Grafted, held: Triples, *, batch_size: int = 128) -> dict[Site, float]:
    """By site, sum of (gate x error)^2 over that of the residual stream after the block, of one teacher pass; in the
    tokens of the picture."""
    host, model, diffusion = handle.host, handle.model, schedule_of(handle.model)
    device = next(model.parameters()).device
    errors = dict.fromkeys(handle.switches, 0.0)
    streams = dict.fromkeys(range(len(host.blocks(model))), 0.0)
    gates: dict[Site, torch.Tensor] = {}

    def at_site(site: Any, inputs: torch.Tensor, outputs: Streams, call: Mapping[str, Any]) -> None:
        switch = handle.switches[site]
        given, *_ = host.streams(switch, switch.stand_in(inputs, **call))
        error = gates[site][:, :1] * (given - outputs[0])
        errors[site] += error.double().square().sum().item()

    def after_block(block: int, _: torch.Tensor, outputs: Streams, call: Mapping[str, Any]) -> None:
        streams[block] += outputs[0].double().square().sum().item()

    with ExitStack() as stack:
        stack.enter_context(handle.teacher())
        stack.enter_context(evaluating(model))  # labels are not dropped
        sites = {site: ((switch, switch),) for site, switch in handle.switches.items()}
        blocks = {number: ((block, block),) for number, block in enumerate(host.blocks(model))}
        stack.enter_context(visit_spans(sites, at_site, host.streams))
        stack.enter_context(visit_spans(blocks, after_block, host.streams))
        for start in range(0, len(held), batch_size):
            part = slice(start, start + batch_size)
            z, y, t, noise = (to(x, device) for x in (held.z[part], held.asked(part), held.t[part], held.noise[part]))
            gates.update(host.gates(model, z, t, y))
            host.call(model, diffusion.add_noise(z, t, noise), t, y)
    return {site: error / streams[site.block] for site, error in errors.items()}
