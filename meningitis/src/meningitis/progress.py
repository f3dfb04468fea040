"""Progress of long work, in words."""

from __future__ import annotations

import time
from collections.abc import Callable


def estimated(say: Callable[[str], None], what: str, every: float = 1.0) -> Callable[[int, int], None]:
    """Return a `progress(done, n)` that says, at most once in `every` seconds, how far the work is and what is left.

    The estimate rests on what was done since the first call, which may follow a resumed part; work that ends within
    `every` seconds is silent.
    """
    began = said = time.monotonic()
    before: int | None = None

    def progress(done: int, n: int) -> None:
        nonlocal said, before, began
        now = time.monotonic()
        if before is None:
            before, began = done, now
        if now - said < every or done == n:
            return
        said = now
        left = f", about {(now - began) / (done - before) * (n - done):.0f} s left" if done > before else ""
        say(f"{what}: {done:,} of {n:,}{left}")

    return progress
