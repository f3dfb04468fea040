"""Plans: patterns, round trips, and for anything at all either a sentence or a plan that resolves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grafting.hosts import bundled_config
from grafting.plan import Plan, PlanError, pattern_blocks

DIT = bundled_config("dit-xl-2-256")


def test_patterns() -> None:
    assert pattern_blocks("interleaved 50%", 28) == tuple(range(1, 28, 2))
    assert [k for k in range(28) if k not in pattern_blocks("interleaved 75%", 28)] == list(range(0, 28, 4))
    assert pattern_blocks("first 50%", 28) == tuple(range(14))
    assert pattern_blocks("last 50%", 28) == tuple(range(14, 28))
    assert pattern_blocks("all", 3) == (0, 1, 2)


def test_every_problem_at_once() -> None:
    plan = Plan.explicit(operator="hyena_z", blocks=[1, 40]) + Plan.explicit(operator="swa", blocks=[1])
    text = "; ".join(plan.check(DIT).problems)
    assert "hyena_z" in text and "40" in text and "already" in text


entry = st.fixed_dictionaries(
    {
        "site": st.sampled_from(["attn", "mlp", "norm"]),
        "blocks": st.lists(st.integers(-2, 30), max_size=4)
        | st.sampled_from(["all", "interleaved 50%", "last 0%", "first 1%", "second"]),
        "operator": st.sampled_from(["hyena_x", "swa", "mlp", "none", "typo"]),
    },
    optional={"options": st.dictionaries(st.sampled_from(["ratio", "window", "x"]), st.integers(-1, 5), max_size=2)},
)


@settings(max_examples=150, deadline=None)
@given(st.lists(entry, max_size=3))
def test_a_sentence_or_a_plan_that_resolves(entries: list[dict[str, object]]) -> None:
    try:
        plan = Plan.from_dict({"edits": entries})
        plan.check(DIT).raise_if_any()
    except PlanError as error:
        assert len(str(error).split()) >= 3
        return
    chosen = plan.resolve(DIT)
    assert chosen and len({choice.site for choice in chosen}) == len(chosen)
    assert Plan.from_yaml(plan.to_yaml()).digest == plan.digest


@pytest.mark.parametrize("depth", [5, 6, 7, 9, 12, 28, 38, 57])
def test_a_share_is_as_many_blocks_as_it_says(depth: int) -> None:
    """Sixths, sevenths and ninths too, which no decimal percentage holds exactly."""
    for count in range(1, depth + 1):
        for made in (Plan.interleaved, Plan.first, Plan.last):
            edit = made(operator="swa", share=count / depth).edits[0]
            assert len(edit.indices(depth)) == count, (made, count)
    assert len(pattern_blocks("first 83.33%", 12)) == 9, "as written: a little less than five sixths"


def test_a_share_of_the_blocks_leaves_an_operator_its_own_options() -> None:
    plan = Plan.interleaved(site="mlp", operator="mlp", share=0.25, ratio=3)
    (edit,) = plan.edits
    assert edit.blocks == "interleaved 25%" and edit.options == {"ratio": 3}
