"""Evaluation mode for as long as a library call lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*parts: object) -> Iterator[None]:
    """Evaluation mode while open, for those of ``parts`` that are modules; each submodule's own mode is put back.

    In training mode diffusers' label embedders drop labels by themselves, every block on its own and out of the global
    generator. Nothing else in these models depends on the mode, and gradients flow in both, so it is right for training
    too: :func:`grafting.diffusion.drop_labels` drops labels once, outside the model.
    """
    modes = [(module, module.training) for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    for part in parts:
        if isinstance(part, nn.Module):
            part.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
