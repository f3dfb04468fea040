"""Time limits for symbolic work, so that an awkward model falls back to numbers instead of hanging."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import sympy as sp

TIDY_SECONDS = 2.0
"""What writing one expression shorter may take: it is for the reader, and changes no value."""
AGAIN = 0.5  # seconds after which a limit that some library swallowed is raised once more


class TimeLimit(Exception):
    """The symbolic work did not finish within the limit that `limit` stands for."""

    def __init__(self, message: str, limit: object) -> None:
        super().__init__(message)
        self.limit = limit


@contextmanager
def time_limit(seconds: float) -> Iterator[object]:
    """Raise TimeLimit in the body after `seconds`; yields what its `limit` then is. An outer limit stays in force.

    Only the main thread can be interrupted, and only where the system has timers; elsewhere the body runs to its end.
    """
    mine = object()
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield mine
        return
    began, outer = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0]
    if 0 < outer <= seconds:  # that one ends first, and its owner must hear of it
        yield mine
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeLimit(f"stopped after {seconds:g} s", mine)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield mine
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if outer > 0:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 1e-3), AGAIN)


def tidy(
    expression: sp.Expr, function: Callable[[sp.Expr], sp.Expr] = sp.simplify, seconds: float = TIDY_SECONDS
) -> sp.Expr:
    """`function(expression)`, an equal and shorter form, or the expression as it is where that takes too long."""
    mine: object = None
    try:
        with time_limit(seconds) as mine:
            return function(expression)
    except TimeLimit as stopped:
        if stopped.limit is not mine:
            raise
        return expression
