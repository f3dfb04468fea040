"""Edit pretrained diffusion transformers: swap operators, distil, finetune, measure, share.

Public names are imported when first used, so that ``import grafting`` and ``grafting --help`` are immediate.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import operators as operators
    from .data.encode import encode as encode
    from .data.pairs import generate_pairs as generate_pairs
    from .graft import graft as graft
    from .graft import ungraft as ungraft
    from .lora import Lora as Lora
    from .lora import add_lora as add_lora
    from .plan import Plan as Plan
    from .sampling import Pipeline as Pipeline
    from .searching.search import search as search
    from .store.folder import load as load
    from .store.folder import save as save
    from .store.models import open_model as open_model
    from .study import RunRecipe as RunRecipe
    from .study import run as run
    from .study.stages import Material as Material
    from .teachers import load_bundle as load_bundle
    from .teachers import load_teacher as load_teacher
    from .training.distill import distill as distill
    from .training.finetune import finetune as finetune

__version__ = "0.1.0"

_HOMES = {
    "Lora": "lora",
    "Material": "study.stages",
    "Pipeline": "sampling",
    "Plan": "plan",
    "RunRecipe": "study",
    "add_lora": "lora",
    "distill": "training.distill",
    "encode": "data.encode",
    "finetune": "training.finetune",
    "generate_pairs": "data.pairs",
    "graft": "graft",
    "load": "store.folder",
    "load_bundle": "teachers",
    "load_teacher": "teachers",
    "open_model": "store.models",
    "run": "study",
    "save": "store.folder",
    "search": "searching.search",
    "ungraft": "graft",
}

__all__ = sorted([*_HOMES, "operators"])  # pyright: ignore


class _Package(ModuleType):
    """Keeps ``grafting.graft`` the function, which the import of the module of that name would hide."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name == "operators":
        return import_module(".operators", __name__)
    raise AttributeError(f"module 'grafting' has no attribute {name!r}")
