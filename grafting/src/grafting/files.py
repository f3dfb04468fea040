"""Writing files so that a reader sees the old bytes or the new ones, never half of them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write beside ``path``, sync, rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the mode that open() would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """:func:`write_bytes_atomic` for UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """:func:`write_bytes_atomic` for JSON, indented, ending in a newline."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    """A JSON object with at least the keys ``needed``. Raises ValueError naming the file and what it lacks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")
    if missing := [key for key in needed if key not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content


def save_safetensors_atomic(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` as one safetensors file, atomically; tensors are made contiguous, on the CPU."""
    from safetensors.torch import save as to_bytes

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes_atomic(path, to_bytes(flat, dict(metadata) if metadata else None))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def misfits(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """What keeps ``given`` from being put into ``wanted``, key by key, the first few; empty where all fits."""
    found = [f"{key} is missing" for key in wanted if key not in given]
    found += [f"{key} is of no use here" for key in given if key not in wanted]
    found += [
        f"{key} is {tuple(given[key].shape)}, must be {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    return ", ".join(found[:4]) + (" …" if len(found) > 4 else "")
