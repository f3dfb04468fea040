"""Flux in diffusers' own pipeline: its captions, its pairs, and what learns from them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import autoencoder, picture, tokenizer
from test_sd3_text import CAPTIONS, same

import grafting
from grafting.cli import main
from grafting.conditions import MASK, POOLED, TEXT, together
from grafting.data.encode import encode
from grafting.data.encode_config import EncodeConfig
from grafting.data.encoders import encoders_of
from grafting.data.joint_text import FluxText
from grafting.data.shards import Encoded
from grafting.hosts.flux import packed, unpacked
from grafting.random import generator
from grafting.store.configs import ModelError

CPU, TOKENS, SIDE = torch.device("cpu"), 20, 16


def flux_pipeline(*, dev: bool = False) -> Any:
    """A FluxPipeline of tiny random parts, whose latents have 16 channels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = {
        word: k for k, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, *(f"{a}</w>" for a in letters)])
    }
    sizes = {"hidden_size": 10, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPTextConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, **sizes)
    of_t5 = tokenizer()
    t5 = T5Config(vocab_size=len(of_t5), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=10,
        guidance_embeds=dev,
        axes_dims_rope=(2, 2, 4),
    )
    transformer.register_to_config(sample_size=8)
    for name, parameter in transformer.named_parameters():  # gates that are open, so that all of the text is seen
        if "norm1.linear" in name or ".norm.linear" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    pipe = FluxPipeline(
        transformer=transformer.eval(),
        vae=autoencoder(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=CLIPTokenizer(vocab=dict(words), merges=[], model_max_length=77),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=of_t5,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def live() -> Any:
    return flux_pipeline()


@pytest.fixture(scope="module")
def flux(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder."""
    folder = tmp_path_factory.mktemp("flux") / "model"
    live.save_pretrained(folder)
    return folder


def wanted(pipe: Any, texts: list[str], tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """The condition as the pipeline itself makes it."""
    with torch.no_grad():
        states, pooled, _ = pipe.encode_prompt(texts, None, max_sequence_length=tokens)
    return {TEXT: states, POOLED: pooled}


def test_captions_are_those_of_the_pipeline_s_own_encode_prompt(flux: Path, live: Any) -> None:
    truth = wanted(live, CAPTIONS)
    assert truth[TEXT].shape == (4, TOKENS, 16) and truth[POOLED].shape == (4, 10)
    for model in (str(flux), live):
        embed = encoders_of(model, vae=None, text=None, tokens=TOKENS).text(CPU)
        told = embed.identity
        found, cut = embed(CAPTIONS)
        assert same(together(found), truth) and cut == 1  # type: ignore[arg-type]
        assert told["tokens"] == TOKENS and told["pipeline"] == "FluxPipeline" and "zeros" not in told
    for dev, tokens in ((True, 512), (False, 256)):
        pipe = flux_pipeline(dev=dev)
        assert FluxText(pipe, None, CPU).identity["tokens"] == tokens
    usual = encoders_of(str(flux), vae=None, text=None, tokens=None).text(CPU)
    assert same(usual(["a red disc"])[0][0], wanted(live, ["a red disc"], 256))


def test_every_encoder_and_tokenizer_counts_for_the_identity(flux: Path, tmp_path: Path) -> None:
    known = [encoders_of(str(flux), vae=None, text=None, tokens=None).text(CPU).identity["sha256"]]
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(flux, tmp_path / part)
        path = next((tmp_path / part / part).glob("*config.json"))
        path.write_text(path.read_text() + "\n")
        known.append(encoders_of(str(tmp_path / part), vae=None, text=None, tokens=None).text(CPU).identity["sha256"])
    assert len(set(known)) == 5


def test_what_cannot_embed_for_flux_is_refused_in_a_sentence(flux: Path, live: Any, tmp_path: Path) -> None:
    from encoding import pixart_pipeline

    for tokens in (0, 513):
        for model in (str(flux), live):
            with pytest.raises(ModelError, match=rf"^tokens {tokens}: a prompt of FluxPipeline has 1 to 512, of T5"):
                encoders_of(model, vae=None, text=None, tokens=tokens).text(CPU)
    pixart = tmp_path / "pixart"
    pixart_pipeline().save_pretrained(pixart)
    for model, text, word in (
        (
            flux,
            pixart,
            "PixArtSigmaPipeline, whose captions FluxTransformer2DModel does not read: .* of a FluxPipeline as",
        ),
        (pixart, flux, "is FluxPipeline, whose captions PixArtTransformer2DModel does not read"),
        (flux, flux / "transformer", "no pipeline, which brings no text .* of a FluxPipeline as"),
    ):
        with pytest.raises(ModelError, match=word):
            encoders_of(str(model), vae=None, text=str(text), tokens=None).text(CPU)
    without = flux_pipeline()
    without.text_encoder_2 = None
    with pytest.raises(ModelError, match="has no text_encoder_2, and embeds no captions"):
        encoders_of(without, vae=None, text=None, tokens=None).text(CPU)


def test_pairs_are_what_diffusers_draws_of_the_prompts(flux: Path, live: Any, tmp_path: Path) -> None:
    texts = ["a red disc", "blue square", "the blue disc"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    given: list[Any] = ["pairs", flux, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    given += ["--tokens", TOKENS, "--steps", 4, "--guidance", 1.0, "--batch", 3, "--shard", 3]
    assert main([*map(str, given)]) == 0
    found = Encoded(tmp_path / "out")
    found.verify()
    told = found.conditions().all()
    assert same(told, wanted(live, texts)) and same(found.null, wanted(live, [""]))
    source = generator(0, "pairs").initial_seed()
    noise = torch.stack([torch.randn(16, 8, 8, generator=generator(source, "sample", k)) for k in range(3)])
    theirs = live(
        prompt_embeds=told[TEXT],
        pooled_prompt_embeds=told[POOLED],
        height=8 * live.vae_scale_factor,
        width=8 * live.vae_scale_factor,
        latents=packed(noise),
        num_inference_steps=4,
        output_type="latent",
    ).images
    torch.testing.assert_close(found.latents().all(), unpacked(theirs, (4, 4)), atol=2e-4, rtol=1e-3)


def test_encoded_pictures_both_stages_and_samples(flux: Path, live: Any, tmp_path: Path, capsys: Any) -> None:
    """Latents of 16 channels, two of whose sides make a token."""
    for k in range(24):
        picture(tmp_path / "pictures" / f"{k}.png", k)
        (tmp_path / "pictures" / f"{k}.txt").write_text("a red disc left of the square" if k % 2 else "blue")
    found = encode(tmp_path / "pictures", tmp_path / "data", str(flux), EncodeConfig(tokens=TOKENS))
    assert found.shape == (16, 8, 8) and (found.manifest["scale"], found.manifest["shift"]) == (0.3611, 0.1159)
    got = found.conditions().all()
    assert MASK not in got and torch.equal(got[POOLED][:1], wanted(live, ["blue"])[POOLED])

    def run(*given: Any) -> None:
        assert main([*map(str, given)]) == 0, capsys.readouterr().err

    data = ["--data", tmp_path / "data"]
    run("distill", flux, *data, "--steps", 2, "--batch", 4, "--calibration", 8, "--out", tmp_path / "one")
    run("finetune", tmp_path / "one", *data, "--steps", 2, "--batch", 4, "--out", tmp_path / "two")
    run("evaluate", tmp_path / "two", *data, "--triples", 4)
    run("analyze", flux, *data, "--samples", 1, "--steps", 2, "--out", tmp_path / "analysis")
    found_of = ["--plan", tmp_path / "searched" / "plans" / "best.yaml", "--analysis", tmp_path / "analysis"]
    few = ["--triples", 4, "--points", 3, "--check", 1, "--text-tokens", TOKENS]
    asked = ["--operators", "swa", "mlp:ratio=3", "--budget", "flops=0.99", *few]
    run("search", flux, *data, *asked, "--out", tmp_path / "searched")
    maps = re.findall(r"<title>block (\d), operator mlp:ratio=3: ", (tmp_path / "searched" / "search.html").read_text())
    assert set(maps) == {"0", "1"}, "the MLP of a single stream is no site"
    run("plan", flux, *found_of, "--text-tokens", TOKENS)
    local = ["--site", "mlp", "--operator", "mlp:ratio=3", "--blocks", "most local 50%"]
    run("plan", flux, *local, "--analysis", tmp_path / "analysis", "--out", tmp_path / "local.yaml")
    (edit,) = grafting.Plan.from_yaml(tmp_path / "local.yaml").edits
    assert len(edit.blocks) == 1 and set(edit.blocks) < {0, 1}
    run("profile", flux, "--rounds", 2, "--text-tokens", TOKENS)
    run("inspect", flux)
    said = capsys.readouterr().out
    assert "and blocks.2 to blocks.3, of a single stream, attn alone" in said and "256 text tokens" in said
    asked = ["--prompt", "a red disc", "--prompt", "blue", "--tokens", TOKENS, "--steps", 2, "--guidance", 2]
    run("sample", tmp_path / "two", *asked, "--out", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size
    model = grafting.open_model(str(flux))
    model.transformer.register_to_config(joint_attention_dim=24)
    with pytest.raises(ModelError, match=r"has captions of width 16, .*model takes 24: they were embedded for another"):
        grafting.Material(model, str(tmp_path / "data"))
