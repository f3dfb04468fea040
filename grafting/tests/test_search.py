"""The best plan under a budget: the solver against brute force, scores and costs against hand-made ones."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grafting
from grafting.cli import main
from grafting.cost import plan_cost
from grafting.diffusion import Diffusion
from grafting.graft import ungraft
from grafting.hosts import Site
from grafting.measure.denoising import Triples, denoising_losses, paired_difference
from grafting.measure.speed import Latency
from grafting.operators import arithmetic
from grafting.plan import Plan, PlanError
from grafting.searching.candidates import candidates
from grafting.searching.check import checked, spread
from grafting.searching.costs import Budget, counted, timed
from grafting.searching.find import best, pareto, predicted, worth
from grafting.searching.scores import Score, Scoring, carried_errors, score
from grafting.searching.search import Front
from grafting.searching.solve import Option, SearchError, Selection, choose, front, least_cost, undominated
from grafting.settings import SettingsError
from grafting.store.models import open_model
from grafting.study import RunRecipe
from grafting.study.material import Material
from grafting.study.stages import begin, denoiser
from grafting.study.table import TableRecipe
from grafting.teachers import teachers
from grafting.training.team import Team

NAMES = ("swa:window=3", "mlp:ratio=2", "none")


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


def test_a_named_model_is_searched_where_training_would_run_and_a_given_one_stays(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    def scored(model: Any, *_: Any, **__: Any) -> None:
        raise Seen(next(model.transformer.parameters()).device.type)

    elsewhere = Team(device=torch.device("meta"))  # stands for a GPU
    monkeypatch.setattr(Team, "current", classmethod(lambda cls, device=None: elsewhere))
    monkeypatch.setattr("grafting.searching.search.score", scored)
    given = open_model(str(tiny_teacher))
    for model, device, wanted in ((tiny_teacher, None, "meta"), (tiny_teacher, "cpu", "cpu"), (given, None, "cpu")):
        with pytest.raises(Seen, match=f"^{wanted}$"):
            grafting.search(model, ["local_mean"], device=device)
    with pytest.raises(SearchError, match=r"^device cpu: the model that is given stays where it is"):
        grafting.search(given, ["local_mean"], device="cpu")


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


SCORING = Scoring(triples=12, calibration=16, batch=8)


@pytest.fixture(scope="module")
def scored(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Score]]:
    out = tmp_path_factory.mktemp("search")
    return out, score(open_model(str(tiny_teacher)), candidates(NAMES), out, scoring=SCORING)


def test_every_site_has_a_score_that_an_ordinary_graft_confirms(
    scored: tuple[Path, list[Score]], tiny_teacher: Path
) -> None:
    """One site grafted alone, by the library's own way, loses what its score says."""
    _, scores = scored
    assert len(scores) == 4 * 2 + 4 * 2 and len({(s.site, s.candidate) for s in scores}) == len(scores)
    model = open_model(str(tiny_teacher))
    material, network = Material(model), model.transformer
    held = Triples.draw(material.latents(train=False), material.images(train=False).labels, n=12)
    before = denoising_losses(denoiser(network), held)
    plan = Plan.explicit(site="attn", operator="swa", blocks=[2], window=3)
    begin(network, plan, material, init="solve", seed=0, calibration=16)
    change = (denoising_losses(denoiser(network), held) - before).mean().item()
    (mine,) = (s for s in scores if s.site == Site(2, "attn") and s.candidate == "swa:window=3")
    assert mine.loss == pytest.approx(change, abs=1e-6) and mine.low <= mine.loss <= mine.high
    ungraft(network)


def test_scores_are_found_once_per_operator_and_setting(scored: tuple[Path, list[Score]], tiny_teacher: Path) -> None:
    out, scores = scored
    model = open_model(str(tiny_teacher))
    files = sorted((out / "scores").iterdir())
    stamps = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 4 and score(model, candidates(NAMES), out, scoring=SCORING) == scores
    assert [path.stat().st_mtime_ns for path in files] == stamps
    files[0].write_text("{")
    assert score(model, candidates(NAMES), out, scoring=SCORING) == scores, "what was damaged is found again"
    assert [path.stat().st_mtime_ns for path in files[1:]] == stamps[1:]


