"""Models of text judged by the scorer of scenes, in a study and by the verbs: a tiny bundle with kept prompts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pretrain_text import AUTOENCODER, PIXART, letters

from grafting.cli import main
from grafting.conditions import MASK, SIZES, TEXT, picture_sizes
from grafting.cost import plan_cost
from grafting.report import Results, read_results, write_page
from grafting.report.goals import summary
from grafting.report.table import HELD_OUT as NEVER_SHOWN
from grafting.report.table import RIGHT, read_table
from grafting.report.table_page import _figure as drawn_figure
from grafting.report.table_page import qualities
from grafting.sampling import Pipeline
from grafting.scenes import TASKS, evaluation_prompts, render, scene_of
from grafting.settings import SettingsError
from grafting.store.models import open_model
from grafting.study import RunRecipe, Study, StudyError, run
from grafting.study.asked import Asked
from grafting.study.forecast import dry_run, rates
from grafting.study.making import run_rows
from grafting.study.publish import publish
from grafting.study.recipe import EvaluateStage
from grafting.study.scenes import embedded, scene_prompts
from grafting.study.table import TableRecipe
from grafting.study.whole import Table
from grafting.teachers import bundle
from grafting.text import NULL, TextEncoder
from grafting.training.team import Team

N, HELD_OUT = 13, 5
PROMPTS = [*evaluation_prompts(N), *evaluation_prompts(HELD_OUT, held_out=True)]
RECIPE = """
plan: {edits: [{site: attn, blocks: [1], operator: hyena_x}]}
calibration: 4
distill: {steps: 2, batch: 4, evaluate_every: 2}
finetune: {steps: 2, batch: 4, lr: 1e-2, target: mixture, train: lora, lora: {rank: 2}}
evaluate: {triples: 4, prompts: 13, held_out: 5, grid: 8, steps: 2, guidance: 2.0, batch: 7}
speed: null
controls: [procedure, none, untrained]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny``, a bundle of random weights with the states of all prompts, and ``pairs``, eight that it drew."""
    from diffusers import AutoencoderKL, PixArtTransformer2DModel

    root = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    sizes = {key: value for key, value in PIXART.items() if key != "_class_name"}
    PixArtTransformer2DModel(**sizes).save_pretrained(root / "made" / "transformer")
    AutoencoderKL(**AUTOENCODER, latent_channels=4).save_pretrained(root / "made" / "autoencoder")
    kept = letters().embed([NULL, *(prompt.text for prompt in PROMPTS)])
    sources = {part: root / "made" / part for part in ("transformer", "autoencoder")}
    bundle(sources, root / "tiny", {"training": {"samples": 1000}}, prompts=kept)
    (root / "prompts.txt").write_text("\n".join(prompt.text for prompt in PROMPTS[:8]))
    drawn = ["--prompts", str(root / "prompts.txt"), "--steps", "2", "--guidance", "2", "--batch", "4", "--shard", "4"]
    assert main(["pairs", str(root / "tiny"), *drawn, "--out", str(root / "pairs")]) == 0
    return root


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here lives from the states that the bundle brings."""
    monkeypatch.setattr("grafting.data.encoders.minilm", lambda: pytest.fail("the text encoder was loaded"))


def recipe(home: Path, *changes: str) -> RunRecipe:
    return RunRecipe.from_yaml(f"teacher: {home / 'tiny'}\ndata: {home / 'pairs'}\n{RECIPE}", changes)


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run(recipe(home), out, say=lambda line: None)


