"""Stable Diffusion 3 in diffusers' own pipeline: its captions, its pairs, and what learns from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import CHANNELS, SIDE, autoencoder, killed, picture, pixart_pipeline, tokenizer

import grafting
from grafting.claims import ClaimError
from grafting.cli import main
from grafting.conditions import MASK, POOLED, SIZES, TEXT, padded, replaced, rows, together
from grafting.data.encode import encode
from grafting.data.encode_config import EncodeConfig
from grafting.data.encoders import SD3Text, encoders_of
from grafting.data.pairs import PairsConfig, Prompts, generate_pairs
from grafting.data.shards import Encoded
from grafting.hashes import tensors_hash
from grafting.hosts import host_for
from grafting.random import generator
from grafting.sampling import Pipeline, Sampling
from grafting.store.configs import ModelError
from grafting.teachers import teacher_folder

CPU = torch.device("cpu")
CAPTIONS = ["a red disc", "", "blue square left of the red disc, " * 12, "the blue disc"]
TOKENS = 77 + 20


def sd3_pipeline(*, t5: bool = True, width: int = 16, pooled: tuple[int, int] = (4, 6), **settings: Any) -> Any:
    """A StableDiffusion3Pipeline of tiny random parts; ``width`` of T5's states and ``pooled`` of either CLIP's."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = {
        word: k for k, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, *(f"{a}</w>" for a in letters)])
    }
    made: dict[str, Any] = {}
    for name, side in zip(("", "_2"), pooled, strict=True):
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=side,
            intermediate_size=8,
            projection_dim=side,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
        )
        made[f"text_encoder{name}"] = CLIPTextModelWithProjection(config).eval()
        made[f"tokenizer{name}"] = CLIPTokenizer(vocab=dict(words), merges=[], model_max_length=77)
    words_of_t5 = tokenizer()
    config_of_t5 = T5Config(vocab_size=len(words_of_t5), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    made["text_encoder_3"] = T5EncoderModel(config_of_t5).eval() if t5 else None
    made["tokenizer_3"] = words_of_t5 if t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        pos_embed_max_size=8,
        **{"in_channels": CHANNELS, "out_channels": CHANNELS, "joint_attention_dim": 16, "pooled_projection_dim": 10}
        | settings,
    )
    for block in transformer.transformer_blocks:  # gates that are open, so that all of the text is seen
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.3)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        vae=autoencoder(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **made,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wanted(pipe: Any, texts: list[str], tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """The condition as the pipeline itself makes it."""
    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=tokens - 77
        )
    return {TEXT: states, POOLED: pooled}


def same(found: Any, other: Any) -> bool:
    return found.keys() == other.keys() and all(torch.equal(found[key], other[key]) for key in found)


@pytest.fixture(scope="module")
def live() -> Any:
    return sd3_pipeline()


@pytest.fixture(scope="module")
def sd3(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder."""
    folder = tmp_path_factory.mktemp("sd3") / "model"
    live.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without T5."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    sd3_pipeline(t5=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures; one has no caption, another cannot be read."""
    root = tmp_path_factory.mktemp("captioned")
    for k, caption in enumerate(CAPTIONS):
        picture(root / f"{k}.png", k)
        (root / f"{k}.txt").write_text(caption)
    picture(root / "1b.png", 9)
    (root / "2b.png").write_bytes(b"nothing")
    (root / "2b.txt").write_text("a square")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("t5", [True, False])
def test_captions_are_those_of_the_pipeline_s_own_encode_prompt(t5: bool, sd3: Path, bare: Path, live: Any) -> None:
    folder, pipe = (sd3, live) if t5 else (bare, sd3_pipeline(t5=False))
    from_folder, from_live = (
        encoders_of(model, vae=None, text=None, tokens=TOKENS).text(CPU) for model in (str(folder), pipe)
    )
    truth = wanted(pipe, CAPTIONS)
    assert truth[TEXT].shape == (4, TOKENS, 16) and truth[POOLED].shape == (4, 10)
    assert bool(truth[TEXT][:, 77:].any()) == t5
    for embed in (from_folder, from_live):
        told = embed.identity
        found, cut = embed(CAPTIONS)
        assert same(together(found), truth) and cut == 1  # type: ignore[arg-type]
        assert same(embed([""])[0][0], wanted(pipe, [""]))
        assert told["tokens"] == TOKENS and told["pipeline"] == "StableDiffusion3Pipeline"
        assert told.get("zeros") == (None if t5 else 16)
    once = SD3Text(pipe, TOKENS, CPU).identity
    assert once == from_live.identity, "whatever was asked of the tokenizers before"
    usual = encoders_of(str(folder), vae=None, text=None, tokens=None).text(CPU)
    assert usual.identity == from_folder.identity | {"tokens": 333}
    assert same(usual(["a red disc"])[0][0], wanted(pipe, ["a red disc"], 333))


def test_every_encoder_and_tokenizer_counts_for_the_identity(sd3: Path, bare: Path, live: Any, tmp_path: Path) -> None:
    known = [encoders_of(str(folder), vae=None, text=None, tokens=None).text(CPU).identity for folder in (sd3, bare)]
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"):
        folder = tmp_path / part
        shutil.copytree(sd3, folder)
        path = next((folder / part).glob("*config.json"))
        path.write_text(path.read_text() + "\n")
        known.append(encoders_of(str(folder), vae=None, text=None, tokens=None).text(CPU).identity)
    # The files of a T5 that the index leaves out are not read.
    index = json.loads((sd3 / "model_index.json").read_text())
    shutil.copytree(sd3, tmp_path / "left out")
    left = index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (tmp_path / "left out" / "model_index.json").write_text(json.dumps(left))
    without = encoders_of(str(tmp_path / "left out"), vae=None, text=None, tokens=None).text(CPU)
    assert without.identity == known[1]
    assert not without(["a"])[0][0][TEXT][:, 77:].any()  # type: ignore[index]
    assert len({told["sha256"] for told in known}) == 8
    hashes = set()
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        other = sd3_pipeline()
        with torch.no_grad():
            next(getattr(other, part).parameters()).mul_(2)
        hashes.add(SD3Text(other, None, CPU).identity["sha256"])
    assert len(hashes | {SD3Text(live, None, CPU).identity["sha256"]}) == 4


def test_what_cannot_embed_for_sd3_is_refused_in_a_sentence(sd3: Path, live: Any, tmp_path: Path) -> None:
    for tokens in (1, 77, 77 + 513):
        for model in (str(sd3), live):
            with pytest.raises(ModelError, match=rf"^tokens {tokens}: .* 77 of CLIP and 1 to 512 of T5, so 78 to 589"):
                encoders_of(model, vae=None, text=None, tokens=tokens).text(CPU)
    pixart = tmp_path / "pixart"
    pixart_pipeline().save_pretrained(pixart)
    for model in (str(sd3), live):
        with pytest.raises(
            ModelError,
            match="pixart is PixArtSigmaPipeline, whose captions SD3Transformer2DModel does not read: "
            "name the folder or hub id of a StableDiffusion3Pipeline as text",
        ):
            encoders_of(model, vae=None, text=str(pixart), tokens=None).text(CPU)
    with pytest.raises(
        ModelError,
        match="is StableDiffusion3Pipeline, whose captions PixArtTransformer2DModel does not read: "
        "name the folder or hub id of a PixArtAlphaPipeline or PixArtSigmaPipeline as text",
    ):
        encoders_of(str(pixart), vae=None, text=str(sd3), tokens=None).text(CPU)
    for nothing in (str(sd3 / "transformer"), str(teacher_folder("scenes"))):
        with pytest.raises(ModelError, match=r"no pipeline, which brings no text .* of a StableDiffusion3Pipeline as"):
            encoders_of(str(sd3), vae=None, text=nothing, tokens=None).text(CPU)
    without = sd3_pipeline()
    without.text_encoder_2 = without.tokenizer_3 = None
    with pytest.raises(ModelError, match="has no text_encoder_2 and no tokenizer_3: only T5 may be left out"):
        encoders_of(without, vae=None, text=None, tokens=None).text(CPU)


def test_captions_of_other_widths_are_refused_before_anything_is_written(captioned: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"joint_attention_dim": 24}, "the text encoder gives states of width 16, the model takes 24"),
        ({"pooled_projection_dim": 12}, "gives states with pooled projections of width 10, the model takes 12"),
    ]
    for settings, word in cases:
        with pytest.raises(ValueError, match=word):
            encode(captioned, tmp_path / "out", sd3_pipeline(**settings), EncodeConfig(tokens=TOKENS))
    assert not (tmp_path / "out").exists()


