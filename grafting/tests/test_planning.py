"""Planning from a configuration alone: what it counts, what it says, and what it does not import."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grafting.hosts import HostError, bundled_config, bundled_configs, shape_of


@pytest.mark.parametrize("name", bundled_configs())
def test_parameters_of_a_host_are_those_of_diffusers_own_class(name: str) -> None:
    import diffusers

    config = bundled_config(name)
    for change in ({}, {"use_additional_conditions": True} if "caption_channels" in config else {"out_channels": None}):
        given: dict[str, Any] = config | change
        with torch.device("meta"):
            made = getattr(diffusers, given["_class_name"]).from_config(given)
        assert shape_of(given).parameters == sum(p.numel() for p in made.parameters())


def test_a_configuration_that_lacks_a_size_is_told_so() -> None:
    config = bundled_config("dit-xl-2-256")
    with pytest.raises(HostError, match="DiTTransformer2DModel lacks num_layers"):
        shape_of({key: value for key, value in config.items() if key != "num_layers"})
    with pytest.raises(HostError, match="bad size"):
        shape_of(config | {"patch_size": 0})
