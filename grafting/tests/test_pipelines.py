"""A graft of a DiT with a thousand classes runs in diffusers' own pipeline, and draws there what the model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import grafting
from grafting.graft import graft, ungraft
from grafting.plan import Plan


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
