"""How local attention is: its mass by the offset between query and key, without ever holding a whole attention matrix.

Shapes: B samples, N = H x W tokens in raster order of a grid, C channels of a head. One reduction serves every
distance: the mass by offset (Δy, Δx), a (2H - 1, 2W - 1) picture with the query in the middle. An offset has one raster
distance |Δy W + Δx| and one distance on the grid, for which Chebyshev's max(|Δy|, |Δx|) is taken: all keys within k are
the square of side 2k + 1 around the query. L_k (arXiv 2506.05340) is the mean over queries of the mass on keys within
k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isqrt

import torch
import torch.nn.functional as F

Grid = tuple[int, int]
Weighed = Callable[[torch.Tensor], torch.Tensor]
"""From products of queries and keys (…, N) to attention: :meth:`grafting.hosts.Host.weighed`."""
SLAB = 1 << 20
"""Attention probabilities held at a time: 4 MiB in float32, which caches hold; four times as many take longer."""


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over keys (…, N)."""
    return scores.softmax(-1)


def slabs(
    q: torch.Tensor, k: torch.Tensor, width: int, limit: int = SLAB, weighed: Weighed = softmax
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """(heads, queries, probabilities summed over samples (heads, n, N)), about ``limit`` probabilities at a time.

    q, k: (B, heads, N, C), q scaled already. The queries of a slab are whole rows of a grid of ``width`` columns, or
    lie within one row. At least one query of one sample and head is taken, that is N probabilities.
    """
    samples, heads, tokens, _ = q.shape
    count = max(1, min(tokens, limit // tokens))
    count = count // width * width or count
    abreast = max(1, min(heads, limit // (count * tokens)))
    together = max(1, limit // (abreast * count * tokens))
    cuts = [c for row in range(0, tokens, width) for c in range(row, row + width, count)]
    if count > width:
        cuts = list(range(0, tokens, count))
    for head in range(0, heads, abreast):
        chosen = slice(head, min(head + abreast, heads))
        for start, stop in zip(cuts, [*cuts[1:], tokens], strict=True):
            queries = slice(start, stop)
            total = torch.zeros(chosen.stop - head, stop - start, tokens, device=q.device)
            for part in range(0, samples, together):
                some = slice(part, part + together)
                scores = q[some, chosen, queries].float() @ k[some, chosen].float().transpose(2, 3)
                total += weighed(scores).sum(0)
            yield chosen, queries, total


def diagonal_sums(p: torch.Tensor) -> torch.Tensor:
    """(…, n, m) to float64 (…, n + m - 1): entry n - 1 + d is the sum of the elements whose column is row + d."""
    n, m = p.shape[-2:]
    # With n zeros behind each row, rows read n + m - 1 long are skewed by one each: diagonals become columns.
    skewed = F.pad(p.flip(-2), (0, n)).flatten(-2)[..., : n * (n + m - 1)].unflatten(-1, (n, n + m - 1))
    return skewed.sum(-2, dtype=torch.float64)


def offset_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    grid: Grid,
    limit: int = SLAB,
    *,
    whole: torch.Tensor | None = None,
    weighed: Weighed = softmax,
) -> torch.Tensor:
    """(heads, 2H - 1, 2W - 1) float64: attention mass by offset, mean over samples and queries; sums to 1 per head.

    q, k: (B, heads, N, C) queries and keys, q scaled already. whole: (N, N), to which the probabilities of all samples
    and heads are added, where one such matrix may be held. Raises ValueError where the grid has other than N tokens.
    """
    height, width = grid
    samples, heads, tokens, _ = q.shape
    if height * width != tokens:
        raise ValueError(f"a grid of {height} x {width} for {tokens} tokens: they must be as many")
    mass = torch.zeros(heads, 2 * height - 1, 2 * width - 1, dtype=torch.float64, device=q.device)
    for chosen, queries, summed in slabs(q, k, width, limit, weighed):
        add_slab(mass[chosen], queries, summed, grid)
        if whole is not None:
            whole[queries] += summed.sum(0)
    return mass / (samples * tokens)


def add_slab(mass: torch.Tensor, queries: slice, summed: torch.Tensor, grid: Grid) -> None:
    """Add one slab of :func:`slabs` to the mass by offset (heads, 2H - 1, 2W - 1) of its heads."""
    height, width = grid
    row, column = divmod(queries.start, width)
    rows = max(1, summed.shape[1] // width)
    columns = summed.shape[1] // rows
    # (heads, rows, columns, H, W): diagonals over queries and keys, along x and then along y.
    along_x = diagonal_sums(summed.unflatten(1, (rows, columns)).unflatten(3, grid).transpose(2, 3))
    along_both = diagonal_sums(along_x.permute(0, 3, 1, 2)).transpose(1, 2)  # (heads, rows + H - 1, columns + W - 1)
    top, left = height - rows - row, width - columns - column
    mass[:, top : top + rows + height - 1, left : left + columns + width - 1] += along_both


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


def window_of(reach: int) -> int:
    """k on the raster for ``reach`` on the grid: of the window of as many tokens as that square."""
    return ((2 * reach + 1) ** 2 - 1) // 2
