"""Costs against the published bounds, torch's own FLOP counter and counted parameters."""

from __future__ import annotations

import copy

import pytest
import torch

from grafting.conditions import TEXT
from grafting.cost import host_flops, plan_cost, site_parameters, time_bound
from grafting.hosts import HostError, Site, bundled_config, host_for, shape_of
from grafting.hosts.shapes import set_text_tokens, with_text
from grafting.plan import Plan

SMALL = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
}


@pytest.mark.parametrize(
    ("name", "side", "whole", "half"),
    [
        ("dit-xl-2-256", 16, 1.04, 1.02),
        ("dit-xl-2-256", 32, 1.15, 1.07),
        ("dit-xl-2-256", 64, 1.59, 1.23),
        ("dit-xl-2-256", 128, 3.37, 1.54),
        ("pixart-sigma-2048", 128, 2.95, 1.49),
    ],
)
def test_bounds(name: str, side: int, whole: float, half: float) -> None:
    for ratio, bound in ((1.0, whole), (0.5, half)):
        plan = Plan.interleaved(operator="hyena_x", share=ratio)
        cost = plan_cost(plan, bundled_config(name), grid=(side, side))
        assert cost.core_bound == cost.flop_bound == pytest.approx(bound, abs=0.006)
        # hyena_x adds two short filters and two products to its projections: next to nothing.
        assert bound - 0.02 < cost.flop_ratio < cost.flop_bound


def test_the_flop_bound_charges_each_site_what_its_operator_cannot_avoid() -> None:
    """By hand over DiT-XL/2 at 256 tokens, in units of N d per block: 8d + 4N attention, 16d MLP, and the rest."""
    name, d, n = "dit-xl-2-256", 1152, 256
    rest = host_flops(shape_of(bundled_config(name))) / (28 * n * d) - (24 * d + 4 * n)

    def bound(*edits: tuple[str, str, dict[str, float]]) -> float:
        plan = Plan.from_dict(
            {"edits": [{"site": s, "operator": o, "blocks": "all", "options": options} for s, o, options in edits]}
        )
        return plan_cost(plan, bundled_config(name)).flop_bound

    whole = 24 * d + 4 * n + rest
    assert bound(("mlp", "mlp", {"ratio": 6})) == pytest.approx(whole / (whole + 8 * d), rel=1e-3)  # slower: below one
    assert bound(("mlp", "mlp", {"ratio": 3})) == pytest.approx(whole / (whole - 4 * d), rel=1e-3)
    assert bound(("attn", "mha", {})) == pytest.approx(1, rel=1e-3)  # its core stays
    assert bound(("attn", "none", {})) == pytest.approx(whole / (whole - 8 * d - 4 * n), rel=1e-3)
    both = bound(("attn", "hyena_x", {}), ("mlp", "mlp", {"ratio": 3}))
    assert both == pytest.approx(whole / (whole - 4 * n - 4 * d), rel=1e-3)  # what either spares, together


def test_formulas_agree_with_counting_on_meta() -> None:
    from diffusers import DiTTransformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = DiTTransformer2DModel(**{k: v for k, v in SMALL.items() if k != "_class_name"}).eval()
        z, t, y = torch.empty(1, 4, 8, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(z, timestep=t, class_labels=y)
    assert host_flops(shape_of(SMALL)) == counter.get_total_flops()
    for kind in ("attn", "mlp"):
        module = host_for(model).get(model, Site(1, kind))
        assert site_parameters(shape_of(SMALL), kind) == sum(p.numel() for p in module.parameters())


def test_text_of_another_length_costs_what_cross_attention_takes_of_it() -> None:
    """Keys and values of every token, and the product with them, in every block: against torch's counter."""
    from diffusers import PixArtTransformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    sizes = {key: value for key, value in SMALL.items() if key != "_class_name"}
    with torch.device("meta"):
        model = PixArtTransformer2DModel(**sizes, cross_attention_dim=16, caption_channels=12).eval()
        z, t = torch.empty(1, 4, 8, 8), torch.zeros(1, dtype=torch.int64)
    counted, formula = [], []
    for tokens in (300, 7):
        if tokens != 300:  # Sigma's own
            set_text_tokens(model, tokens)
        y = host_for(model).example(model, 1)
        assert y[TEXT].shape == (1, tokens, 12)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            host_for(model).call(model, z, t, y)
        counted.append(counter.get_total_flops())
        formula.append(host_flops(shape_of(model)))
    caption = 2 * 293 * (12 * 16 + 16 * 16)  # the embedder of captions, once a call, which costs leave out
    assert formula[0] - formula[1] == counted[0] - counted[1] - caption
    assert plan_cost(Plan.all(operator="none"), model).flops_before == formula[1]
    config = {**model.config, "_class_name": "PixArtTransformer2DModel"}
    assert shape_of(config).context_tokens == 300 and shape_of(config | {"text_tokens": 9}).context_tokens == 9
    assert shape_of(config | {"use_additional_conditions": True}).context_tokens == 120  # alpha
    assert shape_of(copy.deepcopy(model)).context_tokens == 7
    for source, tokens, word in ((SMALL, 5, "a DiT reads no text"), (config, 0, "0 text tokens: at least 1")):
        with pytest.raises(HostError, match=word):
            with_text(source, tokens)


def test_controls_and_time_bound() -> None:
    none = plan_cost(Plan.all(operator="none"), SMALL)
    assert none.new_parameters == 0 and none.flop_ratio > none.core_bound > 1
    same = plan_cost(Plan.all(operator="identity"), SMALL)
    assert same.flop_ratio == same.core_bound == 1
    assert time_bound(3.0, 1.0, 14, 28) == 1.5
    with pytest.raises(ValueError, match="above 0"):
        time_bound(1.0, 0.0, 1, 2)
