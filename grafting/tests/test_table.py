"""A whole table on a tiny random model: rows, costs, resume, what is missing."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grafting.claims import locked
from grafting.cli import main
from grafting.diffusion import Diffusion
from grafting.graft import Grafted, graft, ungraft
from grafting.measure.denoising import denoising_losses, paired_difference
from grafting.plan import Plan
from grafting.report import published
from grafting.report.goals import verdicts
from grafting.report.table import TableResults, read_table
from grafting.settings import SettingsError
from grafting.store.configs import config_of
from grafting.store.models import open_model
from grafting.study.bench import Study
from grafting.study.entries import Entry
from grafting.study.forecast import measuring_flops
from grafting.study.making import run_rows
from grafting.study.parts import StudyError
from grafting.study.publish import publish
from grafting.study.rows import Row, against_of, fit, matching, none_of, rows, untrained_of
from grafting.study.spending import stage_one_flops, stage_two_flops, start_flops
from grafting.study.stages import denoiser, left_unexplained
from grafting.study.table import TableRecipe
from grafting.study.whole import Table, by_timestep
from grafting.teachers import teachers

TEXT = """
kind: table
budget: 1.0e-4
stage_one: 0.2
calibration: 16
starts:
  copied: {init: default, distill: {batch: 4, heldout_batches: 1, save_every: 1}}
  random: {init: random, distill: {batch: 4, heldout_batches: 1, save_every: 1}}
finetune: {batch: 4, lr: 1.0e-3, target: teacher, save_every: 1, log_every: 1}
evaluate: {triples: 40, samples: 24, steps: 3, grid: 0, batch: 12, stages: true}
speed: {batch: 1, rounds: 2, sides: [4, 8]}
rows:
  - {name: hyena_x, site: attn, operator: hyena_x, shares: [50, 100]}
  - {name: none-attn, role: control, site: attn, operator: none, shares: [50]}
  - {name: untrained, role: control, what: untrained, site: attn, operator: hyena_x, shares: [50]}
  - {name: procedure, role: control, what: procedure}
  - {name: mlp_r3, site: mlp, operator: mlp, options: {ratio: 3}, shares: [50], budgets: [5.0e-5], images: [10]}
  - {name: depth-halved, share: 50, plan: {restructure: [{merge: pairs}]}, none: depth-dropped}
  - {name: depth-dropped, role: control, share: 50, plan: {restructure: [{drop: interleaved 50%}]}}
  - {name: lost, plan: {edits: [{site: attn, blocks: [99], operator: swa}]}}
  - {name: many, site: attn, operator: swa, shares: [50], images: [1000000]}
  - {name: hyena_x, site: attn, operator: hyena_x, shares: [50], seeds: [7]}
  - {name: to-noise, site: attn, operator: hyena_x, shares: [50], finetune: {target: noise},
     stage_one: 0, against: hyena_x, samples: false}
