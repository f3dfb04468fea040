"""What became of a trajectory."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Per set; every value above OK is a failure, and its later outputs and its peaks are NaN."""

    OK = 0
    TOO_MANY_STEPS = 1
    NOT_FINITE = 2
    NEGATIVE = 3
    STEP_TOO_SMALL = 4
    FALLBACK = -1

    @property
    def failed(self) -> bool:
        """Whether the trajectory is unusable."""
        return self > 0

    @property
    def sentence(self) -> str:
        """The status in words."""
        return {
            Status.OK: "solved",
            Status.TOO_MANY_STEPS: "more steps than allowed, and scipy's Radau failed as well",
            Status.NOT_FINITE: "a state or rate is not a finite number",
            Status.NEGATIVE: "a state falls below -10 atol: it begins below zero, or a flow empties what is empty",
            Status.STEP_TOO_SMALL: "the step size fell below rounding, and scipy's Radau failed as well",
            Status.FALLBACK: "stiff: solved by scipy's Radau instead",
        }[self]