def test_a_study_draws_its_own_pairs_first_and_goes_on_with_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder as the verb's, to the bit; what cannot be run is told before any is drawn."""
    more = f"pairs: {{prompts: {home / 'prompts.txt'}, steps: 2, guidance: 2.0, batch: 4, shard: 4}}"
    text = f"teacher: {home / 'tiny'}\n{more}\n{RECIPE}"
    with pytest.raises(StudyError, match="block 7; the model has 0 to 1"):
        Study(RunRecipe.from_yaml(text, ["plan.edits.0.blocks=[7]"]), tmp_path / "bad", pytest.fail)
    for change, said in (("evaluate.samples=4", "takes text"), ("beside=[nowhere]", "no results.json")):
        with pytest.raises(StudyError, match=said):
            Study(RunRecipe.from_yaml(text, [change]), tmp_path / "bad", pytest.fail)
    with pytest.raises(StudyError, match="pairs are drawn by one process: start one until they are in"):
        Study(
            RunRecipe.from_yaml(text), tmp_path / "bad", pytest.fail, Team(device=torch.device("cpu"), rank=0, size=2)
        )
    assert not (tmp_path / "bad").exists()
    asked = RunRecipe.from_yaml(text)
    study = Study(asked, tmp_path, pytest.fail)
    names = {path.name for path in (home / "pairs").glob("*.safetensors")}
    assert names == {path.name for path in (tmp_path / "pairs").glob("*.safetensors")}
    for name in names:
        assert (tmp_path / "pairs" / name).read_bytes() == (home / "pairs" / name).read_bytes(), name
    monkeypatch.setattr(Pipeline, "latents", lambda *_, **__: pytest.fail("drawn again"))
    assert Study(asked, tmp_path, pytest.fail).material.identity == study.material.identity
    assert RunRecipe.from_yaml(asked.to_yaml()) == asked
    for change, said in (
        (f"data={home / 'pairs'}", "and pairs: a study learns from one of them"),
        ("pairs.prompts=scenes", "pairs: count: how many pairs"),
        ("pairs.shard=3", "must be a multiple of the batch"),
        ("pairs.stpes=3", "unknown key 'stpes': did you mean 'steps'"),
    ):
        with pytest.raises(SettingsError, match=said):
            RunRecipe.from_yaml(text, [change])


class Painter:
    """In the place of the models: true renderings, but black where ``wrong`` says, model by model as they are drawn."""

    def __init__(self, wrong: list[set[int]]) -> None:
        self.wrong, self.drawn = wrong, 0

    def __call__(self, condition: Any, *, first_index: int, **_: Any) -> torch.Tensor:
        wrong, pictures = self.wrong[self.drawn], []
        for k in range(first_index, first_index + len(condition["encoder_hidden_states"])):
            true = torch.from_numpy(render(scene_of(PROMPTS[k], 0, k))).permute(2, 0, 1).float() / 127.5 - 1
            pictures.append(true * 0 if k in wrong else true)
        self.drawn += 1
        return torch.stack(pictures)


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[int]]]:
    """By model, in the order of drawing, which prompts' pictures are wrong."""
    wrong: list[set[int]] = []
    monkeypatch.setattr(Pipeline, "__call__", Painter(wrong).__call__)
    yield wrong


def test_every_row_is_judged_on_the_same_prompts_and_noise(finished: tuple[Path, Results], home: Path) -> None:
    """The first pictures of a saved hybrid, drawn here, are those that were kept; all rows have all scores."""
    out, results = finished
    assert [m.name for m in results.models] == ["teacher", "hybrid", "procedure", "none", "untrained"]
    for model in results.models:
        assert model.scenes is not None and model.held_out is not None and model.grid is not None
        assert (model.scenes.n, model.held_out.n) == (N, HELD_OUT) and not model.figures
        assert list(model.scenes.scores) == [*TASKS, "overall"]
        assert bool(model.scenes.differences) == (model.role != "teacher")
        kept = json.loads((out / model.name / "scenes.json").read_text())["outcome"]
        assert len(kept["correct"]) == N + HELD_OUT and kept["scenes"]["n"] == N
    study = Study(recipe(home), out, pytest.fail)
    tuned, states = open_model(str(out / "hybrid" / "model")), open_model(str(home / "tiny")).prompts
    assert states is not None
    wanted = Pipeline(tuned.transformer, tuned.autoencoder, text=states)(
        [prompt.text for prompt in PROMPTS[:7]], sampling=study.recipe.evaluate.sampling
    )
    (drawn,) = study.images(study.entries[1], 7)
    torch.testing.assert_close(drawn, wanted, atol=2e-3, rtol=0)
    assert read_results(out / "results.json") == results


def test_a_second_run_judges_nothing_and_fewer_prompts_are_another_measurement(
    finished: tuple[Path, Results], home: Path
) -> None:
    out, results = finished
    said: list[str] = []
    assert run(recipe(home), out, say=said.append) == results
    assert said == [f"the page: {out / 'report.html'}"]
    (out / "none" / "scenes.json").unlink()
    said.clear()
    assert run(recipe(home), out, say=said.append) == results
    assert said[:-1] == [f"none: {N + HELD_OUT} scenes judged"]  # its pictures are there
    said.clear()
    fewer = run(recipe(home, "evaluate.held_out=0"), out, say=said.append)
    assert all(m.held_out is None and m.scenes is not None for m in fewer.models)
    assert sum("13 samples" in line for line in said) == 5 and sum("13 scenes judged" in line for line in said) == 5
    run(recipe(home), out, say=said.append)


