"""The rows of a table made one after another, by one process or by several that share its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..claims import locked
from .rows import Row
from .whole import Table


def run_rows(table: Table, chosen: Sequence[Row], publish: Callable[[], Any]) -> dict[str, str]:
    """Make the rows in their order, ``publish`` after each, then time them; returns by name why a row was not made.

    They are timed last, by one process, and only where no row is being made beside them, which would spoil the times:
    what finds one leaves its times to a later call.

    A row that fails does not keep the others from being made. One that another process was making is looked at again
    at the end: it is made here if that process is gone, and waited for if it is not.
    """
    began, elsewhere = time.time(), []
    with locked(table.out / "work" / "teacher.lock", wait=True):
        table.make(table.rows[0])
    for number, row in enumerate(chosen, 1):
        if not _attempt(table, row, f"row {number} of {len(chosen)}: {row.name}", publish, began, wait=False):
            table.say(f"{row.name}: another process makes it")
            elsewhere.append(row)
    for wait in (False, True):  # what was left by one that is gone, before what another is still at
        for row in elsewhere:
            _attempt(table, row, f"{row.name}: left undone by another process", publish, began, wait=wait)
    with locked(table.out / "work" / "timing.lock", wait=True):
        if busy := next((row.name for row in table.rows if _held(table, row)), None):
            table.say(f"no row is timed while {busy} is being made: once all are, the same command times them")
        for row in () if busy else chosen:
            if table.done(row) is not None:
                table.time(row)
    _publish(table, publish)
    return {row.name: why for row in chosen if table.done(row) is None and (why := table.failed(row, began))}


def _attempt(table: Table, row: Row, told: str, publish: Callable[[], Any], began: float, *, wait: bool) -> bool:
    """Make one row unless it is done, or failed after ``began``; False where another process holds it."""
    if row.recipe is None or table.done(row) is not None:
        return True
    with locked(_lock(table, row), wait=wait) as mine:
        if not mine:
            return False
        if table.done(row) is not None or table.failed(row, began):
            return True
        table.say(told)
        try:
            table.make(row)
        except (ValueError, RuntimeError, FloatingPointError) as error:  # all of ours are ValueErrors
            table.say(f"{row.name} failed: {error}")
            table.fail(row, error)
    _publish(table, publish)
    return True


def _held(table: Table, row: Row) -> bool:
    """Whether a process is making it."""
    with locked(_lock(table, row), wait=False) as free:
        return not free


def _lock(table: Table, row: Row) -> Path:
    return table.out / "work" / f"{row.name}.lock"


def _publish(table: Table, publish: Callable[[], Any]) -> None:
    try:
        publish()
    except Exception as error:  # the rows are what takes hours
        table.say(f"the page could not be written: {error}")
