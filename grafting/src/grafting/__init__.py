"""Edit pretrained diffusion transformers: swap operators, distil, finetune, measure, share.

Public names are imported when first used, so that ``import grafting`` and ``grafting --help`` are immediate.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Plan as Plan
    from .sampling import Pipeline as Pipeline
    from .teachers import load_bundle as load_bundle
    from .teachers import load_teacher as load_teacher

__version__ = "0.1.0"

_HOMES = {
    "Plan": "plan",
    "Pipeline": "sampling",
    "load_bundle": "teachers",
    "load_teacher": "teachers",
}

__all__ = sorted(_HOMES)  # pyright: ignore


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'grafting' has no attribute {name!r}")
