"""A world of coloured shapes: pictures and captions without end, and an exact judge of pictures for GenEval's tasks."""

from ..tasks import TASKS
from .finding import find
from .prompts import Prompt, Wanted, distinct_captions, evaluation_prompts, scene_of, training_sample
from .scorer import apart, judge, relations, verdicts
from .world import COLOURS, RELATIONS, SHAPES, Background, Scene, Thing, World, cells, draw_scene, render

__all__ = [
    "COLOURS",
    "RELATIONS",
    "SHAPES",
    "TASKS",
    "Background",
    "Prompt",
    "Scene",
    "Thing",
    "Wanted",
    "World",
    "apart",
    "cells",
    "distinct_captions",
    "draw_scene",
    "evaluation_prompts",
    "find",
    "judge",
    "relations",
    "render",
    "scene_of",
    "training_sample",
    "verdicts",
]
