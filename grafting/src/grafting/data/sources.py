"""Where pictures come from: a folder, folders of classes, captions beside pictures, an npz, a Hugging Face dataset.

A source is a list of items in a fixed order; a picture's bytes are read when it is its turn.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from ..files import sha256
from .captions import METADATA, find_captions, why_none
from .pictures import SUFFIXES, PictureError
from .stream import ARRAYS

Condition = Literal["labels", "captions", "none"]
LABELS = ("labels", "arr_1", "train_labels")
"""Names under which an npz may hold labels, beside those of its images."""
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(\S+))?")
"""A dataset of the hub, and one of its splits."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Items by position.

    names: of the pictures, and of folders that cannot be read. read: position to a file, its content, or an array of
    bytes. labels, captions: by position, where there are such. problems: why an item is left out before its picture is
    read. notes: what was guessed about one. ignored: names of other files. classes: names of the labels, by label.
    identity: a hash of all that.
    """

    names: Sequence[str]
    read: Callable[[int], Path | bytes | np.ndarray]
    identity: str
    labels: Sequence[int] | None = None
    captions: Sequence[str | None] | None = None
    problems: Mapping[int, str] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    classes: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


def open_source(
    path: Path,
    condition: Condition,
    *,
    caption_column: str = "text",
    classes: Sequence[str] | None = None,
    count: int | None = None,
) -> Source:
    """The items of a folder, of an npz or npy, or of a dataset of Hugging Face: one that ``save_to_disk`` wrote, or
    ``owner/name`` or ``owner/name:split`` of the hub where no such path is there.

    condition: what must be known of every picture. classes: the names of class folders by label; count: how many
    classes the model knows. Without ``classes``, folders are labelled by their names where these are numbers, else in
    the order of names, if there are ``count`` of them.

    Raises ValueError where there are no pictures, or what ``condition`` asks for is not there.
    """
    if path.suffix in (".npz", ".npy") and path.is_file():
        return _arrays(path, condition, caption_column, count)
    if path.suffix not in (".npz", ".npy") and not path.exists() and (hub := ON_HUB.fullmatch(path.as_posix())):
        return _dataset(path, _of_hub(*hub.groups()), condition, caption_column, count)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder, and no npz of pictures")
    if (path / "dataset_dict.json").is_file():
        splits = sorted(f.name for f in path.iterdir() if f.is_dir())
        raise ValueError(f"{path} holds the splits {', '.join(splits)}: name one of them, such as {path / splits[0]}")
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return _dataset(path, _of_disk(path), condition, caption_column, count)
    return _folder(path, condition, caption_column, classes, count)


# -- folders -----------------------------------------------------------------------------------------------------------


def _folder(root: Path, condition: Condition, column: str, classes: Sequence[str] | None, count: int | None) -> Source:
    files, closed = _files(root)
    pictures = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
    named = condition == "captions" and any(PurePosixPath(name).name == METADATA for name in files)
    if not pictures and not named:
        also = f"; {len(closed)} folders or files cannot be read, such as {min(closed)}" if closed else ""
        raise ValueError(f"{root}: no pictures in it, that is no {', '.join(SUFFIXES)}{also}")
    tops = {name.split("/")[0] for name in pictures}
    if len(tops) > 1 and all("/" in name for name in pictures) and tops <= set(SPLITS):
        raise ValueError(
            f"{root} holds the splits {', '.join(sorted(tops))}: name one of them, such as {root / min(tops)}"
        )
    pictures = sorted([*pictures, *closed])
    told: dict[str, Any] = {}
    used: set[str] = set()
    if condition == "captions":
        found = find_captions(root, files, pictures, column)
        if not found.texts:
            raise ValueError(
                f"{root}: no captions, neither a .txt beside a picture nor a metadata.jsonl; "
                "condition none takes the pictures without"
            )
        pictures = sorted({*pictures, *found.texts, *found.problems})  # those that metadata name, whatever their suffix
        told = {
            "captions": [found.texts.get(name) for name in pictures],
            "problems": {i: found.problems[name] for i, name in enumerate(pictures) if name in found.problems},
            "notes": {i: found.notes[name] for i, name in enumerate(pictures) if name in found.notes},
        }
        used = found.used
    elif condition == "labels":
        told = _classes(root, pictures, classes, count, closed)
    if closed:
        unread = {i: closed[name] for i, name in enumerate(pictures) if name in closed}
        told["problems"] = told.get("problems", {}) | unread
    ignored = sorted({*files} - {*pictures} - used)
    lines = [f"{name} {files.get(name)}" for name in pictures] + [f"{key} {value}" for key, value in told.items()]
    return Source(
        names=pictures,
        read=lambda i: root / pictures[i],
        identity=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        ignored=ignored,
        **told,
    )


def _files(root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Every file's name within ``root`` and its size; and what cannot be read, folders with a slash at their end, and
    why. In the order of names; links to folders are followed. Raises ValueError where ``root`` cannot be read."""
    found, closed = dict[str, int](), dict[str, str]()

    def note(error: OSError, end: str = "/") -> None:
        name, why = Path(error.filename).relative_to(root).as_posix(), f"cannot be read: {error.strerror}"
        if name == ".":
            raise ValueError(f"{root} {why}")
        closed[name + end] = why

    for folder, _, names in os.walk(root, onerror=note, followlinks=True):
        for name in names:
            file = Path(folder) / name
            try:
                if file.is_file():
                    found[file.relative_to(root).as_posix()] = file.stat().st_size
            except OSError as error:
                note(error, "")
    return dict(sorted(found.items())), dict(sorted(closed.items()))