"""


def recipe(teacher: Path, *changes: str) -> TableRecipe:
    return TableRecipe.from_yaml(f"teacher: {teacher}\n{TEXT}", changes)


def opened(teacher: Path, out: Path, *changes: str) -> Table:
    return Table(recipe(teacher, *changes), out, lambda line: None)


@contextmanager
def grafted(model: torch.nn.Module, plan: Plan) -> Iterator[Grafted]:
    handle = graft(model, plan, init="random")
    try:
        yield handle
    finally:
        ungraft(model)


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, TableResults]:
    table = opened(tiny_teacher, tmp_path_factory.mktemp("table") / "out")
    failed = run_rows(table, table.rows, lambda: publish(table))
    assert list(failed) == ["lost", "many-50-n1000000"] and "1000000" in failed["many-50-n1000000"]
    return table, publish(table)


def test_rows_come_in_the_order_of_their_use_and_name_what_they_are(finished: tuple[Table, TableResults]) -> None:
    table, results = finished
    assert [row.name for row in table.rows] == [
        "teacher",
        "procedure",
        "untrained-50",
        "none-attn-50",
        "depth-dropped",
        "hyena_x-50",
        "depth-halved",
        "hyena_x-100",
        "lost",
        "mlp_r3-50-b0_005-n10",
        "many-50-n1000000",
        "to-noise-50",
        "hyena_x-50-s7",
    ]
    assert [row.name for row in results.rows] == [row.name for row in table.rows if row.recipe is not None]
    assert list(results.missing) == ["lost", "many-50-n1000000"] and "block 99" in results.missing["lost"]
    assert read_table(table.out / "table.json") == results
    assert results.teacher == table.recipe.teacher and results.features.endswith("-classifier (not Inception FID)")
    page = table.out / "table.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(table.out)]) == 0 and page.read_text() == before


def test_every_row_has_its_figures_and_controls(finished: tuple[Table, TableResults]) -> None:
    table, results = finished
    teacher, none, hybrid, bare = map(results.row, ("teacher", "none-attn-50", "hyena_x-50", "untrained-50"))
    assert teacher is not None and none is not None and hybrid is not None and bare is not None
    for row in results.rows:
        if row.name == "to-noise-50":
            continue
        assert row.loss is not None and row.figures["fid_minus_floor"].low is not None
        assert (table.out / (row.grid or "")).is_file() and "N = 24" in row.protocol
        same = row.name == "procedure"  # it is the teacher, whose samples have no difference to themselves
        expected = {"loss"} if same else {"loss", "fid"}  # 24 samples are too few for a KID
        assert set(row.differences) == (set() if row.role == "teacher" else expected)
    assert hybrid.differences["loss"].value == pytest.approx(hybrid.loss.value - teacher.loss.value)  # type: ignore[union-attr]
    assert hybrid.over_none["loss"].value == pytest.approx(hybrid.loss.value - none.loss.value)  # type: ignore[union-attr]
    assert hybrid.over_none["fid"].value == pytest.approx(hybrid.figures["fid"].value - none.figures["fid"].value)
    for name in ("fid", "fid_minus_floor"):
        apart = hybrid.figures[name].value - bare.figures[name].value
        assert hybrid.over_untrained["fid"].value == pytest.approx(apart)
    assert hybrid.over_untrained["loss"].value == pytest.approx(hybrid.loss.value - bare.loss.value)  # type: ignore[union-attr]
    beside = {row.name: row.untrained for row in results.rows if row.over_untrained}
    assert beside == dict.fromkeys(["hyena_x-50", "to-noise-50", "hyena_x-50-s7"], "untrained-50")
    halved, dropped = results.row("depth-halved"), results.row("depth-dropped")
    assert halved is not None and dropped is not None and halved.loss is not None and dropped.loss is not None
    assert halved.over_none["loss"].value == pytest.approx(halved.loss.value - dropped.loss.value)
    assert not none.over_none and not results.row("hyena_x-100").over_none  # type: ignore[union-attr]
    assert set(hybrid.explained) == {"blocks.1.attn", "blocks.3.attn"}
    procedure = results.row("procedure")
    assert procedure is not None and procedure.loss == teacher.loss and procedure.spent == 0
    assert "bit for bit" in procedure.note


def test_rows_are_compared_with_each_other_and_trained_again(finished: tuple[Table, TableResults]) -> None:
    table, results = finished
    first, again, noise = map(results.row, ("hyena_x-50", "hyena_x-50-s7", "to-noise-50"))
    assert first is not None and again is not None and noise is not None
    assert (first.other, again.other, noise.other) == ("", "hyena_x-50", "hyena_x-50")
    assert first.loss is not None and again.loss is not None and noise.loss is not None
    for row in (again, noise):
        assert row.over_other["loss"].value == pytest.approx(row.loss.value - first.loss.value) != 0  # type: ignore[union-attr]
    assert again.over_other["fid"].value == pytest.approx(again.figures["fid"].value - first.figures["fid"].value)
    # Nothing else was trained from that seed, or on the noise: what was trained otherwise is no control of it.
    assert again.seed == 7 and again.variant and not again.over_none and not noise.over_none and first.over_none
    assert noise.changed and not again.changed and not first.variant
    seeds = [table.opened(table.named(name))[0].recipe for name in ("hyena_x-50", "hyena_x-50-s7")]
    assert [(each.seed, each.learning_seed) for each in seeds] == [(0, 0), (0, 7)]
    assert first.none == "none-attn-50" and again.none == ""
    one, two = table.opened(table.named("to-noise-50"))[0].recipe.stages
    assert one is None and two is not None and two.target == "noise" and "target noise, no stage 1" in noise.description
    assert table.recipe.finetune.target == "teacher" and "solved start" in noise.parts


def test_a_row_without_samples_is_judged_by_its_loss(finished: tuple[Table, TableResults]) -> None:
    table, results = finished
    row = results.row("to-noise-50")
    assert row is not None and row.loss is not None and set(row.differences) == set(row.over_other) == {"loss"}
    assert row.variant and not row.figures and not row.protocol and row.by_timestep and row.left
    there = {path.name for path in (table.out / "work" / row.name).iterdir()}
    assert "denoise.json" in there and not {"sample.json", "quality.json"} & there
    assert f"<td>{row.name}<" in (table.out / "table.html").read_text()
    # It is looked at all the same: its grid is of the first samples that it would draw.
    study, entry = table.opened(table.named("hyena_x-50"))
    first = study.glimpse(entry, 20)
    assert first is not None and torch.allclose(first, next(study.images(entry, 20)), rtol=1e-3)  # kept as float16
    assert row.grid is not None and (table.out / row.grid).read_bytes().startswith(b"\x89PNG")
    drawn, bare = (measuring_flops(table, table.named(name)) for name in ("hyena_x-50", "to-noise-50"))
    cost = table.named(row.name).cost
    assert cost is not None and drawn == (24 * 3 + 40) * cost.flops_after and bare == 40 * cost.flops_after
    # At the goals' budget too it is judged by none of them.
    assert not [verdict for verdict in verdicts(results) if verdict.row == row.name]
    stretch = replace(row, budget=0.02, changed=False)
    assert verdicts(replace(results, rows=(results.rows[0], stretch))) == ()


def test_the_loss_on_the_way_and_what_blocks_leave_at_the_end(finished: tuple[Table, TableResults]) -> None:
    table, results = finished
    hybrid, none, bare = map(results.row, ("hyena_x-50", "none-attn-50", "untrained-50"))
    assert hybrid is not None and none is not None and bare is not None
    assert set(hybrid.stages) == {"start", "stage 1"} and set(none.stages) == {"start"} and not bare.stages
    # Nothing at the sites, before any training: the ungrafted teacher with zeros there, measured by hand.
    study, entry = table.opened(table.named("none-attn-50"))
    assert entry.plan is not None
    with grafted(study.teacher, entry.plan) as zeroed:
        losses = denoising_losses(denoiser(zeroed.model), study.triples, batch_size=12)
    expected = paired_difference(losses, study.denoise(study.entries[0]))
    assert none.stages["start"].value == pytest.approx(expected.value, rel=1e-5)
    assert hybrid.left.keys() == {"0", "1", "2", "3"} and hybrid.left["0"] < hybrid.left["1"]
    assert not results.row("teacher").left and not results.row("procedure").left  # type: ignore[union-attr]
    # Restructured models are compared where a block of theirs stands for the teacher's.
    assert set(results.row("depth-halved").left) == {"1", "3"}  # type: ignore[union-attr]
    losses = load_file(table.out / "losses.safetensors")
    assert set(losses) == {row.name for row in results.rows}
    for row in results.rows:
        assert row.loss is not None and losses[row.name].double().mean().item() == pytest.approx(row.loss.value)


def test_left_unexplained_by_hand(finished: tuple[Table, TableResults]) -> None:
    """The share of one block, of sums written out here; the unchanged model leaves nothing."""
    table, _ = finished
    study, entry = table.opened(table.named("none-attn-50"))
    teacher, triples = study.teacher, study.triples
    assert set(left_unexplained(teacher, None, teacher, triples, 40).values()) == {0.0}
    blocks, kept = teacher.transformer_blocks, []  # type: ignore[union-attr]
    noised = Diffusion().add_noise(triples.z, triples.t, triples.noise)
    with study.opened(entry) as (model, handle):
        assert handle is not None and handle.private
        found = left_unexplained(model, handle, teacher, triples, 40)
        for network in (teacher, model):
            hook = network.transformer_blocks[2].register_forward_hook(lambda *call: kept.append(call[2]))  # type: ignore[union-attr, operator, index]
            with torch.no_grad():
                denoiser(network)(noised, triples.t, triples.y)
            hook.remove()
    wanted, given = kept
    spread = (wanted - wanted.mean((0, 1))).square().sum()
    assert found["2"] == pytest.approx(((given - wanted).square().sum() / spread).item(), rel=1e-4)
    assert len(blocks) == len(found) == 4  # type: ignore[arg-type]


def test_a_row_depends_on_nothing_that_it_does_not_use(
    finished: tuple[Table, TableResults], tiny_teacher: Path
) -> None:
    """So that another setting makes the rows again that it is one of, and no other."""
    table, _ = finished

    def made_again(*changes: str) -> set[str]:
        other = opened(tiny_teacher, table.out, *changes)
        return {row.name for row in other.rows if row.recipe is not None and other.done(row) is None}

    everything = {row.name for row in table.rows if row.recipe is not None}
    taught = {"hyena_x-50", "hyena_x-100", "hyena_x-50-s7"}
    assert made_again("starts.copied.distill.mlp.lr=0.5") == {"mlp_r3-50-b0_005-n10"}
    assert made_again("starts.copied.distill.attn.lr=0.5") == taught
    assert made_again("starts.copied.distill.group.lr=0.5") == {"depth-halved", "depth-dropped"}
    assert made_again("calibration=8") == taught | {"to-noise-50", "mlp_r3-50-b0_005-n10"}
    assert made_again("seed=3") == everything
    assert made_again("evaluate.bootstraps=7") == everything - {"to-noise-50"}  # of which no samples are drawn


def test_a_control_of_nothing_at_some_blocks_has_no_stage_one(tiny_teacher: Path, tmp_path: Path) -> None:
    plan = "{edits: [{site: attn, blocks: last 50%, operator: none}]}"
    table = opened(tiny_teacher, tmp_path, f"rows.7={{name: last, role: control, share: 50, plan: {plan}}}")
    assert set(table.named("last").parts) == {"stage 2"}
    assert table.named("last").flops == pytest.approx(table.named("none-attn-50").flops, rel=0.1)


def test_hybrids_of_the_table_proper_are_timed(finished: tuple[Table, TableResults]) -> None:
    table, results = finished
    timed = {row.name for row in results.rows if row.speed}
    assert timed == {"untrained-50", "none-attn-50", "hyena_x-50", "depth-halved", "depth-dropped", "hyena_x-100"}
    settings = [f"{n} tokens, batch 1, {torch.get_num_threads()} threads, float32" for n in (16, 64)]
    for row in results.rows:
        assert [timed.setting for timed in row.speed] == (settings if row.speed else [])
        assert all(timed.low <= timed.speedup <= timed.high for timed in row.speed)  # type: ignore[operator]
    none, hybrid = results.row("none-attn-50"), results.row("hyena_x-50")
    assert none is not None and none.parameters is not None and none.parameters < 1
    assert hybrid is not None and all(timed.time_bound and timed.flop_bound for timed in hybrid.speed)
    # Whoever writes the page again need not have as many threads; and what was not timed is, when the table goes on.
    threads, clock = torch.get_num_threads(), table.out / "rows" / "hyena_x-50.speed.json"
    before = clock.read_bytes()
    torch.set_num_threads(threads + 1)
    try:
        assert publish(table).row("hyena_x-50") == hybrid
        clock.unlink()
        assert publish(table).row("hyena_x-50").speed == ()  # type: ignore[union-attr]
        # Nothing is timed while a row is being made beside it, of these or of others.
        with locked(table.out / "work" / "depth-halved.lock", wait=True):
            run_rows(table, [table.named("hyena_x-50")], lambda: None)
        assert not clock.is_file()
        run_rows(table, [table.named("hyena_x-50")], lambda: None)
        again = publish(table).row("hyena_x-50")
        assert again is not None and f"{threads + 1} threads" in again.speed[0].setting
    finally:
        torch.set_num_threads(threads)
        clock.write_bytes(before)
    # Times are no part of a row's file, which comes to the same bits wherever it is made again.
    assert json.loads((table.out / "rows" / "hyena_x-50.json").read_text())["outcome"]["speed"] == []


def test_a_table_goes_on_from_what_it_published(
    finished: tuple[Table, TableResults], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``work``, as it is committed or sent: nothing is trained or drawn again, and nothing is lost."""
    table, results = finished
    out = tmp_path / "out"
    shutil.copytree(table.out / "rows", out / "rows")
    shutil.copy(table.out / "losses.safetensors", out)
    before = load_file(out / "losses.safetensors")

    def never(self: Study, *given: Any) -> Any:
        raise AssertionError("made again")

    for work in ("_train", "_losses", "_judge"):
        monkeypatch.setattr(Study, work, never)
    other = opened(tiny_teacher, out)
    run_rows(other, other.rows, lambda: None)
    assert publish(other) == results
    after = load_file(out / "losses.safetensors")
    assert after.keys() == before.keys() and all(torch.equal(after[name], losses) for name, losses in before.items())
    # The samples of both are gone: their difference in FID cannot be found again, that of the loss can.
    (out / "rows" / "hyena_x-50.over-none.json").unlink()
    again, hybrid = publish(other).row("hyena_x-50"), results.row("hyena_x-50")
    assert again is not None and hybrid is not None and set(hybrid.over_none) > set(again.over_none) == {"loss"}
    assert again.over_none["loss"].value == pytest.approx(hybrid.over_none["loss"].value, abs=1e-7)  # kept as float32
    # Losses of rows under other settings are none of these rows'.
    stranger = opened(tiny_teacher, out, "calibration=8")
    publish(stranger)
    assert not {"hyena_x-50", "hyena_x-100"} & load_file(out / "losses.safetensors").keys()


