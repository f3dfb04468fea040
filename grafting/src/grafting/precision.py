"""Mixed precision on processors and cards with bfloat16 units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

PRECISIONS = ("fp32", "bf16")
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""How weights that do not learn may be held; in bfloat16 they take half the memory."""


def in_half(model: nn.Module) -> bool:
    """Whether the weights of ``model`` are held in bfloat16: those that do not learn, where others do."""
    return next(model.parameters()).dtype == torch.bfloat16


def refuse_float16(model: nn.Module) -> None:
    """Raises ValueError for a model with weights in float16, which no training here passes through beside others."""
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ValueError(
            "the model's weights are held in float16, beside which nothing trains: load it in float32 or bfloat16"
        )


def refuse_mixed(model: nn.Module, precision: str) -> None:
    """Raises ValueError where passes are asked for in another precision than that of a model in bfloat16."""
    if in_half(model) and precision != "bf16":
        raise ValueError(f"precision {precision}: the model's weights are held in bfloat16, so its passes are bf16")


def learning_type(model: nn.Module) -> torch.dtype | None:
    """Of what is new in ``model`` and learns: float32 beside weights in bfloat16, else None, the model's own."""
    return torch.float32 if in_half(model) else None


def widened(model: nn.Module) -> nn.Module:
    """``model``, its weights in half precision turned into float32, in place."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()
    return model


@contextmanager
def autocast(device: torch.device | str, precision: str) -> Iterator[None]:
    """A context in which matrix products run in ``precision``; raises ValueError for an unknown one.

    Weights are rounded where they are used and no copy of them is kept: it would be of all of them in a pass without
    gradients, and of what they were before where an optimiser steps in between.

    On a CPU softmax attention stays in float32: torch's bfloat16 backward of it is five times slower there than the
    float32 one, which eats what bfloat16 gains in the projections.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: {' or '.join(PRECISIONS)}")
    kind = torch.device(device).type
    if precision == "fp32":
        yield
    elif kind == "cpu":
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False), _FullAttention():
            yield
    else:
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            yield


@contextmanager
def beside_halves(new: nn.Module, x: torch.Tensor) -> Iterator[bool]:
    """Where ``x`` is in bfloat16, ``new`` in float32 and no autocast is on, one around what ``new`` does with it; says
    whether it is.

    So what learnt in float32 runs in a model of bfloat16 that a pipeline of diffusers calls, which opens no autocast.
    """
    bare = x.dtype == torch.bfloat16 and not _autocasting(x.device)
    cast = bare and any(parameter.dtype == torch.float32 for parameter in new.parameters())
    with autocast(x.device, "bf16" if cast else "fp32"):
        yield cast


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Under autocast, ``torch.matmul`` of two tensors in float32 stays in it: what a model has widened by itself."""
    with _FullProducts() if _autocasting(device) else nullcontext():
        yield


def _autocasting(device: torch.device) -> bool:
    """Whether autocast is on; never where nothing is computed, whose device torch does not know it of."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


class _FullProducts(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.matmul or any(value.dtype != torch.float32 for value in args):
            return func(*args, **(kwargs or {}))
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*args, **(kwargs or {}))


class _FullAttention(TorchFunctionMode):
    """Computes scaled-dot-product attention in float32, whatever it is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*map(_full, args), **{key: _full(value) for key, value in (kwargs or {}).items()})


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
