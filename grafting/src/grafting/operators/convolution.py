"""Depthwise filters over tokens kept in the layout (B, N, D), and the operators that are only filters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.arithmetic import OperatorError
from grafting.operators.base import Grid


def grid_of(tokens: int, grid: Grid | None) -> tuple[int, int, int]:
    """(frames, height, width) of the raster; without a grid the tokens must form a square.

    Raises:
        OperatorError: no grid was given and the number of tokens is no square.
    """
    if grid is not None:
        frames = grid[0] if len(grid) == 3 else 1
        return frames, grid[-2], grid[-1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise OperatorError(f"{tokens} tokens form no square: give grid=(height, width)")
    return 1, side, side


def filter_1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, before: int) -> Tensor:
    """Depthwise filter along the tokens: y[n] = bias + Σ_k weight[k] x[n - before + k], zero outside.

    x is (B, N, D), weight (D, 1, K) as in `nn.Conv1d`; `before` = K - 1 is causal, (K - 1) / 2 centred.
    """
    # A (B, N, D) tensor is bit for bit a channels-last image of height 1, so no transposing copy is needed.
    taps = weight.shape[-1]
    image = F.pad(x, (0, 0, before, taps - 1 - before)).unsqueeze(1).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight.unsqueeze(2), bias, groups=x.shape[2])
    return y.permute(0, 2, 3, 1).squeeze(1)


def naive_filter_1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, before: int) -> Tensor:
    """`filter_1d` written out token by token and tap by tap."""
    rows = []
    for n in range(x.shape[1]):
        row = torch.zeros_like(x[:, 0])
        for k in range(weight.shape[-1]):
            source = n - before + k
            if 0 <= source < x.shape[1]:
                row = row + weight[:, 0, k] * x[:, source]
        rows.append(row if bias is None else row + bias)
    return torch.stack(rows, dim=1)


def filter_2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, grid: Grid | None) -> Tensor:
    """Centred depthwise filter on the grid: x (B, N, D), weight (D, 1, K, K) with K odd, zero outside."""
    b, n, d = x.shape
    frames, height, width = grid_of(n, grid)
    image = x.reshape(b * frames, height, width, d).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=d)
    return y.permute(0, 2, 3, 1).reshape(b, n, d)


def naive_filter_2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, grid: Grid | None) -> Tensor:
    """`filter_2d` written out token by token and tap by tap."""
    b, n, d = x.shape
    _, height, width = grid_of(n, grid)
    reach = weight.shape[-1] // 2
    rows = []
    for index in range(n):
        frame, within = divmod(index, height * width)
        r, c = divmod(within, width)
        row = x.new_zeros(b, d)
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                if 0 <= r + i < height and 0 <= c + j < width:
                    source = frame * height * width + (r + i) * width + c + j
                    row = row + weight[:, 0, reach + i, reach + j] * x[:, source]
        rows.append(row if bias is None else row + bias)
    return torch.stack(rows, dim=1)


class Filter1d(nn.Conv1d):
    """Depthwise filter along the tokens, which looks ``before`` of its taps back (see :func:`filter_1d`).

    A layer that is called, and not a weight that is read: offloading, casting and adapters work on calls.
    """

    def __init__(self, channels: int, taps: int, *, before: int) -> None:
        super().__init__(channels, channels, taps, groups=channels)
        self.before = before

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """x (B, N, D) to the same shape; along a raster the grid is nothing."""
        return filter_1d(x, self.weight, self.bias, before=self.before)

    def naive(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """The same written out."""
        return naive_filter_1d(x, self.weight, self.bias, before=self.before)


class Filter2d(nn.Conv2d):
    """Centred depthwise filter on the grid of tokens (see :func:`filter_2d`), a layer as :class:`Filter1d` is."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__(channels, channels, taps, groups=channels)

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """x (B, N, D) to the same shape."""
        return filter_2d(x, self.weight, self.bias, grid=grid)

    def naive(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """The same written out."""
        return naive_filter_2d(x, self.weight, self.bias, grid=grid)


@torch.no_grad()
def make_identity(conv: nn.Conv1d | nn.Conv2d, *, at: int) -> None:
    """Set a depthwise filter to pass its input through: one at tap `at` (on each axis), zero elsewhere and in bias."""
    conv.weight.zero_()
    centre = conv.weight[:, 0, at] if conv.weight.ndim == 3 else conv.weight[:, 0, at, at]
    centre.fill_(1.0)
    if conv.bias is not None:
        conv.bias.zero_()


@torch.no_grad()
def add_random_taps(conv: nn.Conv1d | nn.Conv2d, channels: slice) -> None:
    """Add what PyTorch starts a depthwise filter with to all taps of some of its channels, from torch's own generator:
    each then mixes tokens its own way. A filter of one tap mixes nothing and stays as it is."""
    taps = conv.weight[channels]
    if taps[0].numel() > 1:
        taps += torch.empty_like(taps).uniform_(-1, 1) * taps[0].numel() ** -0.5
