"""Extractors by name, images from disk, and what a study takes from beside its teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grafting.cli import main
from grafting.data import LabelledImages, write_subset
from grafting.data.stream import ImageStream
from grafting.measure.quality import Features, Reference
from grafting.measure.quality.extractors import ExtractorConfig, ExtractorError, extractor_of
from grafting.study import RunRecipe, Study, run, stages
from grafting.study.recipe import DistillStage, FinetuneStage

OWN = """
import torch
from grafting.measure.quality import Features

class Means:
    name, label, most = "means", "not Inception FID", 0

    def __call__(self, images):
        Means.most = max(Means.most, len(images))
        flat = images.flatten(1)
        return Features(pool=flat, spatial=flat[:, :3])

ready = Means()
wrong = 3
"""
TEXT = """
plan: {edits: [{site: attn, blocks: all, operator: local_mean}]}
budget: 0
speed: null
controls: []
calibration: 16
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_extractor.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def recipe(teacher: Path, *changes: str) -> RunRecipe:
    small = ("evaluate={triples: 10, samples: 24, steps: 2, grid: 6}", *changes)
    return RunRecipe.from_yaml(f"teacher: {teacher}\n{TEXT}", small)


@pytest.mark.parametrize("name", ["Means", "ready"])
def test_an_extractor_of_ones_own_is_a_class_or_an_instance(own: None, name: str) -> None:
    found = extractor_of(ExtractorConfig.parse(f"python:own_extractor:{name}"), None)
    assert found(torch.ones(2, 1, 4, 4)).pool.shape == (2, 16) and found.name == "means"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("python:own_extractor:wrong", "not a callable with a name"),
        ("python:own_extractor:nothing", "own_extractor has no nothing"),
        ("python:no_such_module:x", "PYTHONPATH"),
        ("inception", "pip install torch-fidelity"),
        ("inception:nowhere.pt", "no file nowhere.pt"),
        ("classifier", "brings no classifier"),
        ("python:half", "module:attribute"),
        ("vgg", "python:module:attribute"),
        ("classifier:x", "only an extractor of kind inception"),
    ],
)
def test_what_is_no_extractor_is_refused_in_a_sentence(own: None, text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        extractor_of(ExtractorConfig.parse(text), None)


class Script(torch.nn.Module):
    """As StyleGAN's file is called: bytes in, features where they are asked for, probabilities otherwise."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = img.float().mean((2, 3))
        return torch.cat([x, x * x], 1) if return_features else x.softmax(1)


def test_inception_from_a_torchscript_file_sees_bytes_of_three_channels(tmp_path: Path) -> None:
    torch.jit.script(Script()).save(str(tmp_path / "inception.pt"))
    extractor = extractor_of(ExtractorConfig.parse(f"inception:{tmp_path / 'inception.pt'}"), None)
    assert extractor.label == "Inception FID" and "inception.pt" in extractor.name
    images = torch.tensor([-1.0, 0.0, 1.0, 9.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    pool = extractor(images).pool
    assert pool[:, :3].tolist() == [[v] * 3 for v in (0.0, 128.0, 255.0, 255.0)] and pool.shape == (4, 6)
    (tmp_path / "broken.pt").write_bytes(b"no")
    with pytest.raises(ExtractorError, match="is no TorchScript"):
        extractor_of(ExtractorConfig(kind="inception", path=str(tmp_path / "broken.pt")), None)


def test_a_folder_and_an_array_of_the_same_images_stream_alike(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        path = tmp_path / "folder" / str(k % 2) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    np.save(tmp_path / "b.npy", pixels.transpose(0, 3, 1, 2))
    order = [0, 2, 4, 1, 3]  # by name, folder by folder
    wanted = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float() / 127.5 - 1
    for name in ("folder", "a.npz", "b.npy"):
        stream = ImageStream(tmp_path / name, side=4, batch=2)
        batches = list(stream)
        assert len(stream) == 5 and [len(b) for b in batches] == [2, 2, 1]
        assert torch.equal(torch.cat(batches), wanted[order] if name == "folder" else wanted)
        assert torch.equal(torch.cat(list(stream.first(3))), torch.cat(batches)[:3])
        assert torch.equal(torch.cat(list(stream.drawn(5))), torch.cat(batches))
    before = ImageStream(tmp_path / "folder", side=4).identity
    Image.fromarray(pixels[0]).save(tmp_path / "folder" / "more.png")
    assert ImageStream(tmp_path / "folder", side=4).identity != before


def test_a_floor_is_drawn_from_all_of_a_folder_that_is_sorted_by_class(tmp_path: Path) -> None:
    pixels = np.repeat(np.arange(200, dtype=np.uint8), 5)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    np.save(tmp_path / "sorted.npy", pixels)
    stream = ImageStream(tmp_path / "sorted.npy", side=4, channels=1)
    some = torch.cat(list(stream.drawn(100)))[:, 0, 0, 0]
    assert len(some) == 100 and torch.equal(some, torch.cat(list(stream.drawn(100)))[:, 0, 0, 0])
    every = torch.cat(list(stream))[:, 0, 0, 0]
    assert abs(some.mean() - every.mean()) < 4 * every.std() / 10
    assert torch.cat(list(stream.first(100))).max() < some.max()


def test_large_pictures_are_cut_to_their_middle(tmp_path: Path) -> None:
    from PIL import Image

    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255  # the middle third
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (image,) = ImageStream(tmp_path, side=4, channels=1)
    assert image.shape == (1, 1, 4, 4) and image.min() == 1
    np.savez(tmp_path / "small.npz", images=np.zeros((2, 1, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"of shape \(1, 3, 3\), the model draws \(1, 4, 4\)"):
        list(ImageStream(tmp_path / "small.npz", side=4, channels=1))
    (tmp_path / "empty").mkdir()
    for missing in ("nothing", "empty"):
        with pytest.raises(ValueError, match=missing):
            ImageStream(tmp_path / missing, side=4)


def test_an_array_of_anything_but_bytes_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    """Shares in [0, 1] would be taken for pictures that are nearly black."""
    np.save(tmp_path / "shares.npy", np.full((30, 1, 4, 4), 0.5, np.float32))
    np.savez(tmp_path / "wide.npz", images=np.zeros((30, 1, 4, 4), np.int64))
    for name, kind in (("shares.npy", "float32"), ("wide.npz", "int64")):
        with pytest.raises(ValueError, match=rf"{name}: numbers of type {kind}, .* uint8"):
            ImageStream(tmp_path / name, side=4, channels=1)
    for key in ("floor", "reference"):  # before anything is drawn
        with pytest.raises(ValueError, match=r"shares\.npy: numbers of type float32"):
            Study(recipe(tiny_teacher, f"evaluate.{key}={tmp_path / 'shares.npy'}"), tmp_path / "out")


def test_a_study_judges_by_a_users_extractor_over_images_on_disk(tiny_teacher: Path, own: None, tmp_path: Path) -> None:
    """The way of a recipe for a large model, in small: statistics and held-out images by path, no classifier."""
    import own_extractor  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (400, 4, 4), dtype=np.uint8)
    flat = real.reshape(400, -1) / 127.5 - 1
    cov = np.cov(flat.T)
    np.savez(tmp_path / "adm.npz", mu=flat.mean(0), sigma=cov, mu_s=flat.mean(0)[:3], sigma_s=cov[:3, :3])
    np.savez(tmp_path / "all.npz", images=real[:, None])
    np.save(tmp_path / "held.npy", rng.integers(0, 256, (30, 1, 4, 4), dtype=np.uint8))
    bare = tmp_path / "bare"
    shutil.copytree(tiny_teacher, bare, ignore=shutil.ignore_patterns("classifier"))
    changes = (
        "evaluate.extractor={kind: python, name: 'own_extractor:Means'}",
        f"evaluate.floor={tmp_path / 'held.npy'}",
    )
    found = {}
    for name in ("adm.npz", "all.npz"):
        made = recipe(bare, *changes, f"evaluate.reference={tmp_path / name}")
        found[name] = run(made, tmp_path / f"out-{name}", say=lambda line: None).models[0]
        assert RunRecipe.from_yaml(made.to_yaml()) == made
    one, other = found["adm.npz"].figures, found["all.npz"].figures
    assert one["fid"].value == pytest.approx(other["fid"].value, rel=1e-5)
    assert one["sfid"].value == pytest.approx(other["sfid"].value, rel=1e-5) and one["fid"].floor is not None
    assert "precision" in other and "precision" not in one  # a file of statistics alone has no rows
    assert "means (not Inception FID) against all.npz, 400 images" in found["all.npz"].protocol
    assert "recognised" not in one and own_extractor.Means.most <= 64  # never all at once
    with pytest.raises(ValueError, match="samples 24: the floor needs as many held-out images, and there are 3"):
        np.save(tmp_path / "few.npy", np.zeros((3, 1, 4, 4), np.uint8))
        Study(recipe(bare, changes[0], f"evaluate.floor={tmp_path / 'few.npy'}"), tmp_path / "x")


def test_one_half_is_learnt_from_and_the_other_judged_on(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training images are dark, held-out ones bright; which of the two a stage, a loss or a floor sees is plain."""
    dark, bright = (
        LabelledImages(images=torch.randint(low, low + 90, (30, 1, 4, 4)) / 127.5 - 1, labels=torch.arange(30) % 3)
        for low in (0, 160)
    )
    write_subset(tmp_path / "halves.npz", dark, bright)
    study = Study(recipe(tiny_teacher, f"data={tmp_path / 'halves.npz'}"), tmp_path / "out", lambda line: None)
    seen: dict[str, torch.Tensor] = {}

    def taught(handle: object, batches: Any, null: int, config: object, out: None, heldout: Any, **_: object) -> Any:
        seen.update(learnt=batches(0)["z"], heldout=heldout(0)["z"])
        return {}

    def tuned(model: object, student: object, teacher: object, batches: Any, *_: object, **__: object) -> None:
        seen["tuned"] = batches(0)["z"]

    monkeypatch.setattr(stages, "distill", taught)
    monkeypatch.setattr(stages, "finetune", tuned)
    stages.stage_one(None, DistillStage(steps=1, batch=8), study.material)  # type: ignore[arg-type]
    stages.stage_two(study.teacher, FinetuneStage(steps=1, batch=8), study.material)
    assert seen["learnt"].max() < 0 and seen["tuned"].max() < 0
    assert seen["heldout"].min() > 0 and study.triples.z.min() > 0
    with torch.no_grad():
        real, held = (study.judging.extractor(half.images).pool for half in (dark, bright))
    torch.testing.assert_close(study.judging.floor.pool, held[:24], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(study.reference.moments.mean, real.mean(0), rtol=1e-4, atol=1e-5)
    assert (real.mean(0) - held.mean(0)).abs().max() > 0.01


def test_evaluate_takes_an_extractor_and_a_reference(
    tiny_teacher: Path, own: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "real.npz", images=np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8))
    words = ["evaluate", str(tiny_teacher), "--triples", "4", "--samples", "20", "--steps", "2", "--json"]
    words += ["--reference", str(tmp_path / "real.npz")]
    assert main([*words, "--extractor", "python:own_extractor:ready"]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["protocol"]["extractor"] == "means" and "real.npz, 60 images" in quality["protocol"]["text"]
    assert main([*words, "--extractor", "vgg"]) == 2
    assert "extractor 'vgg'" in capsys.readouterr().err


def test_samples_lie_in_files_of_a_few_and_a_killed_drawing_goes_on(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grafting.study.bench.SAMPLE_CHUNK", 10)
    study = Study(recipe(tiny_teacher), tmp_path, lambda line: None)
    teacher = study.entries[0]
    files = study.drawn(teacher)
    assert len(files) == 3 and sum(map(len, study.images(teacher, 24))) == 24
    assert [len(part) for part in study.images(teacher, 15)] == [10, 5]
    kept = {file: file.stat().st_mtime_ns for file in files[:2]}
    whole = torch.cat(list(study.images(teacher, 24)))
    files[2].unlink()
    (tmp_path / "teacher" / "sample.json").unlink()
    again = Study(recipe(tiny_teacher), tmp_path, lambda line: None)
    assert torch.equal(torch.cat(list(again.images(teacher, 24))), whole)
    assert kept == {file: file.stat().st_mtime_ns for file in files[:2]}
    other = Study(recipe(tiny_teacher, "evaluate.steps=3"), tmp_path, lambda line: None)
    other.drawn(teacher)
    assert len(list((tmp_path / "teacher").glob("samples-*"))) == 1  # those of other settings are gone


def test_the_reference_and_the_teachers_features_are_taken_from_beside_it_while_they_match(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    from grafting.study.shipping import ship

    run(recipe(tiny_teacher), tmp_path / "out", say=lambda line: None)
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_teacher, bundle)
    ship(tmp_path / "out", bundle)
    names = {path.name for path in (bundle / "measured").iterdir()}
    assert {"denoise.json", "sample.json", "features.json", "features.safetensors"} <= names
    study = Study(recipe(bundle), tmp_path / "again", pytest.fail)  # says nothing: nothing is computed
    teacher = study.entries[0]
    assert len(study.features(teacher)) == 24 and not (tmp_path / "again" / "reference.npz").exists()
    study.denoise(teacher)
    shipped = Reference.load(bundle / "reference.npz")
    assert shipped is not None and torch.equal(study.reference.pool, shipped.pool)
    with (bundle / "classifier" / "model.safetensors").open("r+b") as file:  # another judge: nothing fits any more
        file.seek(-4, 2)
        file.write(np.float32(0.5).tobytes())
    said: list[str] = []
    fresh = Study(recipe(bundle), tmp_path / "fresh", said.append)
    assert fresh.reference.key != shipped.key and (tmp_path / "fresh" / "reference.npz").is_file()
    assert not torch.equal(fresh.features(teacher).logits, study.features(teacher).logits)
    assert isinstance(fresh.features(teacher), Features)


def test_a_shipped_file_that_is_damaged_is_made_again(tiny_teacher: Path, tmp_path: Path) -> None:
    from grafting.study.shipping import ship

    run(recipe(tiny_teacher), tmp_path / "out", say=lambda line: None)
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_teacher, bundle)
    ship(tmp_path / "out", bundle)
    losses = bundle / "measured" / "losses.safetensors"
    content = bytearray(losses.read_bytes())
    content[-1] ^= 1
    losses.write_bytes(content)
    said: list[str] = []
    study = Study(recipe(bundle), tmp_path / "again", said.append)
    study.denoise(study.entries[0])
    assert said == ["teacher: held-out loss on 10 triples"]
    with pytest.raises(ValueError, match="no finished run"):
        ship(tmp_path / "nothing", bundle)