def test_perfect_pictures_score_whole_and_differences_are_paired(
    home: Path, painted: list[set[int]], tmp_path: Path
) -> None:
    """Prompts 0 … 12 are the six tasks in turn: single objects at 0, 6 and 12, two objects at 1 and 7, and so on."""
    painted += [{0, 1, 7, 13}, set(), {0, 1, 7, 13}, {0, 2}, set(range(18))]
    results = run(recipe(home), tmp_path, say=lambda line: None)
    found = {model.name: (model.scenes, model.held_out) for model in results.models}

    def values(name: str, key: str, part: int = 0) -> dict[str, float]:
        scored = found[name][part]
        return {task: figure.value for task, figure in getattr(scored, key).items() if figure.value != 0}

    whole = dict.fromkeys([*TASKS, "overall"], 1.0)
    assert values("hybrid", "scores") == pytest.approx(whole) and values("untrained", "scores") == {}
    teacher = whole | {"single_object": 2 / 3, "overall": (2 / 3 + 0 + 4) / 6}
    assert values("teacher", "scores") == pytest.approx({t: v for t, v in teacher.items() if t != "two_object"})
    lost = {"single_object": 1 / 3, "two_object": 1.0, "overall": (1 / 3 + 1) / 6}
    assert values("hybrid", "differences") == pytest.approx(lost)
    assert values("procedure", "differences") == {}
    assert values("none", "differences") == pytest.approx(
        {"two_object": 1.0, "counting": -1 / 2, "overall": (1 - 1 / 2) / 6}
    )
    assert found["hybrid"][1] is not None and found["hybrid"][1].scores["overall"].value == 1
    assert found["hybrid"][1].differences["overall"].value > 0
    assert "Of 13 scenes 100.0 % are right, +22.2 points (" in results.summary
    # Two pictures of eighteen: the interval begins at 0, which is no win.
    assert "beyond the interval it does not beat none: +13.9 points (+0.0 …" in results.summary
    assert "it beats untrained: +100.0 points" in results.summary
    manifest = json.loads((tmp_path / "hybrid" / "model" / "graft.json").read_text())
    assert manifest["results"]["scenes right"] == 1 and "13 prompts" in manifest["protocol"]["samples"]


TABLE = """
kind: table
budget: 0.1
calibration: 4
starts: {copied: {init: default, distill: {batch: 4, heldout_batches: 1}}}
finetune: {batch: 4, lr: 1e-2, target: mixture, train: lora, lora: {rank: 2}}
evaluate: {triples: 20, prompts: 13, held_out: 5, steps: 2, guidance: 2.0, batch: 7}
rows:
  - {name: hyena_x, site: attn, operator: hyena_x, shares: [50]}
  - {name: none-attn, role: control, site: attn, operator: none, shares: [50]}
  - {name: untrained, role: control, what: untrained, site: attn, operator: hyena_x, shares: [50]}
  - {name: procedure, role: control, what: procedure}
"""


