"""Constants that a model computes with but that neither its weights nor its configuration hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

CONVENTIONS = ("downscale_freq_shift", "eps")
"""What a DiT computes with but neither its weights nor, for the first, its configuration hold."""


def conventions(model: nn.Module) -> dict[str, Any]:
    """By module path, the constants that a fresh model of the same configuration does not have."""
    with torch.device("meta"):
        fresh = dict(type(model)(**settings(model)).named_modules())
    return {
        f"{path}.{name}": getattr(module, name)
        for path, module in model.named_modules()
        for name in CONVENTIONS
        if path in fresh and hasattr(fresh[path], name) and getattr(module, name, None) != getattr(fresh[path], name)
    }


def restore(model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Give a fresh model the constants that :func:`conventions` found in another."""
    for path, value in facts.items():
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, value)


def settings(model: Any) -> dict[str, Any]:
    """What a diffusers model was made with; an older configuration may name more, which its class of today ignores."""
    known = inspect.signature(type(model).__init__).parameters
    return {key: value for key, value in dict(model.config).items() if key in known}
