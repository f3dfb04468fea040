"""SANA in diffusers' own pipeline: captions behind their instruction, its autoencoder, and what learns from them."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import CHANNELS, SIDE, picture, pixart_pipeline

from grafting.cli import main
from grafting.conditions import MASK, TEXT
from grafting.data.encode import encode
from grafting.data.encode_config import EncodeConfig
from grafting.data.encoders import encoders_of
from grafting.data.shards import Encoded
from grafting.hosts import schedule_of
from grafting.random import generator
from grafting.sampling import Pipeline
from grafting.store.configs import ModelError, text_tokens
from grafting.store.models import open_model

CPU = torch.device("cpu")
CAPTIONS = ["A red disc", "", "blue square left of the red disc, " * 3, "the blue disc "]
TOKENS = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz▁,.-':>\n"


def dc_autoencoder() -> Any:
    """Halves each side, without a distribution."""
    from diffusers import AutoencoderDC

    torch.manual_seed(1)
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
    ).eval()


def sana_pipeline(**settings: Any) -> Any:
    """A SanaPipeline of tiny random parts; an own instruction would be its pipeline's default, hundreds of letters."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from tokenizers.processors import TemplateProcessing
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    torch.manual_seed(0)
    words = {word: k for k, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *LETTERS])}
    tokenizer = GemmaTokenizer(vocab=words, merges=[])
    begins = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", words["<bos>"])])  # as the published one
    tokenizer.backend_tokenizer.post_processor = begins
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = SanaTransformer2DModel(
        sample_size=SIDE // 2,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        **{"in_channels": CHANNELS, "out_channels": CHANNELS, "caption_channels": 16} | settings,
    )
    pipe = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(config).eval(),
        vae=dc_autoencoder(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.5, beta_schedule="linear"
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_from(pipe: Any, texts: list[str], negative: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """States and mask that the transformer is given when the pipeline itself is asked for pictures of ``texts``."""
    given: dict[str, Any] = {}

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        given.update(kwargs)

    hook = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    guided = {"guidance_scale": 1.0} if negative is None else {"guidance_scale": 2.0, "negative_prompt": negative}
    pipe(
        texts,
        num_inference_steps=1,
        height=32,
        width=32,
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=TOKENS,
        output_type="latent",
        **guided,
    )
    hook.remove()
    text, mask = given[TEXT], given[MASK]
    return (text, mask) if negative is None else (text[: len(negative)], mask[: len(negative)])


@pytest.fixture(scope="module")
def live() -> Any:
    return sana_pipeline()


@pytest.fixture(scope="module")
def sana(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder."""
    folder = tmp_path_factory.mktemp("sana") / "model"
    live.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    for k in range(12):
        picture(root / f"{k}.png", k)
        (root / f"{k}.txt").write_text(CAPTIONS[k % 4])
    return root


def test_captions_are_those_that_the_pipeline_draws_by(sana: Path, live: Any) -> None:
    """Behind the instruction of its own call; the empty one without, as its negative prompt."""
    text, mask = drawn_from(live, [caption for caption in CAPTIONS if caption])
    empty, empty_mask = drawn_from(live, ["a"], [""])
    truth = [row[kept.bool()] for row, kept in zip(text, mask, strict=True)]
    truth.insert(1, empty[0][empty_mask[0].bool()])
    assert len(truth[1]) == 1 and len(truth[0]) > 10, "the beginning alone; the caption's own tokens"
    for model in (str(sana), live):
        embed = encoders_of(model, vae=None, text=None, tokens=TOKENS).text(CPU)
        assert embed.identity["tokens"] == TOKENS and embed.identity["pipeline"] == "SanaPipeline"
        lines = list(inspect.signature(type(live).__call__).parameters["complex_human_instruction"].default)
        assert embed.identity["instruction"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
        found, cut = embed(CAPTIONS)
        assert cut == 1
        for mine, theirs in zip(found, truth, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    usual = encoders_of(str(sana), vae=None, text=None, tokens=None).text(CPU)
    assert usual.identity["tokens"] == 300 == text_tokens(str(sana))


def test_what_cannot_embed_for_sana_is_refused(sana: Path, live: Any, tmp_path: Path) -> None:
    pixart_pipeline().save_pretrained(tmp_path / "pixart")
    with pytest.raises(ModelError, match=r"whose captions SanaTransformer2DModel does not read: .* a SanaPipeline as"):
        encoders_of(str(sana), vae=None, text=str(tmp_path / "pixart"), tokens=None).text(CPU)
    with pytest.raises(ModelError, match=r"whose captions PixArtTransformer2DModel does not read: .* PixArtSigma"):
        encoders_of(str(tmp_path / "pixart"), vae=None, text=str(sana), tokens=None).text(CPU)


def test_a_model_of_128_latents_takes_as_many_tokens_as_others(tmp_path: Path) -> None:
    """Which of PixArt says that it is alpha, of 120."""
    wide = sana_pipeline()
    wide.transformer.register_to_config(sample_size=128)
    assert encoders_of(wide, vae=None, text=None, tokens=None).text(CPU).identity["tokens"] == 300


def test_a_scheduler_of_flow_sigmas_says_the_shift(sana: Path, tmp_path: Path) -> None:
    model = open_model(str(sana)).transformer
    assert schedule_of(model).shift == 2.5  # type: ignore[attr-defined]
    other = sana_pipeline()
    other.scheduler.register_to_config(use_flow_sigmas=False, prediction_type="epsilon")
    other.save_pretrained(tmp_path / "noise")
    with pytest.raises(ModelError, match=r"DPMSolverMultistepScheduler: a flow's is .* with use_flow_sigmas"):
        open_model(str(tmp_path / "noise"))
    other.scheduler.register_to_config(use_flow_sigmas=True)
    other.save_pretrained(tmp_path / "odd")
    with pytest.raises(ModelError, match="prediction_type epsilon"):
        open_model(str(tmp_path / "odd"))


def test_pictures_through_an_autoencoder_without_a_distribution(captioned: Path, live: Any, tmp_path: Path) -> None:
    found = encode(captioned, tmp_path / "out", live, EncodeConfig(tokens=TOKENS))
    assert found.shape == (CHANNELS, 8, 8) and found.manifest["scale"] == 0.41407
    z = found.latents().all()[:2]
    with torch.no_grad():
        images = live.vae.decode(z / 0.41407).sample
        torch.testing.assert_close(Pipeline(live.transformer, live.vae).decode(z), images)
    with pytest.raises(ValueError, match="posterior sample: an AutoencoderDC gives one latent"):
        encode(captioned, tmp_path / "other", live, EncodeConfig(tokens=TOKENS, posterior="sample"))


def test_pairs_are_what_diffusers_draws_of_the_prompts(sana: Path, live: Any, tmp_path: Path) -> None:
    texts = ["a red disc", "blue square"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    given: list[Any] = ["pairs", sana, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    given += ["--tokens", TOKENS, "--steps", 4, "--guidance", 3.0, "--batch", 2, "--shard", 2]
    given += ["--scheduler", "dpm++"]
    assert main([*map(str, given)]) == 0
    found = Encoded(tmp_path / "out")
    source = generator(0, "pairs").initial_seed()
    noise = torch.stack([torch.randn(CHANNELS, 8, 8, generator=generator(source, "sample", k)) for k in range(2)])
    from diffusers import SanaPipeline

    pipe = SanaPipeline.from_pretrained(sana, vae=None)  # a scheduler that has walked nothing yet
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        texts,
        height=256,
        width=256,  # without an autoencoder a latent stands for 32 x 32 pixels
        latents=noise,
        num_inference_steps=4,
        guidance_scale=3.0,
        clean_caption=False,
        use_resolution_binning=False,
        max_sequence_length=TOKENS,
        output_type="latent",
    ).images
    torch.testing.assert_close(found.latents().all(), theirs, atol=2e-4, rtol=1e-3)


def test_both_stages_analysis_and_samples(captioned: Path, sana: Path, tmp_path: Path, capsys: Any) -> None:
    def run(*given: Any) -> None:
        assert main([*map(str, given)]) == 0, capsys.readouterr().err

    run("encode", captioned, "--model", sana, "--tokens", TOKENS, "--out", tmp_path / "encoded")
    data = ["--data", tmp_path / "encoded"]
    edit = "{site: mlp, blocks: interleaved 50%, operator: mix_ffn, options: {ratio: 1.5}}"
    (tmp_path / "plan.yaml").write_text(f"edits: [{edit}]")
    asked = ["--plan", tmp_path / "plan.yaml", "--steps", 2, "--batch", 4, "--calibration", 8]
    run("distill", sana, *data, *asked, "--out", tmp_path / "one")
    run("finetune", tmp_path / "one", *data, "--steps", 2, "--batch", 4, "--out", tmp_path / "two")
    run("evaluate", tmp_path / "two", *data, "--triples", 4)
    run("analyze", sana, *data, "--samples", 1, "--steps", 2, "--out", tmp_path / "analysis")
    run("profile", tmp_path / "one", "--batch", 1, "--rounds", 2)
    asked = ["--prompt", "a red disc", "--prompt", "blue", "--tokens", TOKENS, "--steps", 2, "--guidance", 2]
    run("sample", tmp_path / "two", *asked, "--out", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size
    assert schedule_of(open_model(str(tmp_path / "two")).transformer).shift == 2.5  # type: ignore[attr-defined]
