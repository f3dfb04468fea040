"""Pretraining the three parts of a teacher, tiny, on files made here."""

from __future__ import annotations

import dataclasses
import gzip
import random
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from grafting.claims import ClaimError
from grafting.data import load_fashion
from grafting.teachers import PARTS, bundle, load_teacher, teacher_folder
from grafting.training.loop import LoopConfig
from grafting.training.pretrain import PretrainRecipe, pretrain
from grafting.training.pretrain.autoencoder import encode
from grafting.training.pretrain.transformer import latents, trained_autoencoder
from grafting.training.team import Team


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of the original files: 64 training and 16 test images, half of them not gzipped."""
    folder = tmp_path_factory.mktemp("fashion")
    source = np.random.default_rng(0)
    for half, count in (("train", 64), ("t10k", 16)):
        images = source.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        packed = gzip.compress(struct.pack(">II", 2049, count) + labels.tobytes())
        (folder / f"{half}-labels-idx1-ubyte.gz").write_bytes(packed)
    return folder


def test_idx_files_are_read_padded_and_scaled(fashion: Path) -> None:
    data = load_fashion(fashion)
    assert data.images.shape == (64, 1, 32, 32) and data.images.dtype == torch.float32
    raw = np.frombuffer((fashion / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(64, 28, 28)
    np.testing.assert_allclose((data.images[:, 0, 2:-2, 2:-2].numpy() + 1) * 127.5, raw, atol=1e-4)
    assert (data.images[:, :, :2] == -1).all() and (data.images[..., -2:] == -1).all()
    assert data.labels.tolist() == [i % 10 for i in range(64)]
    assert len(load_fashion(fashion, train=False).images) == 16


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">II", 99, 1))
    with pytest.raises(ValueError, match="magic number 99"):
        load_fashion(tmp_path)


def _recipe(kind: str, fashion: Path, **extra: object) -> PretrainRecipe:
    loop = {"steps": 4, "lr": 1e-3, "save_every": 2, "log_every": 1}
    return PretrainRecipe.from_dict({"kind": kind, "data": str(fashion), "batch": 8, "loop": loop, **extra})


AUTOENCODER = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "mid_block_add_attention": False,
}
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 16,
    "patch_size": 4,
    "num_embeds_ada_norm": 10,
}


def test_three_parts_train_resume_and_bundle(fashion: Path, tmp_path: Path) -> None:
    auto = _recipe("autoencoder", fashion, model=AUTOENCODER)
    vae = pretrain(auto, tmp_path / "autoencoder")
    z = vae.encode(load_fashion(fashion).images).latent_dist.mean  # type: ignore[operator]
    assert vae.config.scaling_factor == pytest.approx(1 / z.std().item(), rel=1e-4)  # type: ignore[union-attr]

    source = str(tmp_path / "autoencoder" / "model")
    recipe = _recipe("transformer", fashion, model=TRANSFORMER, autoencoder=source)
    whole = pretrain(recipe, tmp_path / "transformer")
    pretrain(recipe, tmp_path / "again", until=3)
    resumed = pretrain(recipe, tmp_path / "again")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)

    judge = _recipe("classifier", fashion, model={"widths": [8, 8, 8]})
    pretrain(judge, tmp_path / "classifier")
    sources = {part: tmp_path / part / "model" for part in PARTS}
    bundle(sources, tmp_path / "bundle", {"title": "tiny"})
    from diffusers import DiTTransformer2DModel

    half = DiTTransformer2DModel.from_pretrained(tmp_path / "bundle" / "transformer").float()
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "sizes"), [(32, [500, 100]), (64, [500, 100]), (256, [31, 9]), (1536, [1, 1])])
def test_as_many_pictures_are_encoded_at_once_as_their_size_allows(side: int, sizes: list[int]) -> None:
    """500 of 256 x 256 would take Stable Diffusion's encoder 17 GB for its first activation alone."""
    seen = []

    class Counting(torch.nn.Linear):
        def encode(self, x: torch.Tensor) -> SimpleNamespace:
            seen.append(len(x))
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=x[:, :, :1, :1]))

    pictures = torch.arange(float(sum(sizes)))[:, None, None, None].expand(-1, 1, side, side)
    found = encode(Counting(1, 1), pictures)
    assert seen == sizes and torch.equal(found.flatten(), torch.arange(float(sum(sizes))))


def test_latents_are_of_the_pictures_and_the_autoencoder_at_hand(fashion: Path, tmp_path: Path) -> None:
    """Of a run that was stopped before its first state, whose pictures were others then."""
    pretrain(_recipe("autoencoder", fashion, model=AUTOENCODER), tmp_path / "autoencoder")
    source = str(tmp_path / "autoencoder" / "model")
    data, out, team = tmp_path / "data", tmp_path / "run", Team(device=torch.device("cpu"))
    shutil.copytree(fashion, data)
    recipe = _recipe("transformer", data, model=TRANSFORMER, autoencoder=source)
    vae = trained_autoencoder(recipe, team)
    z, y = latents(vae, recipe, out, team)
    made = (out / "latents.safetensors").stat().st_mtime_ns
    kept, labels = latents(vae, recipe, out, team)
    assert torch.equal(kept, z) and torch.equal(labels, y) and (out / "latents.safetensors").stat().st_mtime_ns == made
    images = data / "train-images-idx3-ubyte"
    content = images.read_bytes()
    images.write_bytes(content[:16] + content[16:][::-1])
    other, _ = latents(vae, recipe, out, team)
    assert not torch.equal(other, z) and torch.equal(latents(vae, recipe, out, team)[0], other)
    with torch.no_grad():
        next(vae.parameters()).mul_(1.1)
    assert not torch.equal(latents(vae, recipe, out, team)[0], other)


