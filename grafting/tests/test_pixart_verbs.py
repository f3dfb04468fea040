"""Every verb on the folder of a tiny PixArt-Sigma pipeline: from pictures with captions to samples and a study."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding import SIDE, picture, pixart_pipeline
from PIL import Image
from test_hosts_table import pixart
from test_judging import OWN

from grafting.cli import main
from grafting.conditions import MASK, rows
from grafting.data.shards import Encoded
from grafting.graft import ungraft
from grafting.hosts import Site, host_for
from grafting.measure.quality.extractors import ExtractorConfig
from grafting.sampling import Pipeline, pixels_per_latent
from grafting.searching.candidates import candidates
from grafting.searching.costs import timed
from grafting.store.models import open_model
from grafting.study import RunRecipe, Study, StudyError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pixart`` (the pipeline), ``encoded`` (40 pictures, two of them held out) and ``graft``, after stage 1."""
    root = tmp_path_factory.mktemp("pixart")
    for k in range(40):
        picture(root / "pictures" / f"{k}.png", k)
        (root / "pictures" / f"{k}.txt").write_text("a red disc left of the square" if k % 2 else "blue")
    pixart_pipeline().save_pretrained(root / "pixart")
    run("encode", root / "pictures", "--model", root / "pixart", "--out", root / "encoded")
    short = ["--steps", 2, "--batch", 4, "--calibration", 8]
    run("distill", root / "pixart", "--data", root / "encoded", *short, "--out", root / "graft")
    return root


def run(*given: Any) -> None:
    assert main([*map(str, given)]) == 0


def told(capsys: pytest.CaptureFixture[str], *given: Any) -> Any:
    """What a verb prints as JSON."""
    capsys.readouterr()
    run(*given, "--json")
    return json.loads(capsys.readouterr().out)


def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every pass from now on."""
    from diffusers import PixArtTransformer2DModel

    sizes, forward = list[int](), PixArtTransformer2DModel.forward

    def counted(self: Any, hidden_states: torch.Tensor, *more: Any, **named: Any) -> Any:
        sizes.append(len(hidden_states))
        return forward(self, hidden_states, *more, **named)

    monkeypatch.setattr(PixArtTransformer2DModel, "forward", counted)
    return sizes


def test_stage_two_and_the_held_out_loss(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data", folder / "encoded"]
    run("finetune", folder / "graft", *data, "--steps", 2, "--batch", 4, "--out", tmp_path / "tuned")
    found = told(capsys, "evaluate", tmp_path / "tuned", *data, "--triples", 4, "--against", folder / "pixart")
    assert len(found["held-out loss"]) == 3
    again, sizes = [*data, "--triples", 4, "--against", folder / "pixart", "--batch", 1], seen(monkeypatch)
    for name, figure in told(capsys, "evaluate", tmp_path / "tuned", *again)["held-out loss"].items():
        assert figure["value"] == pytest.approx(found["held-out loss"][name]["value"], rel=1e-4, abs=1e-5), name
    assert sizes == [1] * 8


def test_lora_on_the_teacher_s_own_pairs(folder: Path, tmp_path: Path) -> None:
    """Stage 1, pairs, adapters, saved, opened again, merged, taken out: the way of the paper's PixArt-Sigma."""
    (tmp_path / "prompts.txt").write_text("a red disc left of the square\nblue\na disc\n")
    drawn = ["--count", 8, "--steps", 2, "--guidance", 2, "--batch", 4, "--shard", 4]
    run("pairs", folder / "pixart", "--prompts", tmp_path / "prompts.txt", *drawn, "--out", tmp_path / "pairs")
    stage = ["--train", "lora", "--rank", 3, "--steps", 2, "--batch", 4, "--set", "lr=1e-2", "--set", "target=mixture"]
    run("finetune", folder / "graft", "--data", tmp_path / "pairs", *stage, "--out", tmp_path / "tuned")
    run("merge", tmp_path / "tuned", "--out", tmp_path / "whole")
    tuned, before = open_model(str(tmp_path / "tuned")), open_model(str(folder / "graft"))
    whole = open_model(str(tmp_path / "whole"))
    assert tuned.graft is not None and before.graft is not None and whole.graft is not None
    assert tuned.graft.adapters is not None and whole.graft.private and whole.graft.adapters is None
    names = {name.rpartition(".")[0].split(".")[1] for name in tuned.graft.adapters.names}
    assert names == {"attn1", "attn2", "ff"}
    learnt = tuned.graft.adapters.parameters()
    assert all(p.abs().sum() > 0 for name, p in learnt.items() if "lora_B" in name)
    for site, operator in tuned.graft.operators().items():
        old = before.graft.operators()[site].state_dict()
        assert any(not torch.equal(old[name], tensor) for name, tensor in operator.state_dict().items())
    data = Encoded(tmp_path / "pairs")
    z, t, y = data.latents().all()[:3], torch.tensor([10, 500, 900]), rows(data.conditions().all(), slice(3))
    assert len(set(y[MASK].sum(1).tolist())) == 3, "captions of other lengths, padded and masked"
    with torch.no_grad():
        call = tuned.graft.host.call
        found = call(tuned.transformer, z, t, y)
        torch.testing.assert_close(call(whole.transformer, z, t, y), found, atol=2e-6, rtol=1e-5)
        assert not torch.allclose(call(before.transformer, z, t, y), found, atol=1e-4)
        teacher = open_model(str(folder / "pixart")).transformer
        ungraft(tuned.transformer)
        assert torch.equal(call(tuned.transformer, z, t, y), call(teacher, z, t, y))
    mine, theirs = tuned.transformer.state_dict(), teacher.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_inspect_plan_and_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("inspect", folder / "pixart")
    assert "PixArt, 4 blocks" in capsys.readouterr().out
    assert told(capsys, "plan", folder / "pixart", "--operator", "hyena_x")["family"] == "PixArt"
    for model in ("pixart", "graft"):
        found = told(capsys, "profile", folder / model, "--batch", 1, "--rounds", 2, "--text-tokens", 6)
        assert found["milliseconds"] > 0 and found["text tokens"] == 6 and "adapters" not in found


