"""A graft of a DiT with a thousand classes runs in diffusers' own pipeline, and draws there what the model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
)
from test_hosts_table import ready

import grafting
from grafting.diffusion import BySize, Diffusion, Flow
from grafting.graft import graft, ungraft
from grafting.hosts.registry import schedule_of
from grafting.plan import Plan
from grafting.store.configs import ModelError


def _parts() -> tuple[DiTTransformer2DModel, AutoencoderKL]:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=2, latent_channels=4)
    return transformer.eval(), vae.eval()


def _draw(transformer: DiTTransformer2DModel, vae: AutoencoderKL) -> np.ndarray:
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline([207, 3], generator=generator, num_inference_steps=3, output_type="np").images


def test_graft_runs_in_dit_pipeline() -> None:
    transformer, vae = _parts()
    plain = _draw(transformer, vae)
    graft(transformer, Plan.all(operator="identity"))
    assert np.array_equal(_draw(transformer, vae), plain)
    ungraft(transformer)
    graft(transformer, Plan.interleaved(operator="hyena_x"), init="random")
    hybrid = _draw(transformer, vae)
    assert hybrid.shape == plain.shape and np.isfinite(hybrid).all() and not np.array_equal(hybrid, plain)
    ungraft(transformer)
    assert np.array_equal(_draw(transformer, vae), plain)


def test_a_saved_graft_goes_into_a_pipeline_as_the_page_of_files_says(tmp_path: Path) -> None:
    """The delta into the pipeline's own transformer, in place; saved whole, it needs no pretrained model."""
    transformer, vae = _parts()
    plain = _draw(transformer, vae)
    handle = graft(transformer, Plan.interleaved(operator="hyena_x"), init="random")
    hybrid = _draw(transformer, vae)
    grafting.save(handle, tmp_path / "graft")
    again, vae = _parts()
    loaded = grafting.load(tmp_path / "graft", again)
    assert loaded.model is again and np.array_equal(_draw(again, vae), hybrid)
    grafting.save(loaded, tmp_path / "whole", whole=True)
    ungraft(again)
    assert np.array_equal(_draw(again, vae), plain)
    assert np.array_equal(_draw(grafting.load(tmp_path / "whole").model, vae), hybrid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="load it without base"):
        grafting.load(tmp_path / "whole", again)
    assert np.array_equal(_draw(again, vae), plain)


def test_a_live_pipeline_is_a_model() -> None:
    """Its own transformer and autoencoder, and the noise that its scheduler says."""
    transformer, vae = _parts()
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler())
    model = grafting.open_model(pipeline)
    assert model.transformer is transformer and model.autoencoder is vae and model.graft is None
    assert model.name == "DiTPipeline" and schedule_of(transformer) == Diffusion()
    handle = graft(transformer, Plan.interleaved(operator="swa"))
    assert grafting.open_model(pipeline).graft is handle
    with pytest.raises(ModelError, match="the pipeline's DDIMScheduler has beta_schedule scaled_linear"):
        grafting.open_model(DiTPipeline(transformer, vae, DDIMScheduler(beta_schedule="scaled_linear")))
    with pytest.raises(ModelError, match="DDPMPipeline has no transformer"):
        grafting.open_model(DDPMPipeline(vae, DDIMScheduler()))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"weights": "fp32"}, "weights 'fp32'"),
        ({"weights": "bf16", "base": "fashion"}, "base 'fashion', weights 'bf16'"),
    ],
)
def test_what_would_change_nothing_of_a_live_pipeline_is_refused(given: dict[str, str], told: str) -> None:
    """Also what is the default elsewhere: its transformer may be held otherwise."""
    pipeline = DiTPipeline(*_parts(), DDIMScheduler())
    with pytest.raises(ModelError, match=f"^DiTPipeline: {told}: .*leave .* out$"):
        grafting.open_model(pipeline, **given)


def test_a_pipeline_that_is_opened_again_is_under_the_noise_of_its_scheduler_now() -> None:
    """Also where that is the family's own."""
    transformer = ready("SANA")[0]
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    for shift in (6.0, 3.0):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        model = grafting.open_model(SanaPipeline(transformer=transformer, scheduler=scheduler, **parts))
        assert model.transformer is transformer and schedule_of(transformer) == Flow(shift=shift)
    assert schedule_of(transformer) == Flow()


@pytest.mark.parametrize("shift", [None, 1.0, 2.5])
def test_the_shift_of_a_live_flux_goes_into_what_is_saved(shift: float | None, tmp_path: Path) -> None:
    """Dev's by size where its scheduler shifts dynamically, else one number: schnell's, or another."""
    transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16, axes_dims_rope=(4, 6, 6),
        joint_attention_dim=24, pooled_projection_dim=10, guidance_embeds=shift is None,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift or 1.0, use_dynamic_shifting=shift is None)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    model = grafting.open_model(FluxPipeline(transformer=transformer, scheduler=scheduler, **parts))
    wanted = Flow(shift=BySize() if shift is None else shift, even=True)
    assert schedule_of(model.transformer) == wanted and model.autoencoder is None
    grafting.save(graft(model.transformer, Plan.interleaved(operator="swa")), tmp_path / "graft", whole=True)
    assert schedule_of(grafting.load(tmp_path / "graft").model) == wanted
