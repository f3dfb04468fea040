"""Many trajectories of a declared model, or of any system of expressions, on a kernel compiled for it."""

from meningitis.engine.ensemble import ATOL, RTOL, Ensemble, simulate, solve_ode, weekly_times
from meningitis.engine.events import Crossing, crossings
from meningitis.engine.reduction import reduce
from meningitis.engine.status import Status

__all__ = [
    "ATOL",
    "RTOL",
    "Crossing",
    "Ensemble",
    "Status",
    "crossings",
    "reduce",
    "simulate",
    "solve_ode",
    "weekly_times",
]
