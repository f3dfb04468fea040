"""Weights that are elsewhere until a module is called, by accelerate, or in another type until then, by diffusers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from test_hosts_table import ready
from torch import nn

from grafting.graft import graft
from grafting.hosts import host_for
from grafting.operators import arithmetic, list_operators
from grafting.plan import Plan

VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in (*list_operators(), "none")] + [
    ("linear", {"feature_map": "learned", "local": 3}),
    ("mamba2", {"direction": "both", "state": 8, "head_dim": 8}),
]
each_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[name + "-".join(options) for name, options in VARIANTS]
)
CPU = torch.device("cpu")


def grafted(row: str, name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A model with the operator at every site of its kind, all of it random, and a call of it."""
    model, z, t, condition = ready(row)
    kind = "mlp" if name != "none" and arithmetic(name).kind == "channel" else "attn"
    handle = graft(model.eval(), Plan.all(site=kind, operator=name, **options), init="random")
    with torch.no_grad():
        for parameter in handle.new():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, partial(_called, model, z, t, condition)


@torch.no_grad()
def _called(model: nn.Module, *given: Any) -> torch.Tensor:
    return host_for(model).call(model, *given)


@each_variant
@pytest.mark.parametrize("row", ["DiT", "PixArt-Sigma", "SD3.5, no square", "Flux dev, no square"])
def test_offloaded_weights_come_back_for_every_operator(row: str, name: str, options: dict[str, Any]) -> None:
    model, call = grafted(row, name, options)
    wanted = call()
    cpu_offload(model, execution_device=CPU)
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):  # and go again
        assert torch.equal(call(), wanted)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("row", ["DiT", "PixArt-Sigma"])
@pytest.mark.parametrize("combine", ["scale", "dense"])
def test_offloaded_weights_come_back_for_blocks_side_by_side(row: str, combine: str) -> None:
    """Which then run one by one, as accelerate brings weights for a call of a layer."""
    model, z, t, condition = ready(row)
    handle = graft(model.eval(), Plan.from_dict({"restructure": [{"merge": "pairs", "combine": combine}]}))
    (group,) = handle.groups.values()
    group.wide = False
    wanted = _called(model, z, t, condition)
    group.wide = True
    cpu_offload(model, execution_device=CPU)
    assert torch.equal(_called(model, z, t, condition), wanted)


@each_variant
@pytest.mark.parametrize("row", ["DiT", "SD3.5, no square"])
def test_weights_that_are_stored_in_eight_bits_run_in_thirty_two(row: str, name: str, options: dict[str, Any]) -> None:
    model, call = grafted(row, name, options)
    twin = copy.deepcopy(model)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)  # type: ignore[operator]
    stored = {key: value.float() for key, value in model.state_dict().items()}
    assert any(value.dtype == torch.float8_e4m3fn for value in model.state_dict().values())
    twin.load_state_dict(stored)
    assert torch.equal(call(), _called(twin, *call.args[1:]))
