"""Muon: momentum made orthogonal before it is a step, for the weights of linear layers inside of blocks.

K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the length of a step is AdamW's (Liu
et al. 2025, arXiv 2502.16982), so that one rate serves both. torch's own takes the matrices one by one and multiplies
in bfloat16, which on processors without units for it costs half a step of training; here those of one shape go
together, in their own precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree five that is iterated: singular values from 0.003 to 1 end between 0.65 and 1.25."""

ITERATIONS = 5
AS_ADAMW = 0.2
"""Root mean square of AdamW's steps, by the rate."""

STACKED = 2**26
"""Numbers that go together at most: of a large model's matrices a stack of all, several times over, would be most of
what a step takes."""

INSIDE = ("attn", "attn1", "attn2", "ff", "ff_context", "proj_mlp", "caption_projection", "context_embedder")
"""Components of the paths of its matrices, over all families; the last two are the projections of captions. Besides
``proj_out``, where it is of a block: the model's own last layer may be called so too."""


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About U V' of each matrix U S V', by Newton and Schulz. (n, r, c) to (n, r, c), quickest where r <= c."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    return x


def step_flops(matrices: Iterable[torch.Tensor]) -> int:
    """FLOPs of one step's products, which no count of a model's passes holds: with small batches no small part."""
    sides = [(min(matrix.shape), max(matrix.shape)) for matrix in matrices]
    return sum(ITERATIONS * (4 * r * r * c + 2 * r**3) for r, c in sides)


class Muon(torch.optim.Optimizer):
    """Steps of ``0.2 lr sqrt(max(r, c))`` times the orthogonal part of Nesterov's momentum, for (r, c) parameters."""

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        kept = list(parameters)
        if wrong := [tuple(p.shape) for p in kept if p.ndim != 2]:
            raise ValueError(f"Muon takes matrices, given parameters of shapes {wrong}")
        super().__init__(kept, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, int, torch.dtype, torch.device], list[torch.Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((min(p.shape), max(p.shape), p.dtype, p.device), []).append(p)
            for (shorter, longer, _, _), parameters in alike.items():
                length, most = AS_ADAMW * longer**0.5 * group["lr"], max(1, STACKED // (shorter * longer))
                for first in range(0, len(parameters), most):
                    some = parameters[first : first + most]
                    self._move(some, length, group["momentum"], 1 - group["lr"] * group["weight_decay"])

    def _move(self, parameters: list[torch.Tensor], length: float, momentum: float, kept: float) -> None:
        """One step of matrices of one shape, transposed or not."""
        lying = [p.grad if p.shape[0] <= p.shape[1] else p.grad.mT for p in parameters if p.grad is not None]
        gradients = torch.stack(lying)
        states = [self.state[p] for p in parameters]
        for state, gradient in zip(states, gradients, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
        averages = torch.stack([state["momentum"] for state in states]).lerp_(gradients, 1 - momentum)
        for state, average in zip(states, averages.unbind(), strict=True):
            state["momentum"].copy_(average)
        for p, way in zip(parameters, orthogonal(gradients.lerp(averages, momentum)), strict=True):
            p.mul_(kept).add_(way if p.shape[0] <= p.shape[1] else way.mT, alpha=-length)


def hidden_matrices(model: nn.Module) -> set[torch.Tensor]:
    """The trained weights that are Muon's: of linear layers in the attention, the MLPs and the operators of blocks, and
    in the projection of captions.

    What a modulation, an embedder or the last layer learns is AdamW's, as are biases, tables, norms and filters.
    """
    found: set[torch.Tensor] = set()
    for name, module in model.named_modules():
        inside = any(f".{part}." in f".{name}." for part in INSIDE) or ".proj_out." in f"{name}."
        if isinstance(module, nn.Linear) and inside:
            found |= {p for p in module.parameters() if p.ndim == 2 and p.requires_grad}
    return found
