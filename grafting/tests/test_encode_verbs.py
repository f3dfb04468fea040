"""Encoded pictures as what the verbs and a recipe learn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding import autoencoder, dit_folder, picture, pixart_pipeline, pixels
from PIL import Image

import grafting
from grafting.cli import main
from grafting.conditions import MASK, TEXT
from grafting.data.shards import Encoded
from grafting.store.configs import ModelError


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit_folder(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def encoded(dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of three classes, by the verb."""
    root = tmp_path_factory.mktemp("data")
    for k in range(12):
        picture(root / "pictures" / "abc"[k % 3] / f"{k}.png", k)
    (root / "pictures" / "a" / "broken.png").write_bytes(b"")
    out = root / "out"
    assert main(["encode", str(root / "pictures"), "--model", str(dit), "--out", str(out), "--shard", "5"]) == 0
    return out


def test_the_verb_says_what_it_left_out_and_goes_on(
    encoded: Path, dit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["encode", str(encoded.parent / "pictures"), "--model", str(dit), "--out", str(encoded), "--shard", "5"]
    assert main(given) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "12 of 13 pictures encoded" and said[-1] == str(encoded)
    assert said[1].startswith("left out: a/broken.png: no picture")
    assert main([*given, "--mirror"]) == 2
    assert "other settings (mirror False there, True now)" in capsys.readouterr().err
    assert main(["encode", "gone", "--model", str(dit), "--out", str(encoded)]) == 2
    assert capsys.readouterr().err == "grafting encode: gone: no such folder, and no npz of pictures\n"
    assert main([*given, "--size", "12y"]) == 2
    assert "512x768" in capsys.readouterr().err


def test_captions_of_another_column_come_from_metadata_and_from_an_npz(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of pictures that metadata name, whatever their suffix: one that cannot be read is left out with its reason."""
    pipe, captions = pixart_pipeline(), ["a red disc", "the blue square", ""]
    pipe.save_pretrained(tmp_path / "model")
    images = [picture(tmp_path / "pictures" / f"{k}.png", k) for k in range(3)]
    (tmp_path / "pictures" / "1.png").unlink()
    Image.fromarray(images[1]).save(tmp_path / "pictures" / "1.jfif", "PNG")
    (tmp_path / "pictures" / "3.heic").write_bytes(b"of a phone")
    rows = [
        {"file_name": f"{k}.{end}", "text": "of another", "long": caption}
        for k, (end, caption) in enumerate(zip(["png", "jfif", "png", "heic"], [*captions, "a"], strict=True))
    ]
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    np.savez(tmp_path / "all.npz", images=np.stack(images), long=np.array(captions), text=np.array(["x"] * 3))
    states, _, _, _ = pipe.encode_prompt(captions, max_sequence_length=300)
    for source, said in (
        ("pictures", ["3 of 4 pictures encoded", "left out: 3.heic: no picture that Pillow can read"]),
        ("all.npz", ["3 of 3 pictures encoded"]),
    ):
        out = tmp_path / f"out of {source}"
        given = ["encode", str(tmp_path / source), "--model", str(tmp_path / "model"), "--out", str(out)]
        assert main([*given, "--caption-column", "long", "--batch", "3"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[: len(said)] == said and "other files" not in "".join(told)
        y = Encoded(out).conditions().all()
        torch.testing.assert_close(y[TEXT], states[:, : y[TEXT].shape[1]] * y[MASK][..., None], atol=1e-6, rtol=1e-6)
        assert main([*given, "--caption-column", "longer"]) == 2
        assert "longer" in capsys.readouterr().err
    a, b = (Encoded(tmp_path / f"out of {source}").latents().all() for source in ("pictures", "all.npz"))
    assert torch.equal(a, b)
    np.savez(tmp_path / "labels.npz", arr_0=np.stack([pixels(0)]), arr_1=np.array([2]))
    model = str(dit_folder(tmp_path / "dit"))
    assert main(["encode", str(tmp_path / "labels.npz"), "--model", model, "--out", str(tmp_path / "labelled")]) == 0
    assert Encoded(tmp_path / "labelled").conditions().all().tolist() == [2]


def test_distill_finetune_and_run_learn_from_encoded_pictures(
    encoded: Path, dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--data", str(encoded), "--steps", "2", "--batch", "4", "--device", "cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["distill", str(dit), *short, "--blocks", "1", "--calibration", "8", "--out", str(one)]) == 0
    assert main(["finetune", str(one), *short, "--out", str(two), "--base", str(dit)]) == 0
    assert json.loads((two / "graft.json").read_text())["protocol"]["stage 2"]["batch"] == 4
    given = ["evaluate", str(two), "--data", str(encoded), "--triples", "4", "--json", "--device", "cpu"]
    capsys.readouterr()
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["held-out loss"]["loss"]["value"] > 0
    assert main([*given, "--samples", "4"]) == 2
    assert "holds latents and no pictures: name these as reference and floor" in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {dit}\ndata: {encoded}\nplan: {{edits: [{{site: attn, blocks: [1], operator: hyena_x}}]}}\n"
        "distill: {steps: 2, batch: 4}\nfinetune: {steps: 2, batch: 4}\ncalibration: 8\n"
        "evaluate: {triples: 4, samples: 0, grid: 0}\nspeed: null\ncontrols: []\n"
    )
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_material_refuses_what_does_not_fit(encoded: Path, dit: Path, tmp_path: Path) -> None:
    model = grafting.open_model(str(dit))
    material = grafting.Material(model, str(encoded))
    assert (material.count(train=True), material.count(train=False), material.null) == (11, 1, 3)
    assert material.conditions(train=False).shape == (1,) and len(material.first(4).batches(2, 0).inputs) == 4
    with pytest.raises(ModelError, match="encoded by grafting encode first"):
        grafting.Material(model, str(encoded.parent / "pictures"))
    dit_folder(tmp_path / "other")
    autoencoder(scaling_factor=2.0).save_pretrained(tmp_path / "other" / "vae")
    grafting.Material(grafting.open_model(str(tmp_path / "other")), str(encoded))  # the same weights
    network = grafting.open_model(str(tmp_path / "other"))
    with torch.no_grad():
        next(network.autoencoder.parameters()).add_(1)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="by another autoencoder"):
        grafting.Material(network, str(encoded))


@pytest.mark.parametrize("drawn", [False, True])
def test_labels_for_a_model_of_other_classes_are_refused(drawn: bool, encoded: Path, dit: Path, tmp_path: Path) -> None:
    """Of pictures, and of pairs that another model drew of itself."""
    if drawn:
        arguments = ["pairs", str(dit), "--count", "2", "--steps", "2", "--out", str(tmp_path / "pairs")]
        assert main(arguments) == 0
        encoded = tmp_path / "pairs"
    for classes in (2, 4):
        model = grafting.open_model(str(dit_folder(tmp_path / str(classes), classes)))
        with pytest.raises(ModelError, match=rf"was made for a model of 3 classes, .* knows {classes}"):
            grafting.Material(model, str(encoded))


def test_a_text_host_gets_captions_and_the_empty_prompt(tmp_path: Path) -> None:
    for k in range(6):
        picture(tmp_path / "pictures" / f"{k}.png", k)
        (tmp_path / "pictures" / f"{k}.txt").write_text("a red disc" if k % 2 else "blue")
    pipe = pixart_pipeline()
    pipe.save_pretrained(tmp_path / "pixart")
    grafting.encode(tmp_path / "pictures", tmp_path / "out", pipe)
    model = grafting.open_model(str(tmp_path / "pixart"))
    material = grafting.Material(model, str(tmp_path / "out"))
    batch = material.batches(4, 0)(0)
    assert batch["z"].shape == (4, 4, 8, 8) and batch["y"][MASK].shape[0] == 4
    assert material.null[MASK].tolist() == [[1]]
    assert material.conditions(train=False)[MASK].shape[0] == 1
    wider = pixart_pipeline(caption_channels=24)
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(ModelError, match=r"has captions of width 16, .*wider takes 24: they were embedded for another"):
        grafting.Material(grafting.open_model(str(tmp_path / "wider")), str(tmp_path / "out"))
    with pytest.raises(ModelError, match=r"has captions, .* is conditioned on labels"):
        grafting.Material(grafting.open_model(str(dit_folder(tmp_path / "dit"))), str(tmp_path / "out"))
