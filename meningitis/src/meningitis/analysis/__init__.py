"""The analyses: each takes a model and parameter values and returns a frozen result with `frame()` and `to_dict()`."""

from meningitis.analysis.adequacy import Adequacy, adequacy
from meningitis.analysis.compare import Bands, Comparison, bands, compare
from meningitis.analysis.events import IMPLICIT, Event, Events, events
from meningitis.analysis.importance import global_sensitivity
from meningitis.analysis.infected import (
    EverInfected,
    FinalSizes,
    ever_infected,
    final_size_exact,
    final_sizes,
    final_susceptible,
    first_integral_along,
    infection_potential,
)
from meningitis.analysis.local import LocalSensitivity, local_sensitivity
from meningitis.analysis.outcomes import COMPARED, OUTCOMES, outcomes, sampled, unknown
from meningitis.analysis.prcc import PRCC, prcc
from meningitis.analysis.profiles import Profiles, profiles
from meningitis.analysis.sobol import Sobol, sobol
from meningitis.analysis.surveillance import checked_fraction, who_thresholds

__all__ = [
    "COMPARED",
    "IMPLICIT",
    "OUTCOMES",
    "PRCC",
    "Adequacy",
    "Bands",
    "Comparison",
    "Event",
    "Events",
    "EverInfected",
    "FinalSizes",
    "LocalSensitivity",
    "Profiles",
    "Sobol",
    "adequacy",
    "bands",
    "checked_fraction",
    "compare",
    "events",
    "ever_infected",
    "final_size_exact",
    "final_sizes",
    "final_susceptible",
    "first_integral_along",
    "global_sensitivity",
    "infection_potential",
    "local_sensitivity",
    "outcomes",
    "prcc",
    "profiles",
    "sampled",
    "sobol",
    "unknown",
    "who_thresholds",
]
