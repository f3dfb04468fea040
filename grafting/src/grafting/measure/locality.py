"""How local attention is: its mass by the offset between query and key, without ever holding a whole attention matrix.

Shapes: B samples, N = H x W tokens in raster order of a grid, C channels of a head. One reduction serves every
distance: the mass by offset (Δy, Δx), a (2H - 1, 2W - 1) picture with the query in the middle. An offset has one raster
distance |Δy W + Δx| and one distance on the grid, for which Chebyshev's max(|Δy|, |Δx|) is taken: all keys within k are
the square of side 2k + 1 around the query. L_k (arXiv 2506.05340) is the mean over queries of the mass on keys within
k.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import torch
import torch.nn.functional as F

Grid = tuple[int, int]
SLAB = 1 << 22
"""Attention probabilities held at a time: 16 MiB in float32."""


def slabs(q: torch.Tensor, k: torch.Tensor, width: int, limit: int = SLAB) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """(head, queries, probabilities summed over samples (n, N)), at most ``limit`` probabilities at a time.

    q, k: (B, heads, N, C), q scaled already. The queries of a slab lie in one row of a grid of ``width`` columns.
    """
    samples, heads, tokens, _ = q.shape
    columns = max(1, min(width, limit // tokens))
    together = max(1, limit // (tokens * columns))
    for head in range(heads):
        for row in range(0, tokens, width):
            for start in range(row, row + width, columns):
                queries = slice(start, min(start + columns, row + width))
                total = torch.zeros(queries.stop - queries.start, tokens, device=q.device)
                for part in range(0, samples, together):
                    chosen = slice(part, part + together)
                    scores = q[chosen, head, queries].float() @ k[chosen, head].float().transpose(1, 2)
                    total += scores.softmax(-1).sum(0)
                yield head, queries, total


def diagonal_sums(p: torch.Tensor) -> torch.Tensor:
    """(…, n, m) to float64 (…, n + m - 1): entry n - 1 + d is the sum of the elements whose column is row + d."""
    n, m = p.shape[-2:]
    # With n zeros behind each row, rows read n + m - 1 long are skewed by one each: diagonals become columns.
    skewed = F.pad(p.flip(-2), (0, n)).flatten(-2)[..., : n * (n + m - 1)].unflatten(-1, (n, n + m - 1))
    return skewed.sum(-2, dtype=torch.float64)


def offset_mass(q: torch.Tensor, k: torch.Tensor, grid: Grid, limit: int = SLAB) -> torch.Tensor:
    """(heads, 2H - 1, 2W - 1) float64: attention mass by offset, mean over samples and queries; sums to 1 per head.

    q, k: (B, heads, N, C) queries and keys, q scaled already. Raises ValueError where the grid has other than N tokens.
    """
    height, width = grid
    samples, heads, tokens, _ = q.shape
    if height * width != tokens:
        raise ValueError(f"a grid of {height} x {width} for {tokens} tokens: they must be as many")
    mass = torch.zeros(heads, 2 * height - 1, 2 * width - 1, dtype=torch.float64, device=q.device)
    for head, queries, summed in slabs(q, k, width, limit):
        add_slab(mass[head], queries, summed, grid)
    return mass / (samples * tokens)


def add_slab(mass: torch.Tensor, queries: slice, summed: torch.Tensor, grid: Grid) -> None:
    """Add one slab of :func:`slabs` to the mass by offset (2H - 1, 2W - 1) of its head."""
    height, width = grid
    row, column = divmod(queries.start, width)
    count = queries.stop - queries.start
    by_offset = diagonal_sums(summed.unflatten(1, (height, width)).transpose(0, 1))  # (H, count + W - 1)
    left = width - count - column
    mass[height - 1 - row : 2 * height - 1 - row, left : left + count + width - 1] += by_offset


def offsets(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """(2H - 1, 2W - 1) each: Δy and Δx, key minus query, as :func:`offset_mass` lays them out."""
    height, width = grid
    dy, dx = torch.arange(1 - height, height), torch.arange(1 - width, width)
    return dy[:, None].expand(-1, len(dx)), dx.expand(len(dy), -1)


def by_raster(mass: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(…, N): mass by |i - j|, from the mass by offset (…, 2H - 1, 2W - 1)."""
    dy, dx = offsets(grid)
    return _by_distance(mass, (dy * grid[1] + dx).abs(), grid[0] * grid[1])


def by_grid(mass: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(…, max(H, W)): mass by Chebyshev's distance, from the mass by offset."""
    dy, dx = offsets(grid)
    return _by_distance(mass, torch.maximum(dy.abs(), dx.abs()), max(grid))


def _by_distance(mass: torch.Tensor, distance: torch.Tensor, count: int) -> torch.Tensor:
    flat = torch.zeros(*mass.shape[:-2], count, dtype=mass.dtype, device=mass.device)
    return flat.index_add_(-1, distance.flatten().to(mass.device), mass.flatten(-2))


def curve(by_distance: torch.Tensor) -> torch.Tensor:
    """L_k for every k: (…, distances) to the same shape, ending at 1."""
    return by_distance.cumsum(-1)


def pairs(grid: Grid) -> torch.Tensor:
    """(2H - 1, 2W - 1) float64: how many pairs of query and key have each offset."""
    dy, dx = offsets(grid)
    return ((grid[0] - dy.abs()) * (grid[1] - dx.abs())).double()


def uniform_mass(grid: Grid) -> torch.Tensor:
    """(2H - 1, 2W - 1): mass by offset of attention the same on all keys, beside which locality is to be read."""
    return pairs(grid) / (grid[0] * grid[1]) ** 2


def default_reach(tokens: int) -> int:
    """k of the paper, 32 of 256 tokens, in proportion."""
    return max(1, tokens // 8)


def square_within(reach: int) -> int:
    """k on the grid for ``reach`` on the raster: of the largest square with at most the window's 2 reach + 1 tokens."""
    return (isqrt(2 * reach + 1) - 1) // 2