def _classes(
    root: Path, pictures: list[str], classes: Sequence[str] | None, count: int | None, closed: Collection[str]
) -> dict[str, Any]:
    """Labels of pictures by the first folder on their way; one among ``closed``, which cannot be read, counts too."""
    folders = sorted({name.split("/")[0] for name in pictures if "/" in name})
    unseen = sorted({*folders} - {name.split("/")[0] for name in pictures if name not in closed})
    if not folders:
        raise ValueError(f"{root}: no folders of classes in it; condition none takes the pictures without labels")
    if classes is not None:
        label_of = {name: label for label, name in enumerate(classes)}
        if unknown := [name for name in folders if name not in label_of]:
            raise ValueError(f"{root}: folder {unknown[0]} is none of the {len(classes)} classes that were given")
    elif all(name.isdecimal() for name in folders):
        label_of = {name: int(name) for name in folders}
    elif count is None and unseen:  # is it a class? every label after it depends on that
        raise ValueError(
            f"{root}: folder {unseen[0]} cannot be read, so that it is not known how many classes there are: "
            "give a list of all classes"
        )
    elif count is None or count == len(folders):
        label_of = {name: label for label, name in enumerate(folders)}
    else:
        raise ValueError(
            f"{root}: {len(folders)} folders for {count} classes: give a list of all classes in the order of their "
            "labels, or call the folders by their labels (0, 1, …)"
        )
    if len(set(label_of.values())) < len(label_of):
        raise ValueError(f"{root}: two folders have the same label, such as 1 and 01")
    labels = [label_of.get(name.split("/")[0], -1) if "/" in name else -1 for name in pictures]
    _check_labels(root, labels, count)
    return {
        "labels": labels,
        "problems": {i: "lies in no folder of a class" for i, label in enumerate(labels) if label < 0},
        "classes": {label_of[name]: name for name in folders},
    }


def _check_labels(where: Path, labels: Sequence[int], count: int | None) -> None:
    if count is not None and max(labels) >= count:
        raise ValueError(f"{where}: label {max(labels)}, the model knows 0 to {count - 1}")


# -- arrays ------------------------------------------------------------------------------------------------------------


