"""Frozen dataclasses from plain data: unknown keys refused with the nearest, all problems collected before raising."""

from __future__ import annotations

import difflib
import importlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Frozen(Mapping[K, V]):
    """A read-only mapping over a copy; unlike Python's own view it can be copied and pickled."""

    def __init__(self, held: Mapping[K, V]) -> None:
        self._held = dict(held)

    def __getitem__(self, key: K) -> V:
        return self._held[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return repr(self._held)


class SettingsError(ValueError):
    """Every problem of some settings, at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


def near(name: str, known: Sequence[str]) -> str:
    """The words that end an error about a misspelt name."""
    close = difflib.get_close_matches(str(name), known, 1, 0.0)
    return f"did you mean {close[0]!r}? there are {', '.join(known)}"


def imported(name: str, where: str) -> Any:
    """What ``module:attribute`` names, of a module of the user's own, which is imported.

    Raises ValueError, beginning with ``where``, for a module that is not there or fails, or has no such attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"{where}: {error} (a module beside you needs PYTHONPATH=.)") from error
    except AttributeError:
        raise ValueError(f"{where}: {module} has no {attribute} (python:module:attribute)") from None
    except Exception as error:  # whatever the module does
        raise ValueError(f"{where}: {module} cannot be imported: {error}") from error


def yaml_source(source: str | Path) -> str | Path:
    """A Path where ``source`` is the name of a YAML file: one line of text that ends in ``.yaml`` or ``.yml``."""
    named = isinstance(source, str) and source.endswith((".yaml", ".yml")) and "\n" not in source
    return Path(source) if named else source


def read_yaml(source: str | Path, where: str) -> Any:
    """Plain data from a YAML file (a Path), or from text that is called ``where``. Raises SettingsError naming it."""
    import yaml

    where = str(source) if isinstance(source, Path) else where
    if isinstance(source, Path) and not source.is_file():
        raise SettingsError([f"{where}: no such file"])
    try:
        return yaml.safe_load(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    except UnicodeDecodeError:
        raise SettingsError([f"{where}: no text in UTF-8"]) from None
    except yaml.YAMLError as error:
        # yaml calls every text "<unicode string>".
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise SettingsError([f"{where}: not YAML: {said.removesuffix(': ^')}"]) from None


def override(content: Any, assignment: str) -> None:
    """Put ``a.b.0.c=value`` into nested plain data; the value is YAML. Raises SettingsError."""
    path, mark, text = assignment.partition("=")
    keys: list[Any] = path.strip().split(".")
    if not mark or not all(keys):
        raise SettingsError([f"--set {assignment!r}: give key=value, with dots between levels"])
    value = read_yaml(text, f"--set {assignment!r}")
    place = content
    for depth, key in enumerate(keys):
        if isinstance(place, list) and key.isdigit() and int(key) < len(place):
            key = int(key)
        elif not isinstance(place, dict):
            raise SettingsError(
                [f"--set {assignment!r}: {'.'.join(keys[:depth]) or 'the recipe'} has no entry {key!r}"]
            )
        if depth == len(keys) - 1:
            place[key] = value
        elif isinstance(place, dict):
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
        else:
            place = place[key]


def read_recipe(source: str | Path, overrides: Sequence[str], where: str) -> tuple[Any, str]:
    """Plain data of a recipe with the ``key=value`` of ``overrides`` in it, and what errors call it.

    source: as :func:`yaml_source` takes it. Raises SettingsError as :func:`read_yaml` and :func:`override` do.
    """
    source = yaml_source(source)
    where = str(source) if isinstance(source, Path) else where
    content = read_yaml(source, where)
    for assignment in overrides:
        override(content, assignment)
    return content, where


def build(
    kind: type[T],
    content: Any,
    where: str,
    problems: list[str],
    given: Mapping[str, Any] = types.MappingProxyType({}),
    known: Sequence[str] | None = None,
) -> T | None:
    """One dataclass from a mapping; every problem goes into ``problems``, and None comes back if there is any."""
    if not isinstance(content, Mapping):
        problems.append(f"{where}: {content!r} is no mapping of settings")
        return None
    before, hints = len(problems), typing.get_type_hints(kind)
    members = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = dict(given)
    for key, value in content.items():
        if key not in hints or key in given:
            problems.append(f"{where}: unknown key {key!r}: {near(key, known or list(hints))}")
            continue
        default = members[key].default
        if is_dataclass(default) and isinstance(value, Mapping):
            value = asdict(default) | dict(value)  # type: ignore[arg-type]
        try:
            values[key] = _convert(hints[key], value, f"{where}: {key}", problems)
        except TypeError as error:
            problems.append(f"{where}: {key} is {value!r}, must be {error}")
    required = [f.name for f in members.values() if f.default is MISSING and f.default_factory is MISSING]
    problems += [f"{where}: {key} is missing" for key in required if key not in values and key not in content]
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except SettingsError as error:
        problems += [f"{where}: {problem}" for problem in error.problems]
    except ValueError as error:
        problems.append(f"{where}: {error}")
    return None


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """``value`` as the annotation ``hint`` wants it; raises TypeError saying what is wanted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where, problems)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError("a list")
        return tuple(_convert(arguments[0], entry, where, problems) for entry in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError("a mapping")
        return dict(value)
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"one of {', '.join(arguments)}")
        return value
    if is_dataclass(hint):
        return build(hint, value, where, problems)  # type: ignore[arg-type]
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # text too: YAML 1.1 reads 1e-4 as one
        except (TypeError, ValueError):
            raise TypeError("a number") from None
    if type(value) is not hint:
        raise TypeError({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint])
    return value
