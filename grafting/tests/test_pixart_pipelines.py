"""PixArt in diffusers' own pipelines, and their folders, older class names among them, opened here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_hosts_table import pixart

from grafting.cli import main
from grafting.graft import Grafted, graft, ungraft
from grafting.plan import Plan
from grafting.store.configs import ModelError
from grafting.store.folder import load, save
from grafting.store.models import open_model

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


def test_a_hub_id_opens_under_its_older_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    from huggingface_hub.errors import EntryNotFoundError

    made: Any = pixart()[0]
    made.save_pretrained(tmp_path / "transformer")
    older(tmp_path)
    from_folder = diffusers.PixArtTransformer2DModel.from_pretrained

    def download(name: str, file: str) -> str:
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(
        diffusers.PixArtTransformer2DModel,
        "from_pretrained",
        lambda name, *, subfolder: from_folder(tmp_path / subfolder),
    )
    model = open_model("somebody/tiny-pixart")
    state = made.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.transformer.state_dict().items())
