"""Which tensors these are: hashes of them, as they are held or as another type would hold them.

A graft names its pretrained model by its tensors in float32, and notes beside that what their roundings to half
precision are called: of a pipeline that was loaded with ``torch_dtype=torch.bfloat16`` it can be told still whether its
transformer is that model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types of half precision, as a graft's folder names them."""


@dataclass(frozen=True, kw_only=True)
class Guise:
    """How tensors are seen: all numbers rounded to ``rounded_to``, where that is given; then those in half precision as
    they are in ``halves_as``, where that is."""

    halves_as: torch.dtype | None = None
    rounded_to: torch.dtype | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in this guise; itself where that changes nothing."""
        if tensor.is_floating_point() and self.rounded_to is not None:
            tensor = tensor.to(self.rounded_to)
        return tensor.to(self.halves_as) if tensor.dtype in HALVES.values() and self.halves_as is not None else tensor


def tensors_hash(
    tensors: Mapping[str, torch.Tensor],
    *,
    halves_as: torch.dtype | None = None,
    rounded_to: torch.dtype | None = None,
) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names, in one :class:`Guise`."""
    (found,) = tensors_hashes(tensors, [Guise(halves_as=halves_as, rounded_to=rounded_to)])
    return found


def tensors_hashes(tensors: Mapping[str, torch.Tensor], guises: Sequence[Guise]) -> list[str]:
    """The same in several guises from one pass: every tensor is fetched once, and let go before the next."""
    digests = [hashlib.sha256() for _ in guises]
    with ThreadPoolExecutor(len(guises)) as pool:  # hashing takes longest by far, and lets other threads run
        each = pool.map if len(guises) > 1 else map
        for name in sorted(tensors):
            held = tensors[name].detach().cpu().contiguous()

            def add(digest: hashlib._Hash, guise: Guise, name: str = name, held: torch.Tensor = held) -> None:
                tensor = guise.of(held)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().data)

            for _ in each(add, digests, guises):
                pass
    return [digest.hexdigest() for digest in digests]


def named(model: nn.Module) -> tuple[str, dict[str, str]]:
    """What a graft calls its pretrained model: the hash of its tensors in float32; and by type of :data:`HALVES`, that
    of their roundings to it."""
    guises = [Guise(halves_as=torch.float32), *(Guise(rounded_to=half) for half in HALVES.values())]
    full, *rounded = tensors_hashes(model.state_dict(), guises)
    return full, dict(zip(HALVES, rounded, strict=True))


def held_in(model: nn.Module) -> list[str]:
    """The types of :data:`HALVES` that some of a model's tensors are of."""
    there = {tensor.dtype for tensor in model.state_dict().values()}
    return [name for name, half in HALVES.items() if half in there]


def is_of(model: nn.Module, name: str, rounded: Mapping[str, str]) -> bool:
    """Whether ``model`` is the pretrained one that :func:`named` gave ``name`` and ``rounded``, which is empty where it
    was not noted.

    One in half precision is that model where it is its rounding, or has the same numbers. One in float32 is it too
    where the named one is its rounding to half precision.
    """
    state = model.state_dict()
    if any(rounded.get(half) == tensors_hash(state, rounded_to=HALVES[half]) for half in held_in(model) if rounded):
        return True
    full = {"halves_as": torch.float32}
    seen = ({}, full, *(full | {"rounded_to": half} for half in HALVES.values()))
    return any(tensors_hash(state, **guise) == name for guise in seen)
