"""The chapters of the study: each computes its results, adds tables, figures and words, and states its verdict."""

from __future__ import annotations

from collections.abc import Callable

from meningitis.chapters.course import course, ratios
from meningitis.chapters.importance import sensitivity
from meningitis.chapters.outcomes import adequacy, control, infected
from meningitis.chapters.structure import origins, the_models, thresholds
from meningitis.chapters.work import Work

CHAPTERS: tuple[tuple[str, Callable[[Work], None]], ...] = (
    ("The models", the_models),
    ("Thresholds and reproduction numbers", thresholds),
    ("The course of a season", course),
    ("Case–carrier ratios and the order of events", ratios),
    ("Which parameters matter", sensitivity),
    ("Total ever infected", infected),
    ("Is p = 0 adequate?", adequacy),
    ("Control and uncertainty", control),
    ("Provenance", origins),
)

__all__ = ["CHAPTERS", "Work"]
