"""Token and channel mixers for diffusion transformers, all maps (B, N, D) → (B, N, D).

Shape legend used throughout the package: B samples, N tokens in raster order of a grid, D width, H heads, C = D / H
channels of a head, K taps of a filter.

    >>> from grafting import operators
    >>> operators.list_operators("hyena*")
    >>> operator = operators.build("hyena_x", width=1152, heads=16, tokens=256)

Names, options and formulas are at hand at once; the layers, and torch with them, are imported when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grafting.operators import formulas as formulas
from grafting.operators.arithmetic import Arithmetic, OperatorError, Option, arithmetic, list_operators

if TYPE_CHECKING:
    from grafting.operators.base import Operator as Operator
    from grafting.operators.registry import build as build
    from grafting.operators.registry import get as get
    from grafting.operators.registry import register as register

__all__ = [
    "Arithmetic",
    "Operator",
    "OperatorError",
    "Option",
    "arithmetic",
    "build",
    "get",
    "list_operators",
    "register",
]

FAMILIES = ("attention", "hyena", "linear", "mamba2", "mlp")
"""Modules whose operators register themselves when imported."""

_HOMES = {"Operator": "base", "build": "registry", "get": "registry", "register": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'grafting.operators' has no attribute {name!r}")
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
