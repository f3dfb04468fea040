"""PixArt in diffusers' own pipelines, and their folders, older class names among them, opened here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding import picture
from test_hosts_table import pixart

from grafting.claims import ClaimError
from grafting.cli import main
from grafting.conditions import MASK, SIZES, TEXT, together
from grafting.data import Batches
from grafting.data.encode import encode
from grafting.data.encode_config import EncodeConfig
from grafting.data.encoders import PipelineText, encoders_of, prompt_tokens
from grafting.data.pairs import Prompts, generate_pairs
from grafting.graft import Grafted, graft, ungraft
from grafting.hosts import host_for
from grafting.plan import Plan
from grafting.random import generator
from grafting.sampling import Pipeline, Sampling
from grafting.store.configs import ModelError
from grafting.store.folder import load, save
from grafting.store.models import given_autoencoder, open_model, with_autoencoder

PROMPTS = ["a red disc", "a disc left of a blue star and a ring"]
PLAN = Plan.interleaved(operator="hyena_x")


def parts(kind: str) -> dict[str, Any]:
    """What a pipeline is made of, random and tiny: T5 of width 12, its tokenizer of words, a VAE of factor 2."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", *sorted({word for prompt in PROMPTS for word in prompt.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    t5 = T5Config(vocab_size=len(words), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    channels = [8, 8]
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=channels,
        norm_num_groups=2,
        latent_channels=3,
    )
    return {
        "tokenizer": PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        "text_encoder": T5EncoderModel(t5).eval(),
        "vae": vae.eval(),
        # The pipeline tells a model its picture's size where the model's own is 128.
        "transformer": pixart(sized=True, side=128)[0].eval() if kind == "Alpha" else pixart()[0].eval(),
        "scheduler": DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    }


def pipeline(kind: str, **of: Any) -> Any:
    import diffusers

    made = getattr(diffusers, f"PixArt{kind}Pipeline")(**parts(kind) | of)
    made.set_progress_bar_config(disable=True)
    return made


def draw(made: Any, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Guided, on captions of two lengths; other latents for every size."""
    images: np.ndarray = made(
        PROMPTS,
        negative_prompt="",
        height=size[0],
        width=size[1],
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(1),
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=12,
        output_type="np",
    ).images
    return images


@pytest.mark.parametrize("kind", ["Sigma", "Alpha"])
def test_graft_runs_in_pixart_s_pipelines(kind: str) -> None:
    made = pipeline(kind)
    plain = draw(made)
    graft(made.transformer, Plan.all(operator="identity"))
    assert np.array_equal(draw(made), plain)
    ungraft(made.transformer)
    handle = graft(made.transformer, PLAN, init="random")
    hybrid = draw(made)
    assert hybrid.shape == (2, 16, 16, 3) and np.isfinite(hybrid).all() and not np.array_equal(hybrid, plain)
    assert draw(made, (8, 32)).shape == (2, 8, 32, 3) and handle.raster.grid == (2, 8)
    ungraft(made.transformer)
    assert np.array_equal(draw(made), plain)


def tiny(kind: str) -> Any:
    """A transformer of few tokens, its gates opened so that all of it is seen; alpha is told the size of its pictures,
    which the pipeline does where its own is of 128 latents."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    size: dict[str, Any] = (
        {"sample_size": 128, "patch_size": 16} if kind == "Alpha" else {"sample_size": 8, "patch_size": 2}
    )
    model = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=4,
        cross_attention_dim=24,
        caption_channels=12,
        use_additional_conditions=kind == "Alpha",
        **size,
    )
    torch.nn.init.normal_(model.adaln_single.linear.weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize("kind", ["Sigma", "Alpha"])
@pytest.mark.parametrize(("scheduler", "spacing"), [("dpm++", "linspace"), ("ddim", "leading")])
def test_a_graft_of_a_folder_draws_in_diffusers_what_it_draws_here(
    kind: str, scheduler: Any, spacing: Any, tmp_path: Path
) -> None:
    """Guided, on two prompts of other lengths, from the same noise; alpha is told the same sizes."""
    import diffusers
    from diffusers import DDIMScheduler

    pipeline(kind, transformer=tiny(kind)).save_pretrained(tmp_path)
    made = getattr(diffusers, f"PixArt{kind}Pipeline").from_pretrained(tmp_path)
    made.set_progress_bar_config(disable=True)
    if scheduler == "ddim":
        made.scheduler = DDIMScheduler.from_config(made.scheduler.config, clip_sample=False, timestep_spacing=spacing)
    graft(made.transformer, PLAN, init="copy")
    told: list[Any] = []
    made.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    embed = PipelineText(made, 12, torch.device("cpu"))
    states = [embed([prompt])[0][0] for prompt in (*PROMPTS, "")]
    parts = [{TEXT: state[None], MASK: torch.ones(1, len(state), dtype=torch.int64)} for state in states]
    sampling = Sampling(scheduler=scheduler, spacing=spacing, steps=4, guidance=3.0)
    ours = Pipeline(made.transformer, made.vae, null=parts[-1])(together(parts[:-1]), sampling=sampling, seed=5)
    mine, told[:] = list(told), []
    with torch.no_grad():
        positive, mask, negative, negative_mask = made.encode_prompt(PROMPTS, max_sequence_length=12)
    side = made.transformer.config.sample_size
    noise = torch.stack([torch.randn(3, side, side, generator=generator(5, "sample", k)) for k in range(2)])
    theirs = made(
        prompt_embeds=positive,
        prompt_attention_mask=mask,
        negative_prompt=None,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=3.0,
        use_resolution_binning=False,
        output_type="pt",
    ).images
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=2e-4, rtol=1e-3)
    assert len(mine) == len(told) == 4
    for a, b in zip(mine, told, strict=True):
        assert (a["resolution"] is None) == (b["resolution"] is None) == (kind == "Sigma")
        assert kind == "Sigma" or all(torch.equal(a[name], b[name]) for name in ("resolution", "aspect_ratio"))
    if kind == "Alpha":  # two prompts, twice under guidance; the autoencoder halves 256 pixels
        assert mine[0]["resolution"].tolist() == [[256.0, 256.0]] * 4


def test_encoded_pictures_and_pairs_of_alpha_say_their_size(tmp_path: Path) -> None:
    made = pipeline("Alpha", transformer=tiny("Alpha"))
    for k, prompt in enumerate(PROMPTS):
        picture(tmp_path / "pictures" / f"{k}.png", k)
        (tmp_path / "pictures" / f"{k}.txt").write_text(prompt)
    wide = encode(tmp_path / "pictures", tmp_path / "wide", made, EncodeConfig(size=(32, 64), tokens=12))
    y = wide.conditions().all()
    assert y[SIZES]["resolution"].tolist() == [[32.0, 64.0]] * 2 and y[SIZES]["aspect_ratio"].tolist() == [[0.5]] * 2
    z, t = wide.latents().all(), torch.tensor([10, 900])
    text = {name: y[name] for name in (TEXT, MASK)}
    told = {"resolution": torch.tensor([[32.0, 64.0]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    with torch.no_grad():
        wanted = made.transformer(z, timestep=t, added_cond_kwargs=told, **text).sample
        assert torch.equal(host_for(made.transformer).call(made.transformer, z, t, y), wanted)
    batch = Batches(inputs=wide.latents(), labels=wide.conditions(), size=3, seed=0)(0)
    assert batch["y"][SIZES]["resolution"].shape == (3, 2)
    pairs: dict[str, Any] = {
        "vae": made.vae,
        "prompts": Prompts.of(PROMPTS),
        "text": lambda: PipelineText(made, 12, torch.device("cpu")),
        "sampling": Sampling(steps=2, guidance=2.0),
    }
    drawn = generate_pairs(made.transformer, tmp_path / "pairs", 3, **pairs)
    assert drawn.conditions().all()[SIZES]["resolution"].tolist() == [[256.0, 256.0]] * 3
    with pytest.raises(ClaimError, match="told_size"):  # without the autoencoder sizes are PixArt's own, 8 a latent
        generate_pairs(made.transformer, tmp_path / "pairs", 3, **pairs | {"vae": None})
    sigma = pipeline("Sigma", transformer=tiny("Sigma"))
    plain = encode(tmp_path / "pictures", tmp_path / "sigma", sigma, EncodeConfig(tokens=12))
    assert SIZES not in plain.conditions().all() and "told_size" not in plain.manifest


def older(folder: Path) -> None:
    """Write the configuration of a transformer as the published repositories have it."""
    path = folder / "transformer" / "config.json"
    content = json.loads(path.read_text())
    content |= {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "double_self_attention": False}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["Sigma", "Alpha"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pipeline_s_folder_opens_and_its_graft_comes_back(kind: str, legacy: bool, tmp_path: Path) -> None:
    made = pipeline(kind)
    made.save_pretrained(tmp_path / "pipeline")
    if legacy:
        older(tmp_path / "pipeline")
    model = open_model(str(tmp_path / "pipeline"))
    network: Any = model.transformer
    assert type(network).__name__ == "PixArtTransformer2DModel" and model.autoencoder is not None
    assert network.use_additional_conditions == (kind == "Alpha")
    state = made.transformer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    handle = graft(network, PLAN, init="random")
    save(handle, tmp_path / "delta", base=str(tmp_path / "pipeline"))
    again = open_model(str(tmp_path / "delta"))
    assert isinstance(again.graft, Grafted) and again.autoencoder is not None
    wanted = draw(pipeline(kind, transformer=network))
    assert np.array_equal(draw(pipeline(kind, transformer=again.transformer)), wanted)
    save(handle.own_copy(), tmp_path / "whole")
    assert np.array_equal(draw(pipeline(kind, transformer=load(tmp_path / "whole").model)), wanted)


def test_noise_that_is_not_known_is_refused(tmp_path: Path) -> None:
    made = pipeline("Sigma")
    made.save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ModelError, match="v_prediction"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("legacy", [False, True])
def test_inspect_and_plan_read_the_folder_of_a_pipeline(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixart()[0].save_pretrained(tmp_path / "transformer")  # type: ignore[operator]
    if legacy:
        older(tmp_path)
    main(["inspect", str(tmp_path)])
    assert "PixArt, 2 blocks, width 32" in capsys.readouterr().out
    main(["plan", str(tmp_path), "--operator", "hyena_x"])
    assert "hyena_x" in capsys.readouterr().out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of repositories, ``owner/name`` in it, that stands for the hub."""
    import diffusers
    from huggingface_hub.errors import EntryNotFoundError

    def download(name: str, file: str) -> str:
        if not (tmp_path / name / file).is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(tmp_path / name / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for kind in (diffusers.PixArtTransformer2DModel, diffusers.AutoencoderKL):

        def fetched(name: str, *, subfolder: str = "", read: Any = kind.from_pretrained, **how: Any) -> Any:
            return read(tmp_path / name / subfolder, **how)

        monkeypatch.setattr(kind, "from_pretrained", fetched)
    return tmp_path


def test_a_hub_id_opens_under_its_older_name(hub: Path) -> None:
    made: Any = pixart()[0]
    made.save_pretrained(hub / "somebody" / "tiny-pixart" / "transformer")
    older(hub / "somebody" / "tiny-pixart")
    model = open_model("somebody/tiny-pixart")
    state = made.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.transformer.state_dict().items())


def test_an_autoencoder_of_the_hub_goes_with_a_transformer(hub: Path) -> None:
    """From a repository that all sizes share, or one that is nothing else."""
    made = parts("Sigma")
    made["transformer"].save_pretrained(hub / "some" / "sigma" / "transformer")
    made["vae"].save_pretrained(hub / "some" / "shared" / "vae")
    made["vae"].save_pretrained(hub / "some" / "alone")
    bare = open_model("some/sigma")
    assert bare.autoencoder is None
    wanted = made["vae"].state_dict()
    for name in ("some/shared", "some/alone"):
        encoders = encoders_of("some/sigma", vae=name, text=None, tokens=None)
        for found in (with_autoencoder(bare, name).autoencoder, encoders.autoencoder()):
            assert found is not None and not found.training
            assert all(torch.equal(wanted[key], tensor) for key, tensor in found.state_dict().items())
    (hub / "some" / "pixels").mkdir()
    (hub / "some" / "pixels" / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ModelError, match="pixels is VQModel: an AutoencoderKL or an AutoencoderDC is needed"):
        given_autoencoder("some/pixels")
    with pytest.raises(ModelError, match="gives latents of 3 channels: 4 are needed"):
        given_autoencoder("some/shared", channels=4)
    with pytest.raises(ModelError, match=r"autoencoder some/sigma: no config\.json there, nor in a subfolder vae"):
        with_autoencoder(bare, "some/sigma")


def test_a_text_encoder_of_the_hub_is_fetched_without_the_rest(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    pipeline("Alpha").save_pretrained(hub / "some" / "shared")
    pixart()[0].save_pretrained(hub / "some" / "sigma" / "transformer")  # type: ignore[operator]
    asked: list[dict[str, Any]] = []

    def download(name: str, **given: Any) -> Path:
        asked.append(given)
        return hub / name

    monkeypatch.setattr(diffusers.PixArtAlphaPipeline, "download", download)
    fetched, local = (
        encoders_of("some/sigma", vae=None, text=text, tokens=None).text(torch.device("cpu"))
        for text in ("some/shared", str(hub / "some" / "shared"))
    )
    assert fetched.identity == local.identity and fetched.identity["tokens"] == 300
    assert torch.equal(fetched(PROMPTS)[0][1], local(PROMPTS)[0][1])
    assert asked == [{"vae": None, "transformer": None, "scheduler": None}]


@pytest.mark.parametrize(("kind", "other", "tokens"), [("Sigma", "Alpha", 300), ("Alpha", "Sigma", 120)])
def test_the_transformer_says_how_long_a_prompt_is(kind: str, other: str, tokens: int, tmp_path: Path) -> None:
    """Not the pipeline that its text encoder is taken from: Sigma's is published as an alpha's."""
    pipeline(kind).transformer.save_pretrained(tmp_path / "model" / "transformer")
    pipeline(other).save_pretrained(tmp_path / "text")
    given: dict[str, Any] = {"vae": None, "text": str(tmp_path / "text")}
    embed = encoders_of(str(tmp_path / "model"), **given, tokens=None).text(torch.device("cpu"))
    states, cut = embed(["a disc " * 100, "a disc"])
    assert embed.identity["tokens"] == tokens and embed.identity["pipeline"] == f"PixArt{other}Pipeline"
    assert [len(rows) for rows in states] == [min(201, tokens), 3] and cut == (tokens < 201)
    few = encoders_of(str(tmp_path / "model"), **given, tokens=2).text(torch.device("cpu"))
    assert few.identity == embed.identity | {"tokens": 2} and len(few(["a disc"])[0][0]) == 2


@pytest.mark.parametrize(("other", "tokens"), [("Alpha", 120), ("Sigma", 300)])
def test_a_transformer_that_does_not_say_takes_the_pipelines_length(other: str, tokens: int, tmp_path: Path) -> None:
    """Alphas of 512 px are older than the word that tells the two apart; those of 1024 px have their side."""
    assert prompt_tokens({"sample_size": 128, "use_additional_conditions": None}) == 120
    assert prompt_tokens({"sample_size": 128, "use_additional_conditions": False}) == 300
    pipeline("Sigma").transformer.save_pretrained(tmp_path / "model" / "transformer")
    path = tmp_path / "model" / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["use_additional_conditions"]
    path.write_text(json.dumps(config))
    pipeline(other).save_pretrained(tmp_path / "text")
    embed = encoders_of(str(tmp_path / "model"), vae=None, text=str(tmp_path / "text"), tokens=None)
    assert embed.text(torch.device("cpu")).identity["tokens"] == tokens
