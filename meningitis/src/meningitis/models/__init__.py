"""The shipped declarations: data, with no code paths of their own."""

from __future__ import annotations

from meningitis.grammar import nearest
from meningitis.model import Model, ModelError, Problem
from meningitis.models.meningitis import BASIC, GENERALISED

__all__ = ["BASIC", "GENERALISED", "get", "names"]

_SHIPPED = {model.name: model for model in (BASIC, GENERALISED)}


def names() -> tuple[str, ...]:
    """Names of the shipped models."""
    return tuple(_SHIPPED)


def get(name: str) -> Model:
    """Return a shipped model; ModelError names the nearest one otherwise."""
    if name not in _SHIPPED:
        message = f"there is no model '{name}'{nearest(name, _SHIPPED)}; allowed are {', '.join(_SHIPPED)}"
        raise ModelError([Problem(code="E012", where="models", message=message)])
    return _SHIPPED[name]