def test_encoded_captions_are_read_back_as_they_were(captioned: Path, sd3: Path, live: Any, tmp_path: Path) -> None:
    config = EncodeConfig(tokens=TOKENS, batch=4, shard=6)
    found = encode(captioned, tmp_path / "out", str(sd3), config)
    assert len(found) == 4 and found.manifest["skipped"]["count"] == 2
    assert found.manifest["captions"] == {"empty": 1, "cut": 1}
    # In the batches in which they were embedded, the caption of the broken picture among them.
    texts = [*CAPTIONS[:3], "a square", CAPTIONS[3]]
    parts = together([wanted(live, texts[:4]), wanted(live, texts[4:])])
    got = found.conditions().all()
    assert same(got, rows(parts, torch.tensor([0, 1, 2, 4]))) and MASK not in got and SIZES not in got
    assert same(found.null, wanted(live, [""]))
    batch = grafting.data.Batches(inputs=found.latents(), labels=found.conditions(), size=3, seed=0)(0)
    assert batch["y"][TEXT].shape == (3, TOKENS, 16) and batch["y"][POOLED].shape == (3, 10)
    z, t = found.latents().all(), torch.tensor([100.0, 400.0, 700.0, 999.0])
    model = live.transformer
    with torch.no_grad():
        truth = model(z, encoder_hidden_states=got[TEXT], pooled_projections=got[POOLED], timestep=t).sample
        assert torch.equal(host_for(model).call(model, z, t, got), truth)
        dropped = replaced(got, torch.tensor([True, False, True, False]), found.null)
        assert same(rows(dropped, slice(0, 1)), found.null) and same(rows(dropped, slice(1, 2)), rows(got, slice(1, 2)))
        assert host_for(model).call(model, z, t, dropped).shape == z.shape
    half = encode(captioned, tmp_path / "half", live, EncodeConfig(tokens=TOKENS, batch=4, shard=6, dtype="float16"))
    assert torch.equal(half.conditions().all()[POOLED], got[POOLED].half().float())
    assert (tmp_path / "half" / "null.safetensors").stat().st_size < (
        tmp_path / "out" / "null.safetensors"
    ).stat().st_size
    with pytest.raises(ClaimError, match=r"another text encoder .*tokens 97 there, 333 now"):
        encode(captioned, tmp_path / "out", str(sd3), EncodeConfig(batch=4, shard=6))


