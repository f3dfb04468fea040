"""The table of operators by name."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from grafting.operators.base import Operator, OperatorError, nearest

T = TypeVar("T", bound=Operator)
TABLE: dict[str, type[Operator]] = {}


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that makes an `Operator` known under `name`.

    Raises:
        OperatorError: the name is taken by another class, or the class is no Operator.
    """

    def add(cls: type[T]) -> type[T]:
        if not (isinstance(cls, type) and issubclass(cls, Operator)):
            raise OperatorError(f"cannot register {cls!r} as {name!r}: it must derive from grafting.operators.Operator")
        if name in TABLE:
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
    if name not in TABLE:
        raise OperatorError(f"unknown operator {name!r} ({nearest(name, list_operators())})")
    return TABLE[name]


def list_operators(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell pattern such as "hyena*"."""
    return sorted(name for name in TABLE if fnmatchcase(name, pattern))


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
