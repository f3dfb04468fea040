"""Remember what was derived from a model: the same declaration is asked for the same facts many times."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from meningitis.model import Model

Result = TypeVar("Result")


def by_model(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache a function of (model, **options) by the declaration's hash and the options."""
    known: dict[tuple[Any, ...], Result] = {}

    @wraps(function)
    def remembered(model: Model, **options: Any) -> Result:
        key = (model.hash, *sorted(options.items()))
        if key not in known:
            known[key] = function(model, **options)
        return known[key]

    return remembered
