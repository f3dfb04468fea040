"""Randomness from counters: the same (seed, stream, indices) always gives the same numbers.

A run that draws from counters needs no generator state on disk: killed and resumed at step k it draws what an
uninterrupted run would have drawn at step k, whatever the batch size or the number of workers before it.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, stream: str, *indices: int) -> torch.Generator:
    """A CPU generator that depends only on the base ``seed``, the name of the ``stream`` and the ``indices``."""
    text = "/".join((str(seed), stream, *map(str, indices)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(shape: tuple[int, ...], seed: int, stream: str, *indices: int) -> torch.Tensor:
    """Standard normal float32 noise of ``shape`` from one counter."""
    return torch.randn(shape, generator=generator(seed, stream, *indices))
