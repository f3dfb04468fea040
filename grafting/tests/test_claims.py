"""What a folder of work under way is for, and what is left of a claim whose work was refused."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grafting.claims import HELD, ClaimError, claim, claimed, differing, held, locked


def test_a_refusal_before_anything_was_made_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out" / "state" / "settings.json"
    with pytest.raises(ValueError, match="refused"), claimed(path, {"lr": 1}, begun=False):
        assert json.loads(path.read_text()) == {"lr": 1}
        raise ValueError("refused")
    assert not (tmp_path / "out").exists() and tmp_path.is_dir()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="refused"), claimed(path, {"lr": 1}, begun=False):
        raise ValueError("refused")
    assert [*tmp_path.rglob("*")] == [tmp_path / "out"], "a folder that was there stays"


def test_work_that_was_made_keeps_its_claim(tmp_path: Path) -> None:
    path, made = tmp_path / "state" / "settings.json", tmp_path / "state" / "state.json"
    with pytest.raises(ValueError, match="not finite"), claimed(path, {"lr": 1}, begun=False):
        made.write_text("{}")
        raise ValueError("the loss is not finite")
    assert path.is_file() and made.is_file()
    with pytest.raises(KeyboardInterrupt), claimed(path, {"lr": 1}):
        raise KeyboardInterrupt
    with pytest.raises(ClaimError, match="lr 1 there, 2 now"), claimed(path, {"lr": 2}):
        raise AssertionError("not reached")
    assert json.loads(path.read_text()) == {"lr": 1}


def test_a_folder_is_held_by_one_and_nothing_of_that_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "graft"
    with held(folder):
        with pytest.raises(ClaimError, match=rf"{folder}: another process is at work there"), held(folder):
            raise AssertionError("not reached")
        assert (folder / HELD).is_file(), "who was refused leaves the lock"
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="full"), held(folder):
        (folder / "state.json").write_text("{}")
        raise ValueError("full")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "state.json"]


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = f"import os; from pathlib import Path; from grafting.claims import held; path = Path({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", f"{code}\nwith held(path):\n os._exit(1)"], check=False)
    assert (tmp_path / HELD).is_file()
    with held(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_lock_that_its_holder_removed_is_nobody_s(tmp_path: Path) -> None:
    """Opened before the holder removed it, and free after: another process may hold the one that is there by then."""
    path = tmp_path / "lock"
    flock = fcntl.flock

    def late(*given: Any) -> None:
        path.unlink()
        flock(*given)

    with pytest.MonkeyPatch.context() as between:
        between.setattr("grafting.claims.fcntl.flock", late)
        with locked(path, wait=False) as mine:
            assert not mine


def test_what_a_state_did_not_say_yet_is_not_compared() -> None:
    """States of before a training said what it learnt from go on; those that say it hold to it."""
    assert differing({"lr": 1}, {"lr": 1, "material": {"images": "a"}, "learnt from": 8}) == ""
    assert differing({"material": {"images": "b"}}, {"material": {"images": "a"}}) == "material.images b there, a now"
    assert differing({"lr": 1}, {"lr": 1, "seed": 2}) == "seed None there, 2 now"


def test_how_often_something_is_written_is_not_compared() -> None:
    there = {"finetune": {"lr": 1, "log_every": 10}, "save_every": 2}
    assert differing(there, {"finetune": {"lr": 1, "log_every": 1}}) == ""
    assert differing(there, {"finetune": {"lr": 2, "log_every": 1}}) == "finetune.lr 1 there, 2 now"


def test_settings_under_which_nothing_was_made_are_free(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    claim(path, {"one": {"batch": 8}, "two": {"batch": 8}})
    claim(path, {"one": {"batch": 8}, "two": {"batch": 4}}, free=("two",))
    assert json.loads(path.read_text())["two"] == {"batch": 4}
    with pytest.raises(ClaimError, match=r"settings \(one.batch 8 there, 4 now\)"):
        claim(path, {"one": {"batch": 4}, "two": {"batch": 2}}, free=("two",))
    claim(path, {"one": {"batch": 4}, "two": {"batch": 2}}, begun=False)
    assert json.loads(path.read_text()) == {"one": {"batch": 4}, "two": {"batch": 2}}
