"""How a new operator starts: at random, from copied projections, or with its output projection solved.

``random`` is the paper's protocol (arXiv 2506.05340): per-site seed = base seed + block index. ``copy`` takes the
projections whose shapes fit. ``solve`` copies, then solves the last linear layer by least squares on the teacher's
activations; ``default`` is solve where calibration data are given and copy elsewhere.

Least squares needs only moments of the features and of the teacher's outputs, so samples stream through and memory
does not grow with their number. Shapes: F features, D outputs, n rows (tokens of all samples).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from .activations import Streams, as_tokens, visit_spans
from .conditions import rows, to
from .diffusion import Schedule, draw
from .hosts import Host, Site
from .joint import Joint
from .modes import evaluating
from .operators import Operator, build, get
from .plan import CONTROLS, Resolved
from .switch import Nothing

Batches = Callable[[int], Mapping[str, Any]]
"""By step, ``z`` (B, C, H, W) clean latents and their condition ``y``."""
STARTS = ("default", "random", "copy", "solve")


class Named(Protocol):
    """What names an operator, or a control."""

    @property
    def operator(self) -> str: ...


def start_versions(entries: Iterable[Named], init: str) -> dict[str, dict[str, int]]:
    """``starts``: by operator the version of what it begins with, for what is kept by the settings that it depends on;
    empty where all are of the first version. entries: of what names an operator, such as the edits of a plan."""
    operators = {entry.operator for entry in entries} - set(CONTROLS)
    versions = {name: get(name).start_version(init) for name in sorted(operators)}
    later = {name: version for name, version in versions.items() if version != 1}
    return {"starts": later} if later else {}


class Solvable(Protocol):
    """What an operator needs for its last layer to be solved."""

    @property
    def out_projection(self) -> nn.Linear: ...

    def regression(
        self, x: torch.Tensor, y: torch.Tensor, *, grid: Any, call: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Moments:
    """Float64 sums of a regression from features (n, F) to outputs (n, D), updated batch by batch."""

    def __init__(self, features: int, outputs: int, device: torch.device | str = "cpu") -> None:
        size = {"dtype": torch.float64, "device": device}
        self.gram = torch.zeros(features, features, **size)  # type: ignore[call-overload]
        self.cross = torch.zeros(features, outputs, **size)  # type: ignore[call-overload]
        self.feature_sum = torch.zeros(features, **size)  # type: ignore[call-overload]
        self.output_sum = torch.zeros(outputs, **size)  # type: ignore[call-overload]
        self.output_square = torch.zeros(outputs, **size)  # type: ignore[call-overload]
        self.rows = 0

    def add(self, features: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add rows (…, F) and (…, D)."""
        f, y = features.detach().flatten(0, -2).double(), outputs.detach().flatten(0, -2).double()
        self.gram += f.T @ f
        self.cross += f.T @ y
        self.feature_sum += f.sum(0)
        self.output_sum += y.sum(0)
        self.output_square += y.square().sum(0)
        self.rows += len(f)

    def solve(self, *, bias: bool = True, ridge: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(D, F) weight and (D,) bias of the least-squares map; ``ridge`` is relative to the features' mean variance.

        The bias is not penalised. Raises ValueError when there are no rows.
        """
        if self.rows == 0:
            raise ValueError("nothing to solve from: no activation has been added")
        gram, cross = self.gram / self.rows, self.cross / self.rows
        mean_f, mean_y = self.feature_sum / self.rows, self.output_sum / self.rows
        if bias:
            gram, cross = gram - mean_f.outer(mean_f), cross - mean_f.outer(mean_y)
        # The smallest normal number keeps the system regular where all features are constant.
        scale = gram.diagonal().mean().clamp(min=1e-30)
        system = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed:  # fewer rows than features and no ridge: the solution of smallest norm, which only a CPU computes
            weight = torch.linalg.lstsq(system.cpu(), cross.cpu(), driver="gelsd").solution.to(cross.device)
        else:
            weight = torch.cholesky_solve(cross, factor)
        return weight.T, (mean_y - weight.T @ mean_f if bias else None)

    def error(self, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
        """Sum of squared residuals over all rows and outputs of a map (D, F) and its bias (D,)."""
        w = weight.double()
        b = torch.zeros(len(w), dtype=w.dtype, device=w.device) if bias is None else bias.double()
        through = w @ self.feature_sum
        square = ((w @ self.gram) * w).sum() + 2 * (b * through).sum() + self.rows * b.square().sum()
        product = (w * self.cross.T).sum() + (b * self.output_sum).sum()
        return (self.output_square.sum() - 2 * product + square).item()

    @property
    def variance(self) -> float:
        """Sum of squares of the outputs around their means: the error of the best constant."""
        return (self.output_square - self.output_sum.square() / max(self.rows, 1)).sum().item()


def explained(error: float, variance: float) -> float:
    """Share of the outputs' variance that a squared ``error`` leaves explained; 1 is perfect, below 0 worse than the
    mean."""
    return 1 - error / variance if variance > 0 else (1.0 if error <= 0 else float("-inf"))


@torch.no_grad()
def solve_output(operator: Solvable, moments: Moments, ridge: float = 1e-6) -> float:
    """Write the solved last layer into ``operator`` where it beats the present one; return the variance explained.

    A start that is already exact (a copied attention, a wider MLP) stays as it is, bit for bit.
    """
    layer = operator.out_projection
    present = moments.error(layer.weight, layer.bias)
    weight, bias = moments.solve(bias=layer.bias is not None, ridge=ridge)
    # Judged as it is stored: the rounding to bfloat16 can undo more than was gained.
    weight, bias = weight.to(layer.weight.dtype), None if bias is None else bias.to(layer.bias.dtype)
    solved = moments.error(weight, bias)
    # A gain within float32's rounding of the outputs is no gain.
    if present - solved > 1e-6 * moments.variance:
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return explained(moments.error(layer.weight, layer.bias), moments.variance)


class SolveAll:
    """Collects the moments of every site while one teacher pass runs, then solves all sites.

    operators: by site, the new operators. One that starts as the original exactly, a copied attention or a wider MLP,
    is left alone: the moments of many features are large.
    """

    def __init__(self, operators: Mapping[Any, Solvable], grid: Any) -> None:
        self.operators, self.grid = operators, grid
        self.moments: dict[Any, Moments] = {}
        self.exact: set[Any] = set()

    @torch.no_grad()
    def __call__(self, site: Any, inputs: torch.Tensor, outputs: torch.Tensor, call: Mapping[str, Any]) -> None:
        """Add what one site was given, the picture's outputs (B, N, D), and what else it was called with."""
        if site in self.exact:
            return
        operator = self.operators[site]
        features, outputs = operator.regression(inputs, outputs, grid=self.grid, call=call)
        if site not in self.moments:
            if _equal(operator.out_projection(features), outputs):
                self.exact.add(site)
                return
            self.moments[site] = Moments(features.shape[-1], outputs.shape[-1], outputs.device)
        self.moments[site].add(features, outputs)

    def finish(self) -> dict[Any, float]:
        """Solve every site; returns the variance that each explains on the calibration activations."""
        solved = {site: solve_output(self.operators[site], moments) for site, moments in self.moments.items()}
        return {site: 1.0 if site in self.exact else solved[site] for site in self.operators}


def _solvable(module: nn.Module) -> bool:
    """Whether a stand-in has a last layer to solve; controls have none."""
    return isinstance(module, Operator) or (isinstance(module, Joint) and module.operator is not None)


def _equal(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two outputs are one but for the rounding of float32 sums."""
    return bool((given.double() - wanted.double()).square().sum() <= 1e-8 * wanted.double().square().sum())


def make_stand_in(
    host: Host,
    model: nn.Module,
    original: nn.Module,
    entry: Resolved,
    init: str,
    seed: int,
    *,
    tokens: int | None = None,
    dtype: torch.dtype | None = None,
    copied: dict[Site, bool] | None = None,
) -> nn.Module:
    """What ``entry`` puts in the place of ``original``, on its device and in its type or ``dtype``; copied from it as
    far as shapes fit, unless ``init`` is ``random``; ``tokens``: N, where it is not the model's own.

    copied: gets by site whether anything was, where it was to be. Raises ValueError where weights are packed, which
    leaves nothing to copy and no type for what is new.
    """
    like = next(original.parameters())
    if entry.operator == "none":
        return (host.fitted(entry.site.kind, None, original) or Nothing()).to(device=like.device, dtype=dtype)
    if entry.operator == "identity":
        return copy.deepcopy(original).to(dtype=dtype)
    packed = next((p.dtype for p in original.parameters() if not p.is_floating_point()), None)
    if packed is not None and (init != "random" or dtype is None):
        raise ValueError(
            f"{entry.site.name}: its weights are packed as {packed}, of which nothing can be copied: load the model "
            "unpacked, in bfloat16"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + entry.site.block)  # torch.manual_seed would set a GPU's too
        operator = build(
            entry.operator,
            width=host.width(model),
            heads=host.heads(model),
            tokens=tokens or host.tokens(model),
            **entry.options,
        )
        if init != "random":
            if entry.site.kind == "attn":
                (wq, bq, wk, bk, wv, bv), out = host.attention_weights(original)
                found = operator.copy_from_attention((wq, bq, wk, bk, wv, bv), out)
            else:
                found = host.copy_mlp(original, operator)
            if copied is not None:
                copied[entry.site] = found
    fitted = host.fitted(entry.site.kind, operator, original)
    assert fitted is not None
    return fitted.to(device=like.device, dtype=dtype or like.dtype)


@torch.no_grad()
def solve_all(
    host: Host,
    model: nn.Module,
    originals: dict[Site, nn.Module],
    stand_ins: dict[Site, nn.Module],
    calibration: Batches,
    count: int,
    seed: int,
    diffusion: Schedule,
    room: int | None = None,
) -> dict[Site, float]:
    """Solve every operator's last layer from one teacher pass per batch over all sites, ``count`` batches of
    ``calibration`` noised by ``diffusion``; returns the share of the variance that each explains on them.

    room: samples of a pass at most, where a batch is too large for one.
    """
    operators: dict[Site, Solvable] = {site: made for site, made in stand_ins.items() if _solvable(made)}  # type: ignore[misc]
    joint = {site: made for site, made in stand_ins.items() if isinstance(made, Joint)}
    if not operators and not joint:
        return {}
    solver = SolveAll(operators, host.grid_of(model))
    device, weighed = next(model.parameters()).device, set[Site]()
    spans = {site: ((originals[site], originals[site]),) for site in (*operators, *joint)}

    def see(site: Site, inputs: torch.Tensor, outputs: Streams, call: Mapping[str, Any]) -> None:
        picture = slice(-math.prod(solver.grid), None)  # of the tokens, where text comes with them
        if site in joint and site not in weighed:  # before its features are
            weighed.add(site)
            joint[site].weigh(*host.queries_keys(originals[site], inputs[:, picture], call))
        if site in operators:
            solver(site, as_tokens(inputs), outputs[0][:, picture], call)

    with evaluating(model), visit_spans(spans, see, host.streams):
        for index in range(count):
            batch = calibration(index)
            # Negative counters: draws that no training step uses.
            noise, t = draw(batch["z"].shape, diffusion, seed, -1 - index)
            z, noise, t, y = batch["z"].to(device), noise.to(device), t.to(device), to(batch["y"], device)
            solver.grid = host.grid(model, z)
            zt = diffusion.add_noise(z, t, noise)
            for start in range(0, len(z), room or len(z)):
                part = slice(start, start + (room or len(z)))
                host.call(model, zt[part], t[part], rows(y, part))
    return solver.finish()
