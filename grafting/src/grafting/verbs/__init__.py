"""The verbs of the command line, a module per group.

Each module has ``add(verbs)``, which declares parsers and must import nothing heavy, and the functions that they run,
which import what they need. A new verb is a module and its name in :data:`GROUPS`.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from .shared import Verbs

GROUPS = (
    "planning",
    "stages",
    "pictures",
    "encoding",
    "pairs",
    "measuring",
    "profiling",
    "analysis",
    "search",
    "runs",
    "tables",
    "recipes",
)
"""Modules of this package, in the order of ``grafting --help``."""


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` all verbs; parsed arguments have ``verb`` (its name), ``run`` and ``goes_on_with``."""
    verbs = Verbs(parser.add_subparsers(dest="verb", required=True, metavar="VERB"))
    for name in GROUPS:
        import_module(f".{name}", __name__).add(verbs)
