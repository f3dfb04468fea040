"""``graft.json``, the manifest of a graft's folder, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import read_json

MANIFEST = "graft.json"
NEEDED = ("whole", "base", "class", "config", "conventions", "plan", "init", "seed", "explained", "file", "protocol")


class StoreError(ValueError):
    """A folder that is no graft, one that changed since it was written, or one that another model is needed for."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a graft. Raises StoreError where there is none, or what is there is no manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(f"{folder} is no graft: it has no {MANIFEST}")
    return read_json(path, NEEDED, error=StoreError, what="manifest of a graft")
