"""One self-contained HTML page per run, drawn from its ``results.json``."""

from .grid import grid_png
from .page import render, write_page
from .results import (
    PAIRS,
    Cost,
    Curve,
    Figure,
    ModelResult,
    Results,
    SiteMap,
    SpeedRow,
    TaskScores,
    figures_of,
    read_results,
    write_results,
)

__all__ = [
    "PAIRS",
    "Cost",
    "Curve",
    "Figure",
    "ModelResult",
    "Results",
    "SiteMap",
    "SpeedRow",
    "TaskScores",
    "figures_of",
    "grid_png",
    "read_results",
    "render",
    "write_page",
    "write_results",
]
