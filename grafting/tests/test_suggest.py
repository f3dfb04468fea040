"""Plans by locality, and the loss that tails ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafting.hosts import Site, bundled_config
from grafting.measure.activations import Spread
from grafting.measure.analysis import AnalysisError
from grafting.measure.suggest import (
    Ranking,
    huber_corner,
    located,
    read_ranking,
    risky_losses,
    suggested_by_kind,
    suggested_loss,
    suggested_plans,
)
from grafting.plan import Plan, PlanError

LOCALITY = (0.3, 0.9, 0.5, 0.1)


def test_most_and_least_local_are_lists_of_blocks() -> None:
    assert Plan.most_local(LOCALITY, operator="swa").edits[0].blocks == (1, 2)
    assert Plan.least_local(LOCALITY, operator="swa", share=0.25, window=2).edits[0].blocks == (3,)
    plan = Plan.from_dict({"edits": [{"site": "attn", "blocks": "most local 75%", "operator": "swa"}]})
    mixed = plan + Plan.last(site="mlp", operator="mlp", share=0.5)
    assert mixed.by_locality and not mixed.located(LOCALITY).by_locality
    assert [edit.blocks for edit in mixed.located(LOCALITY).edits] == [(0, 1, 2), "last 50%"]
    assert Plan.most_local((0.5,) * 4, operator="swa").edits[0].blocks == (0, 1), "ties go to the first"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20, unique=True), st.sampled_from([25, 50, 75, 100]))
def test_what_is_picked_is_more_local_than_what_is_left(locality: list[float], share: int) -> None:
    count = len(locality) * share // 100
    if count == 0:
        with pytest.raises(PlanError, match="picks none"):
            Plan.most_local(locality, operator="swa", share=share / 100)
        return
    most = Plan.most_local(locality, operator="swa", share=share / 100).edits[0].blocks
    assert len(most) == count
    left = [value for block, value in enumerate(locality) if block not in most]
    assert not left or min(locality[int(block)] for block in most) > max(left)
    if len(locality) * (100 - share) // 100:
        least = Plan.least_local(locality, operator="swa", share=1 - share / 100).edits[0].blocks
        assert set(least).isdisjoint(most)


def test_a_pattern_without_its_measurement_is_refused() -> None:
    plan = Plan.from_dict({"edits": [{"site": "attn", "blocks": "most local 50%", "operator": "swa"}]})
    (problem,) = plan.check(bundled_config("dit-xl-2-256")).problems
    assert "locality of 28 blocks, none is given; grafting analyze" in problem
    with pytest.raises(PlanError, match="'local 50%': a list"):
        Plan.from_dict({"edits": [{"site": "attn", "blocks": "local 50%", "operator": "swa"}]}).located(LOCALITY)


def test_suggested_plans_hold_the_blocks_and_say_why() -> None:
    ranking = Ranking(model="small", distance="raster", reach=2, values=LOCALITY)
    plans = suggested_plans(ranking, "swa")
    assert list(plans) == ["most-local-25", "most-local-50", "most-local-75"]
    assert plans["most-local-50"].startswith("# L_2 over the raster by block, the most local first: 1 0.900, 2 0.500\n")
    assert Plan.from_yaml(plans["most-local-50"]).edits == Plan.most_local(LOCALITY, operator="swa").edits
    assert ranking.order == (1, 2, 0, 3)
    assert list(suggested_plans(Ranking(model="two", distance="grid", reach=1, values=(1, 0)))) == [
        "most-local-50",
        "most-local-75",
    ]


def write(path: Path, **changed: Any) -> Path:
    content = {"model": "small", "distance": "raster", "reach": 2, "values": list(LOCALITY)} | changed
    path.write_text(json.dumps({"ranking": content}))
    return path


def test_located_reads_the_file_given_or_the_one_beside_the_model(tmp_path: Path) -> None:
    config = bundled_config("dit-xl-2-256") | {"num_layers": 4}
    plan = Plan.from_dict({"edits": [{"site": "attn", "blocks": "most local 50%", "operator": "swa"}]})
    assert located(Plan.all(operator="swa"), "nowhere", None) == Plan.all(operator="swa")
    with pytest.raises(AnalysisError, match="none lies beside nowhere"):
        located(plan, "nowhere", None, config)
    with pytest.raises(AnalysisError, match="no such file"):
        located(plan, "nowhere", tmp_path / "x.json", config)
    write(tmp_path / "analysis.json")
    for path in (tmp_path / "analysis.json", tmp_path):
        assert located(plan, "nowhere", path, config).edits[0].blocks == (1, 2)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert located(plan, str(tmp_path), None).edits[0].blocks == (1, 2)
    with pytest.raises(PlanError, match=r"of 4 blocks \(small\); far has 28"):
        located(plan, "far", tmp_path, bundled_config("dit-xl-2-256"))


@pytest.mark.parametrize("changed", [{"values": []}, {"values": [float("nan")]}, {"values": "x"}, {"reach": None}])
def test_a_broken_ranking_is_one_sentence(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(AnalysisError, match="no ranking of blocks"):
        read_ranking(write(tmp_path / "analysis.json", **changed))
    (tmp_path / "analysis.json").write_text('{"ranking": null}')
    with pytest.raises(AnalysisError, match="grafted attention"):
        read_ranking(tmp_path)


def test_tails_choose_the_loss() -> None:
    source = np.random.default_rng(0)

    def spread(values: Any) -> Spread:
        return Spread.of(torch.from_numpy(values))

    assert suggested_loss(spread(source.normal(size=100_000))) == "l2"
    assert suggested_loss(spread(source.logistic(size=100_000))) == "huber", "excess kurtosis 1.2"
    assert suggested_loss(spread(0.2 * source.logistic(size=100_000))) == "l2", "Huber's corner is at 2.8 deviations"
    assert suggested_loss(spread(source.standard_t(5, size=100_000))) == "l1", "excess kurtosis 6"
    assert suggested_loss(Spread.of(torch.ones(3))) == "l2"
    assert huber_corner(spread(source.normal(size=100_000) * 4)) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(("kind", "factor", "risky"), [("standard_normal", np.pi / 2, "l1"), ("laplace", 0.5, "l2")])
def test_a_loss_that_tails_do_not_ask_for_is_risky(kind: str, factor: float, risky: str) -> None:
    """Medians, where absolute errors are least, over means, where squared ones are: variances of 4,000 of each."""
    draws = getattr(np.random.default_rng(0), kind)(size=(4_000, 2_001))
    assert np.median(draws, axis=1).var() / draws.mean(axis=1).var() == pytest.approx(factor, rel=0.08)
    assert risky_losses(Spread.of(torch.from_numpy(draws))) == (risky,)


def test_huber_is_risky_where_it_is_nearly_l2_and_nothing_between() -> None:
    source = np.random.default_rng(0)

    def risks(x: np.ndarray[Any, Any]) -> tuple[str, ...]:
        return risky_losses(Spread.of(torch.from_numpy(x)))

    heavy = source.standard_t(5, size=100_000)
    assert risks(heavy) == ("l2",) and risks(heavy / 10) == ("l2", "huber")
    assert risks(source.logistic(size=100_000)) == () and risks(np.ones(3)) == ()


def test_a_kind_gets_the_loss_that_most_of_its_sites_ask_for() -> None:
    losses = {Site(0, "attn"): "l2", Site(1, "attn"): "l1", Site(2, "attn"): "l2"}
    assert suggested_by_kind(losses | {Site(0, "mlp"): "l2", Site(1, "mlp"): "huber"}) == {"attn": "l2", "mlp": "huber"}


def test_a_recipe_reads_its_pattern_as_blocks(tmp_path: Path) -> None:
    from grafting.settings import SettingsError
    from grafting.study.recipe import RunRecipe

    (tmp_path / "config.json").write_text(json.dumps(bundled_config("dit-xl-2-256") | {"num_layers": 4}))
    edits = {"edits": [{"site": "attn", "blocks": "least local 50%", "operator": "swa"}]}
    content = {"teacher": str(tmp_path), "plan": edits}
    with pytest.raises(SettingsError, match=r"plan hybrid: .*none lies beside"):
        RunRecipe.from_dict(content)
    write(tmp_path / "elsewhere.json")
    recipe = RunRecipe.from_dict(content | {"analysis": str(tmp_path / "elsewhere.json")})
    assert recipe.plans["hybrid"].edits[0].blocks == (0, 3)
    assert RunRecipe.from_yaml(recipe.to_yaml()) == recipe, "what is kept of a run needs no analysis any more"
    write(tmp_path / "analysis.json")
    assert RunRecipe.from_dict(content) == recipe


def test_the_command_line_takes_the_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from grafting.cli import main

    (tmp_path / "config.json").write_text(json.dumps(bundled_config("dit-xl-2-256") | {"num_layers": 4}))
    command = ["plan", str(tmp_path), "--blocks", "most local 50%", "--operator", "swa"]
    assert main(command) == 2 and "none lies beside" in capsys.readouterr().err
    assert main([*command, "--analysis", str(write(tmp_path / "b.json"))]) == 0
    told = capsys.readouterr().out
    assert "blocks.1.attn" in told and "blocks.2.attn" in told and "blocks.0.attn" not in told
