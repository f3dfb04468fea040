"""WHO's operational thresholds for meningitis in a district.

Source: WHO guideline "Meningitis outbreak response in sub-Saharan Africa", WHO/HSE/PED/CED/14.5 (December 2014). For
30,000-100,000 inhabitants: alert 3 (but at least 2 cases), epidemic 10 suspected cases per 100,000 per week; below
30,000: alert 2 cases in a week, epidemic 5 in a week or doubling over three weeks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL, LARGE = 30_000, 100_000
FEWEST = 2.0  # cases in a week that raise an alert anywhere


@dataclass(frozen=True, kw_only=True)
class OperationalThresholds:
    """Suspected cases per week that raise an alert and that declare an epidemic; doubling counts in small districts."""

    population: float
    alert: float
    epidemic: float
    doubling: bool
    warning: str = ""

    def alert_week(self, suspected: NDArray[np.float64]) -> int | None:
        """Index of the first week (0 is the first) that raises the alert; suspected: cases by week (W,)."""
        return _first(suspected >= self.alert)

    def epidemic_week(self, suspected: NDArray[np.float64]) -> int | None:
        """Index of the first week that declares an epidemic; None: no week does."""
        reached = suspected >= self.epidemic
        if self.doubling and suspected.size > 2:
            # Three weeks such as 1, 2, 4: less than one case is no case to double.
            first, second, third = suspected[:-2], suspected[1:-1], suspected[2:]
            reached[2:] |= (first >= 1) & (second >= 2 * first) & (third >= 2 * second)
        return _first(reached)

    def over_week(self, suspected: NDArray[np.float64]) -> int | None:
        """Index of the week after the last one at the alert threshold or above; None: no alert, or not over yet."""
        weeks = np.flatnonzero(suspected >= self.alert)
        return int(weeks[-1]) + 1 if weeks.size and weeks[-1] + 1 < suspected.size else None

    def alert_weeks(self, suspected: NDArray[np.float64]) -> tuple[int, ...]:
        """Numbers of the weeks (the first is 1) at the alert threshold or above."""
        return tuple((np.flatnonzero(suspected >= self.alert) + 1).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def checked_fraction(reporting_fraction: float) -> float:
    """The number itself of suspected cases for each case. Raises: ValueError where it is not above 0 and finite."""
    if not 0 < reporting_fraction < np.inf:
        raise ValueError(f"reporting_fraction is {reporting_fraction}, but must be above 0 and finite")
    return reporting_fraction


def who_thresholds(population: float) -> OperationalThresholds:
    """Thresholds in suspected cases per week for a district of this many inhabitants.

    Raises: ValueError where the population is not positive.
    """
    if not population > 0:
        raise ValueError(f"population is {population}, but must be above 0")
    if population < SMALL:
        return OperationalThresholds(population=population, alert=FEWEST, epidemic=5.0, doubling=True)
    warning = (
        f"the population of {population:,.0f} is above 100,000: WHO would split it into smaller districts"
        if population > LARGE
        else ""
    )
    scale = population / 1e5
    alert = max(FEWEST, 3 * scale)
    return OperationalThresholds(
        population=population, alert=alert, epidemic=10 * scale, doubling=False, warning=warning
    )


def _first(reached: NDArray[np.bool_]) -> int | None:
    weeks = np.flatnonzero(reached)
    return int(weeks[0]) if weeks.size else None
