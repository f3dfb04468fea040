"""Writing files so that a reader sees the old bytes or the new ones, never half of them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside ``path``, to be written meanwhile; then it is synced and renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the mode that open() would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove what writers of such files left when they were killed; of a folder in which none is writing now."""
    for left in folder.glob(f".{pattern}.*"):
        left.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write beside ``path``, sync, rename over it."""
    with replacing(path) as new:
        new.write_bytes(content)


def write_text_atomic(path: Path, text: str) -> None:
    """:func:`write_bytes_atomic` for UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """:func:`write_bytes_atomic` for JSON, indented, ending in a newline."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(
    path: Path, needed: Sequence[str] = (), *, error: type[ValueError] = ValueError, what: str = ""
) -> dict[str, Any]:
    """A JSON object with at least the keys ``needed``. Raises ``error`` naming the file, after ``what`` it should be,
    and what it lacks."""
    told = f"{what} {path}".strip()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise error(f"{told} is not JSON: {problem}") from None
    if not isinstance(content, dict):
        raise error(f"{told} is no JSON object")
    if missing := [key for key in needed if key not in content]:
        raise error(f"{told} lacks {', '.join(missing)}")
    return content


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line of a text in UTF-8, without its end, after what names it in an error.

    Raises ValueError where there is no such file, nothing in it, or a line in another encoding.
    """
    for where, line in _lines(path):
        try:
            yield where, line.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{where} is no text in UTF-8") from None


def json_lines(path: Path, needed: Mapping[str, type]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Every line of a file of JSON objects: what names it in an error, its bytes, and its content.

    needed: the types, ``str`` or ``bool``, of keys that every object must have. Raises ValueError as
    :func:`text_lines`, or where a line is no such object.
    """
    for where, line in _lines(path):
        try:
            content = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{where} is not JSON in UTF-8: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{where} is no JSON object")
        if missing := [key for key in needed if key not in content]:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        for key, kind in needed.items():
            if not isinstance(content[key], kind):
                allowed = "true or false" if kind is bool else "text"
                raise ValueError(f"{where}: {key} is {json.dumps(content[key])}, must be {allowed}")
        yield where, line, content


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines end with a line feed alone, or one after a carriage return; those after the last text are none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = path.read_bytes().rstrip(b"\r\n").split(b"\n")
    if lines == [b""]:
        raise ValueError(f"{path} is empty")
    for number, line in enumerate(lines, 1):
        yield f"{path}, line {number}", line.removesuffix(b"\r")


def save_safetensors_atomic(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` as one safetensors file, atomically; tensors are made contiguous, on the CPU.

    From where they lie, without a second copy of them all.
    """
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as new:
        save_file(flat, new, dict(metadata) if metadata else None)


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
