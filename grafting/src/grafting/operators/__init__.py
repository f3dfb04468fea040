"""Token and channel mixers for diffusion transformers, all maps (B, N, D) → (B, N, D).

Shape legend used throughout the package: B samples, N tokens in raster order of a grid, D width, H heads, C = D / H
channels of a head, K taps of a filter.

    >>> from grafting import operators
    >>> operators.list_operators("hyena*")
    >>> operator = operators.build("hyena_x", width=1152, heads=16, tokens=256)
"""

from grafting.operators import attention, hyena, linear, mamba2, mlp
from grafting.operators.base import Operator, OperatorError, Option
from grafting.operators.registry import build, get, list_operators, register

__all__ = ["Operator", "OperatorError", "Option", "build", "get", "list_operators", "register"]

# The families register themselves when imported; naming them here keeps the imports from looking unused.
FAMILIES = (attention, hyena, linear, mamba2, mlp)
