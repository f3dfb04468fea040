"""The table of operators by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from grafting.operators.arithmetic import TABLE, Arithmetic, OperatorError, arithmetic
from grafting.operators.base import Operator

T = TypeVar("T", bound=Operator)


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that makes an `Operator` known under `name`.

    A class of the same module and name takes the place of the one before, as where a notebook's cell runs again.

    Raises:
        OperatorError: the name is taken by another class, or the class is no Operator.
    """

    def add(cls: type[T]) -> type[T]:
        if not (isinstance(cls, type) and issubclass(cls, Operator)):
            raise OperatorError(f"cannot register {cls!r} as {name!r}: it must derive from grafting.operators.Operator")
        there = TABLE.get(name, Arithmetic)
        again = (there.__module__, there.__qualname__) == (cls.__module__, cls.__qualname__)
        if issubclass(there, Operator) and not again:
            raise OperatorError(
                f"operator {name!r} is already registered by {there.__qualname__} of {there.__module__}: give another "
                "name"
            )
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
