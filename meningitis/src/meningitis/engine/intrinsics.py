"""Two instructions that Python has no word for; kernels import them, so that they stay IEEE arithmetic as written."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic


def _fuses() -> bool:
    triple, _, features = (str(part) for part in cpu_target.target_context.codegen().magic_tuple())
    return not triple.startswith(("x86", "i686")) or "+fma" in features


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; rounded twice on processors without such an instruction."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, z = arguments
        return builder.fma(x, y, z) if _fuses() else builder.fadd(builder.fmul(x, y), z)

    return types.float64(types.float64, types.float64, types.float64), code


@intrinsic
def bits(typing: Any, x: Any) -> Any:
    """The 64 bits of a double as an integer, which grows with the logarithm of a positive number."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int64))

    return types.int64(types.float64), code
