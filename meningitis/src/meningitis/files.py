"""Files that are written whole or not at all, and the manifest of a folder. Knows nothing of models."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

MANIFEST = "manifest.json"
"""The file of a folder that lists the others that were written with it; it comes last."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write to, synced and renamed to it at the end; where writing fails the old one stays.

    So a reader sees the old file or the new one, and never a half. Folders that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """List files under `folder`, by names relative to it, with their sizes in bytes and SHA-256."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=2) + "\n")


def remove_listed(folder: Path, first: Iterable[str] = ()) -> None:
    """Remove those `first`, then the files that the folder's manifest lists, then the manifest.

    A file that is no longer as it was listed stays: it is its owner's now.
    Raises: ValueError, with nothing removed, where the manifest is one of something else.
    """
    listed = _listed(folder)
    for name in first:
        (folder / name).unlink(missing_ok=True)
    for name, digest in listed.items():
        if (folder / name).is_file() and _sha256(folder / name) == digest:
            (folder / name).unlink()
    (folder / MANIFEST).unlink(missing_ok=True)


def _listed(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        listed = {str(name): str(entry["sha256"]) for name, entry in json.loads(path.read_bytes())["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        listed = {"": ""}
    if any(not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in listed):
        raise ValueError(f"{path} lists no files of this folder: remove it or name another folder")
    return listed


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
