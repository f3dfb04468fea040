"""Edit pretrained diffusion transformers: swap operators, distil, finetune, measure, share.

Public names are imported when first used, so that ``import grafting`` and ``grafting --help`` are immediate.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import hosts as hosts
    from . import operators as operators
    from .claims import ClaimError as ClaimError
    from .data.encode import encode as encode
    from .data.latents import write_latents as write_latents
    from .data.pairs import generate_pairs as generate_pairs
    from .data.shards import ShardError as ShardError
    from .expect import MeasuredError as MeasuredError
    from .graft import GraftError as GraftError
    from .graft import graft as graft
    from .graft import handle_of as handle_of
    from .graft import ungraft as ungraft
    from .hosts.shapes import HostError as HostError
    from .lora import Lora as Lora
    from .lora import LoraError as LoraError
    from .lora import add_lora as add_lora
    from .measure.analysis import AnalysisError as AnalysisError
    from .measure.quality.extractors import ExtractorError as ExtractorError
    from .operators.arithmetic import OperatorError as OperatorError
    from .plan import Plan as Plan
    from .plan import PlanError as PlanError
    from .sampling import Pipeline as Pipeline
    from .sampling import Sampling as Sampling
    from .searching.search import search as search
    from .searching.solve import SearchError as SearchError
    from .settings import SettingsError as SettingsError
    from .store.checkpoints import CheckpointError as CheckpointError
    from .store.configs import ModelError as ModelError
    from .store.folder import load as load
    from .store.folder import save as save
    from .store.manifest import StoreError as StoreError
    from .store.models import open_model as open_model
    from .study import RunRecipe as RunRecipe
    from .study import run as run
    from .study.material import Material as Material
    from .study.parts import StudyError as StudyError
    from .study.recipe import DistillStage as DistillStage
    from .study.recipe import FinetuneStage as FinetuneStage
    from .study.stages import denoiser as denoiser
    from .study.stages import stage_one as stage_one
    from .study.stages import stage_two as stage_two
    from .teachers import load_bundle as load_bundle
    from .teachers import load_teacher as load_teacher
    from .text import TextError as TextError
    from .training.distill import DistillConfig as DistillConfig
    from .training.distill import distill as distill
    from .training.finetune import FinetuneConfig as FinetuneConfig
    from .training.finetune import finetune as finetune
    from .training.loop import LoopConfig as LoopConfig

__version__ = "0.1.0"

_HOMES = {
    "AnalysisError": "measure.analysis",
    "CheckpointError": "store.checkpoints",
    "ClaimError": "claims",
    "DistillConfig": "training.distill",
    "DistillStage": "study.recipe",
    "ExtractorError": "measure.quality.extractors",
    "FinetuneConfig": "training.finetune",
    "FinetuneStage": "study.recipe",
    "GraftError": "graft",
    "HostError": "hosts.shapes",
    "LoopConfig": "training.loop",
    "Lora": "lora",
    "LoraError": "lora",
    "Material": "study.material",
    "MeasuredError": "expect",
    "ModelError": "store.configs",
    "OperatorError": "operators.arithmetic",
    "Pipeline": "sampling",
    "Plan": "plan",
    "PlanError": "plan",
    "RunRecipe": "study",
    "Sampling": "sampling",
    "SearchError": "searching.solve",
    "SettingsError": "settings",
    "ShardError": "data.shards",
    "StoreError": "store.manifest",
    "StudyError": "study.parts",
    "TextError": "text",
    "add_lora": "lora",
    "denoiser": "study.stages",
    "distill": "training.distill",
    "encode": "data.encode",
    "finetune": "training.finetune",
    "generate_pairs": "data.pairs",
    "graft": "graft",
    "handle_of": "graft",
    "load": "store.folder",
    "load_bundle": "teachers",
    "load_teacher": "teachers",
    "open_model": "store.models",
    "run": "study",
    "save": "store.folder",
    "search": "searching.search",
    "stage_one": "study.stages",
    "stage_two": "study.stages",
    "ungraft": "graft",
    "write_latents": "data.latents",
}

_ROOMS = ("hosts", "operators")

__all__ = sorted([*_HOMES, *_ROOMS])  # pyright: ignore


class _Package(ModuleType):
    """Keeps ``grafting.graft`` the function, which the import of the module of that name would hide."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'grafting' has no attribute {name!r}")
