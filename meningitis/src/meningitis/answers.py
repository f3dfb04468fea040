"""How the verbs answer: tables in the form that was asked for, and sentences that several of them say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from meningitis.model import Model


def put(
    arguments: argparse.Namespace, frame: pd.DataFrame, data: Any = None, words: str = "", model: Model | None = None
) -> None:
    """Print as JSON (`data`, or the table's rows), as CSV (with the model's units), or as words and a table."""
    from meningitis.report import to_json

    if arguments.json:
        sys.stdout.write(to_json(frame.to_dict("records") if data is None else data))
    elif arguments.csv:
        from meningitis.frames import with_units

        sys.stdout.write((frame if model is None else with_units(frame, model)).to_csv(index=False))
    else:
        from meningitis.printed import table_text

        print("\n\n".join(part for part in (words, table_text(frame, model) if len(frame) else "") if part))


def sampled_text(model: Model, values: dict[str, float], pinned: Iterable[str]) -> str:
    """What is held in sampling and what is not, in words."""
    from meningitis import analysis

    held = ", ".join(f"{name} = {values[name]:g}" for name in pinned) or "none"
    names = ", ".join(analysis.sampled(model, tuple(pinned)))
    return f"pinned by --set or --params: {held}; sampled, whatever the scenario says: {names}"


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Say, where the work is interrupted, that the same command goes on with what the folder holds."""
    try:
        yield
    except KeyboardInterrupt:
        if folder:
            print(f"meningitis: the same command goes on with what {folder} holds", file=sys.stderr)
        raise


def called_as(arguments: argparse.Namespace, name: str) -> str:
    """What a table calls the reproduction number: its name for people, and R0, the key, for programs."""
    return "R0" if arguments.json or arguments.csv else name


def settled_text(name: str) -> str:
    """What R_c is, where a table has it."""
    if name == "R0":
        return ""
    return (
        "R_c, the control reproduction number, is that of the disease-free state, where flows without infection such "
        "as vaccination balance"
    )
