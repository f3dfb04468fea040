"""Pairs that a model draws itself: labels on a tiny DiT, prompts on a tiny PixArt with a stand-in for its encoder."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import killed
from torch import nn

from grafting.claims import HELD, ClaimError, held
from grafting.cli import main
from grafting.conditions import MASK, TEXT
from grafting.data.pairs import PairsConfig, Prompts, generate_pairs
from grafting.data.shards import Encoded, ShardError
from grafting.random import generator
from grafting.sampling import Pipeline, Sampling
from grafting.scenes import World
from grafting.store.models import open_model

FEW = Sampling(steps=2)
SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "cross_attention_dim": 16,
    "caption_channels": 4,
    "norm_type": "ada_norm_single",
    "use_additional_conditions": False,
}
"""Of a PixArt with texts of width 4."""
TEXTS = ("a disc", "two stars", "a red ring left of a blue cross", "a heart")


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def drawn(found: Encoded) -> torch.Tensor:
    """Every latent, (n, C, h, w)."""
    latents: torch.Tensor = found.latents().all()
    return latents


# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dit(tiny_teacher: Path) -> nn.Module:
    """The tiny teacher, 3 classes, 4 x 4 pixels."""
    return open_model(str(tiny_teacher)).transformer


def labelled(dit: nn.Module, out: Path, count: int = 10, **changed: Any) -> Encoded:
    config = PairsConfig(**({"batch": 2, "shard": 4} | changed))
    return generate_pairs(dit, out, count, sampling=FEW, config=config)


def test_pairs_of_labels_are_what_the_model_draws_of_them(dit: nn.Module, tmp_path: Path) -> None:
    found = labelled(dit, tmp_path)
    assert len(found) == 10 and found.condition == "labels" and found.shape == (1, 4, 4)
    assert found.conditions().all().tolist() == [k % 3 for k in range(10)]
    found.verify()
    # The model moves every latent from its noise, and no two pairs share theirs.
    assert len({tuple(row.flatten().tolist()) for row in drawn(found)}) == 10
    assert {path.name for path in tmp_path.iterdir()} == {
        "encoded.json",
        *(f"latents-{k:05d}.safetensors" for k in range(3)),
    }
    assert json.loads((tmp_path / "encoded.json").read_text())["drawn"] == FEW.describe()


def test_no_evaluation_from_the_same_seed_draws_a_pair(dit: nn.Module, tmp_path: Path) -> None:
    labels = [k % 3 for k in range(10)]
    judged = Pipeline(dit).latents(labels, sampling=FEW, seed=0, batch_size=2)
    distances = (drawn(labelled(dit, tmp_path))[:, None] - judged[None]).abs().amax(dim=(2, 3, 4))
    assert distances.min() > 0.05


def test_the_same_batches_give_the_same_bits_and_others_the_same_pictures(dit: nn.Module, tmp_path: Path) -> None:
    once = drawn(labelled(dit, tmp_path / "a"))
    assert torch.equal(once, drawn(labelled(dit, tmp_path / "b", shard=8)))
    assert torch.equal(once[:6], drawn(labelled(dit, tmp_path / "c", count=6)))
    for batch in (1, 4):
        other = drawn(labelled(dit, tmp_path / f"batch {batch}", batch=batch))
        torch.testing.assert_close(other, once, atol=1e-4, rtol=1e-3)
    assert (drawn(labelled(dit, tmp_path / "seed", seed=1)) - once).abs().amax(dim=(1, 2, 3)).min() > 0.05


def test_more_pairs_go_on_from_fewer(dit: nn.Module, tmp_path: Path) -> None:
    labelled(dit, tmp_path / "grown", count=6)
    grown = labelled(dit, tmp_path / "grown", count=11)
    labelled(dit, tmp_path / "at once", count=11)
    assert len(grown) == 11 and contents(tmp_path / "grown") == contents(tmp_path / "at once")
    with pytest.raises(ValueError, match="holds 11 pairs already: 6 are asked for"):
        labelled(dit, tmp_path / "grown", count=6)


def test_progress_is_told_after_every_batch(dit: nn.Module, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    config = PairsConfig(batch=2, shard=4)
    more: dict[str, Any] = {"sampling": FEW, "config": config, "progress": lambda *what: told.append(what)}
    generate_pairs(dit, tmp_path, 6, **more)
    assert told == [("latents", done, 6) for done in (0, 2, 4, 6)]
    told.clear()
    generate_pairs(dit, tmp_path, 9, **more)  # the second file is drawn whole again
    assert told == [("latents", done, 9) for done in (4, 6, 8, 9)]


class Stop(Exception):
    """In the middle of a run."""


def test_what_is_drawn_is_not_drawn_again(dit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, firsts = Pipeline.latents, list[int]()

    def counted(self: Pipeline, labels: Any, *, first_index: int, **more: Any) -> torch.Tensor:
        if first_index == 6 and 6 not in firsts:
            firsts.append(6)
            raise Stop
        firsts.append(first_index)
        return latents(self, labels, first_index=first_index, **more)

    monkeypatch.setattr(Pipeline, "latents", counted)
    with pytest.raises(Stop):
        labelled(dit, tmp_path / "stopped")
    with pytest.raises(ShardError, match=r"has no encoded\.json"):
        Encoded(tmp_path / "stopped")
    labelled(dit, tmp_path / "stopped")
    assert firsts == [0, 2, 4, 6, 4, 6, 8]  # the second file had not been whole
    labelled(dit, tmp_path / "whole")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    before = len(firsts)
    labelled(dit, tmp_path / "whole")
    assert len(firsts) == before


def test_a_killed_process_is_gone_on_with(tiny_teacher: Path, tmp_path: Path) -> None:
    arguments = ["pairs", str(tiny_teacher), "--count", "12", "--batch", "2", "--shard", "2", "--steps", "4"]
    out = tmp_path / "killed"
    killed("latents-00002.safetensors", [*arguments, "--out", str(out)])
    assert list(out.glob(".latents-00002.safetensors.*")) and (out / "latents-00001.safetensors").exists()
    assert not (out / "encoded.json").exists()
    assert main([*arguments, "--out", str(out)]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_both_stages_learn_from_pairs(tiny_teacher: Path, tmp_path: Path) -> None:
    out, graft, tuned = (str(tmp_path / name) for name in ("pairs", "graft", "tuned"))
    assert main(["pairs", str(tiny_teacher), "--count", "40", "--steps", "2", "--out", out]) == 0
    small = ["--data", out, "--steps", "2", "--batch", "4"]
    assert main(["distill", str(tiny_teacher), "--operator", "swa", "--out", graft, "--calibration", "8", *small]) == 0
    assert main(["finetune", graft, "--out", tuned, *small]) == 0
    assert open_model(tuned).graft is not None


def test_pairs_are_drawn_by_one_process_at_a_time_and_read_by_several(dit: nn.Module, tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(ClaimError, match="another process is at work there"):
            labelled(dit, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [HELD]
    labelled(dit, tmp_path)
    with held(tmp_path):
        assert len(labelled(dit, tmp_path)) == 10
        with pytest.raises(ClaimError, match="another process is at work there"):
            labelled(dit, tmp_path, 12)
        assert len(Encoded(tmp_path)) == 10
    assert len(labelled(dit, tmp_path, 12)) == 12 and HELD not in contents(tmp_path)


def test_pairs_of_other_settings_are_refused(dit: nn.Module, tmp_path: Path) -> None:
    labelled(dit, tmp_path)
    with pytest.raises(ClaimError, match="holds pairs of other settings \\(seed 0 there, 1 now\\)"):
        labelled(dit, tmp_path, seed=1)
    with pytest.raises(ClaimError, match=r"sampling\.steps 2 there, 3 now"):
        generate_pairs(dit, tmp_path, 10, sampling=Sampling(steps=3), config=PairsConfig(batch=2, shard=4))


# -- prompts ---------------------------------------------------------------------------------------------------------


class Letters:
    """A stand-in for a text encoder: a state for every letter, so that prompts have their own lengths."""

    def __init__(self, tokens: int = 99) -> None:
        self.identity: dict[str, Any] = {"class": "Letters", "tokens": tokens}

    def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
        states = [[[ord(letter) / 128, len(text) / 32, 1, -1] for letter in f"^{text}$"] for text in captions]
        return [torch.tensor(rows) for rows in states], 0


def prompted(
    pixart: nn.Module,
    out: Path,
    count: int = 10,
    *,
    text: Callable[[], Letters] = Letters,
    guidance: float = 1.0,
    **changed: Any,
) -> Encoded:
    config = PairsConfig(**({"batch": 2, "shard": 4} | changed))
    sampling = Sampling(steps=2, guidance=guidance)
    return generate_pairs(pixart, out, count, sampling=sampling, config=config, prompts=Prompts.of(TEXTS), text=text)


@pytest.fixture(scope="module")
def pixart() -> nn.Module:
    """A PixArt of two blocks over 8 x 8 latents and texts of width 4."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    made: nn.Module = PixArtTransformer2DModel(in_channels=4, out_channels=8, **SIZES).eval()
    return made


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The conditions that the model is asked for, batch by batch."""
    latents, found = Pipeline.latents, list[dict[str, torch.Tensor]]()

    def spied(self: Pipeline, condition: Any, **more: Any) -> torch.Tensor:
        found.append(condition)
        return latents(self, condition, **more)

    monkeypatch.setattr(Pipeline, "latents", spied)
    return found


def test_pairs_of_prompts_have_the_states_that_the_model_saw(
    pixart: nn.Module, seen: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    found = prompted(pixart, tmp_path / "two")
    assert found.condition == "captions" and len(found) == 10 and found.shape == (4, 8, 8)
    found.verify()
    texts = [TEXTS[k % 4] for k in range(10)]
    told = found.conditions().all()
    assert told[MASK].sum(1).tolist() == [len(text) + 2 for text in texts]
    for k, text in enumerate(texts):
        (wanted,), _ = Letters()([text])
        assert torch.equal(told[TEXT][k, : len(wanted)], wanted) and not told[TEXT][k, len(wanted) :].any()
    assert found.null[MASK].tolist() == [[1, 1]]
    for place, asked in zip(range(0, 10, 2), seen, strict=True):
        part = found.conditions(torch.arange(place, place + 2)).all()
        assert torch.equal(asked[TEXT], part[TEXT]) and torch.equal(asked[MASK], part[MASK])
    one = prompted(pixart, tmp_path / "one", batch=1, shard=5)
    torch.testing.assert_close(drawn(one), drawn(found), atol=1e-5, rtol=1e-4)


def test_guidance_leads_away_from_the_empty_prompt(pixart: nn.Module, tmp_path: Path) -> None:
    guided = drawn(prompted(pixart, tmp_path / "pairs", 2, guidance=3.0))
    embed, source = Letters(), generator(0, "pairs").initial_seed()
    (empty,), _ = embed([""])
    null = {TEXT: empty[None], MASK: torch.ones(1, len(empty), dtype=torch.int64)}
    states, _ = embed(TEXTS[:2])
    padded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    mask = torch.tensor([[place < len(rows) for place in range(padded.shape[1])] for rows in states]).long()
    wanted = Pipeline(pixart, null=null).latents(
        {TEXT: padded, MASK: mask}, sampling=Sampling(steps=2, guidance=3.0), seed=source
    )
    torch.testing.assert_close(guided, wanted, atol=1e-5, rtol=1e-4)
    assert (guided - drawn(prompted(pixart, tmp_path / "plain", 2))).abs().max() > 1e-3


def test_the_text_encoder_is_loaded_only_where_it_is_needed(pixart: nn.Module, tmp_path: Path) -> None:
    class Refused(Letters):
        def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
            raise AssertionError("it was asked again")

    prompted(pixart, tmp_path, 8)
    (tmp_path / "encoded.json").unlink()
    (tmp_path / "latents-00001.safetensors").unlink()
    prompted(pixart, tmp_path, 8, text=Refused)
    prompted(pixart, tmp_path, 8, text=Refused)
    with pytest.raises(AssertionError, match="asked again"):
        prompted(pixart, tmp_path, 9, text=Refused)
    assert len(prompted(pixart, tmp_path, 9)) == 9


def test_the_model_moves_where_it_draws_once_the_text_encoder_is_gone(
    pixart: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, moved = weakref.WeakSet[Letters](), list[tuple[str, int]]()

    def text() -> Letters:
        made = Letters()
        there.add(made)
        return made

    monkeypatch.setattr(pixart, "to", lambda device: moved.append((device, len(there))))
    texts, config = Prompts.of(TEXTS), PairsConfig(batch=2, shard=4)
    generate_pairs(pixart, tmp_path, 4, config=config, prompts=texts, text=text, device="cpu")
    assert moved == [("cpu", 0)]


@pytest.mark.parametrize("count", [6, 8, 11])
def test_pairs_of_another_text_encoder_are_refused(count: int, pixart: nn.Module, tmp_path: Path) -> None:
    """Latents that were drawn of the old states would stand beside new ones."""
    prompted(pixart, tmp_path, 6)
    if count == 8:  # as it is in the middle of growing
        settings = json.loads((tmp_path / "encoded.json").read_text())["settings"]
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        (tmp_path / "encoded.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(ClaimError, match=r"holds pairs of other settings \(text\.tokens 99 there, 7 now\)"):
        prompted(pixart, tmp_path, count, text=lambda: Letters(7))
    assert contents(tmp_path) == before


def test_states_of_another_width_are_refused(pixart: nn.Module, tmp_path: Path) -> None:
    class Wide(Letters):
        def __call__(self, captions: Sequence[str]) -> tuple[list[torch.Tensor], int]:
            states, cut = super().__call__(captions)
            return [torch.cat([rows, rows], dim=1) for rows in states], cut

    with pytest.raises(ValueError, match="the text encoder gives states of width 8, the model takes 4"):
        prompted(pixart, tmp_path / "out", text=Wide)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("p.txt", b"a disc\n\na star\n", "p.txt, line 2: the prompt is empty"),
        ("p.txt", b"a disc\ncaf\xe9\n", "p.txt, line 2 is no text in UTF-8"),
        ("p.txt", b"\n", "p.txt is empty"),
        ("p.jsonl", b'{"prompt": "a disc"}\n{"prompt": "a star"\n', "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", b'{"prompt": "a disc"}\n{"text": "a star"}\n', "p.jsonl, line 2 lacks prompt"),
        ("p.jsonl", b'{"prompt": "a disc"}\n{"prompt": ["x"]}\n', 'line 2: prompt is ["x"], must be text'),
        ("gone/p.txt", b"", "p.txt: no such file"),
    ],
)
def test_bad_prompts_are_named(
    name: str, content: bytes, word: str, pixart: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixart.save_pretrained(tmp_path / "model")
    if content:
        (tmp_path / name).write_bytes(content)
    command = ["pairs", str(tmp_path / "model"), "--prompts", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_prompts_of_a_file_and_of_scenes(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a disc\n two stars \n")
    (tmp_path / "p.jsonl").write_text('{"text": "a disc", "x": 1}\n{"text": "two stars"}\n')
    text, objects = Prompts.read(tmp_path / "p.txt"), Prompts.read(tmp_path / "p.jsonl", "text")
    assert [text.at(k) for k in range(5)] == ["a disc", "two stars", "a disc", "two stars", "a disc"]
    assert text.identity == objects.identity != Prompts.of(["a disc"]).identity and text.length == 2
    scenes, others = Prompts.scenes(3), Prompts.scenes(4)
    assert [scenes.at(k) for k in range(20)] == [Prompts.scenes(3).at(k) for k in range(20)]
    assert [scenes.at(k) for k in range(20)] != [others.at(k) for k in range(20)]
    single = Prompts.scenes(3, World(weights=(1, 0, 0, 1, 0, 0)))
    assert single.identity != scenes.identity == Prompts.scenes(3, World()).identity
    assert not any(" and " in single.at(k) or " with " in single.at(k) for k in range(40))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "count: how many pairs"),
        (["--count", "4", "--shard", "6", "--batch", "4"], "shard 6: must be a multiple of the batch, 4"),
        (["--count", "4", "--dtype", "int8"], "dtype 'int8': float32"),
        (["--prompts", "no.txt"], "is conditioned on classes: leave out prompts"),
        (["--count", "4", "--guidance", "2", "--guided-channels", "9"], "9 guided channels: the samples have 1"),
    ],
)
def test_bad_commands(
    arguments: list[str], word: str, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pairs", str(tiny_teacher), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists(), "settings that are refused are noted nowhere"


def test_a_model_of_text_without_prompts_and_of_classes_with_them(
    pixart: nn.Module, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="PixArtTransformer2DModel is conditioned on text: give prompts"):
        generate_pairs(pixart, tmp_path / "a", 4)
    with pytest.raises(ValueError, match="nothing that embeds them"):
        generate_pairs(pixart, tmp_path / "a", 4, prompts=Prompts.of(TEXTS))
    (tmp_path / "p.txt").write_text("a disc\n")
    command = ["pairs", str(tiny_teacher), "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "b")]
    assert main(command) == 2 and "is conditioned on classes: leave out prompts" in capsys.readouterr().err
