"""The table of operators by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from grafting.operators.arithmetic import TABLE, Arithmetic, OperatorError, arithmetic
from grafting.operators.base import Operator

T = TypeVar("T", bound=Operator)


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that makes an `Operator` known under `name`.

    Raises:
        OperatorError: the name is taken by another class, or the class is no Operator.
    """

    def add(cls: type[T]) -> type[T]:
        if not (isinstance(cls, type) and issubclass(cls, Operator)):
            raise OperatorError(f"cannot register {cls!r} as {name!r}: it must derive from grafting.operators.Operator")
        if issubclass(TABLE.get(name, Arithmetic), Operator):
            raise OperatorError(f"operator {name!r} is already registered by {TABLE[name].__qualname__}")
        cls.name = name
        TABLE[name] = cls
        return cls

    return add


def get(name: str) -> type[Operator]:
    """The class registered under `name`.

    Raises:
        OperatorError: no such operator; the message names the nearest one.
    """
    found = arithmetic(name)
    if not issubclass(found, Operator):
        raise OperatorError(f"operator {name!r} has no class: it must derive from grafting.operators.Operator")
    return found


def build(name: str, *, width: int, heads: int | None = None, tokens: int | None = None, **options: Any) -> Operator:
    """Make the operator registered under `name`.

    Args:
        name: as in `list_operators()`.
        width: channels D of a token.
        heads: attention heads; needed by operators with `needs_heads`.
        tokens: number of tokens; needed by operators with `needs_tokens`.
        options: as in the operator's `option_table`.

    Raises:
        OperatorError: unknown name, or every size and option that is not allowed.
    """
    return get(name)(width=width, heads=heads, tokens=tokens, **options)
