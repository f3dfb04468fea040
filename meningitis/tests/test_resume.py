"""A large sweep that is killed goes on where it was, to the same bits: from Python and from the command line."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from meningitis import study
from meningitis.analysis import sampled
from meningitis.chapters.importance import sensitivity
from meningitis.cli import main
from meningitis.engine import events, reduce, reduction
from meningitis.models import BASIC
from meningitis.progress import estimated

SETS, CHUNK = 60, 10
VALUES = {"transmission_rate": np.linspace(0.1, 0.6, SETS)}

SWEEP = f"""
import sys, time
import numpy as np
from meningitis.engine import reduce, reduction
from meningitis.models import BASIC
reduction.SAVED_EVERY = 0.0
def progress(done, n):
    print(done, flush=True)
    if done == 30:
        time.sleep(60)
reduce(BASIC, {{"transmission_rate": np.linspace(0.1, 0.6, {SETS})}}, chunk={CHUNK}, checkpoint=sys.argv[1],
       progress=progress)
"""


def test_a_killed_sweep_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "sweep.npz"
    whole = reduce(BASIC, VALUES)
    with subprocess.Popen([sys.executable, "-c", SWEEP, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        for line in child.stdout:
            if line.strip() == "30":
                child.kill()
    assert child.returncode == -signal.SIGKILL
    seen = []
    resumed = reduce(BASIC, VALUES, chunk=CHUNK, checkpoint=path, progress=lambda done, n: seen.append(done))
    assert seen == [40, 50, 60]
    assert resumed.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "sweep.npz"
    path.write_text("something else")
    with pytest.raises(ValueError, match="is no checkpoint of a sweep"):
        reduce(BASIC, VALUES, checkpoint=path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="is no checkpoint of a sweep"):
        reduce(BASIC, VALUES, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("__version__", "0.0.0"),
        ("kernel", lambda system: SimpleNamespace(__module__="kernel_of_another_source")),
        ("__file__", events.__file__),  # another source of the reduction
    ],
)
def test_a_checkpoint_of_other_code_is_refused(name, other, tmp_path, monkeypatch):
    path = tmp_path / "sweep.npz"
    whole = reduce(BASIC, VALUES, checkpoint=path)
    again = reduce(BASIC, VALUES, checkpoint=path)
    np.testing.assert_array_equal(again["cases"], whole["cases"])
    monkeypatch.setattr(reduction, name, other)
    with pytest.raises(ValueError, match=r"another sweep .*version of the code"):
        reduce(BASIC, VALUES, checkpoint=path)


def test_an_interrupted_global_sensitivity_goes_on(tmp_path, monkeypatch, capsys):
    options = ["sensitivity", "--model", "basic", "--global", "--sobol-n", "64", "--lhs-n", "100", "--csv"]
    assert main(options) == 0
    whole = capsys.readouterr().out
    runs = []
    simulate = reduction.simulate

    def stopped(*arguments, **settings):
        runs.append(len(next(iter(settings["parameters"].values()))))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return simulate(*arguments, **settings)

    monkeypatch.setattr(reduction, "simulate", stopped)
    options += ["--checkpoint", str(tmp_path / "kept")]
    assert main(options) == 130
    assert f"the same command goes on with what {tmp_path / 'kept'} holds" in capsys.readouterr().err
    assert main(options) == 0
    assert capsys.readouterr().out == whole
    rows = 64 * (len(sampled(BASIC)) + 2)
    assert runs == [100, rows, rows]  # the ranks' sweep was not run again
    assert main([*options[:5], "128", *options[6:]]) == 2
    assert "another sweep" in capsys.readouterr().err
    assert main(["sensitivity", "--checkpoint", str(tmp_path)]) == 2
    assert "--checkpoint would change nothing without --global" in capsys.readouterr().err


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "CHAPTERS", (("Which parameters matter", sensitivity),))
    words = ["study", "--model", "basic", "--sobol-n", "64", "--lhs-n", "60"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    runs = []
    simulate = reduction.simulate

    def stopped(*arguments, **settings):
        runs.append(len(next(iter(settings["parameters"].values()))))
        if len(runs) == 3:  # after the local indices and the ranks
            raise KeyboardInterrupt
        return simulate(*arguments, **settings)

    monkeypatch.setattr(reduction, "simulate", stopped)
    kept = tmp_path / "kept"
    words += ["--out", str(tmp_path / "out"), "--checkpoint", str(kept)]
    assert main(words) == 130
    assert f"the same command goes on with what {kept} holds" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.*"))
    assert main(words) == 0
    assert runs.count(60) == 1  # the ranks' sweep was not run again
    for name in ("prcc-basic", "sobol-basic"):
        table = (Path("tables") / name).with_suffix(".csv")
        assert (tmp_path / "out" / table).read_text() == (tmp_path / "whole" / table).read_text()


def test_a_study_says_how_far_its_sampling_is(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "CHAPTERS", (("Which parameters matter", sensitivity),))
    clock = iter(range(1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(reduction.reduce, "__kwdefaults__", {**reduction.reduce.__kwdefaults__, "chunk": 50})
    said = []
    study.study(tmp_path, models=(BASIC,), sobol_n=16, lhs_n=120, progress=said.append)
    assert any(re.match(r"outbreaks of the basic model: [0-9]+ of 120", line) for line in said)


def test_progress_has_an_estimate_and_short_work_is_silent(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    said = []
    progress = estimated(said.append, "runs")
    for done, now in ((10, 0.5), (20, 1.0), (30, 1.5), (40, 2.0), (100, 3.0)):
        clock[0] = now
        progress(done, 100)
    assert said == ["runs: 20 of 100, about 4 s left", "runs: 40 of 100, about 3 s left"]
    assert all(re.match(r"runs: [0-9,]+ of 100", line) for line in said)