def test_a_model_of_128_latents_is_not_told_sizes(captioned: Path, tmp_path: Path) -> None:
    """Which of PixArt says that it is."""
    wide = sd3_pipeline()
    wide.transformer.register_to_config(sample_size=128)
    found = encode(captioned, tmp_path, wide, EncodeConfig(tokens=TOKENS, size=(SIDE, SIDE)))
    assert "told_size" not in found.manifest and SIZES not in found.conditions().all()


def test_prompts_without_a_mask_are_never_padded() -> None:
    short, long = ({TEXT: torch.ones(1, n, 4), POOLED: torch.ones(1, 2)} for n in (3, 5))
    assert same(padded(long, 3), long) and same(together([short]), short)
    with pytest.raises(ValueError, match="prompts of 3 and of 5 tokens: without a mask all have one length"):
        together([short, long])
    with pytest.raises(ValueError, match="without a mask"):
        replaced(long, torch.tensor([True]), short)


@pytest.mark.parametrize("file", ["captions-00001.safetensors", "latents-00001.safetensors"])
def test_a_killed_process_is_gone_on_with_to_the_same_files(
    file: str, captioned: Path, sd3: Path, tmp_path: Path
) -> None:
    config = EncodeConfig(shard=2, batch=1, tokens=TOKENS)
    given = ["--model", str(sd3), "--shard", "2", "--batch", "1", "--tokens", str(TOKENS)]
    killed(file, ["encode", str(captioned), "--out", str(tmp_path / "cut"), *given])
    assert not (tmp_path / "cut" / file).exists()
    encode(captioned, tmp_path / "cut", str(sd3), config)
    encode(captioned, tmp_path / "whole", str(sd3), config)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_latents_of_sixteen_channels_are_shifted_and_scaled(captioned: Path, tmp_path: Path) -> None:
    from grafting.data.encode import scaled

    vae = autoencoder(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
    pipe = sd3_pipeline(in_channels=16, out_channels=16)
    pipe.vae = vae
    found = encode(captioned, tmp_path / "out", pipe, EncodeConfig(tokens=TOKENS))
    assert found.shape == (16, 8, 8) and (found.manifest["scale"], found.manifest["shift"]) == (1.5305, 0.0609)
    z = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        images = vae.decode(z / 1.5305 + 0.0609).sample
        torch.testing.assert_close(Pipeline(pipe.transformer, vae).decode(z), images)
        means = vae.encode(images).latent_dist.mean
    torch.testing.assert_close(scaled(vae, means), (means - 0.0609) * 1.5305)


def test_pairs_are_what_diffusers_draws_of_the_prompts(sd3: Path, live: Any, tmp_path: Path) -> None:
    texts, sampling = CAPTIONS[:3], Sampling(steps=4, guidance=3.0)
    (tmp_path / "prompts.txt").write_text("\n".join(text.strip() or "a" for text in texts))
    texts = [text.strip() or "a" for text in texts]
    given: list[Any] = ["pairs", sd3, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    given += ["--tokens", TOKENS, "--steps", 4, "--guidance", 3.0, "--batch", 3, "--shard", 3]
    assert main([*map(str, given)]) == 0
    found = Encoded(tmp_path / "out")
    found.verify()
    told = found.conditions().all()
    assert same(told, wanted(live, texts)) and same(found.null, wanted(live, [""]))
    assert found.manifest["shift"] == 0.25 and found.manifest["encoders"]["text"]["tokens"] == TOKENS
    source = generator(0, "pairs").initial_seed()
    noise = torch.stack([torch.randn(CHANNELS, 8, 8, generator=generator(source, "sample", k)) for k in range(3)])
    theirs = live(
        prompt_embeds=told[TEXT],
        pooled_prompt_embeds=told[POOLED],
        negative_prompt_embeds=found.null[TEXT].expand(3, -1, -1),
        negative_pooled_prompt_embeds=found.null[POOLED].expand(3, -1),
        height=SIDE,
        width=SIDE,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(found.latents().all(), theirs, atol=2e-4, rtol=1e-3)
    # From Python the same, and more of them go on.
    more = generate_pairs(
        live.transformer,
        tmp_path / "more",
        4,
        vae=live.vae,
        sampling=sampling,
        prompts=Prompts.of(texts),
        text=lambda: SD3Text(live, TOKENS, CPU),
        config=PairsConfig(batch=1, shard=1),
    )
    torch.testing.assert_close(more.latents().all()[:3], found.latents().all(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(more.conditions().all()[TEXT][:3], told[TEXT], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def learnt(sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``encoded``: 24 pictures."""
    root = tmp_path_factory.mktemp("learnt")
    for k in range(24):
        picture(root / "pictures" / f"{k}.png", k)
        (root / "pictures" / f"{k}.txt").write_text("a red disc left of the square" if k % 2 else "blue")
    encode(root / "pictures", root / "encoded", str(sd3), EncodeConfig(tokens=TOKENS))
    return root / "encoded"


def test_both_stages_analysis_and_samples(learnt: Path, sd3: Path, tmp_path: Path, capsys: Any) -> None:
    def run(*given: Any) -> None:
        assert main([*map(str, given)]) == 0, capsys.readouterr().err

    data = ["--data", learnt]
    run("distill", sd3, *data, "--steps", 2, "--batch", 4, "--calibration", 8, "--out", tmp_path / "one")
    run("finetune", tmp_path / "one", *data, "--steps", 2, "--batch", 4, "--out", tmp_path / "two")
    run("evaluate", tmp_path / "two", *data, "--triples", 4)
    run("analyze", sd3, *data, "--samples", 1, "--steps", 2, "--out", tmp_path / "analysis")
    asked = ["--prompt", "a red disc", "--prompt", "blue", "--tokens", TOKENS, "--steps", 2, "--guidance", 2]
    run("sample", tmp_path / "two", *asked, "--out", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size


def test_material_refuses_captions_of_another_kind(learnt: Path, sd3: Path, tmp_path: Path) -> None:
    pipe = pixart_pipeline()
    pipe.save_pretrained(tmp_path / "pixart")
    sigma, three = (grafting.open_model(str(folder)) for folder in (tmp_path / "pixart", sd3))
    with pytest.raises(
        ModelError, match=r"has captions with pooled projections, .*pixart takes captions without: they"
    ):
        grafting.Material(sigma, str(learnt))
    picture(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("a disc")
    encode(tmp_path / "pictures", tmp_path / "sigma", pipe)
    with pytest.raises(
        ModelError, match=r"has captions without pooled projections, .*model takes some of width 10: they"
    ):
        grafting.Material(three, str(tmp_path / "sigma"))
    wider = sd3_pipeline(pooled_projection_dim=12)
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(ModelError, match=r"with pooled projections of width 10, .*wider takes 12: they were embedded"):
        grafting.Material(grafting.open_model(str(tmp_path / "wider")), str(learnt))
    material = grafting.Material(three, str(learnt))
    assert set(material.null) == {TEXT, POOLED} == set(material.conditions(train=False))
    assert tensors_hash(material.null) == tensors_hash(Encoded(learnt).null)
