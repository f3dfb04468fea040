"""Latents of one's own: read back as they were given, learnt from as encoded pictures are, and refused where they do
not go together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import SIDE, picture, pixart_pipeline

import grafting
from grafting.claims import ClaimError
from grafting.conditions import MASK, POOLED, SIZES, TEXT
from grafting.data.encode_config import EncodeConfig
from grafting.store.models import ModelError

Z = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3
TEXTS = [torch.full((k + 1, 5), float(k)) for k in range(10)]
EMPTY = torch.zeros(2, 5)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}


def test_a_tensor_and_an_iterator_of_batches_give_the_same_files(tmp_path: Path) -> None:
    one = grafting.write_latents(tmp_path / "one" / "z", Z, labels=Y, classes=3, shard=4)
    two = grafting.write_latents(
        str(tmp_path / "two" / "z"), iter(Z.split([3, 4, 3])), labels=iter(Y), classes=3, shard=4
    )
    assert contents(one.folder) == contents(two.folder) and one.identity == two.identity
    assert sorted(contents(one.folder)) == ["encoded.json", *(f"latents-0000{k}.safetensors" for k in range(3))]
    assert torch.equal(one.latents().all(), Z) and torch.equal(one.conditions().all(), Y)
    one.verify()
    half = grafting.write_latents(tmp_path / "half", Z.double(), dtype="float16")
    assert torch.equal(half.latents().all(), Z.half().float()) and half.condition == "none"


def test_the_same_latents_again_are_found_and_others_are_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"labels": Y, "classes": 3, "shard": 4}
    first = grafting.write_latents(tmp_path / "z", Z, **given)
    before = contents(first.folder)
    assert grafting.write_latents(tmp_path / "z", Z, **given).identity == first.identity
    for z, other in (
        (Z + 1, {}),
        (torch.cat([Z, Z[:2]]), {"labels": [*Y, 0, 1]}),
        (Z[:8], {"labels": Y[:8]}),
        (Z, {"labels": Y.flip(0)}),
        (Z, {"classes": 4}),
        (Z, {"dtype": "float16"}),
        (Z, {"told_size": (4, 4)}),
    ):
        with pytest.raises(ClaimError, match=r"z holds other latents, or of another condition"):
            grafting.write_latents(tmp_path / "z", z, **given | other)
        assert contents(first.folder) == before
    (tmp_path / "mine").mkdir()
    grafting.write_latents(tmp_path / "mine", Z)  # an empty folder is nobody's
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ClaimError, match=r"full is no folder of latents, and is not empty"):
        grafting.write_latents(tmp_path / "full", Z)


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield Z
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grafting.write_latents(tmp_path / "z", broken(), shard=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".z.new").mkdir()
    (tmp_path / ".z.new" / "latents-00009.safetensors").write_text("of a run that was killed")
    assert len(grafting.write_latents(tmp_path / "z", Z)) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["z"] and "latents-00009.safetensors" not in contents(tmp_path)


@pytest.mark.parametrize(
    ("z", "given", "message"),
    [
        (Z[0], {}, r"latents of \(1, 4, 4\): a batch of \(C, h, w\)"),
        ([Z, Z[:, :, :2]], {}, r"latents of \(10, 1, 2, 4\): a batch of \(1, 4, 4\) after 10 samples"),
        ([], {}, "no latents: at least one"),
        (Z, {"labels": Y}, "labels and classes, how many the model knows: give both or neither"),
        (Z, {"labels": Y, "classes": 2}, "label 2: the model knows 0 to 1"),
        (Z, {"labels": Y - 1, "classes": 3}, "label -1: the model knows 0 to 2"),
        (Z, {"labels": Y[:9], "classes": 3}, "9 labels for more latents: one for each"),
        (Z, {"labels": [*Y, 0], "classes": 3}, "more labels than the 10 latents: one for each"),
        (Z, {"labels": Y.float(), "classes": 3}, r"labels of torch.float32 and shape \(10,\): \(n,\) whole numbers"),
        (Z, {"captions": TEXTS}, "captions and null, the empty prompt's states: give both or neither"),
        (Z, {"captions": TEXTS, "null": EMPTY, "labels": Y}, "labels and captions: a model is asked for one of them"),
        (Z, {"captions": TEXTS[:4], "null": EMPTY}, "4 captions for more latents: one for each"),
        (Z, {"captions": TEXTS, "null": EMPTY[:, :3]}, "caption 0 has states of width 5, the empty prompt states of w"),
        (Z, {"captions": TEXTS, "null": EMPTY[0]}, r"null has states of \(5,\): \(L, D\), of one caption"),
        (Z, {"captions": [{"x": EMPTY}] * 10, "null": EMPTY}, "caption 0 has no encoder_hidden_states"),
        (Z, {"captions": [{TEXT: EMPTY, "x": Y}] * 10, "null": EMPTY}, "caption 0 has x, which is not stored"),
        (Z, {"dtype": "int8", "shard": 0}, "dtype 'int8': float32, .*; shard 0: at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(
    z: Any, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        grafting.write_latents(tmp_path / "z", z, **{"shard": 4} | given)
    assert list(tmp_path.iterdir()) == []


def test_both_stages_learn_from_them_to_the_bit_as_from_encoded_pictures(tiny_teacher: Path, tmp_path: Path) -> None:
    for k in range(24):
        picture(tmp_path / "pictures" / str(k % 3) / f"{k}.png", k, 4, 4)
    encoded = grafting.encode(tmp_path / "pictures", tmp_path / "encoded", tiny_teacher, device="cpu")
    latents, labels = encoded.latents().all(), encoded.conditions().all()
    given = grafting.write_latents(tmp_path / "given", latents, labels=labels, classes=3, shard=7)
    found = []
    for folder in (encoded.folder, given.folder):
        model = grafting.open_model(tiny_teacher)
        material = grafting.Material(model, folder)
        handle = grafting.graft(model.transformer, grafting.Plan.interleaved(operator="local_mean"), init="copy")
        grafting.stage_one(handle, grafting.DistillStage(steps=2, batch=8), material)
        hybrid, _ = grafting.stage_two(handle, grafting.FinetuneStage(steps=2, batch=8), material)
        found.append(hybrid.model.state_dict())  # type: ignore[union-attr]
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
    others = grafting.write_latents(tmp_path / "others", latents, labels=labels, classes=4)
    with pytest.raises(ModelError, match="was made for a model of 4 classes"):
        grafting.Material(model, others.folder)


def test_a_pipeline_in_half_precision_encodes_and_reads_what_a_full_one_does(tmp_path: Path) -> None:
    for k in range(3):
        picture(tmp_path / "pictures" / f"{k}.png", k, SIDE, SIDE)
        (tmp_path / "pictures" / f"{k}.txt").write_text("a red disc")
    full, half = pixart_pipeline(), pixart_pipeline().to(torch.bfloat16)
    found = [
        grafting.encode(tmp_path / "pictures", tmp_path / name, pipeline, EncodeConfig(tokens=12))
        for name, pipeline in (("full", full), ("half", half))
    ]
    exact, rough = (encoded.latents().all() for encoded in found)
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()
    for encoded in found:
        for pipeline in (full, half):
            assert len(grafting.Material(grafting.open_model(pipeline), encoded.folder).latents(train=True))
    other = pixart_pipeline().to(torch.bfloat16)
    next(other.vae.parameters()).data += 1
    for encoded in found:
        with pytest.raises(ModelError, match="was encoded by another autoencoder"):
            grafting.Material(grafting.open_model(other), encoded.folder)


def test_captions_are_read_back_as_encode_wrote_them(tmp_path: Path) -> None:
    live = pixart_pipeline()
    for k, caption in enumerate(("a red disc", "", "a blue square left of the disc")):
        picture(tmp_path / "pictures" / f"{k}.png", k, SIDE, SIDE)
        (tmp_path / "pictures" / f"{k}.txt").write_text(caption)
    encoded = grafting.encode(tmp_path / "pictures", tmp_path / "encoded", live, EncodeConfig(tokens=12))
    rows = [encoded.conditions(torch.tensor([k])).all() for k in range(3)]
    texts = [{key: row[key] for key in (TEXT, MASK)} for row in rows]
    given = grafting.write_latents(
        tmp_path / "given",
        encoded.latents().all(),
        captions=(text if k else text[TEXT] for k, text in enumerate(texts)),
        null=encoded.null,
        vae=live.vae,
        shard=2,
    )
    mine, theirs = given.conditions().all(), encoded.conditions().all()
    assert mine[MASK].sum(1).unique().numel() > 1  # captions of several lengths, each without its padding
    assert torch.equal(mine[TEXT], theirs[TEXT]) and torch.equal(mine[MASK], theirs[MASK])
    assert torch.equal(given.null[TEXT], encoded.null[TEXT])
    material = grafting.Material(grafting.open_model(live), given.folder)
    handle = grafting.graft(live.transformer, grafting.Plan.interleaved(operator="local_mean"), init="copy")
    assert grafting.stage_one(handle, grafting.DistillStage(steps=1, batch=2), material)

    with pytest.raises(ModelError, match="was encoded by another autoencoder"):
        other = pixart_pipeline()
        next(other.vae.parameters()).data += 1
        grafting.Material(grafting.open_model(other), given.folder)


def test_a_model_that_is_told_sizes_is_told_those_that_were_given(tmp_path: Path) -> None:
    found = grafting.write_latents(tmp_path / "z", Z, captions=TEXTS, null=EMPTY, told_size=(16, 32))
    told = found.conditions(torch.tensor([3, 9])).all()
    assert told[SIZES]["resolution"].tolist() == [[16, 32]] * 2 and told[MASK].sum(1).tolist() == [4, 10]


def test_captions_with_what_is_pooled_are_of_one_length(tmp_path: Path) -> None:
    captions = [{TEXT: torch.randn(1, 4, 5), POOLED: torch.randn(3)} for _ in range(10)]
    null = {TEXT: torch.zeros(4, 5), POOLED: torch.zeros(1, 3)}
    found = grafting.write_latents(tmp_path / "z", Z, captions=captions, null=null, shard=4)
    given = found.conditions().all()
    assert torch.equal(given[TEXT], torch.cat([caption[TEXT] for caption in captions])) and MASK not in given
    assert torch.equal(given[POOLED], torch.stack([caption[POOLED] for caption in captions]))
    assert tuple(found.null[POOLED].shape) == (1, 3)
    captions[7] = {TEXT: torch.randn(1, 3, 5), POOLED: torch.randn(3)}
    with pytest.raises(ValueError, match="caption 7 has 3 states of width 5 and 3 pooled, the empty prompt 4 states"):
        grafting.write_latents(tmp_path / "other", Z, captions=captions, null=null)
