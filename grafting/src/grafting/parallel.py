"""Blocks that stand in the place of others: several side by side on one input, one for several, one used again.

    out = x + P_1(d_1(x)) + ... + P_k(d_k(x)),    d_i(x) = block_i(x) - x

the P_i being learned scales per channel, or matrices, that start at identity (arXiv 2506.05340, depth to width).
Shapes: x (B, N, D), k branches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .hosts import Host
from .operators import parallel
from .precision import beside_halves
from .restructure import Group, Layout

BATCHED_ROWS = 1024
"""Tokens of a batch from which branches run one after another on a CPU, where a batch of them would leave the cache."""


class Combination(nn.Module):
    """P_1 to P_k: weight (k, D) of scales, or (k, D, D) of matrices; identity at the start."""

    def __init__(self, kind: str, branches: int, width: int) -> None:
        super().__init__()
        one = torch.ones(width) if kind == "scale" else torch.eye(width)
        self.weight = nn.Parameter(one.repeat(branches, *[1] * one.ndim))

    def forward(self, out: torch.Tensor, updates: torch.Tensor, first: int) -> torch.Tensor:
        """``out`` (B, N, D) and the weighed updates (j, B, N, D) of branches ``first`` to ``first + j - 1``."""
        for update, weight in zip(updates, self.weight[first:], strict=False):
            out = torch.addcmul(out, update, weight) if weight.ndim == 1 else out + update @ weight.T
        return out


class Parallel(nn.Module):
    """Blocks of a host side by side; a single one, without a combination, is itself.

    wide: run the branches as one batch, the layers that all have in one product each; off, every branch as it is.
    """

    def __init__(self, host: Host, branches: Sequence[nn.Module], combine: Combination | None = None) -> None:
        super().__init__()
        self.host = host
        self.branches = nn.ModuleList(branches)
        self.combine = combine
        self.wide = True

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the host calls a block: (B, N, D) to (B, N, D)."""
        with beside_halves(self, hidden_states) as cast:
            result = self._run(hidden_states, *args, **kwargs)
        return result.bfloat16() if cast else result

    def _run(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        x, branches = hidden_states, list(self.branches)
        if self.combine is None:
            result: torch.Tensor = branches[0](x, *args, **kwargs)
            return result
        if not (self.wide and not args and self.host.batchable(branches, kwargs)):
            ends = torch.stack([branch(x, *args, **kwargs) for branch in branches])
            return self.combine(x, ends - x, 0)
        size = 1 if x.device.type == "cpu" and x.shape[:-1].numel() >= BATCHED_ROWS else len(branches)
        out = x
        for first in range(0, len(branches), size):
            ends = run_wide(self.host, branches[first : first + size], x, kwargs)
            fresh = torch.is_grad_enabled() or ends.dtype != x.dtype
            out = self.combine(out, ends - x if fresh else ends.sub_(x), first)
        return out


def run_wide(host: Host, blocks: list[nn.Module], x: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
    """Every block's output on the same x, (k, B, N, D), with one batched product for a layer of all blocks.

    Sites that hold another operator, and cross-attention, run block by block; the rest of the block stays batched.
    """
    six = host.modulation(blocks, x, call)[:, :, :, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = six.unbind(2)
    norm1, norm2 = host.norms(blocks[0])
    normed = torch.addcmul(shift1, F.layer_norm(x, norm1.normalized_shape, eps=norm1.eps), 1 + scale1)
    attention = host.attention_layers(blocks)
    mixed = _each(host, blocks, "attn", normed) if attention is None else parallel.attention(normed, *attention)
    y = host.between(blocks, _affine(mixed, gate1, x), call)
    normed = _affine(F.layer_norm(y, norm2.normalized_shape, eps=norm2.eps), 1 + scale2, shift2)
    perceptron = host.perceptron_layers(blocks)
    mixed = _each(host, blocks, "mlp", normed) if perceptron is None else parallel.perceptron(normed, *perceptron)
    return _affine(mixed, gate2, y)


def _each(host: Host, blocks: list[nn.Module], kind: Any, x: torch.Tensor) -> torch.Tensor:
    """The operators of one kind of site, block by block."""
    return torch.stack([host.get_in(block, kind)(part) for block, part in zip(blocks, x, strict=True)])


def _affine(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x scale + shift, written over x where no gradient is asked for: fresh memory costs more than the arithmetic."""
    if torch.is_grad_enabled() or not x.dtype == scale.dtype == shift.dtype:
        return torch.addcmul(shift, x, scale)
    return torch.addcmul(shift, x, scale, out=x)


class Again(nn.Module):
    """A block that runs once more in another place; its weights are named, counted and stored in the first one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.held = (block,)  # in a tuple, so that it is no second child

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the host calls a block. Who watches the block at its own place is not told of this one."""
        result: torch.Tensor = self.held[0].forward(hidden_states, *args, **kwargs)
        return result


class Student(nn.ModuleList):
    """The blocks of a restructured model. originals: the pretrained ones, which run when the teacher is asked for and
    are no children of this; None once the student has its own copy of the model."""

    def __init__(self, blocks: Sequence[nn.Module], originals: nn.ModuleList) -> None:
        super().__init__(blocks)
        self.held: tuple[nn.ModuleList | None] = (originals,)

    @property
    def originals(self) -> nn.ModuleList | None:
        """The pretrained blocks."""
        return self.held[0]

    def forget(self) -> None:
        """Let go of the pretrained blocks."""
        self.held = (None,)

    def _apply(self, fn: Any, recurse: bool = True) -> Student:
        """Where the student moves, the teacher moves too."""
        super()._apply(fn, recurse)
        if self.originals is not None:
            self.originals._apply(fn, recurse)
        return self


def make_student(
    host: Host, model: nn.Module, layout: Layout, replace: Callable[[nn.Module, int], None]
) -> tuple[Student, dict[Group, Parallel]]:
    """The blocks of ``layout`` and its new modules by group; the model stays as it is.

    Kept blocks are the model's own; all others are made of copies, since they learn. replace: called with every copy
    and the number of its block, puts the plan's operators into it.
    """
    originals = host.blocks(model)
    made: dict[Group, Parallel] = {}
    for group in layout.groups:
        branches = []
        for block in group.branches:
            branch = copy.deepcopy(originals[block])
            replace(branch, block)
            branches.append(branch)
        combine = None
        if group.combine is not None:
            like = next(originals[group.branches[0]].parameters())
            combine = Combination(group.combine, len(branches), host.width(model)).to(like.device, like.dtype)
        made[group] = Parallel(host, branches, combine).train(originals[0].training)
    places: list[nn.Module] = []
    seen: set[Group] = set()
    for group in layout.places:
        module = originals[group.branches[0]] if group.kind == "keep" else made[group]
        places.append(Again(module) if group in seen else module)
        seen.add(group)
    if places[0] is not originals[0]:
        runs = any(place is originals[0] for place in places)
        places[0] = host.first_block(places[0], originals[0], runs=runs)
    return Student(places, originals), made