def _arrays(path: Path, condition: Condition, column: str, count: int | None) -> Source:
    stored = _read_arrays(path)
    name = next((name for name in ARRAYS if name in stored), None)
    if name is None:
        raise ValueError(f"{path}: no array {', '.join(ARRAYS[:-1])} or {ARRAYS[-1]} in it")
    images = stored[name]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise ValueError(f"{path}: {name} is {images.dtype} {images.shape}, must be bytes (N, H, W, 3) or (N, 3, H, W)")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise ValueError(f"{path}: {name} is {images.shape}, must have 1 or 3 channels")
    told: dict[str, Any] = {}
    if condition == "labels":
        labels = next((stored[key] for key in LABELS if key in stored), None)
        if labels is None or labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{path}: no labels ({len(images)},) of integers as {', '.join(LABELS)}")
        if labels.min() < 0:
            raise ValueError(f"{path}: label {labels.min()}: labels count from 0")
        told["labels"] = labels.tolist()
        _check_labels(path, told["labels"], count)
    if condition == "captions":
        texts = stored.get(column)
        if texts is None or texts.shape != (len(images),) or texts.dtype.kind != "U":
            raise ValueError(f"{path}: no captions ({len(images)},) of text as {column}")
        told["captions"] = [text.strip() for text in texts.tolist()]
    return Source(
        names=[f"{name}[{i}]" for i in range(len(images))],
        read=lambda i: np.ascontiguousarray(images[i]),
        identity=sha256(path),
        **told,
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npy":
            return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib, struct and numpy itself each have their own
        raise ValueError(f"{path} holds arrays that cannot be read: {error}") from None


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _datasets(what: str) -> Any:
    try:
        return import_module("datasets")
    except ImportError:
        raise ValueError(f"{what}: it is read with the package datasets: pip install datasets") from None


def _of_disk(path: Path) -> Any:
    return _datasets(f"{path} is a dataset of Hugging Face").load_from_disk(str(path))


def _of_hub(name: str, split: str | None) -> Any:
    """A split of a dataset on the hub, its only one where none is named."""
    datasets = _datasets(f"{name} is no folder here, and may be a dataset of Hugging Face")
    try:
        splits = [split] if split else datasets.get_dataset_split_names(name)
        found = datasets.load_dataset(name, split=splits[0]) if len(splits) == 1 else None
    except Exception as error:  # the hub, the builders and pyarrow each have their own
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{name} is no folder here, and was not had as a dataset of the hub: {said}") from None
    if found is None:
        raise ValueError(f"{name} holds the splits {', '.join(splits)}: name one of them, such as {name}:{splits[0]}")
    return found


def _dataset(path: Path, found: Any, condition: Condition, column: str, count: int | None) -> Source:
    identity = str(found._fingerprint)  # of the data as stored: what is cast is not the same for every version
    features = dict(found.features)
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if not images:
        raise ValueError(f"{path}: no column of pictures among {', '.join(features)}")
    found = found.cast_column(images[0], import_module("datasets").Image(decode=False))
    told: dict[str, Any] = {}
    if condition == "labels":
        name = next((name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"), None)
        if name is None:
            raise ValueError(f"{path}: no column of class labels among {', '.join(features)}")
        labels = [-1 if label is None else int(label) for label in found[name]]
        told = {"labels": labels, "classes": dict(enumerate(features[name].names))}
        told["problems"] = {i: "has no label" for i, label in enumerate(labels) if label < 0}
        _check_labels(path, labels, count)
    if condition == "captions":
        if column not in features:
            raise ValueError(f"{path}: no column {column!r} of captions among {', '.join(features)}")
        texts = list(found[column])
        told["captions"] = [text.strip() if isinstance(text, str) else None for text in texts]
        told["problems"] = {i: why_none(texts[i]) for i, text in enumerate(told["captions"]) if text is None}

    def read(i: int) -> Path | bytes:
        picture = found[i][images[0]]
        if picture is None:
            raise PictureError("the dataset has no picture there")
        return picture["bytes"] if picture["bytes"] is not None else Path(picture["path"])

    names = [f"{images[0]}[{i}]" for i in range(len(found))]
    return Source(names=names, read=read, identity=identity, **told)
