"""From a declared model to symbolic facts: reproduction numbers, growth, thresholds, indices, equilibria, control."""

from meningitis.symbolic.control import Control, control, critical_value
from meningitis.symbolic.declared import completed, moving_rates, timed_rates
from meningitis.symbolic.diseasefree import zeros_at
from meningitis.symbolic.effective import (
    effective_r,
    effective_r_numeric,
    only_while_few,
    reproduction_along,
    reproduction_name,
)
from meningitis.symbolic.elasticity import Elasticities, elasticities
from meningitis.symbolic.equilibria import Equilibria, Equilibrium, equilibria
from meningitis.symbolic.finalsize import FirstIntegral, first_integral
from meningitis.symbolic.growth import Growth, case_and_carrier, growth, initial_state, reproduction_at_start
from meningitis.symbolic.history import NaturalHistory, natural_history
from meningitis.symbolic.nextgen import (
    NextGeneration,
    NumericR0,
    next_generation,
    nobody_left,
    r0,
    r0_numeric,
)
from meningitis.symbolic.thresholds import Thresholds, no_thresholds, thresholds

__all__ = [
    "Control",
    "Elasticities",
    "Equilibria",
    "Equilibrium",
    "FirstIntegral",
    "Growth",
    "NaturalHistory",
    "NextGeneration",
    "NumericR0",
    "Thresholds",
    "case_and_carrier",
    "completed",
    "control",
    "critical_value",
    "effective_r",
    "effective_r_numeric",
    "elasticities",
    "equilibria",
    "first_integral",
    "growth",
    "initial_state",
    "moving_rates",
    "natural_history",
    "next_generation",
    "no_thresholds",
    "nobody_left",
    "only_while_few",
    "r0",
    "r0_numeric",
    "reproduction_along",
    "reproduction_at_start",
    "reproduction_name",
    "thresholds",
    "timed_rates",
    "zeros_at",
]
