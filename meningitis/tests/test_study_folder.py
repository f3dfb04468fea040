"""A study's folder holds one study, whole, or none; whatever else is in it stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from meningitis import study as module
from meningitis.chapters.work import Work
from meningitis.cli import main
from meningitis.files import remove_listed, write_manifest
from meningitis.models import BASIC, GENERALISED
from meningitis.study import study


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def one_table(work: Work) -> None:
    """A chapter that takes no time."""
    work.report.table(work.fullest.name, pd.DataFrame({"x": [1]}), "A table.")


def fails(work: Work) -> None:
    """A chapter that is interrupted."""
    raise KeyboardInterrupt


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHAPTERS", (("Short", one_table),))


@pytest.mark.usefixtures("short")
def test_the_manifest_lists_every_file_with_its_size_and_hash(tmp_path: Path) -> None:
    study(tmp_path, models=(BASIC,))
    listed = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert set(listed) == files(tmp_path) - {"manifest.json"} == {"report.html", "results.json", "tables/basic.csv"}
    for name, entry in listed.items():
        held = (tmp_path / name).read_bytes()
        assert entry == {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}


@pytest.mark.usefixtures("short")
def test_a_second_study_replaces_the_first_and_leaves_the_users_files(tmp_path: Path) -> None:
    study(tmp_path, models=(BASIC,))
    (tmp_path / "tables" / "mine.csv").write_text("my own")
    study(tmp_path, models=(GENERALISED,))
    kept = {"manifest.json", "report.html", "results.json", "tables/generalised.csv", "tables/mine.csv"}
    assert files(tmp_path) == kept
    (tmp_path / "tables" / "generalised.csv").write_text("annotated")
    study(tmp_path, models=(BASIC,))
    assert files(tmp_path) == kept | {"tables/basic.csv"}
    assert (tmp_path / "tables" / "generalised.csv").read_text() == "annotated"


@pytest.mark.usefixtures("short")
def test_a_study_that_fails_leaves_neither_an_old_page_nor_half_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("my own")
    study(tmp_path, models=(BASIC,))
    monkeypatch.setattr(module, "CHAPTERS", (("Short", one_table), ("Long", fails)))
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, models=(GENERALISED,))
    assert files(tmp_path) == {"notes.txt"}


@pytest.mark.parametrize(
    "text", ["{}", "not JSON", '{"files": [1]}', '{"files": {"../x": {"sha256": "0"}}}', '{"files": {"a": 1}}']
)
def test_a_manifest_of_something_else_is_refused_before_anything_is_removed(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "report.html").write_text("another's")
    assert main(("study", "--model", "basic", "--out", str(tmp_path))) == 2
    assert "lists no files of this folder" in capsys.readouterr().err.splitlines()[-1]
    assert files(tmp_path) == {"manifest.json", "report.html"}


def test_nothing_outside_the_folder_is_removed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside.txt", tmp_path / "out"
    outside.write_text("theirs")
    inside.mkdir()
    write_manifest(inside, ["../outside.txt"])
    with pytest.raises(ValueError, match="lists no files of this folder"):
        remove_listed(inside)
    assert outside.exists()
