"""What is found in folders, arrays and datasets, and what is said of the rest."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encoding import picture, pixels

from grafting.data.captions import decoded
from grafting.data.sources import Source, open_source


def told(source: Source, what: str) -> dict[str, Any]:
    """A source's labels, captions, problems or notes by name."""
    found = getattr(source, what)
    pairs = found.items() if isinstance(found, dict) else enumerate(found)
    return {source.names[i]: value for i, value in pairs}


@pytest.mark.parametrize(
    ("content", "text", "guess"),
    [
        ("a café\n".encode(), "a café", None),
        (b"\xef\xbb\xbfa red disc", "a red disc", None),
        ("über".encode("utf-16"), "über", None),
        (b"\xfe\xff" + "über".encode("utf-16-be"), "über", None),
        ("über".encode("utf-32"), "über", None),
        ("a café".encode("cp1252"), "a café", "Windows-1252"),
        (b" \r\n", "", None),
    ],
)
def test_captions_are_decoded_and_guesses_are_told(content: bytes, text: str, guess: str | None) -> None:
    assert decoded(content) == (text, guess)


@pytest.mark.parametrize("content", [b"a\x81b", "über".encode("utf-16-le"), b"\xff\xfea"])
def test_what_is_no_text_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        decoded(content)


def test_captions_beside_pictures(tmp_path: Path) -> None:
    for name in ("b/two.jpg", "one.PNG", "none.png", "empty.png", "latin.png", "bytes.png"):
        picture(tmp_path / name.replace(".PNG", ".png")).tolist()
    (tmp_path / "one.png").rename(tmp_path / "one.PNG")
    (tmp_path / "b/two.txt").write_text("two of them")
    (tmp_path / "one.txt").write_text(" a red disc \n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("größer".encode("cp1252"))
    (tmp_path / "bytes.txt").write_bytes(b"\x81\x00")
    (tmp_path / "notes.txt").write_text("of no picture")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    source = open_source(tmp_path, "captions")
    assert list(source.names) == sorted(source.names) and len(source) == 6
    captions = {name: text for name, text in told(source, "captions").items() if text is not None}
    assert captions == {"b/two.jpg": "two of them", "one.PNG": "a red disc", "empty.png": "", "latin.png": "größer"}
    problems = told(source, "problems")
    assert problems["none.png"] == "has no caption" and "no text in UTF-8" in problems["bytes.png"]
    assert set(problems) == {"none.png", "bytes.png"}
    assert told(source, "notes") == {"latin.png": "its caption latin.txt was read as Windows-1252"}
    assert sorted(source.ignored) == ["Thumbs.db", "notes.txt"]
    before = source.identity
    (tmp_path / "one.txt").write_text("a blue disc")
    assert open_source(tmp_path, "captions").identity != before


def metadata(folder: Path, *rows: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def test_metadata_names_pictures_from_its_own_folder(tmp_path: Path) -> None:
    for name in ("a.png", "in/b.png", "in/deep/c.png", "none.png", "number.png"):
        picture(tmp_path / name)
    metadata(
        tmp_path,
        {"file_name": "a.png", "text": "a", "other": 1},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "number.png", "text": 7},
    )
    metadata(tmp_path / "in", {"file_name": "./b.png", "text": "b"}, "", {"file_name": "deep/c.png", "text": "c"})
    source = open_source(tmp_path, "captions")
    captions = {name: text for name, text in told(source, "captions").items() if text is not None}
    assert captions == {"a.png": "a", "in/b.png": "b", "in/deep/c.png": "c"}
    assert told(source, "problems") == {
        "gone.png": "is named in metadata.jsonl and is not there",
        "none.png": "has no caption",
        "number.png": "its caption in metadata.jsonl is 7, no text",
    }
    with pytest.raises(ValueError, match="no column 'oter' of captions: did you mean 'other'"):
        open_source(tmp_path, "captions", caption_column="oter")


def test_metadata_may_name_pictures_of_any_suffix(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c.heic", "d.heic", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"of a phone")
    metadata(tmp_path, *({"file_name": name, "text": name[0]} for name in ("a.jfif", "b.jpe", "c.heic")))
    source = open_source(tmp_path, "captions")
    assert told(source, "captions") == {"a.jfif": "a", "b.jpe": "b", "c.heic": "c"}
    assert source.read(2) == tmp_path / "c.heic" and not source.problems
    assert source.ignored == ["d.heic", "notes.pdf"]
    with pytest.raises(ValueError, match="no pictures in it"):
        open_source(tmp_path, "none")


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (["{"], "metadata.jsonl, line 1: not JSON"),
        (["[1]"], "line 1: no JSON object"),
        ([{"text": "a"}], "line 1: no file_name"),
        ([{"file_name": "a.png", "text": "a"}] * 2, "line 2: a.png was named before"),
        ([{"file_name": "a.png"}], "has no column 'text' of captions: it has no other"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused_with_its_line(rows: list[Any], word: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    metadata(tmp_path, *rows)
    with pytest.raises(ValueError, match=word):
        open_source(tmp_path, "captions")


def test_class_folders_are_labelled_by_order_by_number_or_by_a_list(tmp_path: Path) -> None:
    for name in ("n02/a.png", "n01/b.png", "n01/deep/c.png", "n03/d.png", "loose.png"):
        picture(tmp_path / "names" / name)
        picture(tmp_path / "numbers" / name.replace("n0", "1" if "n02" in name else ""))
    labels = told(open_source(tmp_path / "names", "labels", count=3), "labels")
    assert labels == {"loose.png": -1, "n01/b.png": 0, "n01/deep/c.png": 0, "n02/a.png": 1, "n03/d.png": 2}
    source = open_source(tmp_path / "numbers", "labels", count=20)
    assert told(source, "labels") == {"loose.png": -1, "1/b.png": 1, "1/deep/c.png": 1, "12/a.png": 12, "3/d.png": 3}
    assert told(source, "problems") == {"loose.png": "lies in no folder of a class"}
    listed = open_source(tmp_path / "names", "labels", classes=["n03", "x", "n01", "n02"], count=5)
    assert listed.classes == {0: "n03", 2: "n01", 3: "n02"}
    with pytest.raises(ValueError, match="3 folders for 5 classes: give a list"):
        open_source(tmp_path / "names", "labels", count=5)
    with pytest.raises(ValueError, match="folder n02 is none of the 2 classes"):
        open_source(tmp_path / "names", "labels", classes=["n03", "n01"], count=5)
    with pytest.raises(ValueError, match="label 12, the model knows 0 to 9"):
        open_source(tmp_path / "numbers", "labels", count=10)


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "cat").symlink_to(tmp_path / "elsewhere")
    assert open_source(tmp_path / "all", "labels", count=1).names == ["cat/a.png"]


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders put into it cannot be listed and files not be looked at, as by another user than root."""
    found: list[Path] = []

    def closed(call: Any, *, files: bool) -> Any:
        def refusing(path: Any, *given: Any, **more: Any) -> Any:
            if Path(path) in found and bool(Path(path).suffix) == files:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *given, **more)

        return refusing

    monkeypatch.setattr(os, "scandir", closed(os.scandir, files=False))
    monkeypatch.setattr(Path, "stat", closed(Path.stat, files=True))
    return found


def test_what_cannot_be_read_is_named(tmp_path: Path, unreadable: list[Path]) -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png", "c/deep/4.png", "c/5.png"):
        picture(tmp_path / name).tolist()
        (tmp_path / name).with_suffix(".txt").write_text(name)
    before = open_source(tmp_path, "none").identity
    unreadable += [tmp_path / "b", tmp_path / "c" / "deep", tmp_path / "c" / "5.png"]
    source = open_source(tmp_path, "none")
    assert source.names == ["a/1.png", "b/", "c/3.png", "c/5.png", "c/deep/"] and source.identity != before
    closed = dict.fromkeys(["b/", "c/5.png", "c/deep/"], "cannot be read: Permission denied")
    assert told(source, "problems") == closed
    labelled = open_source(tmp_path, "labels", count=3)
    assert told(labelled, "problems") == closed
    assert labelled.classes == {0: "a", 1: "b", 2: "c"}, "a class of which nothing is seen keeps its label"
    with pytest.raises(ValueError, match="folder b cannot be read, so that it is not known how many classes"):
        open_source(tmp_path, "labels")
    captioned = open_source(tmp_path, "captions")
    assert told(captioned, "problems") == closed and told(captioned, "captions")["c/3.png"] == "c/3.png"
    unreadable += [tmp_path / "a", tmp_path / "c"]
    with pytest.raises(ValueError, match=r"no pictures in it, .*; 3 folders or files cannot be read, such as a/$"):
        open_source(tmp_path, "none")
    unreadable.append(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be read: Permission denied"):
        open_source(tmp_path, "none")


def test_what_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        open_source(tmp_path / "gone", "none")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="no pictures in it"):
        open_source(tmp_path, "none")
    picture(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match="no folders of classes"):
        open_source(tmp_path / "flat", "labels", count=1)
    with pytest.raises(ValueError, match="no captions"):
        open_source(tmp_path / "flat", "captions")
    picture(tmp_path / "both" / "train" / "x" / "a.png")
    picture(tmp_path / "both" / "val" / "x" / "a.png")
    with pytest.raises(ValueError, match="holds the splits train, val: name one of them"):
        open_source(tmp_path / "both", "labels", count=1)


def test_arrays_with_labels_and_captions(tmp_path: Path) -> None:
    images = np.stack([pixels(k) for k in range(3)])
    np.savez(tmp_path / "adm.npz", arr_0=images, arr_1=np.array([2, 0, 1]), text=np.array(["a", " b ", ""]))
    source = open_source(tmp_path / "adm.npz", "labels", count=3)
    assert source.labels == [2, 0, 1] and source.names[1] == "arr_0[1]"
    assert np.array_equal(source.read(1), images[1])
    assert open_source(tmp_path / "adm.npz", "captions").captions == ["a", "b", ""]
    np.savez(tmp_path / "ours.npz", train_images=images.transpose(0, 3, 1, 2), train_labels=np.array([0, 1, 1]))
    assert np.array_equal(open_source(tmp_path / "ours.npz", "labels", count=2).read(2), images[2])
    np.save(tmp_path / "bare.npy", images)
    assert len(open_source(tmp_path / "bare.npy", "none")) == 3
    np.savez(tmp_path / "objects.npz", images=images, labels=np.array(["a", 1, None], dtype=object))
    for name, condition, word in (
        ("adm.npz", "labels", "label 2, the model knows 0 to 1"),
        ("ours.npz", "captions", "no captions"),
        ("objects.npz", "labels", "cannot be read"),
        ("bare.npy", "labels", "no labels"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.*{word}"):
            open_source(tmp_path / name, condition, count=2)  # type: ignore[arg-type]


class _Column:
    """A column type of ``datasets``, by name alone."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__ |= settings


class Image(_Column):
    pass


class ClassLabel(_Column):
    pass


class FakeDataset:
    """What the reader uses of ``datasets.Dataset``: features, columns, rows of undecoded pictures."""

    _fingerprint = "abc"

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.features = {"picture": Image(), "label": ClassLabel(names=["cat", "dog"]), "text": _Column()}

    def cast_column(self, name: str, kind: Image) -> FakeDataset:
        assert name == "picture" and kind.decode is False
        cast = FakeDataset(self.rows)
        cast._fingerprint = str(id(cast))  # another in every process, for all that is promised
        return cast

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        return self.rows[key] if isinstance(key, int) else [row[key] for row in self.rows]


def test_a_dataset_on_disk_needs_its_package_and_gives_undecoded_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "there.png")
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("dataset_info.json", "state.json"):
        (folder / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"set is a dataset .*: it is read with .*: pip install datasets$"):
        open_source(folder, "none")
    rows = [
        {"picture": {"bytes": b"abc", "path": None}, "label": 1, "text": " a "},
        {"picture": {"bytes": None, "path": str(tmp_path / "there.png")}, "label": None, "text": None},
        {"picture": None, "label": 0, "text": ""},
        {"picture": {"bytes": b"abc", "path": None}, "label": 0, "text": ["a", "b"]},
    ]
    fake = SimpleNamespace(load_from_disk=lambda path: FakeDataset(rows), Image=Image)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    source = open_source(folder, "captions")
    assert source.captions == ["a", None, "", None]
    assert source.problems == {1: "has no caption", 3: "its caption is ['a', 'b'], no text"}
    assert source.read(0) == b"abc" and source.read(1) == tmp_path / "there.png"
    with pytest.raises(ValueError, match="no picture there"):
        source.read(2)
    labelled = open_source(folder, "labels", count=2)
    assert labelled.labels == [1, -1, 0, 0] and labelled.problems == {1: "has no label"}
    assert labelled.classes == {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="no column 'caption'"):
        open_source(folder, "captions", caption_column="caption")
    (folder / "dataset_dict.json").write_text("{}")
    (folder / "train").mkdir()
    with pytest.raises(ValueError, match=r"name one of them, such as .*train"):
        open_source(folder, "none")


def test_a_dataset_of_the_hub_is_named_by_owner_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^some/pets is no folder here, .*: pip install datasets$"):
        open_source(Path("some/pets"), "none")
    asked: list[tuple[str, str]] = []

    def load(name: str, split: str) -> FakeDataset:
        if name == "some/gone":
            raise FileNotFoundError("Dataset 'some/gone' doesn't exist on the Hub\nor cannot be accessed")
        asked.append((name, split))
        return FakeDataset([{"picture": {"bytes": b"abc", "path": None}, "label": 1, "text": " a "}])

    splits = {"some/pets": ["train", "test"], "some/one": ["all"], "some/gone": ["train"]}
    fake = SimpleNamespace(load_dataset=load, get_dataset_split_names=splits.__getitem__, Image=Image)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    source = open_source(Path("some/pets:test"), "captions")
    assert source.captions == ["a"] and source.read(0) == b"abc"
    assert open_source(Path("some/pets:train[:10%]"), "labels", count=2).labels == [1]
    assert open_source(Path("some/one"), "none").names == ["picture[0]"]
    assert asked == [("some/pets", "test"), ("some/pets", "train[:10%]"), ("some/one", "all")]
    # Of the data as they are stored: the same when they are asked for again.
    assert open_source(Path("some/pets:test"), "captions").identity == source.identity == "abc"
    for name, word in (
        ("some/pets", "holds the splits train, test: name one of them, such as some/pets:train"),
        ("some/gone", "some/gone is no folder here, and was not had .*: Dataset 'some/gone' doesn't exist on the Hub$"),
        ("some/gone.npz", "no such folder"),
        ("../pets", "no such folder"),
    ):
        with pytest.raises(ValueError, match=word):
            open_source(Path(name), "none")
    picture(tmp_path / "some" / "pets" / "a.png")
    assert open_source(Path("some/pets"), "none").names == ["a.png"]
