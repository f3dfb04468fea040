"""Visiting the activations of many sites during one teacher pass, without keeping any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Key = TypeVar("Key")
Streams = tuple[torch.Tensor, ...]
"""The picture's tokens (B, N, D), and of a family whose blocks carry text beside them the text's (B, L, D)."""
Read = Callable[[nn.Module, Any], Streams]
"""From a module and what it returned to its streams: :meth:`grafting.hosts.Host.streams`."""


def plain(_: nn.Module, output: torch.Tensor) -> Streams:
    """Of a module that returns one tensor."""
    return (output,)


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, N, D), of what a convolution reads or gives on the grid too: (B, D, H, W), in raster order."""
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


@contextmanager
def visit_spans(
    spans: Mapping[Key, Sequence[tuple[nn.Module, nn.Module]]],
    visitor: Callable[[Key, torch.Tensor, Streams, Mapping[str, Any]], None],
    read: Read = plain,
) -> Iterator[None]:
    """While open, ``visitor(key, inputs, outputs, call)`` is called whenever the last module of a span has run.

    inputs: what the span's first module was given, (B, N, D) or on the grid; outputs: the streams that its last one
    returned; call: the further arguments of the last, by name. Both are detached, and kept no longer than the span and
    its visit last.
    """

    def watch(key: Key, first: nn.Module, last: nn.Module) -> list[Any]:
        entered: list[torch.Tensor] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append((args[0] if args else kwargs["hidden_states"]).detach())

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            names = [*inspect.signature(module.forward).parameters][: len(args)]
            call = dict(zip(names, args, strict=False)) | kwargs
            call.pop("hidden_states", None)
            visitor(key, entered.pop(), tuple(stream.detach() for stream in read(module, output)), call)

        return [
            first.register_forward_pre_hook(before, with_kwargs=True),
            last.register_forward_hook(after, with_kwargs=True),
        ]

    handles = [handle for key, pairs in spans.items() for pair in pairs for handle in watch(key, *pair)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