def test_analyze_watches_held_out_captions(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["analyze", folder / "pixart", "--samples", 3, "--steps", 2, "--out", tmp_path]
    found = told(capsys, *given, "--data", folder / "encoded")
    assert [entry["block"] for entry in found["blocks"]] == [0, 1, 2, 3]
    assert main([*map(str, given)]) == 2 and "grafting encode" in capsys.readouterr().err


def test_sample_draws_prompts_and_no_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["sample", folder / "pixart", "--steps", 2, "--out", tmp_path / "grid.png"]
    run(*given, "--prompt", "a red disc", "--prompt", "blue", "--guidance", 2)
    first = (tmp_path / "grid.png").read_bytes()
    with monkeypatch.context() as watched:
        sizes = seen(watched)
        run(*given, "--prompt", "a red disc", "--prompt", "blue", "--guidance", 2, "--batch", 1)
    assert sizes == [2] * 4, "of one picture, guided"
    a, b = (np.asarray(Image.open(BytesIO(png))).astype(int) for png in (first, (tmp_path / "grid.png").read_bytes()))
    assert abs(a - b).max() <= 1, "by rounding"
    run(*given, "--prompt", "a red disc", "--prompt", "the square", "--guidance", 2)
    assert first != (tmp_path / "grid.png").read_bytes()
    assert main([*map(str, given)]) == 2 and "say with --prompt" in capsys.readouterr().err
    assert main([*map(str, given), "--prompt", "blue", "--labels", "1"]) == 2


def test_pictures_may_be_of_another_size_than_the_models_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["sample", folder / "graft", "--steps", 2, "--prompt", "blue", "--zoom", 1, "--out", tmp_path / "x.png"]
    model = open_model(str(folder / "pixart"))
    side = model.transformer.config.sample_size * pixels_per_latent(model.autoencoder)  # type: ignore[union-attr,arg-type]
    sizes = []
    for more in ([], ["--size", f"{side}x{2 * side}"], ["--size", f"{3 * side}x{side}"], ["--size", side]):
        run(*given, *more)
        with Image.open(tmp_path / "x.png") as drawn:
            sizes.append(drawn.size)
    words = sizes[0][1] - side  # the prompt above the picture
    assert (
        words > 0
        and sizes == [(w, words + h) for w, h in ((side, side), (2 * side, side), (side, 3 * side))] + sizes[:1]
    )
    assert main([*map(str, given), "--size", f"{side + 1}x{side}"]) == 2
    assert f"--size {side + 1}x{side}: multiples of " in capsys.readouterr().err


def test_search_scores_operators_on_captions(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["search", folder / "pixart", "--data", folder / "encoded", "--operators", "hyena_x", "--site", "attn"]
    found = told(capsys, *given, "--triples", 4, "--points", 2, "--out", tmp_path, "--budget", "flops=0.99")
    assert found["front"] and (tmp_path / "plans" / "best.yaml").is_file()
    wide = told(
        capsys, *given, "--triples", 4, "--points", 2, "--out", tmp_path, "--budget", "flops=0.999", "--side", "2x4"
    )
    assert wide["protocol"] == "FLOPs of one sample, 2 x 4 tokens" and wide["whole"] < found["whole"]
    costs = timed(open_model(str(folder / "pixart")).transformer, candidates(["hyena_x"]), side=(2, 4), rounds=2)
    assert costs.whole > 0 and len(costs.changes) == 4


def test_a_study_runs_from_its_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"""
teacher: {folder / "pixart"}
data: {folder / "encoded"}
plan: {{edits: [{{site: attn, blocks: interleaved 50%, operator: hyena_x}}]}}
calibration: 8
distill: {{steps: 2, batch: 4}}
finetune: {{steps: 2, batch: 4}}
evaluate: {{triples: 4, samples: 0, grid: 0}}
speed: {{batch: 1, rounds: 2}}
controls: [none]
"""
    )
    run("run", recipe, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()
    run("report", tmp_path / "out")
    run("run", recipe, "--out", tmp_path / "out", "--resume", "--set", "evaluate={triples: 4, grid: 2, steps: 2}")
    assert (tmp_path / "out" / "none" / "grid.png").is_file()  # of held-out captions
    for key, word in (("samples", "give reference, floor, extractor too"), ("prompts", "the judge of scenes sees RGB")):
        assert main(["run", str(recipe), "--out", str(tmp_path / "no"), "--set", f"evaluate.{key}=4"]) == 2
        assert word in capsys.readouterr().err


def test_fid_is_of_held_out_captions_against_pictures_that_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_text_extractor.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    for name, count in (("real", 60), ("held", 8)):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))
    named = {
        "reference": str(tmp_path / "real.npy"),
        "floor": str(tmp_path / "held.npy"),
        "extractor": "python:own_text_extractor:Means",
    }

    def study(out: str, **given: str) -> Study:
        judged = {**given, "extractor": asdict(ExtractorConfig.parse(given.get("extractor", "classifier")))}
        content = {
            "teacher": str(folder / "pixart"),
            "data": str(folder / "encoded"),
            "plan": {"edits": [{"site": "attn", "blocks": "all", "operator": "local_mean"}]},
            "evaluate": {"triples": 4, "samples": 6, "grid": 0, "steps": 2, "bootstraps": 2, **judged},
            "calibration": 8,
        }
        return Study(RunRecipe.from_dict(content), tmp_path / out, lambda line: None)

    words = ["evaluate", folder / "pixart", "--data", folder / "encoded", "--triples", 4, "--samples", 6, "--steps", 2]
    for missing in named:  # told alone, before anything is drawn
        rest = {name: given for name, given in named.items() if name != missing}
        with pytest.raises(StudyError, match=f"samples 6: .* takes text, .*: give {missing} too"):
            study("refused", **rest)
        options = [part for name, given in rest.items() for part in (f"--{name}", given)]
        assert main([*map(str, words), *options]) == 2 and f"give {missing} too" in capsys.readouterr().err
    opened = study("out", **named)
    teacher = opened.entries[0]
    quality = opened.judge(teacher)
    assert quality is not None and {"fid", "fid_minus_floor"} <= set(quality["figures"])
    assert "held-out captions" in quality["protocol"]["text"]
    encoded = Encoded(folder / "encoded")
    held_out = encoded.conditions(encoded.half(train=False)).all()
    pipeline = Pipeline(opened.teacher, opened.model.autoencoder, null=encoded.null)
    asked = rows(held_out, torch.tensor([0, 1, 0, 1, 0, 1]))  # both captions in turn, each time from other noise
    drawn = pipeline(asked, sampling=opened.recipe.evaluate.sampling, seed=0, batch_size=6)
    torch.testing.assert_close(torch.cat(list(opened.images(teacher, 6))), drawn, atol=2e-3, rtol=1e-3)
    options = [part for name, given in named.items() for part in (f"--{name}", given)]
    told_of = told(capsys, *words, *options, "--bootstraps", 2)["quality"]
    assert told_of["figures"]["fid"]["value"] == pytest.approx(quality["figures"]["fid"]["value"], rel=1e-2)
    assert "held-out captions" in told_of["protocol"]["text"] and "labels" not in told_of["protocol"]["text"]
    assert main([*map(str, words), *options, "--labels", "uniform"]) == 2
    assert "--labels uniform: " in capsys.readouterr().err


def test_alpha_is_told_the_size_of_its_latents() -> None:
    """Where the condition does not say it: as the pipeline does, 8 pixels a latent."""
    torch.manual_seed(0)
    model, condition, _ = pixart(sized=True)
    host, z, t = host_for(model.eval()), torch.randn(2, 3, 4, 16), torch.tensor([10, 900])
    size = {"resolution": torch.tensor([[32.0, 128.0]] * 2), "aspect_ratio": torch.tensor([[0.25]] * 2)}
    said = condition | {"added_cond_kwargs": size}
    del condition["added_cond_kwargs"]
    assert torch.equal(host.call(model, z, t, condition), host.call(model, z, t, said))
    gates, wanted = (host.gates(model, z, t, c) for c in (condition, said))
    assert torch.equal(gates[Site(0, "attn")], wanted[Site(0, "attn")])
