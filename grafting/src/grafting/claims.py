"""What a folder of work under way is for, noted beside it, so that a continued run is never two runs mixed."""

from __future__ import annotations

import fcntl  # of POSIX: Linux and macOS are what the package is for
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import write_json_atomic

HELD = ".lock"
"""The file in a folder that tells other processes that one is at work there."""


class ClaimError(ValueError):
    """A folder that holds work under other settings, or in which another process works."""


def claim(
    path: Path, settings: Mapping[str, Any], *, begun: bool = True, free: Collection[str] = (), what: str = "a model"
) -> None:
    """Note in ``path`` what its folder is for; refuse one that is for something else, whose states would be mixed.

    begun: whether anything was made under the settings noted there; where nothing was, they are replaced. free: those
    of which this is true where something was made under the others. what: it is made of, for the error.
    Raises ClaimError naming the settings that differ.
    """
    plain = json.loads(json.dumps(settings))
    if begun and path.is_file():
        there = json.loads(path.read_text())
        old, new = ({key: value for key, value in one.items() if key not in free} for one in (there, plain))
        if named := differing(old, new):
            raise ClaimError(
                f"{path.parent} holds {what} of other settings ({named}): name another folder or remove it"
            )
        if there == plain:
            return
    write_json_atomic(path, plain)


@contextmanager
def claimed(path: Path, settings: Mapping[str, Any], *, begun: bool = True, what: str = "a model") -> Iterator[None]:
    """:func:`claim` for the work inside, taken back where that is refused (ValueError) before it made anything."""
    there = _missing(path.parent)
    claim(path, settings, begun=begun, what=what)
    try:
        yield
    except ValueError:
        if not begun and list(path.parent.iterdir()) == [path]:
            path.unlink()
            _remove_empty(there)
        raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """``folder`` for this process alone while this is open; made if need be, and gone again where it stays empty.

    Raises ClaimError where another process holds it.
    """
    there, path = _missing(folder), folder / HELD
    with locked(path, wait=False) as mine:
        if not mine:
            raise ClaimError(f"{folder}: another process is at work there: wait for it, or name another folder")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            _remove_empty(there)


def _missing(folder: Path) -> list[Path]:
    """``folder`` and those above it that are not there yet, from the inside out."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


SINCE = ("material", "learnt from", "taught by")
"""What states of trainings did not say at first: where one does not, it is not compared."""
OFTEN = ("save_every", "log_every")
"""What says when to write, not what; never compared."""


def differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings read ``there`` and wanted ``now`` that differ, the first few with both values; empty for none."""
    now = {key: value for key, value in now.items() if key in there or key not in SINCE}
    old, new = _flat(there), _flat(json.loads(json.dumps(now)))
    told = [key for key in {**old, **new} if key.rpartition(".")[2] not in OFTEN]
    changed = [key for key in told if old.get(key) != new.get(key)]
    named = ", ".join(f"{key} {old.get(key)} there, {new.get(key)} now" for key in changed[:5])
    return named + (" …" if len(changed) > 5 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, entry in value.items() for k, v in _flat(entry, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock of ``path`` while this is open; it goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield os.fstat(file.fileno()).st_nlink > 0  # else its holder removed it since it was opened here
