"""What is known of an operator without making it: its options, parameters and FLOPs. Imports nothing heavy.

Every operator's class derives from its arithmetic here, so that planning needs no torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, TypeVar

from grafting.settings import imported

OWN = "python:"
"""Begins the name of an operator that no registry knows: ``python:module:attribute``."""


class OperatorError(ValueError):
    """A name, size or option that no operator accepts; the message names every problem at once."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an operator: its default, its test, and in words what is allowed."""

    default: Any
    allowed: str
    valid: Callable[[Any], bool]

    @staticmethod
    def integer(default: int, *, least: int = 1, odd: bool = False) -> Option:
        """A whole number of at least `least`; an odd one where a centred filter asks for it."""
        return Option(
            default=default,
            allowed=f"an {'odd ' if odd else ''}integer of at least {least}",
            valid=lambda v: type(v) is int and v >= least and (not odd or v % 2 == 1),
        )

    @staticmethod
    def odd_or_none() -> Option:
        """An odd length of a centred filter; 0, the default, for none."""
        return Option(
            default=0,
            allowed="0 or an odd integer of at least 1",
            valid=lambda v: type(v) is int and v >= 0 and (v == 0 or v % 2 == 1),
        )

    @staticmethod
    def positive(default: float) -> Option:
        """A positive finite number."""
        return Option(
            default=default,
            allowed="a positive number",
            valid=lambda v: type(v) in (int, float) and math.isfinite(v) and v > 0,
        )

    @staticmethod
    def choice(default: str, *others: str) -> Option:
        """One of a few names."""
        names = (default, *others)
        return Option(default=default, allowed=" or ".join(names), valid=lambda v: v in names)


def nearest(given: str, allowed: Sequence[str]) -> str:
    """The words that end an error about a misspelt name."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.0)
    return f"did you mean {close[0]!r}? allowed: {', '.join(allowed)}" if close else "none is allowed"


class Arithmetic:
    """Options and formulas of an operator: `count_parameters`, `count_flops` and `count_features`.

    lends: what of its own text reads beside the picture, in joint attention: ``all`` (queries, keys and values: an
    operator of the kind of attention), the ``values``, or ``nothing``.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"
    needs_heads: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    lends: ClassVar[Literal["all", "values", "nothing"]] = "nothing"
    option_table: ClassVar[Mapping[str, Option]] = {}

    @classmethod
    def resolve(cls, *, width: int, heads: int | None, tokens: int | None, **options: Any) -> dict[str, Any]:
        """The options with their defaults filled in.

        Raises:
            OperatorError: naming all problems at once.
        """
        problems = [
            f"unknown option {given!r} ({nearest(given, list(cls.option_table))})"
            for given in options
            if given not in cls.option_table
        ]
        resolved = {key: options.get(key, option.default) for key, option in cls.option_table.items()}
        for key, option in cls.option_table.items():
            if not option.valid(resolved[key]):
                problems.append(f"{key} is {resolved[key]!r}, must be {option.allowed}")
        for label, value, needed in (
            ("width", width, True),
            ("heads", heads, cls.needs_heads),
            ("tokens", tokens, cls.needs_tokens),
        ):
            if value is None and not needed:
                continue
            if type(value) is not int or value < 1:
                problems.append(f"{label} is {value!r}, must be an integer of at least 1")
        if not problems:
            problems += cls.size_problems(width, heads, resolved)
        if problems:
            raise OperatorError(f"operator {cls.name!r}: " + "; ".join(problems))
        return resolved

    @classmethod
    def size_problems(cls, width: int, heads: int | None, options: Mapping[str, Any]) -> list[str]:
        """Problems of sizes and options that are valid one by one but not together."""
        if cls.needs_heads and heads is not None and width % heads:
            return [f"width {width} is not divisible by heads {heads}"]
        return []

    @classmethod
    def parameters_count(cls, width: int, heads: int | None = None, tokens: int | None = None, **options: Any) -> int:
        """Number of trained parameters, without making them.

        Raises:
            OperatorError: as on construction.
        """
        resolved = cls.resolve(width=width, heads=heads, tokens=tokens, **options)
        return cls.count_parameters(width, heads, tokens, resolved)

    @classmethod
    def flops(cls, width: int, heads: int | None, tokens: int, **options: Any) -> int:
        """Floating-point operations of one forward pass of one sample (2 per multiply-add of products and filters).

        Raises:
            OperatorError: as on construction.
        """
        resolved = cls.resolve(width=width, heads=heads, tokens=tokens, **options)
        return cls.count_flops(width, heads, tokens, resolved)

    @classmethod
    def count_parameters(cls, width: int, heads: int | None, tokens: int | None, options: Mapping[str, Any]) -> int:
        """The formula behind `parameters_count`, of options that are resolved."""
        raise NotImplementedError

    @classmethod
    def count_flops(cls, width: int, heads: int | None, tokens: int, options: Mapping[str, Any]) -> int:
        """The formula behind `flops`, of options that are resolved."""
        raise NotImplementedError

    @classmethod
    def count_text_flops(cls, width: int, heads: int | None, tokens: int, text: int, options: Mapping[str, Any]) -> int:
        """What the picture's reading of `text` tokens takes, projections aside: with one key more than these, which
        stands for the picture, and eight channels more in each head."""
        assert heads is not None
        return 4 * tokens * (text + 1) * (width + 8 * heads)

    @classmethod
    def count_features(cls, width: int, options: Mapping[str, Any]) -> int:
        """How many numbers of a token the last linear layer reads, which a solved start regresses on."""
        return width


A = TypeVar("A", bound=Arithmetic)
TABLE: dict[str, type[Arithmetic]] = {}
"""By name: arithmetic until a class is registered there, which is arithmetic too."""


def known(name: str) -> Callable[[type[A]], type[A]]:
    """Class decorator that enters the arithmetic of an operator under its name."""

    def enter(cls: type[A]) -> type[A]:
        cls.name = name
        TABLE[name] = cls
        return cls

    return enter


def arithmetic(name: str) -> type[Arithmetic]:
    """Options and formulas of the operator registered under `name`, or of the class `python:module:attribute`.

    Raises:
        OperatorError: no such operator; the message names the nearest one, or why the module gives none.
    """
    if name not in TABLE and name.startswith(OWN):
        TABLE[name] = _imported(name)
    if name not in TABLE:
        raise OperatorError(f"unknown operator {name!r} ({nearest(name, list_operators())})")
    return TABLE[name]


def _imported(name: str) -> type[Arithmetic]:
    """The class that an operator of one's own names; its module is imported, and torch with it."""
    try:
        found = imported(name.removeprefix(OWN), f"operator {name}")
    except ValueError as error:
        raise OperatorError(str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Arithmetic)):
        raise OperatorError(f"operator {name}: it does not derive from grafting.operators.Operator")
    if "name" not in vars(found):
        found.name = name
    return found


def list_operators(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell pattern such as "hyena*"."""
    return sorted(name for name in TABLE if fnmatchcase(name, pattern))
