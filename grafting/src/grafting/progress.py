"""How work says how far it is: to a caller, by a function that it is given, or to people, by a line on a stream."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import IO

Progress = Callable[[int, int], None]
"""Called with (done, of all) of whatever is counted."""
NamedProgress = Callable[[str, int, int], None]
"""Called with (what is made, done, of all); first, for each, with what lies there from before."""


class ProgressLine:
    """One line on a terminal, a line now and then in a log; says the rate and the time left."""

    def __init__(self, total: int, start: int, label: str, stream: IO[str] | None = None) -> None:
        self.total, self.start, self.label = total, start, label
        self.stream = stream or sys.stderr
        self.began = self.last = time.monotonic()

    def show(self, done: int, note: str = "") -> None:
        """``done`` of the total, and a word more."""
        now = time.monotonic()
        tty = self.stream.isatty()
        if done < self.total and now - self.last < (0.5 if tty else 30):
            return
        self.last = now
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left = (self.total - done) / rate if rate > 0 else math.inf
        ending = "\n" if done >= self.total or not tty else ""
        text = f"{self.label} {done}/{self.total}  {rate:.2f}/s  {_minutes(left)} left  {note}"
        self.stream.write((f"\r\033[K{text}" if tty else text) + ending)
        self.stream.flush()


def progress_line(label: str) -> Progress:
    """A line for what begins now, and whose first call says how much of it there is."""
    line = ProgressLine(0, 0, label)

    def show(done: int, total: int) -> None:
        line.total = total
        line.show(done)

    return show


def progress_lines(label: str = "") -> NamedProgress:
    """A line for each of the things that are made; ``label`` stands before its name."""
    lines: dict[str, ProgressLine] = {}

    def show(what: str, done: int, of: int) -> None:
        lines.setdefault(what, ProgressLine(of, done, f"{label}{what}")).show(done)

    return show


def _minutes(seconds: float) -> str:
    return "?" if math.isinf(seconds) else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