def test_a_table_of_a_model_of_text_is_judged_by_prompts(home: Path, painted: list[set[int]], tmp_path: Path) -> None:
    """Every row beside teacher, *none* and *untrained*, paired; in the order in which rows are made."""
    settings = TableRecipe.from_yaml(f"teacher: {home / 'tiny'}\ndata: {home / 'pairs'}\n{TABLE}")
    table = Table(settings, tmp_path / "out", lambda line: None)
    names = ["teacher", "procedure", "untrained-50", "none-attn-50", "hyena_x-50"]
    assert [row.name for row in table.rows] == names
    painted += [set(), {0}, set(range(18)), {0, 1, 7, 13}, {2}]
    assert run_rows(table, table.rows, lambda: publish(table)) == {}
    results = read_table(tmp_path / "out" / "table.json")
    found = {row.name: row for row in results.rows}
    right = {"procedure": 17 / 18, "untrained-50": 0, "none-attn-50": 1 - (1 / 3 + 1) / 6, "hyena_x-50": 1 - 0.5 / 6}
    for name, value in right.items():
        assert found[name].figures[RIGHT].value == pytest.approx(value)
        assert found[name].differences[RIGHT].value == pytest.approx(value - 1)
    hybrid, none = found["hyena_x-50"], found["none-attn-50"]
    assert none.figures["two_object"].value == 0 and hybrid.figures["counting"].value == 0.5
    worse = {name for name, row in found.items() if row.figures[NEVER_SHOWN].value < 1}
    assert worse == {"untrained-50", "none-attn-50"}
    assert hybrid.over_none[RIGHT].value == pytest.approx(right["hyena_x-50"] - right["none-attn-50"])
    assert hybrid.over_untrained[RIGHT].value == pytest.approx(right["hyena_x-50"])
    assert hybrid.untrained == "untrained-50"
    assert hybrid.over_none["loss"].low is not None and {"stage 1", "stage 2"} <= hybrid.parts.keys()
    page = (tmp_path / "out" / "table.html").read_text()
    assert "<th>right, %</th>" in page and "<th>color attr</th>" in page and "<th>never shown</th>" in page
    assert "KID" not in page and "Ours beside the published" not in page and "Judged by the scorer of scenes" in page
    # The front is of what is wrong: by FLOPs of a pass, none is the cheapest and the hybrid the better one.
    drawn = {drawing.name: drawing.svg for drawing in qualities(results)}
    assert {"front-compute-wrong", "front-pass-wrong"} <= drawn.keys()
    wrong = [figure for row in results.rows[1:] if (figure := drawn_figure(row, "wrong")) is not None]
    assert [figure.value for figure in wrong] == pytest.approx([1 - value for value in right.values()])
    assert all(figure.low is None or figure.low <= figure.value <= figure.high for figure in wrong)
    # Two prompts of thirteen: the interval begins at 0, which is no win.
    assert "not above none’s" in page and "not above untrained-50’s" not in page
    told = (
        "By the paired share of prompts that is right {} of 1 rows beat the control {} of their site and share beyond "
    )
    assert summary(results)[-2:] == (
        told.format(0, "none") + "the interval; hyena_x-50 do not.",
        told.format(1, "untrained") + "the interval.",
    )
    (cells,) = re.findall(r"<td>hyena_x-50<small>(.*?)</tr>", page, re.DOTALL)
    assert "<td>91.7<small>" in cells and "<td>-8.3<small>" in cells and "<td>+13.9<small>" in cells
    assert table.done(table.rows[-1]) is not None and len(painted) == 5
    told = dry_run(table, table.rows, rates(table))
    assert "5 rows" in told and told.count("done") == 5


def test_the_page_shows_tasks_differences_and_the_pairs_cost(finished: tuple[Path, Results], home: Path) -> None:
    out, results = finished
    page = (out / "report.html").read_text()
    assert page.count("<th>color attr</th>") == 4 and "Combinations that training never showed" in page
    assert "minus the teacher" in page and "13 prompts, 2 DDIM steps" in page and "scenes right" in page
    assert [cost.model for cost in results.costs] == ["hybrid", "procedure", "none"]
    cost = results.costs[0]
    assert list(cost.parts) == ["pairs", "solved start", "stage 1", "LoRA"]
    teacher = open_model(str(home / "tiny")).transformer
    forward = plan_cost(recipe(home).plans["hybrid"], teacher).flops_before
    assert cost.parts["pairs"] == 8 * 2 * 2 * forward  # pictures, steps, guidance
    found = re.search(r"<small>cost</small><b>(.*) %</b><small>of .* training, and (.*) % to draw the pairs<", page)
    assert found is not None
    taught, drawn = (float(share) / 100 for share in found.groups())
    assert drawn == pytest.approx(cost.parts["pairs"] / cost.teacher_training, rel=0.05)
    assert taught + drawn == pytest.approx(cost.share, rel=0.05)


def test_without_prompts_the_grid_shows_held_out_captions(home: Path, tmp_path: Path) -> None:
    small = ("evaluate={triples: 4, grid: 3, steps: 2, guidance: 2.0}", "controls=[]", "budget=0")
    results = run(recipe(home, *small), tmp_path, say=lambda line: None)
    assert all(m.scenes is None and m.grid is not None for m in results.models)
    write_page(tmp_path / "again.html", results)
    assert "their prompt says" not in (tmp_path / "again.html").read_text()