def test_cost_by_hand(finished: tuple[Table, TableResults]) -> None:
    """Every row spends its budget up to one step of stage 2, of sums that are written out here."""
    table, _ = finished
    row = table.named("hyena_x-50")
    assert row.cost is not None and row.recipe is not None
    one, two = row.recipe.stages
    assert one is not None and two is not None
    before, after = row.cost.flops_before, row.cost.flops_after
    operators = sum(site.flops_after for site in row.cost.sites)
    # Two sites: the sums of 16 tokens' features (width of them) by themselves and by the outputs, 2 per multiply-add.
    tokens, width = row.cost.shape.tokens, row.cost.shape.width
    sums = 2 * tokens * (2 * width * width + 2 * width * width)
    whole = 3 * before * 1_000_000
    assert table.training == whole
    step = 4 * (3 * after + before)
    taught = one.steps * 4 * (before + 3 * operators) + 3 * 4 * (before + operators)
    assert row.parts == {
        "solved start": 16 * (before + operators + sums),
        "stage 1": taught,
        "stage 2": two.steps * step,
    }
    assert taught <= 0.2 * 1e-4 * whole < taught + 4 * (before + 3 * operators) * 2
    assert 1e-4 * whole - step < row.flops <= 1e-4 * whole


def test_a_budget_too_small_for_a_step_is_refused(finished: tuple[Table, TableResults]) -> None:
    table, _ = finished
    cost, start = table.named("hyena_x-50").cost, table.recipe.starts["copied"]
    assert cost is not None
    settings = {"calibration": 16, "distill": start.distill, "finetune": table.recipe.finetune}
    need = start_flops(cost, 16) + stage_two_flops(cost, table.recipe.finetune)
    one, two = fit(cost, need, first=0.0, **settings)  # type: ignore[arg-type]
    assert one is None and two.steps == 1
    one, two = fit(cost, 50 * need, first=0.5, **settings)  # type: ignore[arg-type]
    assert one is not None and stage_one_flops(cost, one) <= 25 * need
    with pytest.raises(StudyError, match="one step costs"):
        fit(cost, 0.99 * need, first=0.0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("allowed", [*range(1, 130, 3), 5000])
def test_stage_one_is_as_long_as_its_share_pays_for(allowed: int, finished: tuple[Table, TableResults]) -> None:
    """Against a walk from one step on; three held-out errors whatever the length."""
    table, _ = finished
    cost, start = table.named("hyena_x-50").cost, table.recipe.starts["copied"]
    assert cost is not None
    step = stage_one_flops(cost, replace(start.distill, steps=1, evaluate_every=1))
    stages = (replace(start.distill, steps=n, evaluate_every=-(-n // 2)) for n in count(1))
    longest = sum(1 for _ in takewhile(lambda stage: stage_one_flops(cost, stage) <= allowed * step, stages))
    settings = {"calibration": 0, "distill": start.distill, "finetune": table.recipe.finetune}
    one, _ = fit(cost, 2**20 * allowed * step, first=2**-20, **settings)  # type: ignore[arg-type]
    assert (0 if one is None else one.steps) == longest


def test_a_control_none_is_of_the_row_s_own_budget_images_and_seed(tiny_teacher: Path) -> None:
    """One that is named names a group too, of whose rows the alike one is taken."""
    model = open_model(str(tiny_teacher)).transformer

    def made(*budgets: float) -> list[Row]:
        halved = {"plan": {"restructure": [{"merge": "pairs"}]}, "none": "dropped", "budgets": [1e-4, 2e-4]}
        dropped = {"plan": {"restructure": [{"drop": "interleaved 50%"}]}, "role": "control", "budgets": list(budgets)}
        groups = [{"name": "halved", "share": 50} | halved, {"name": "dropped", "share": 50} | dropped]
        return rows(recipe(tiny_teacher, f"rows={json.dumps(groups)}"), model, 1_000_000)

    found = made(1e-4, 2e-4)
    controls = {row.name: none_of(row, found) for row in found if row.none}
    wanted = {"halved": "dropped", "halved-b0_02": "dropped-b0_02"}
    assert {name: none and none.name for name, none in controls.items()} == wanted
    with pytest.raises(StudyError, match=r"rows halved-b0_02: their none has no row of their share, budget, images"):
        made(1e-4)


def test_done_rows_are_skipped_and_a_broken_one_is_made_again_to_the_same_figures(
    finished: tuple[Table, TableResults], tiny_teacher: Path
) -> None:
    table, results = finished
    said: list[str] = []
    again = Table(table.recipe, table.out, said.append)
    refused = {row.name: row.problem for row in again.rows if row.problem}
    assert run_rows(again, again.rows, lambda: None) == refused and list(refused) == list(results.missing) and not said
    path = table.out / "rows" / "hyena_x-50.json"
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    assert again.done(again.named("hyena_x-50")) is None
    run_rows(again, matching(again.rows, ["hyena_x-50"]), lambda: None)
    assert said == ["row 1 of 1: hyena_x-50"] and path.read_bytes() == before
    changed = Table(replace(table.recipe, seed=1), table.out, said.append)
    assert changed.done(changed.named("hyena_x-50")) is None
    failed = run_rows(changed, matching(changed.rows, ["hyena_x-50"]), lambda: None)
    assert "holds a model of other settings (seed 0 there, 1 now)" in failed["hyena_x-50"]
    run_rows(again, again.rows, lambda: None)
    assert publish(again) == results


def test_killed_at_random_it_goes_on_to_the_same_bits(
    finished: tuple[Table, TableResults], tiny_teacher: Path, tmp_path: Path
) -> None:
    table, _ = finished
    out, file = tmp_path / "out", tmp_path / "table.yaml"
    file.write_text(f"teacher: {tiny_teacher}\n{TEXT}")
    command = ["study", str(file), "--out", str(out), "--rows", "hyena_x-50", "--rows", "none*"]
    code = f"""
import sys, torch
torch.set_num_threads({torch.get_num_threads()})
from grafting.study import publish, whole
from grafting.cli import main
print("ready", flush=True)
sys.exit(main({command!r}))
"""
    for attempt in range(2):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(random.random() * 1.5 + attempt)
        process.kill()
        process.wait()
        process.stdout.close()
    assert main(command) == 0
    for name in ("teacher", "none-attn-50", "hyena_x-50"):
        assert (out / "rows" / f"{name}.json").read_bytes() == (table.out / "rows" / f"{name}.json").read_bytes()
        assert (out / "rows" / f"{name}.png").read_bytes() == (table.out / "rows" / f"{name}.png").read_bytes()


def test_dry_run_says_rows_cost_and_time_and_makes_nothing(
    finished: tuple[Table, TableResults], tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, _ = finished
    file, out = tmp_path / "table.yaml", tmp_path / "out"
    file.write_text(f"teacher: {tiny_teacher}\n{TEXT}")
    assert main(["study", str(file), "--out", str(out), "--dry-run", "--device", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("grafting study: device 'nowhere': ")
    assert main(["study", str(file), "--out", str(out), "--dry-run", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    row = table.named("hyena_x-50")
    line = next(line for line in text.splitlines() if line.startswith("hyena_x-50 ")).split()
    assert line[1:3] == ["to", "do"] and line[3:5] == [str(row.steps["stage 1"]), str(row.steps["stage 2"])]
    assert float(line[6].rstrip("%")) == pytest.approx(0.01, abs=1e-3)
    assert "not available: row lost" in text or "not available: edit 0" in text
    assert "by a step and a batch of samples" in text and not out.exists()
    assert main(["study", str(file), "--out", str(table.out), "--dry-run", "--rows", "h*"]) == 0
    text = capsys.readouterr().out
    assert "by finished rows" in text and "3 rows" in text and " done " in text and "about 0.0 h left" in text


def test_rows_are_picked_by_pattern(finished: tuple[Table, TableResults]) -> None:
    table, _ = finished
    assert [row.name for row in matching(table.rows, ["hyena*", "none*"])] == [
        "none-attn-50",
        "hyena_x-50",
        "hyena_x-100",
        "hyena_x-50-s7",
    ]
    assert matching(table.rows, []) == table.rows
    with pytest.raises(StudyError, match=r"no row matches 'hyenax\*': there are teacher"):
        matching(table.rows, ["hyenax*"])


def test_controls_are_of_the_same_place(tiny_teacher: Path, tmp_path: Path) -> None:
    """Of several *untrained* of one site and share that of the same operator, and size; data and budget part *none*."""
    groups = """[
      {name: a, site: attn, operator: hyena_x, shares: [50, 75], images: [10, 20]},
      {name: b, site: attn, operator: swa, shares: [50]},
      {name: r3, site: mlp, operator: mlp, options: {ratio: 3}, shares: [50]},
      {name: u-r6, role: control, what: untrained, site: mlp, operator: mlp, options: {ratio: 6}, shares: [75]},
      {name: u-r2, role: control, what: untrained, site: mlp, operator: mlp, options: {ratio: 2}, shares: [75]},
      {name: r2, site: mlp, operator: mlp, options: {ratio: 2}, shares: [75]},
      {name: u-swa, role: control, what: untrained, site: attn, operator: swa, shares: [50]},
      {name: u-x, role: control, what: untrained, site: attn, operator: hyena_x, shares: [50]},
      {name: none, role: control, site: attn, operator: none, shares: [50], images: [10]}]"""
    table = opened(tiny_teacher, tmp_path / "out", f"rows={groups}")
    found = {row.name: (none_of(row, table.rows), untrained_of(row, table.rows)) for row in table.rows}
    assert {name: tuple(other and other.name for other in both) for name, both in found.items() if any(both)} == {
        "a-50-n10": ("none-50-n10", "u-x-50"),
        "a-50-n20": (None, "u-x-50"),
        "b-50": (None, "u-swa-50"),
        "r2-75": (None, "u-r2-75"),
    }


def test_a_merged_row_in_bfloat16_and_one_that_breaks(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = opened(tiny_teacher, tmp_path / "out", "finetune.precision=bf16", "evaluate.precision=bf16")
    train = table.study.__class__.train

    def breaking(study: Study, entry: Entry) -> dict[str, Any]:
        if entry.name == "depth-dropped":
            raise RuntimeError("out of memory")
        return train(study, entry)

    monkeypatch.setattr(Study, "train", breaking)
    chosen = matching(table.rows, ["depth*"])

    def no_page() -> None:
        raise ValueError("a number that is not finite")

    assert run_rows(table, chosen, no_page) == {"depth-dropped": "out of memory"}
    made = table.done(table.named("depth-halved"))
    assert made is not None and made.loss is not None and made.share == 50 and "bf16" in made.protocol
    # Another process, which made nothing itself, tells it too, until the row is there.
    other = opened(tiny_teacher, table.out, "finetune.precision=bf16", "evaluate.precision=bf16")
    assert publish(other).missing["depth-dropped"] == "out of memory"
    monkeypatch.setattr(Study, "train", train)
    assert run_rows(other, chosen, lambda: None) == {}
    assert "depth-dropped" not in publish(table).missing


def test_rows_of_the_unchanged_teacher_have_a_folder_each(tiny_teacher: Path, tmp_path: Path) -> None:
    """Two budgets of *procedure* are two models, whose finetuning differs in length."""
    groups = "[{name: procedure, role: control, what: procedure, budgets: [2.0e-5, 1.0e-4]}]"
    for target in ("noise", "teacher"):
        table = opened(tiny_teacher, tmp_path / target, f"rows={groups}", f"finetune.target={target}")
        assert run_rows(table, table.rows, lambda: None) == {}
        teacher, long, short = (table.done(row) for row in table.rows)
        assert teacher is not None and short is not None and long is not None
        taught = [row.steps.get("stage 2", 0) for row in (short, long)]
        assert taught == [0, 0] if target == "teacher" else 0 < taught[0] < taught[1]
        assert len({teacher.loss, short.loss, long.loss}) == (1 if target == "teacher" else 3)


def test_two_processes_share_a_table(tiny_teacher: Path, tmp_path: Path) -> None:
    """A row is made by one of them, and one that its maker left is taken over by one."""
    out, file = tmp_path / "out", tmp_path / "table.yaml"
    file.write_text(f"teacher: {tiny_teacher}\n{TEXT}")
    table = opened(tiny_teacher, out)
    command = ["study", str(file), "--out", str(out), "--rows", "*-50"]
    code = f"import sys; from grafting.cli import main; sys.exit(main({command!r}))"
    logs = [tmp_path / f"{name}.log" for name in "ab"]
    both = []
    try:
        with locked(out / "work" / "none-attn-50.lock", wait=True):  # as if a third were at it
            for log in logs:
                with log.open("w") as to:
                    both.append(subprocess.Popen([sys.executable, "-c", code], stdout=to, stderr=subprocess.STDOUT))
            end = time.monotonic() + 240
            while not all("none-attn-50: another process makes it" in log.read_text() for log in logs):
                assert time.monotonic() < end and all(process.poll() is None for process in both), logs[0].read_text()
                time.sleep(0.05)
            assert not (out / "rows" / "none-attn-50.json").exists()
        assert [process.wait(timeout=240) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    told = "".join(log.read_text() for log in logs)
    for name in ("untrained-50", "none-attn-50", "hyena_x-50"):
        assert table.done(table.named(name)) is not None
        assert told.count(f": {name}\n") + told.count(f"{name}: left undone") == 1
    assert {row.name for row in read_table(out / "table.json").rows} == {
        "teacher",
        "untrained-50",
        "none-attn-50",
        "hyena_x-50",
        "to-noise-50",
    }


def test_losses_by_timestep() -> None:
    t = torch.tensor([0, 99, 100, 199, 500, 999, 998, 997])
    mine, theirs = torch.arange(8.0), torch.zeros(8)
    bins = by_timestep(mine, theirs, t, torch.tensor([0, 1, 2, 3, 4, 5, 6, 6]))
    assert [figure.value for figure in bins] == [0.5, 2.5, 0, 0, 0, 0, 0, 0, 0, 6.0]
    assert bins[4].low is None and bins[9].low is not None and bins[9].low < 6 < bins[9].high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("finetune.steps=3", "finetune: steps follow from the budget"),
        ("starts.copied.distill.steps=3", "start copied: distill: steps follow from the budget"),
        ("starts.copied.inti=copy", "unknown key 'inti': did you mean 'init'"),
        ("rows.0.start=coped", "row hyena_x: start 'coped': did you mean 'copied'"),
        ("rows.0.shars=[50]", "unknown key 'shars': did you mean 'shares'"),
        ("rows.0.share=50", "share 50: of a row with a plan; give shares"),
        ("rows.5.share=0", "share 0: from 1 to 100 percent"),
        ("rows.0.shares=[0]", "share 0: from 1 to 100 percent"),
        ("rows.0.operator=", "row"),
        ("budget=0", "budget 0.0: above 0"),
        ("stage_one=1", "stage_one 1.0"),
        ("evaluate.samples=0", "at least 2 samples"),
        ("rows.0.finetune={steps: 3}", "row hyena_x: finetune: steps follow from the budget"),
        ("rows.0.finetune={bach: 3}", "row hyena_x: finetune: unknown key 'bach': did you mean 'batch'"),
        ("rows.0.finetune={lr: -1}", "row hyena_x: finetune: lr"),
        ("rows.0.stage_one=1", "stage_one 1.0: a share of the budget"),
        ("rows.2.seeds=[3]", "of rows that are trained"),
        ("kind=run", "no table"),
        ("buget=1", "did you mean 'budget'"),
    ],
)
def test_bad_recipes_are_refused(tiny_teacher: Path, change: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        recipe(tiny_teacher, change)


def test_the_pages_own_table_and_the_shipped_one_are_recipes() -> None:
    docs = Path(__file__).parents[1] / "docs" / "table.md"
    (own,) = re.findall(r"```yaml\n(.*?)```", docs.read_text(), re.DOTALL)
    assert len(TableRecipe.from_yaml(own).rows) == 4
    shipped = TableRecipe.from_yaml((files("grafting") / "recipes" / "table.yaml").read_text())
    operators = {
        "hyena_se",
        "hyena_x",
        "hyena_y",
        "swa",
        "mamba2",
        "mlp",
        "mlp_hyena_x",
        "local_mean",
        "hyena_x_2d",
        "linear",
    }
    full = [group for group in shipped.rows if group.shares == (50, 75, 100) and group.role == "hybrid"]
    assert {group.operator for group in full} == operators | {""}
    assert set(published.ROWS) <= {group.name for group in shipped.rows}
    assert shipped.evaluate.samples >= 2000 and shipped.evaluate.guidance == 1 and shipped.budget == 0.05
    assert 20 <= shipped.evaluate.steps <= 25 and shipped.seed != 0 and "seed 0" in shipped.notes[0]


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_where_the_shipped_table_draws_a_curve_its_control_has_one() -> None:
    shipped = TableRecipe.from_yaml((files("grafting") / "recipes" / "table.yaml").read_text())
    found = rows(shipped, config_of("fashion"), 184_192)
    assert not [row.name for row in found if row.problem]
    bare = {(row.site, row.share, row.budget, row.images) for row in found if row.operator == "none"}
    drawn = {(row.site, row.share, row.budget, row.images) for row in found if row.variant and row.role == "hybrid"}
    drawn = {place for place in drawn if place[0]}  # merged blocks name their own control
    assert drawn and drawn <= bare
    published_half = [row for row in found if row.share == 50 and row.role == "hybrid" and row.label in published.ROWS]
    assert {row.label for row in published_half} == {name for name, at in published.ROWS.items() if 50 in at}
    half = {row.label for row in found if row.share == 50 and row.role == "hybrid" and not row.variant}
    assert half == {row.label for row in found if row.share == 50 and row.role == "hybrid" and row.budget == 0.02}
    assert all(against_of(row, found) is not None for row in found if row.against)
    (wider,) = (row for row in found if row.name == "mlp_r6-50")
    assert wider.recipe is not None and wider.recipe.init == "random"  # a copied one is the teacher


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_the_shipped_table_goes_on_from_a_copy(tmp_path: Path) -> None:
    """Its rows are those of the shipped recipe and code, with everything that the page says of them."""
    home = files("grafting") / "assets" / "fashion" / "runs" / "table"
    shipped = read_table(Path(str(home)) / "table.json")
    out = tmp_path / "out"
    shutil.copytree(str(home), out)
    table = Table(
        TableRecipe.from_yaml((files("grafting") / "recipes" / "table.yaml").read_text()), out, lambda line: None
    )
    assert [row.name for row in table.rows if table.done(row) is not None] == [row.name for row in shipped.rows]
    assert publish(table).rows == shipped.rows


def test_plans_by_locality_are_of_the_analysis_that_a_table_names(tiny_teacher: Path, tmp_path: Path) -> None:
    """Without one such rows alone are refused."""
    groups = """[
      {name: a, site: attn, operator: swa, shares: [50]},
      {name: near, plan: {edits: [{site: attn, blocks: most local 50%, operator: swa}]}}]"""
    table = opened(tiny_teacher, tmp_path / "out", f"rows={groups}")
    assert [row.name for row in table.rows if row.recipe is None] == ["near"]
    assert "analysis: FILE" in table.failed(table.named("near"))
    ranking = {"model": "mine", "distance": "raster", "reach": 2, "values": [0.1, 0.9, 0.2, 0.8]}
    (tmp_path / "analysis.json").write_text(json.dumps({"ranking": ranking}))
    named = opened(tiny_teacher, tmp_path / "out", f"rows={groups}", f"analysis={tmp_path / 'analysis.json'}").named(
        "near"
    )
    assert named.recipe is not None and named.recipe.plans["near"].edits[0].blocks == (1, 3)


def test_two_rows_of_one_name_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="rows hyena_x-100 occur twice"):
        opened(tiny_teacher, tmp_path / "out", "rows.1.name=hyena_x", "rows.1.shares=[100]")
    with pytest.raises(StudyError, match="none nothing: no such row; there are teacher"):
        opened(tiny_teacher, tmp_path / "out", "rows.0.none=nothing")
    with pytest.raises(StudyError, match="against nothing: no such row; there are teacher"):
        opened(tiny_teacher, tmp_path / "out", "rows.0.against=nothing")


def test_a_teacher_of_text_is_told_what_judges_it(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"samples 24: scenes takes text, .* ask for 0, and for prompts"):
        opened(Path("scenes"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_another_schema_or_with_odd_keys_are_refused(
    finished: tuple[Table, TableResults], tmp_path: Path
) -> None:
    table, _ = finished
    content = json.loads((table.out / "table.json").read_text())
    for change, word in (
        ({"schema": 2}, "schema 2"),
        ({"rwos": []}, "did you mean 'rows'"),
        ({"rows": [{"name": "a", "label": "a", "role": "hybird"}]}, "hybird"),
    ):
        (tmp_path / "table.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=word):
            read_table(tmp_path / "table.json")
