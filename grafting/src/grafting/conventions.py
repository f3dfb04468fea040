"""Constants that a model computes with but that neither its weights nor its configuration hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

CONVENTIONS = ("downscale_freq_shift", "eps")
"""What a DiT computes with but neither its weights nor, for the first, its configuration hold."""

SIDE = "sample_size"


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


def described(model: Any) -> dict[str, Any]:
    """:func:`settings`, and the side of its latents where its configuration says that beside them, as Flux's may."""
    side = dict(model.config).get(SIDE)
    return settings(model) | ({} if side is None else {SIDE: side})


def remade(kind: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A model of the class ``kind`` as :func:`described` says it."""
    besides = {} if SIDE in inspect.signature(kind.__init__).parameters or SIDE not in config else {SIDE: config[SIDE]}
    model: Any = kind(**{key: value for key, value in config.items() if key not in besides})
    model.register_to_config(**besides)
    assert isinstance(model, nn.Module)
    return model


def settings(model: Any) -> dict[str, Any]:
    """What a diffusers model was made with; an older configuration may name more, which its class of today ignores."""
    known = inspect.signature(type(model).__init__).parameters
    return {key: value for key, value in dict(model.config).items() if key in known}