def test_scores_of_an_operator_that_begins_otherwise_are_found_again(
    scored: tuple[Path, list[Score]], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(scored[0], out)
    made: list[str] = []

    def seen(_: Any, plan: Plan, *args: Any, **settings: Any) -> Any:
        made.extend(edit.operator for edit in plan.edits)
        return begin(_, plan, *args, **settings)

    monkeypatch.setattr("grafting.searching.scores.begin", seen)
    monkeypatch.setattr("grafting.searching.check.begin", seen)
    monkeypatch.setattr(arithmetic("mlp"), "start_version", classmethod(lambda cls, init: 2))
    found = grafting.search(str(tiny_teacher), NAMES, out=out, scoring=SCORING, points=2)
    assert made == ["mlp"] and found.to_dict()["starts"] == {"mlp": 2}
    assert found.to_dict()["scoring"] == {"triples": 12, "calibration": 16, "seed": 0}
    dear = replace(found.plans[0], plan=Plan.explicit(site="mlp", operator="mlp", blocks=[1], ratio=2))
    for _ in range(2):
        made.clear()
        checked(open_model(str(tiny_teacher)), [dear], out, scoring=SCORING)
    assert made == []
    monkeypatch.setattr(arithmetic("mlp"), "start_version", classmethod(lambda cls, init: 3))
    checked(open_model(str(tiny_teacher)), [dear], out, scoring=SCORING)
    assert "mlp" in made, "a plan's loss at its start is of that start"


def test_an_exact_stand_in_carries_no_error_and_none_carries_all_of_it(tiny_teacher: Path) -> None:
    model = open_model(str(tiny_teacher))
    material, network = Material(model), model.transformer
    held = Triples.draw(material.latents(train=False), material.images(train=False).labels, n=4)
    plan = Plan.explicit(site="attn", operator="identity", blocks=[0]) + Plan.explicit(
        site="mlp", operator="none", blocks=[1]
    )
    handle = begin(network, plan, material, init="copy", seed=0, calibration=0)
    found = carried_errors(handle, held, batch_size=3)
    assert found[Site(0, "attn")] == 0
    network.train()  # in which diffusers' label embedders drop labels by themselves
    assert carried_errors(handle, held, batch_size=3) == found and network.training
    network.eval()
    seen: dict[str, torch.Tensor] = {}
    block, site = network.transformer_blocks[1], handle.switches[Site(1, "mlp")]  # type: ignore[index, union-attr]
    with handle.teacher():
        hooks = [
            module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))  # type: ignore[misc]
            for name, module in (("block", block), ("site", site))
        ]
        with torch.no_grad():
            denoiser(network)(Diffusion().add_noise(held.z, held.t, held.noise), held.t, held.y)
            six = block.norm1.linear(block.norm1.silu(block.norm1.emb(held.t, held.y, hidden_dtype=torch.float32)))
        for hook in hooks:
            hook.remove()
    entering = six.chunk(6, 1)[5][:, None] * seen["site"]
    ratio = (entering.square().sum() / seen["block"].square().sum()).item()
    assert found[Site(1, "mlp")] == pytest.approx(ratio, rel=1e-4)


def test_costs_add_up_to_those_of_the_plan(tiny_teacher: Path, scored: tuple[Path, list[Score]]) -> None:
    network, (_, scores) = open_model(str(tiny_teacher)).transformer, scored
    operators = candidates(NAMES)
    for side in (None, 6):
        costs = counted(network, operators, side=side)["flops"]
        for found in pareto(scores, operators, costs, "flops", points=5):
            cost = plan_cost(found.plan, network, grid=(side, side) if side else None)
            assert found.share == pytest.approx(cost.flops_after / cost.flops_before)
            assert found.predicted == pytest.approx(predicted(found.plan, network, scores))
            assert Plan.from_yaml(found.to_yaml()) == found.plan
    budget = Budget.parse("flops=0.95")
    found = best(scores, operators, counted(network, operators)["flops"], budget, by="carried")
    assert found.share <= 0.95 and found.predictor == "carried"
    times = timed(network, operators, batch=1, rounds=2)
    assert times.whole > 0 and times.changes[Site(1, "mlp"), "none"] < 0


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("speed=0.9", "flops, parameters, latency"),
        ("flops=-1", "a share such as"),
        ("latency=12", "needs its unit"),
        ("flops=12ms", "a share such as"),
    ],
)
def test_a_bad_budget_is_told(given: str, match: str) -> None:
    with pytest.raises(SearchError, match=match):
        Budget.parse(given)