def test_a_grid_is_told_the_size_of_what_it_draws(home: Path) -> None:
    """Not that of the held-out pictures, whose captions it shows."""
    held_out = {TEXT: torch.zeros(3, 2, 4), MASK: torch.ones(3, 2), SIZES: picture_sizes(3, 512, 768)}
    material: Any = SimpleNamespace(conditions=lambda train: held_out, null={})
    config = EvaluateStage(triples=4, grid=2)
    asked = Asked(config, open_model(str(home / "tiny")), material, 0, torch.device("cpu"))
    assert isinstance(asked.condition, dict) and set(asked.condition) == {TEXT, MASK}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (("evaluate.samples=8",), "samples 8 and prompts 13: .* takes text, .* ask for 0 of one"),
        (("evaluate.prompts=0",), "held_out 5: these are judged beside other prompts"),
        (("evaluate.prompts=-1",), "prompts -1: at least 0"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_made(
    home: Path, tmp_path: Path, changes: tuple[str, ...], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        run(recipe(home, *changes), tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_model_of_classes_draws_no_prompts(tiny_teacher: Path, tmp_path: Path) -> None:
    text = f"teacher: {tiny_teacher}\nplan: {{edits: [{{site: attn, blocks: all, operator: local_mean}}]}}"
    with pytest.raises(StudyError, match=r"prompts 6: .* is conditioned on classes"):
        Study(RunRecipe.from_yaml(text, ["evaluate={triples: 4, prompts: 6}"]), tmp_path)


def test_prompts_are_of_the_world_that_the_card_tells(home: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    model = open_model(str(home / "tiny"))
    small = replace(model, card={"world": {"shapes": ["disc", "star"], "held_out_pairs": []}})
    assert {word for p in scene_prompts(small, 30) for word in p.text.split()} & {"ring", "rings", "heart"} == set()
    with pytest.raises(ValueError, match=r"the card of .*: world: most is 9"):
        scene_prompts(replace(model, card={"world": {"most": 9}}), 6)
    nothing = {"held_out_pairs": [], "held_out_colours": []}
    with pytest.raises(ValueError, match="held out 4: the world holds no combination out"):
        scene_prompts(replace(model, card={"world": nothing}), 6, 4)
    with pytest.raises(ValueError, match=r"draws 16 x 16 pictures of 4 channels: the judge of scenes sees RGB"):
        scene_prompts(replace(model, autoencoder=None), 6)


def test_the_encoder_is_loaded_for_a_prompt_that_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, cpu, kept = str(home / "tiny"), torch.device("cpu"), PROMPTS[0].text
    states, null = embedded(name, [kept, kept], cpu)
    assert torch.equal(states[TEXT], letters()([kept, kept])[TEXT]) and null[MASK].tolist() == [[1, 1]]
    monkeypatch.setattr("grafting.data.encoders.minilm", letters)
    states, _ = embedded(name, ["a zebra", kept], cpu)
    assert torch.equal(states[TEXT], letters()(["a zebra", kept])[TEXT]) and states[MASK][0].sum() == 9
    monkeypatch.setattr("grafting.data.encoders.minilm", lambda: TextEncoder(None, letters().model, "another"))
    with pytest.raises(ValueError, match="made by another encoder than MiniLM"):
        embedded(name, ["a zebra"], cpu)


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    walk = ("--scenes", N, "--held-out", HELD_OUT, "--steps", 2, "--guidance", 2)
    assert main(["evaluate", *map(str, (*arguments, *walk))]) == 0
    return capsys.readouterr().out


def test_evaluate_judges_models_beside_their_teacher(
    finished: tuple[Path, Results], home: Path, painted: list[set[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    hybrid, untrained = (str(out / name / "model") for name in ("hybrid", "untrained"))
    painted += [{0}, set(), {0, 1}]  # the teacher once, then each model
    told = json.loads(evaluate(capsys, hybrid, untrained, "--json"))
    assert list(told["scenes"]["scores"]) == [hybrid, untrained, "teacher"]
    apart = {name: d["overall"] for name, d in told["scenes"]["differences"].items()}
    assert apart[hybrid]["value"] == pytest.approx(1 / 18) and apart[untrained]["value"] == pytest.approx(-1 / 12)
    assert told["held out"]["scores"][hybrid]["overall"]["value"] == 1 and "13 prompts" in told["protocol"]
    painted += [{1}, {0}]  # a single object gained, of three, and one of two pairs lost
    table = evaluate(capsys, home / "tiny", "--against", hybrid)
    assert table.count("overall:") == 2 and "-2.78 (" in table and "5 prompts of combinations" in table


def test_models_of_other_worlds_share_no_prompts_and_nothing_is_drawn(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(home / "tiny", other)
    card = json.loads((other / "teacher.json").read_text())
    (other / "teacher.json").write_text(json.dumps(card | {"world": {"shapes": ["disc", "star"]}}))
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("pictures were drawn"))
    for models in ([home / "tiny", other], [home / "tiny", "--against", other]):
        assert main(["evaluate", *map(str, models), "--scenes", "12"]) == 2
        assert "other was taught another world of scenes than" in capsys.readouterr().err


def test_evaluate_draws_what_a_study_draws(
    finished: tuple[Path, Results], home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb's pictures are the study's, so that its scores are."""
    out, _ = finished
    seen: list[torch.Tensor] = []
    draw = Pipeline.__call__

    def spied(self: Pipeline, *given: Any, **more: Any) -> torch.Tensor:
        seen.append(draw(self, *given, **more))
        return seen[-1]

    monkeypatch.setattr(Pipeline, "__call__", spied)
    evaluate(capsys, out / "untrained" / "model", "--json")
    study = Study(recipe(home), out, pytest.fail)
    untrained = study.entries[-1]
    for pictures, entry in zip(seen, (study.entries[0], untrained), strict=True):
        (kept,) = study.images(entry, N + HELD_OUT)
        torch.testing.assert_close(pictures, kept, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["evaluate", "--scenes", "6"], "name one MODEL or several"),
        (["evaluate", "TINY", "TINY", "--scenes", "6"], "several different ones"),
        (["evaluate", "TINY", "other"], "several with --scenes"),
        (["evaluate", "TINY", "--held-out", "6"], "--held-out 6 goes with --scenes"),
        (["evaluate", "TINY", "--scenes", "6", "--samples", "4"], "--samples is about held-out losses and samples"),
        (["evaluate", "TINY", "--scenes", "6", "--data", "x"], "which --scenes does not measure"),
        (["evaluate", "--geneval", "x.jsonl", "--triples", "6"], "which --geneval does not measure"),
        (["evaluate", "TINY", "--scenes", "6", "--against", "TINY"], "one of the models"),
        (["evaluate", "TINY", "--scenes", "6", "--geneval", "x.jsonl"], "give one of them"),
        (["evaluate", "CLASSES", "--scenes", "6"], "the judge of scenes sees RGB"),
        (["evaluate", "TINY", "--data", "PAIRS", "--samples", "4"], "give reference, floor, extractor too"),
        (["sample", "TINY", "--out", "x.png"], "say with --prompt or --prompts"),
        (["sample", "TINY", "--out", "x.png", "--prompt", "a disc", "--prompts", "scenes"], "give one of them"),
        (["sample", "TINY", "--out", "x.png", "--prompts", "no.txt"], "no.txt: no such file"),
        (["sample", "CLASSES", "--out", "x.png", "--prompts", "scenes"], "is conditioned on classes"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], word: str, home: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"TINY": home / "tiny", "CLASSES": tiny_teacher, "PAIRS": home / "pairs"}
    assert main([str(named.get(part, part)) for part in arguments]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_sample_writes_the_prompt_above_each_picture(home: Path, tmp_path: Path) -> None:
    from PIL import Image

    def size(*more: str) -> tuple[int, int]:
        given = ["sample", str(home / "tiny"), "--out", str(tmp_path / "grid.png"), "--steps", "2"]
        assert main([*given, *more]) == 0
        with Image.open(tmp_path / "grid.png") as image:
            return image.size

    width, height = size("--prompts", "scenes", "--count", "12")
    assert width == 6 * 128 + 5 * 2 and height > 2 * 128 + 2 + 2 * 10  # a column a task, a strip above each row
    assert size("--prompts", str(home / "prompts.txt"))[0] == 8 * 128 + 7 * 2
    assert size("--prompts", str(home / "prompts.txt"), "--count", "2")[0] == 2 * 128 + 2
