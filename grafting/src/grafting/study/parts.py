"""Work done once: an outcome on disk with the hash of what it depends on, written after what it stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import sha256, write_bytes_atomic, write_json_atomic

CURVE_POINTS = 200
"""Of a curve that is kept, at most about as many."""


class StudyError(ValueError):
    """A study that cannot be run as asked, told before anything is trained."""


def part(
    path: Path,
    settings: Mapping[str, Any],
    make: Callable[[], dict[str, Any]],
    shipped: Path | None = None,
    *,
    write: bool = True,
) -> dict[str, Any]:
    """What ``make`` returns, from ``path`` where that was made under the same settings.

    shipped: a folder that may hold the same part, made under the same settings elsewhere; it is copied with the
    ``files`` that its outcome names, unless one of these is not what it was.
    write: False where another process writes what it makes as well.
    """
    outcome = kept(path, settings)
    if outcome is not None:
        return outcome
    outcome = None if shipped is None or not _whole(shipped / path.name) else kept(shipped / path.name, settings)
    if outcome is None:
        outcome = make()
    elif shipped is not None:
        for name in outcome.get("files", ()):
            write_bytes_atomic(path.parent / name, (shipped / name).read_bytes())
    if write:
        write_json_atomic(path, {"key": key_of(settings), "outcome": outcome})
    return outcome


def kept(path: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The outcome in ``path``; None where there is none, or of other settings, or the file is not what we wrote.

    settings: None takes it whatever it was made under.
    """
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text())
        outcome: dict[str, Any] = saved["outcome"]
        return outcome if settings is None or saved["key"] == key_of(settings) else None
    except (ValueError, KeyError, TypeError):
        return None


def _whole(path: Path) -> bool:
    """Whether the files of a shipped part have the hashes that :mod:`~grafting.study.shipping` noted."""
    if not path.is_file():
        return False
    noted = json.loads(path.read_text()).get("sha256", {})
    return all(
        (path.parent / name).is_file() and sha256(path.parent / name) == hashed for name, hashed in noted.items()
    )


def key_of(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def thinned(points: Any) -> dict[str, list[float]]:
    """At most a few hundred (step, loss) pairs of a curve, the last one among them."""
    listed = list(points)
    every = max(1, -(-len(listed) // CURVE_POINTS))
    kept = [point for k, point in enumerate(listed) if k % every == 0 or k == len(listed) - 1]
    return {"steps": [int(step) for step, _ in kept], "losses": [float(loss) for _, loss in kept]}
