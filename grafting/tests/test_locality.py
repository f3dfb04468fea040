"""Locality of hand-made attention in closed form, and of real attention against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafting.measure.locality import (
    by_grid,
    by_raster,
    curve,
    default_reach,
    diagonal_sums,
    offset_mass,
    slabs,
    square_within,
    uniform_mass,
    window_of,
)

GRIDS = [(4, 4), (1, 9), (3, 5), (6, 2)]


def made(attention: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys whose softmax is ``attention`` (N, N): keys are unit vectors, queries its logarithms."""
    n = len(attention)
    return attention.clamp(min=1e-30).log()[None, None], torch.eye(n)[None, None]


def naive(attention: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """L_k over the raster and over the grid from (B, heads, N, N), pair by pair."""
    n = attention.shape[-1]
    index = torch.arange(n)
    raster = (index[:, None] - index).abs()
    y, x = index // grid[1], index % grid[1]
    square = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return tuple(  # type: ignore[return-value]
        torch.stack([(attention.double() * (d <= k)).sum((0, 2, 3)) / (len(attention) * n) for k in range(count)], 1)
        for d, count in ((raster, n), (square, max(grid)))
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_uniform_attention_has_the_share_of_keys_within_reach(grid: tuple[int, int]) -> None:
    n = grid[0] * grid[1]
    mass = offset_mass(*made(torch.full((n, n), 1 / n)), grid)
    torch.testing.assert_close(mass[0], uniform_mass(grid), atol=1e-6, rtol=0)
    k = torch.arange(n, dtype=torch.float64)
    # Pairs of n tokens within k: n on the diagonal, and twice n - d at each distance d.
    torch.testing.assert_close(
        curve(by_raster(mass, grid))[0], ((2 * k + 1) * n - k * (k + 1)) / n**2, atol=1e-6, rtol=0
    )
    k = torch.arange(max(grid), dtype=torch.float64)
    reach = [torch.minimum(k, torch.tensor(side - 1.0)) for side in grid]
    within = [((2 * r + 1) * side - r * (r + 1)) / side**2 for r, side in zip(reach, grid, strict=True)]
    torch.testing.assert_close(curve(by_grid(mass, grid))[0], within[0] * within[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_attention_to_oneself_is_wholly_local(grid: tuple[int, int]) -> None:
    n = grid[0] * grid[1]
    mass = offset_mass(*made(torch.eye(n)), grid)
    for found in (by_raster(mass, grid), by_grid(mass, grid)):
        torch.testing.assert_close(curve(found), torch.ones_like(found), atol=1e-6, rtol=0)


def test_a_band_ends_at_its_width() -> None:
    index = torch.arange(16)
    near = ((index[:, None] - index).abs() <= 2).float()
    mass = offset_mass(*made(near / near.sum(1, keepdim=True)), (4, 4))
    found = curve(by_raster(mass, (4, 4)))[0]
    # A query has 3, 4 or 5 keys in the band (2 each of 3 and of 4), of which one is itself.
    assert found[0].item() == pytest.approx((2 / 3 + 2 / 4 + 12 / 5) / 16, abs=1e-6)
    assert found[1].item() == pytest.approx((2 * 2 / 3 + 2 * 3 / 4 + 12 * 3 / 5) / 16, abs=1e-6)
    assert found[2].item() == pytest.approx(1, abs=1e-6)
    # The same band on the grid wraps from one row's end to the next one's start, three columns away.
    assert curve(by_grid(mass, (4, 4)))[0, 1] < 0.95


def test_a_key_in_the_row_above_is_near_on_the_grid_and_far_on_the_raster() -> None:
    above = torch.eye(16).roll(-4, 1)  # query i attends to i - 4, the first row to the last
    mass = offset_mass(*made(above), (4, 4))
    assert curve(by_grid(mass, (4, 4)))[0, 1].item() == pytest.approx(12 / 16, abs=1e-6)
    assert curve(by_raster(mass, (4, 4)))[0, 3].item() == pytest.approx(0, abs=1e-6)
    assert mass[0, 2, 3].item() == pytest.approx(12 / 16, abs=1e-6), "Δy = -1, Δx = 0"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 80), st.integers(0, 99)
)
def test_any_chunk_gives_what_the_whole_matrix_gives(
    height: int, width: int, samples: int, heads: int, limit: int, seed: int
) -> None:
    grid, n = (height, width), height * width
    source = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(samples, heads, n, 3, generator=source) for _ in range(2))
    mass = offset_mass(q, k, grid, limit)
    raster, square = naive((q @ k.transpose(2, 3)).softmax(-1), grid)
    torch.testing.assert_close(curve(by_raster(mass, grid)), raster, atol=1e-5, rtol=0)
    torch.testing.assert_close(curve(by_grid(mass, grid)), square, atol=1e-5, rtol=0)
    assert all(p.numel() <= max(limit, n) for _, _, p in slabs(q, k, width, limit))
    whole = torch.zeros(n, n)
    offset_mass(q, k, grid, limit, whole=whole)
    torch.testing.assert_close(whole, (q @ k.transpose(2, 3)).softmax(-1).sum((0, 1)), atol=1e-5, rtol=0)


def test_diagonals_are_those_of_the_matrix() -> None:
    p = torch.randn(2, 4, 7, dtype=torch.float64)
    expected = torch.stack([p.diagonal(d, 1, 2).sum(1) for d in range(-3, 7)], 1)
    torch.testing.assert_close(diagonal_sums(p), expected)


def test_reaches_follow_the_paper_and_a_wrong_grid_is_refused() -> None:
    assert default_reach(256) == 32 and default_reach(4) == 1
    assert [square_within(k) for k in (3, 4, 11, 12, 32)] == [0, 1, 1, 2, 3]
    assert all(square_within(window_of(k)) == k and square_within(window_of(k) - 1) == k - 1 for k in range(1, 40))
    with pytest.raises(ValueError, match="3 x 3 for 8 tokens"):
        offset_mass(torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 8, 2), (3, 3))
