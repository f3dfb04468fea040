"""One self-contained HTML page per run, drawn from its ``results.json``."""

from .page import grid_png, render, write_page
from .results import (
    Cost,
    Curve,
    Figure,
    ModelResult,
    Results,
    SiteMap,
    SpeedRow,
    figures_of,
    read_results,
    write_results,
)

__all__ = [
    "Cost",
    "Curve",
    "Figure",
    "ModelResult",
    "Results",
    "SiteMap",
    "SpeedRow",
    "figures_of",
    "grid_png",
    "read_results",
    "render",
    "write_page",
    "write_results",
]