def test_a_budget_is_a_share_or_absolute(tiny_teacher: Path, scored: tuple[Path, list[Score]]) -> None:
    assert Budget.parse("latency=12ms").limit(0.02) == pytest.approx(-0.008)
    assert Budget.parse("flops=0.75").limit(100) == -25
    network, operators = open_model(str(tiny_teacher)).transformer, candidates(NAMES)
    costs = counted(network, operators)["flops"]
    with pytest.raises(SearchError, match=r"flops: 0\.01 of the pretrained model's is out of reach.*the least is 0\."):
        best(scored[1], operators, costs, Budget.parse("flops=0.01"))


def test_bad_candidates_are_told() -> None:
    for names, match in ((("swa", "swa"), "named twice"), ((), "no operator for")):
        with pytest.raises(SearchError, match=match):
            candidates(names)
    with pytest.raises(PlanError, match="operator 'mlp:ratio': 'ratio' is no option=value"):
        candidates(["mlp:ratio"])
    assert [one.kind for one in candidates(("none",))] == ["attn", "mlp"]
    assert [one.kind for one in candidates(NAMES, ("mlp",))] == ["mlp", "mlp"]


def test_the_verb_writes_plans_that_other_verbs_take(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    command = ["search", str(tiny_teacher), "--operators", *NAMES, "--triples", "8", "--out", str(out)]
    assert main([*command, "--budget", "flops=0.9", "--points", "4", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "search.json").read_text()) and content["best"]["share"] <= 0.9
    assert len(list((out / "plans").glob("front-*.yaml"))) == len(content["front"]) > 1
    assert main(["plan", str(tiny_teacher / "transformer"), "--plan", str(out / "plans" / "best.yaml")]) == 0
    page = (out / "search.html").read_bytes()
    assert main(["report", str(out)]) == 0 and (out / "search.html").read_bytes() == page
    mine = out / "plans" / "mine.yaml"
    mine.write_text("edits: []")
    assert main([*command, "--points", "4", "--budget", "flops=0.001"]) == 2
    told = capsys.readouterr()
    assert "out of reach" in told.err and "search.html" in told.err and "front-00" in told.out
    kept = json.loads((out / "search.json").read_text())
    assert kept["best"] is None and "out of reach" in kept["refused"] and kept["front"] == content["front"]
    assert "out of reach" in (out / "search.html").read_text() and mine.exists()
    assert (out / "plans" / "front-00.yaml").exists() and not (out / "plans" / "best.yaml").exists()
    page = (out / "search.html").read_bytes()
    assert main(["report", str(out)]) == 0 and (out / "search.html").read_bytes() == page


@pytest.fixture(scope="module")
def found(scored: tuple[Path, list[Score]], tiny_teacher: Path) -> Front:
    return grafting.search(str(tiny_teacher), NAMES, scoring=SCORING, out=scored[0], points=6)


def test_the_library_returns_the_front_as_plans(found: Front, scored: tuple[Path, list[Score]]) -> None:
    """Against a sum over counts: as many swaps of each kind as a plan has, each at its least score, lose no less."""
    assert list(found.scores) == scored[1] and len(found.plans) > 2
    shares, losses = ([getattr(one, name) for one in found.plans] for name in ("share", "predicted"))
    assert shares == sorted(shares) and losses == sorted(losses, reverse=True), "none is beaten in both"
    for one in found.plans:
        assert Plan.from_dict(one.plan.to_dict()) == one.plan and found.under(f"flops={one.share + 1e-9}") == one
        for edit in one.plan.edits:
            mine = [s for s in found.scores if s.kind == edit.site and s.candidate.split(":")[0] == edit.operator]
            others = {b for e in one.plan.edits if e is not edit and e.site == edit.site for b in e.blocks}
            free = sorted(s.loss for s in mine if s.block not in others)
            taken = sum(s.loss for s in mine if s.block in edit.blocks)
            assert taken == pytest.approx(sum(free[: len(edit.blocks)]), abs=1e-9), "these sites lose least"


def test_another_budget_cost_or_predictor_scores_nothing_again(
    scored: tuple[Path, list[Score]], tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("grafting.searching.scores.begin", refuse)
    again = grafting.search(str(tiny_teacher), NAMES, scoring=SCORING, out=scored[0], cost="parameters", by="carried")
    assert again.under("parameters=0.8").share <= 0.8
    with pytest.raises(AssertionError, match="scored again"):
        grafting.search(str(tiny_teacher), NAMES, scoring=Scoring(triples=13, calibration=16), out=scored[0])
    with pytest.raises(SearchError, match="this front is one of parameters"):
        again.under("flops=0.9")


def test_plans_are_looked_at_whole_on_other_triples(
    found: Front, scored: tuple[Path, list[Score]], tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"scoring": SCORING, "out": scored[0], "points": 6, "check": 2}
    again = grafting.search(str(tiny_teacher), NAMES, **settings)
    seen = [place for place, one in enumerate(again.plans) if one.measured is not None]
    assert seen == [0, len(again.plans) - 1]
    assert [replace(one, measured=None) for one in again.plans] == list(found.plans)
    one = again.plans[0]
    assert one.measured is not None and one.measured.low is not None and one.measured.share is None
    model = open_model(str(tiny_teacher))
    material = Material(model)
    z, y = material.latents(train=False), material.conditions(train=False)
    assert len(z) >= 2 * SCORING.triples
    triples = Triples.draw(z[SCORING.triples :], y[SCORING.triples :], n=SCORING.triples, seed=SCORING.seed + 1)
    theirs = denoising_losses(denoiser(model.transformer), triples)
    begin(model.transformer, one.plan, material, init="solve", seed=SCORING.seed, calibration=SCORING.calibration)
    expected = paired_difference(denoising_losses(denoiser(model.transformer), triples), theirs)
    assert one.measured.value == pytest.approx(expected.value, rel=1e-4)
    monkeypatch.setattr("grafting.searching.check.begin", lambda *_, **__: pytest.fail("looked at again"))
    assert grafting.search(str(tiny_teacher), NAMES, **settings).plans == again.plans


def test_a_front_is_looked_at_from_end_to_end(found: Front) -> None:
    plans = [found.plans[0]] * 7
    assert [spread(plans, count) for count in (0, 1, 2, 4, 9)] == [[], [0], [0, 6], [0, 2, 4, 6], list(range(7))]
    assert spread([], 3) == []


def test_latency_is_searched_by_parts_and_timed_whole(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With times that are known: attention takes 4 of 20 s at each block, swa 1; the plan as a whole 12."""
    known = {"whole": 20.0, "blocks.0.attn": 4.0, "blocks.0.attn swa": 1.0, "pretrained": 20.0, "plan": 12.0}

    def clock(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Latency]:
        assert device == torch.device("cpu")
        for call in calls.values():
            call()
        return {
            name: Latency(minimum=known[name], low=0.0, median=0.0, high=0.0, rounds=rounds, threads=1)
            for name in calls
        }

    monkeypatch.setattr("grafting.searching.costs.latency", clock)
    monkeypatch.setattr("grafting.searching.check.latency", clock)
    command = ["search", str(tiny_teacher), "--operators", "swa", "--site", "attn", "--triples", "8", "--check", "1"]
    assert main([*command, "--budget", "latency=14s", "--out", str(tmp_path)]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("best")).split()
    assert told[1] == "0.7000" and told[-1] == "0.6000", "two sites spare 3 s each, by parts; 12 of 20 s as a whole"
    content = json.loads((tmp_path / "search.json").read_text())
    assert content["best"]["measured"]["share"] == 0.6
    assert sum(len(edit["blocks"]) for edit in content["best"]["plan"]["edits"]) == 2
    page = (tmp_path / "search.html").read_text()
    assert "<th>timed</th>" in page and "measured: 0.6000" in page


def test_a_loss_below_zero_within_its_interval_is_none() -> None:
    noise = Score(block=0, kind="attn", candidate="swa", loss=-0.1, low=-0.3, high=0.1, carried=0.5)
    gain, cost = replace(noise, low=-0.2, high=-0.05), replace(noise, loss=0.1, low=-0.1, high=0.3)
    assert [worth(one, "loss") for one in (noise, gain, cost)] == [0.0, -0.1, 0.1]
    assert worth(noise, "carried") == 0.5


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"check": -1}, "check -1: at least 0"),
        ({"cost": "speed"}, "cost 'speed': flops, parameters, latency"),
        ({"by": "fid"}, "predictor 'fid': loss or carried"),
        ({"points": 1}, "points 1: at least 2"),
        ({"side": 0}, "side 0: at least 1"),
    ],
)
def test_a_search_of_what_is_not_is_told_before_anything_is_opened(given: dict[str, Any], match: str) -> None:
    with pytest.raises(SearchError, match=match):
        grafting.search("no such model", **given)


def test_a_recipe_takes_a_plan_by_the_name_of_its_file(found: Front, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(found.plans[0].to_yaml())
    assert RunRecipe.from_yaml("teacher: fashion", [f"plan={path}"]).plans["hybrid"] == found.plans[0].plan
    with pytest.raises(SettingsError, match=r"plan hybrid: .*absent\.yaml: no such file"):
        RunRecipe.from_yaml("teacher: fashion", [f"plan={tmp_path}/absent.yaml"])


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_the_scores_that_ship_are_those_of_the_bundled_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the page's code runs at once; and the recipe has the plans that they lead to."""
    monkeypatch.setattr("grafting.searching.scores.begin", lambda *_, **__: pytest.fail("the shipped scores are stale"))
    fashion = open_model("fashion")
    shipped = grafting.search(fashion, out=tmp_path, points=2)
    assert len(shipped.scores) == 12 * 8
    recipe = RunRecipe.from_yaml((files("grafting") / "recipes" / "searched-half.yaml").read_text())
    assert recipe.seed != Scoring().seed, "the triples that chose a plan judge it"
    plans = recipe.plans
    halves = {by: grafting.search(fashion, ["hyena_x"], kinds=("attn",), by=by, points=2) for by in ("loss", "carried")}
    found = {f"searched-{by}": half.under("flops=0.9765").plan for by, half in halves.items()}
    found["searched-any"] = shipped.under("flops=0.9765").plan
    assert {name: plan.edits for name, plan in found.items()} == {name: plans[name].edits for name in found}
    table = TableRecipe.from_yaml((files("grafting") / "recipes" / "table.yaml").read_text())
    rows = {row.name: Plan.from_dict(row.plan) for row in table.rows if row.name in found and row.plan is not None}
    assert {name: plan.edits for name, plan in rows.items()} == {name: plan.edits for name, plan in found.items()}
    assert table.seed != Scoring().seed
    page = (Path(__file__).resolve().parents[1] / "docs" / "search.md").read_text()
    alone = {score.block: score.loss for score in halves["loss"].scores}
    told = re.findall(r"^\| (?:interleaved|searched by .*?) \| ([\d, ]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert [blocks for blocks, _ in told][1:] == [
        ", ".join(map(str, plans[f"searched-{by}"].edits[0].blocks)) for by in ("loss", "carried")
    ]
    assert [said for _, said in told] == [f"{sum(alone[int(b)] for b in blocks.split(', ')):.4f}" for blocks, _ in told]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace(", check=2", ""), {})  # a plan measured whole takes as long as all else here
    assert "edits:" in capsys.readouterr().out


def test_a_side_that_the_model_cannot_draw_is_refused_before_the_work(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(tiny_teacher), "--side", "2x8", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "2 x 8 tokens: a DiT puts its tokens together as a square" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(SearchError, match="side 0: at least 1"):
        grafting.search(str(tiny_teacher), NAMES, side=(0, 4))
