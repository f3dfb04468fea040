"""The chapters of the study: each computes its results, adds tables, figures and words, and states its verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meningitis.chapters.course import course, ratios
from meningitis.chapters.importance import sensitivity
from meningitis.chapters.outcomes import adequacy, control, infected, varies_p
from meningitis.chapters.structure import origins, the_models, thresholds
from meningitis.chapters.work import Work
from meningitis.symbolic import case_and_carrier

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

Chapters = Sequence[tuple[str, Callable[[Work], None]]]


def fitting(work: Work, chapters: Chapters) -> Chapters:
    """The chapters as the models have it: none on p = 0 where nothing is p, none on ratios where nobody carries."""
    kept = [(title, chapter) for title, chapter in chapters if chapter is not adequacy or varies_p(work.fullest)]
    if any(case_and_carrier(model) for model in work.models):
        return kept
    return [("The order of events" if chapter is ratios else title, chapter) for title, chapter in kept]


__all__ = ["CHAPTERS", "Work", "fitting"]
