"""Captions beside pictures: a text file per picture, or ``metadata.jsonl`` as Hugging Face's ImageFolder has it.

A caption that is missing or cannot be read costs its picture and no more; a ``metadata.jsonl`` that is no JSON is
refused, because nobody knows which of its pictures were meant.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..settings import near

METADATA = "metadata.jsonl"
NONE = "has no caption"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; that of UTF-16 begins the one of UTF-32, which comes first."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What was found, by the picture's name: captions, why there is none, and what was guessed.

    used: names of the files that captions were read from.
    """

    texts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


def find_captions(root: Path, files: Mapping[str, int], pictures: list[str], column: str) -> Captions:
    """Captions of ``pictures`` in ``root``; where there is a ``metadata.jsonl``, that alone says.

    files: every file's name and size. column: of the metadata. Raises ValueError for metadata that cannot be used.
    """
    rows = [name for name in files if PurePosixPath(name).name == METADATA]
    found = _from_metadata(root, rows, files, column) if rows else _from_texts(root, files, pictures)
    for name in pictures:
        if name not in found.texts:
            found.problems.setdefault(name, NONE)
    return found


def why_none(found: Any, what: str = "its caption") -> str:
    """Why that which was found where a caption should be is none."""
    return NONE if found is None else f"{what} is {found!r}, no text"


def decoded(content: bytes) -> tuple[str, str | None]:
    """Text of bytes, without the space around it, and the encoding where that is a guess.

    UTF-8, and UTF-16 or 32 with their mark, are certain; else Windows-1252 is guessed. Raises ValueError for what is
    no text in any of them.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding).strip(), None
    try:
        text, guess = content.decode("utf-8"), None
    except UnicodeDecodeError:
        try:
            text, guess = content.decode("cp1252"), "Windows-1252"
        except UnicodeDecodeError:
            raise ValueError("no text in UTF-8, UTF-16 or Windows-1252") from None
    if "\0" in text:
        raise ValueError("no text: it holds bytes of zero")
    return text.strip(), guess


def _from_texts(root: Path, files: Mapping[str, int], pictures: list[str]) -> Captions:
    found = Captions()
    for name in pictures:
        beside = str(PurePosixPath(name).with_suffix(".txt"))
        if beside not in files:
            continue
        found.used.add(beside)
        try:
            found.texts[name], guess = decoded((root / beside).read_bytes())
        except ValueError as error:
            found.problems[name] = f"its caption {beside} is {error}"
        except OSError as error:
            found.problems[name] = f"its caption {beside} cannot be read: {error.strerror}"
        else:
            if guess:
                found.notes[name] = f"its caption {beside} was read as {guess}"
    return found


def _from_metadata(root: Path, tables: list[str], files: Mapping[str, int], column: str) -> Captions:
    found, columns = Captions(), set[str]()
    for table in tables:
        found.used.add(table)
        folder = PurePosixPath(table).parent
        for number, row in _lines(root / table):
            where = f"{root / table}, line {number}"
            columns |= set(row) - {"file_name"}
            if not isinstance(row.get("file_name"), str):
                raise ValueError(f"{where}: no file_name, which names the picture of the row")
            name = str(folder / row["file_name"])
            if name in found.texts or name in found.problems:
                raise ValueError(f"{where}: {row['file_name']} was named before: one row per picture")
            caption = row.get(column)
            if name not in files:
                found.problems[name] = f"is named in {table} and is not there"
            elif isinstance(caption, str):
                found.texts[name] = caption.strip()
            else:
                found.problems[name] = why_none(caption, f"its caption in {table}")
    if column not in columns:
        known = sorted(columns)
        said = near(column, known) if known else "it has no other column than file_name"
        raise ValueError(f"{root / tables[0]} has no column {column!r} of captions: {said}")
    return found


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a JSON-lines file with the numbers of their lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no text in UTF-8") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: no JSON object")
        rows.append((number, row))
    return rows