KILLED = """
import sys, time
from pathlib import Path
from grafting.data import Batches
from grafting.training.pretrain import PretrainRecipe, pretrain
draw = Batches.__call__
Batches.__call__ = lambda self, step: time.sleep(0.05) or draw(self, step)
pretrain(PretrainRecipe.from_yaml(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_a_killed_run_continues_to_the_same_bits(fashion: Path, tmp_path: Path) -> None:
    """Weights, averages, moments and every logged loss, of a real process killed at a random step."""
    content = {"kind": "classifier", "data": str(fashion), "batch": 8, "model": {"widths": [8, 8, 8]}}
    content["loop"] = {"steps": 14, "lr": 1e-3, "save_every": 1, "log_every": 1}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    recipe = PretrainRecipe.from_yaml(file.read_text())
    pretrain(recipe, tmp_path / "whole")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(file), str(tmp_path / "cut")])
    deadline = time.monotonic() + 100
    while not (tmp_path / "cut" / "state.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.5)
    child.kill()
    child.wait()
    assert (tmp_path / "cut" / "state.json").is_file()
    pretrain(recipe, tmp_path / "cut")
    wanted, found = (load_file(tmp_path / name / "state-14.safetensors") for name in ("whole", "cut"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (tmp_path / "cut" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


def test_adaln_zero_start_is_the_identity(fashion: Path, tmp_path: Path) -> None:
    """Before a step the output is zero, so the first loss is the noise's own variance."""
    vae = _recipe("autoencoder", fashion, model=AUTOENCODER)
    pretrain(vae, tmp_path / "autoencoder")
    source = str(tmp_path / "autoencoder" / "model")
    recipe = _recipe("transformer", fashion, model=TRANSFORMER, autoencoder=source)
    pretrain(recipe, tmp_path / "transformer", until=1)
    import json

    from grafting.diffusion import Diffusion, draw

    row = json.loads((tmp_path / "transformer" / "log.jsonl").read_text().splitlines()[0])
    noise, _ = draw(torch.Size((8, 4, 16, 16)), Diffusion(), 0, 0)
    assert row["mse"] == pytest.approx(noise.square().mean().item(), rel=1e-5)


def test_start_goes_on_from_an_earlier_model(fashion: Path, tmp_path: Path) -> None:
    """With no learning to speak of, the second run ends where the first one did; its configuration need not be told."""
    first = pretrain(_recipe("classifier", fashion, model={"widths": [8, 8, 8]}), tmp_path / "first")
    still = {"steps": 1, "lr": 1e-12}
    again = _recipe("classifier", fashion, model={"widths": [8, 8, 8]}, seed=9, start=str(tmp_path / "first" / "model"))
    second = pretrain(dataclasses.replace(again, loop=LoopConfig(**still)), tmp_path / "second")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    third = pretrain(dataclasses.replace(again, loop=LoopConfig(**still), model={}), tmp_path / "third")
    for a, b in zip(second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(
        ValueError, match=r"start nowhere: no model to go on from, for there is no nowhere/config\.json"
    ):
        dataclasses.replace(again, model={}, start="nowhere").completed()


def test_recipe_problems_come_together(fashion: Path) -> None:
    with pytest.raises(ValueError, match=r"kind 'vae'.*unknown key 'bacth': did you mean 'batch'.*model is missing"):
        PretrainRecipe.from_dict({"kind": "vae", "bacth": 3, "loop": {"steps": 1, "lr": 1}})
    with pytest.raises(ValueError, match="needs autoencoder"):
        pretrain(_recipe("transformer", fashion, model=TRANSFORMER), Path("unused"))


def test_unknown_teacher_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="no bundled teacher 'imagenet'"):
        load_teacher("imagenet")
    with pytest.raises(ValueError, match="no bundled teacher"):
        teacher_folder("..")


def test_a_run_is_not_continued_under_other_settings(fashion: Path, tmp_path: Path) -> None:
    classifier = {"channels": 1, "classes": 10, "widths": [8, 16]}
    recipe = _recipe("classifier", fashion, model=classifier)
    pretrain(recipe, tmp_path, until=1)
    for other, word in (
        (replace(recipe, seed=1), "seed 0 there, 1 now"),
        (replace(recipe, batch=4), "batch 8 there, 4 now"),
        (replace(recipe, precision="bf16"), "precision fp32 there, bf16 now"),
    ):
        with pytest.raises(ClaimError, match=word):
            pretrain(other, tmp_path)
    pretrain(replace(recipe, notes="continued", loop=replace(recipe.loop, save_every=1)), tmp_path)
