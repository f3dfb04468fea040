"""What an analysis suggests: blocks whose attention is most local first, and a loss for stage 1 at each site.

The rule for the loss follows from what stage 1 minimises (section 2 of arXiv 2506.05340: deep layers have heavy-tailed
activations, so the loss matters). A squared error is the likelihood of Gaussian deviations, excess kurtosis 0; an
absolute one of Laplace's, excess kurtosis 3; Huber's lies between. A loss that a site does not ask for wastes samples:
of Gaussian deviations the absolute error's minimum needs pi/2 times as many as the squared one's to be as certain, of
Laplace's the squared one's twice as many as the absolute one's (the median's and the mean's asymptotic variances).
Both are of independent deviations of one scale; outputs are of many, and channels of unlike scale have heavy tails
together.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hosts import Site, bundled_config, bundled_configs, shape_of
from ..hosts.shapes import Kind
from ..plan import Plan, PlanError
from ..store.configs import config_of
from ..teachers import teacher_folder, teachers
from .activations import Spread
from .analysis import Analysis, AnalysisError, Distance

GAUSSIAN, LAPLACE = 1.0, 3.0
"""Excess kurtosis below which L2 is suggested, and from which on L1 is; Huber's loss between, if it differs from L2."""
FAR = 2.0
"""Standard deviations beyond which an error is rare."""
SHARES = (25, 50, 75)
FILE = "analysis.json"


def suggested_loss(outputs: Spread) -> str:
    """``l2``, ``huber`` or ``l1`` for a site with these outputs; ``l2`` too where nothing varies, or where Huber's
    corner is out of reach."""
    tails = outputs.kurtosis
    if tails >= LAPLACE:
        return "l1"
    return "huber" if tails >= GAUSSIAN and huber_corner(outputs) <= FAR else "l2"


def huber_corner(outputs: Spread) -> float:
    """Where Huber's loss turns from square to absolute (an error of 1), in standard deviations of the outputs.

    Errors are smaller than outputs: a corner beyond :data:`FAR` is L2 in all but name.
    """
    return 1 / math.sqrt(outputs.variance) if outputs.variance > 0 else math.inf


def risky_losses(outputs: Spread) -> tuple[str, ...]:
    """The losses that a site with these outputs is at risk with: L2 under heavy tails, and Huber's where it is nearly
    L2; L1 where there are none."""
    tails = outputs.kurtosis
    if math.isnan(tails) or GAUSSIAN <= tails < LAPLACE:
        return ()
    if tails < GAUSSIAN:
        return ("l1",)
    return ("l2", "huber") if huber_corner(outputs) > FAR else ("l2",)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """L_k of every block of a model, averaged over heads and steps; ``reach`` is k."""

    model: str
    distance: Distance
    reach: int
    values: tuple[float, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Blocks, the most local first."""
        return tuple(sorted(range(len(self.values)), key=lambda block: -self.values[block]))


def rank(analysis: Analysis, distance: Distance = "raster", k: int | None = None) -> Ranking:
    """Blocks by L_k over ``distance``. Raises AnalysisError where a block's attention was grafted away, or for a k that
    is no distance."""
    missing = sorted(set(range(analysis.depth)) - set(analysis.blocks))
    if missing:
        raise AnalysisError(f"{analysis.model}: blocks {missing} have no attention of their own left to rank")
    values = analysis.local(distance, k).mean((1, 2)).tolist()
    return Ranking(
        model=analysis.model,
        distance=distance,
        reach=analysis.reach(distance, k, of=distance),
        values=tuple(map(float, values)),
    )


def suggested_plans(ranking: Ranking, operator: str = "hyena_x") -> dict[str, str]:
    """YAML by name: the most local quarter, half and three quarters of the blocks, with their locality beside them."""
    depth, plans = len(ranking.values), {}
    for share in SHARES:
        if depth * share // 100 == 0:
            continue
        plan = Plan.most_local(ranking.values, operator=operator, share=share / 100)
        (blocks,) = (edit.blocks for edit in plan.edits)
        assert not isinstance(blocks, str)
        chosen = sorted(blocks, key=ranking.order.index)
        told = ", ".join(f"{block} {ranking.values[block]:.3f}" for block in chosen)
        named = Plan(edits=plan.edits, name=f"{operator} in the most local {share} % of {ranking.model}")
        comment = f"# L_{ranking.reach} over the {ranking.distance} by block, the most local first: {told}\n"
        plans[f"most-local-{share}"] = comment + named.to_yaml()
    return plans


def suggested_losses(analysis: Analysis) -> dict[Site, str]:
    """By site, from its outputs over all steps."""
    return {site: suggested_loss(analysis.spread(site, "output")) for site in analysis.sites}


def suggested_by_kind(losses: Mapping[Site, str]) -> dict[Kind, str]:
    """The loss that most sites of a kind ask for, as stage 1 takes one for each kind; of two the more robust."""
    order = ("l2", "huber", "l1")
    kinds = dict.fromkeys(site.kind for site in losses)
    found = {kind: Counter(loss for site, loss in losses.items() if site.kind == kind) for kind in kinds}
    return {kind: max(asked, key=lambda loss: (asked[loss], order.index(loss))) for kind, asked in found.items()}


def read_ranking(path: Path | str) -> Ranking:
    """The ranking in an ``analysis.json``, or in that of a folder. Raises AnalysisError where there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise AnalysisError(f"analysis {path}: no such file; grafting analyze writes one")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))["ranking"]
        if content is None:
            raise AnalysisError(f"{path}: an analysis of a model with grafted attention ranks no blocks")
        values = tuple(float(value) for value in content["values"])
        if not values or not all(map(math.isfinite, values)):
            raise ValueError
        return Ranking(
            model=str(content["model"]), distance=content["distance"], reach=int(content["reach"]), values=values
        )
    except AnalysisError:
        raise
    except (ValueError, KeyError, TypeError):
        raise AnalysisError(f"{path}: no ranking of blocks as grafting analyze writes it") from None


def located(
    plan: Plan, model: Path | str, analysis: Path | str | None, config: Mapping[str, Any] | None = None
) -> Plan:
    """``plan`` with ``most local P%`` and ``least local P%`` as lists of blocks of MODEL; others as they are.

    analysis: a file or folder of ``grafting analyze``; where None, what lies beside the model. config: the model's,
    where it is at hand.

    Raises:
        AnalysisError: no analysis, or one that cannot be read.
        PlanError: it is of a model with another number of blocks.
    """
    if not plan.by_locality:
        return plan
    model = str(model)
    folder = teacher_folder(model) if model in teachers() else Path(model)
    if analysis is None and not (folder / FILE).is_file():
        raise AnalysisError(
            f"a plan by locality needs an analysis, and none lies beside {model}: make one with grafting analyze, and "
            "name its file (analysis: FILE in a recipe, --analysis FILE on the command line)"
        )
    ranking = read_ranking(analysis or folder / FILE)
    if config is None:
        config = bundled_config(model) if model in bundled_configs() else config_of(model)
    shape = shape_of(config)
    if shape.depth != len(ranking.values):
        raise PlanError([f"an analysis of {len(ranking.values)} blocks ({ranking.model}); {model} has {shape.depth}"])
    return plan.located(ranking.values, shape)
