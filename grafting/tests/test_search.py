"""The best plan under a budget: the solver against brute force, scores and costs against hand-made ones."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grafting.hosts import Site
from grafting.search.solve import Option, SearchError, Selection, choose, front, least_cost, undominated


@st.composite
def problems(draw: st.DrawFn) -> list[Option]:
    """Up to four sites with up to three candidates; small integers, so that ties are common."""
    return [
        Option(
            site=Site(block, "attn" if block % 2 else "mlp"),
            candidate=f"c{k}",
            loss=float(draw(st.integers(-2, 9))),
            cost=float(draw(st.integers(-9, 3))),
        )
        for block in range(draw(st.integers(1, 4)))
        for k in range(draw(st.integers(1, 3)))
    ]


def every(options: list[Option]) -> list[Selection]:
    """All selections, by brute force."""
    by_site: dict[Site, list[Option | None]] = {}
    for option in options:
        by_site.setdefault(option.site, [None]).append(option)
    return [Selection(options=tuple(o for o in taken if o)) for taken in itertools.product(*by_site.values())]


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(-30, 5), st.randoms())
def test_the_solver_agrees_with_brute_force(options: list[Option], limit: int, shuffle: random.Random) -> None:
    allowed = [s for s in every(options) if s.cost <= limit]
    if not allowed:
        with pytest.raises(SearchError, match=f"the least is {least_cost(options):g}"):
            choose(options, limit)
        return
    found = choose(options, limit)
    best = min(allowed, key=lambda s: (s.loss, s.cost))
    assert (found.loss, found.cost) == (best.loss, best.cost)
    assert len({option.site for option in found.options}) == len(found.options)
    mixed = options[:]
    shuffle.shuffle(mixed)
    assert choose(mixed, limit) == found, "the order in which options are given decides nothing"


@settings(max_examples=15, deadline=None)
@given(problems())
def test_the_front_is_that_of_brute_force(options: list[Option]) -> None:
    least = int(least_cost(options))
    exact = undominated(s for s in every(options) if s.cost <= 0)
    found = front(options, points=1 - least if least < -1 else 2)  # a limit at every integer
    assert [(s.cost, s.loss) for s in found] == [(s.cost, s.loss) for s in exact]


def test_small_losses_and_costs_are_told_apart() -> None:
    """The solver's tolerances are absolute; scores are of the order of 1e-4, FLOPs of 1e9."""
    options = [
        Option(site=Site(block, "attn"), candidate="a", loss=1e-6 * (1 + 0.001 * block), cost=-1e9)
        for block in range(8)
    ]
    assert [option.site.block for option in choose(options, -3e9).options] == [0, 1, 2]
    assert len(choose(options, -3e9 - 1e5).options) == 4


def test_what_is_no_search_is_refused() -> None:
    bad = Option(site=Site(0, "attn"), candidate="swa", loss=float("nan"), cost=0.0)
    with pytest.raises(SearchError, match=r"blocks\.0\.attn swa: loss nan"):
        choose([bad], 0.0)
    with pytest.raises(SearchError, match="1 points"):
        front([], points=1)
    assert choose([], 0.0).options == ()
