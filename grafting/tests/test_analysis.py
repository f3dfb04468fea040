"""An analysis against everything that the sites showed, kept and computed at once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from scipy import stats
from torch import nn

from grafting.graft import graft
from grafting.hosts import Site, host_for
from grafting.measure.analysis import Analysis, AnalysisError, analyze
from grafting.measure.speed import peak_bytes
from grafting.plan import Plan
from grafting.sampling import Pipeline, Sampling, draw_labels

SAMPLING = Sampling(steps=3)


def dit() -> nn.Module:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=4,
        patch_size=1,
        num_embeds_ada_norm=3,
    ).eval()


def pixart() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
    ).eval()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return model, {"encoder_hidden_states": torch.randn(2, 5, 12), "encoder_attention_mask": mask}


def kept(model: nn.Module, names: dict[Site, nn.Module]) -> tuple[Any, list[Any]]:
    """By site, inputs and outputs of every pass that follows, in order; and the hooks."""
    seen: dict[Site, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    hooks = [
        module.register_forward_hook(lambda m, a, k, y, s=site: seen[s].append((a[0], y)), with_kwargs=True)
        for site, module in names.items()
    ]
    return seen, hooks


def test_figures_are_those_of_all_attention_and_activations_kept() -> None:
    model = dit()
    host = host_for(model)
    seen, hooks = kept(model, {site: host.get(model, site) for site in host.sites(model)})
    Pipeline(model).latents(draw_labels(5, 3), sampling=SAMPLING, seed=4)
    for hook in hooks:
        hook.remove()
    found = analyze(model, samples=5, sampling=SAMPLING, seed=4)
    assert (found.timesteps, found.blocks, found.depth, found.grid) == ((999, 500, 0), (0, 1), 2, (4, 4))
    index = torch.arange(16)
    near = (index[:, None] - index).abs() <= 3
    y, x = index // 4, index % 4
    square = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= 1
    assert found.whole is not None
    for block in (0, 1):
        module = host.get(model, Site(block, "attn"))
        maps = [host.attention_map(module, inputs) for inputs, _ in seen[Site(block, "attn")]]
        for step, attention in enumerate(maps):
            for mask, local in ((near, found.local("raster", 3)), (square, found.curves("grid")[..., 1])):
                expected = (attention * mask).sum(-1).mean((0, 2))
                torch.testing.assert_close(local[block, step].float(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.whole[block].float(), torch.cat(maps).mean((0, 1)), atol=1e-5, rtol=1e-5)
    for site in host.sites(model):
        for side, which in (("input", 0), ("output", 1)):
            steps = [pair[which].double().flatten().numpy() for pair in seen[site]]
            for values, spread in zip(steps, found.spreads[site, side], strict=True):  # type: ignore[index]
                assert (spread.low, spread.high) == (values.min(), values.max())
                assert spread.kurtosis == pytest.approx(stats.kurtosis(values), rel=1e-6)
            pooled = found.spread(site, side)  # type: ignore[arg-type]
            assert pooled.variance == pytest.approx(np.concatenate(steps).var(), rel=1e-9)


def same(a: Analysis, b: Analysis) -> None:
    torch.testing.assert_close(a.raster, b.raster, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.square, b.square, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.maps, b.maps, atol=1e-5, rtol=0)
    for key, spreads in a.spreads.items():
        for one, other in zip(spreads, b.spreads[key], strict=True):
            assert one.kurtosis == pytest.approx(other.kurtosis, rel=1e-3, abs=1e-3) and one.count == other.count


def test_neither_the_batch_nor_what_ran_before_matters_and_the_model_is_left_alone() -> None:
    model = dit().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    whole = analyze(model, samples=5, sampling=SAMPLING)
    same(whole, analyze(model, samples=5, sampling=SAMPLING, batch=2, progress=lambda *at: told.append(at)))
    assert told[-1] == (9, 9)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_locality_curves_end_at_one_and_uniform_attention_is_the_mark_beside_them() -> None:
    found = analyze(dit(), samples=3, sampling=Sampling(steps=2, guidance=1.5))
    for distance in ("raster", "grid"):
        curves = found.curves(distance)  # type: ignore[arg-type]
        assert curves.shape[:3] == (2, 2, 2) and (curves.diff(dim=-1) >= 0).all()
        torch.testing.assert_close(curves[..., -1], torch.ones(2, 2, 2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert found.reach("raster") == 2 and found.reach("grid", 4) == 1
    assert found.reach("grid", 1, of="grid") == 1 and found.reach("raster", 1, of="grid") == 4
    torch.testing.assert_close(found.local("grid", 1), found.curves("grid")[..., 1])
    # A network of small random weights attends almost evenly.
    torch.testing.assert_close(found.local("raster", 5).mean(), found.uniform("raster")[5], atol=0.02, rtol=0)
    with pytest.raises(AnalysisError, match="k 16: distances are 0 to 15"):
        found.local("raster", 16)


def test_text_conditioned_hosts_walk_through_the_conditions_given() -> None:
    model, conditions = pixart()
    found = analyze(model, samples=3, sampling=SAMPLING, conditions=conditions)
    assert found.blocks == (0, 1) and found.grid == (4, 4) and len(found.sites) == 4
    same(found, analyze(model, samples=3, sampling=SAMPLING, conditions=conditions, batch=1))
    host = host_for(model)
    seen, hooks = kept(model, {Site(1, "attn"): host.get(model, Site(1, "attn"))})
    with torch.no_grad():  # the first step of sample 1, which has condition 1, by hand
        from grafting.random import generator

        z = torch.randn(3, 8, 8, generator=generator(0, "sample", 1))[None]
        host.call(model, z, torch.tensor([999]), {key: value[1:2] for key, value in conditions.items()})
    for hook in hooks:
        hook.remove()
    one = analyze(model, samples=2, sampling=SAMPLING, conditions=conditions, batch=1)
    zero = analyze(model, samples=1, sampling=SAMPLING, conditions=conditions)
    attention = host.attention_map(host.get(model, Site(1, "attn")), seen[Site(1, "attn")][0][0])
    near = (torch.arange(16)[:, None] - torch.arange(16)).abs() <= 2
    second = 2 * one.local("raster", 2)[1, 0] - zero.local("raster", 2)[1, 0]
    torch.testing.assert_close(second.float(), (attention * near).sum(-1).mean((0, 2)), atol=1e-5, rtol=1e-4)


def test_grafted_sites_have_activations_but_no_attention() -> None:
    model = dit()
    graft(model, Plan.explicit(operator="hyena_x", blocks=[1]))
    found = analyze(model, samples=2, sampling=SAMPLING)
    assert found.blocks == (0,) and len(found.sites) == 4
    graft(plain := dit(), Plan.all(operator="none"))
    empty = analyze(plain, samples=2, sampling=SAMPLING)
    assert empty.blocks == () and empty.whole is None and empty.local("raster").shape == (0, 3, 2)


def test_bad_input_is_one_sentence() -> None:
    model, conditions = pixart()
    with pytest.raises(AnalysisError, match="0 samples: at least 1"):
        analyze(dit(), samples=0)
    with pytest.raises(AnalysisError, match=r"needs conditions.*given none"):
        analyze(model)
    with pytest.raises(AnalysisError, match=r"given tensors of \[1, 2\] rows"):
        analyze(model, conditions=conditions | {"encoder_attention_mask": torch.ones(1, 5)})
    with pytest.raises(AnalysisError, match=r"guidance 1\.5"):
        analyze(model, conditions=conditions, sampling=Sampling(guidance=1.5))
    with pytest.raises(AnalysisError, match="goes through its classes"):
        analyze(dit(), conditions=conditions)
    broken = dit()
    next(host_for(broken).blocks(broken)[1].attn1.to_q.parameters()).data.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"blocks\.1\.attn, output, timestep 999: .* not finite"):
        analyze(broken, samples=1, sampling=SAMPLING)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.modules())


def test_beyond_a_thousand_tokens_no_attention_matrix_is_held() -> None:
    """At 4,096 tokens less than one head's is."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2, "out_channels": 4, "num_layers": 1}
    model = DiTTransformer2DModel(**sizes, sample_size=64, patch_size=1, num_embeds_ada_norm=3).eval()
    sampling = Sampling(steps=2)
    found: list[Analysis] = []
    peak = peak_bytes(lambda: found.append(analyze(model, samples=1, sampling=sampling)))
    assert found[0].tokens == 4096 and found[0].whole is None
    assert peak < 4096**2 * 4


def test_small_models_have_the_same_figures_without_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_whole = analyze(dit(), samples=4, sampling=SAMPLING)
    monkeypatch.setattr("grafting.measure.analysis.WHOLE", 8)
    without = analyze(dit(), samples=4, sampling=SAMPLING)
    assert kept_whole.whole is not None and without.whole is None
    torch.testing.assert_close(without.raster, kept_whole.raster)
    torch.testing.assert_close(without.square, kept_whole.square)
