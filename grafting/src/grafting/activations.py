"""Visiting the activations of many sites during one teacher pass, without keeping any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Key = TypeVar("Key")
Visitor = Callable[[Any, torch.Tensor, torch.Tensor], None]


@contextmanager
def visit(
    modules: Mapping[Key, nn.Module], visitor: Callable[[Key, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """While open, ``visitor(key, inputs, outputs)`` is called after every pass through one of ``modules``.

    Inputs and outputs (B, N, D) are detached and belong to the visitor for the length of the call only, so that what
    a visit allocates is freed before the next site runs.
    """

    def watch(key: Key) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            visitor(key, inputs.detach(), output.detach())

        return hook

    handles = [module.register_forward_hook(watch(key), with_kwargs=True) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
