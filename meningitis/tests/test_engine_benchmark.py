"""The benchmark measures what it says: the same task on every route, an honest reference, absent peers named."""

import importlib.metadata
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from meningitis import benchmark
from meningitis.benchmark import page, routes
from meningitis.benchmark.accuracy import deviations, stacked_reference
from meningitis.benchmark.sbml import sbml
from meningitis.cli import main
from meningitis.engine.reference import functions

TASK = routes.Task.drawn(60, seed=4)


def value(node, at):
    """Evaluate content MathML by hand."""
    kind = node.tag.split("}")[1]
    if kind == "ci":
        return at[node.text]
    if kind == "cn":
        return float(node.text)
    operator, *arguments = node
    values = [value(argument, at) for argument in arguments]
    name = operator.tag.split("}")[1]
    return {"plus": sum, "times": np.prod, "power": lambda pair: pair[0] ** pair[1]}[name](values)


def test_sbml_says_the_same_equations():
    f, _ = functions(TASK.system)
    states, p = TASK.starts[0][:6] + 3.0, TASK.table[0]
    at = {f"y{m}": v for m, v in enumerate(states)} | {f"p{k}": v for k, v in enumerate(p)}
    rules = [node for node in ElementTree.fromstring(sbml(TASK.system)).iter() if node.tag.endswith("rateRule")]
    assert [rule.get("variable") for rule in rules] == [f"y{m}" for m in range(9)]
    mine = [value(rule[0][0], at) for rule in rules]
    np.testing.assert_allclose(mine, f(0.0, states.tolist(), p.tolist()), rtol=1e-12)


def test_the_stacked_reference_is_dop853_of_each_set():
    f, _ = functions(TASK.system)
    stacked = stacked_reference(TASK, slice(0, 3))
    for i in range(3):
        p = TASK.table[i].tolist()
        alone = solve_ivp(
            lambda t, y, p=p: f(t, y[:6].tolist(), p),
            (0, routes.DAYS),
            TASK.starts[i],
            method="DOP853",
            t_eval=TASK.times,
            rtol=1e-11,
            atol=1e-11,
        ).y.T
        assert (np.abs(stacked[i] - alone).max(axis=0) / np.abs(alone).max(axis=0)).max() < 1e-9
    error = deviations(TASK, 60)
    assert error.shape == (60,)
    assert 1e-9 < error.max() < 1e-5


def test_a_quick_run_names_what_is_absent_and_writes_its_numbers(monkeypatch, tmp_path):
    def missing(task, quick):
        raise routes.Absent("not here")

    def broken(task, quick):
        raise RuntimeError("of another version")

    peers = {"LSODA": routes.PEERS["scipy solve_ivp LSODA"], "one": missing, "other": broken}
    monkeypatch.setattr(benchmark, "PEERS", peers)
    monkeypatch.setattr(benchmark, "SIZES", {True: (200,)})
    monkeypatch.setattr(benchmark, "COMMANDS", {"help": ("--help",), "nonsense": ("nonsense",)})
    said = []
    found = benchmark.run(quick=True, path=tmp_path / "numbers.json", say=said.append)
    assert json.loads((tmp_path / "numbers.json").read_text()) == found
    mine, *_, peer = found["routes"]
    assert (mine["route"], mine["threads"], mine["deviation"]) == ("meningitis", 1, 0.0)
    assert peer["deviation"] < 1e-4
    assert peer["ratios"]["1"] == pytest.approx(peer["us"] / mine["us"])
    assert peer["ratios"]["1"] > 50
    assert found["absent"]["one"] == "not here"
    assert "RuntimeError: of another version" in found["absent"]["other"]
    assert 0 < found["accuracy"]["median"] < found["accuracy"]["worst"] < found["accuracy"]["allowed"]
    assert 0 < peer["median_deviation"] <= peer["deviation"]
    assert found["versions"]["numba"] == importlib.metadata.version("numba")
    assert found["sizes"][0]["sets"] == 200
    assert found["commands"]["nonsense"] is None
    assert found["commands"]["help"] < 5
    assert any(line.startswith("absent: one") for line in said)


@pytest.mark.parametrize("name", ["roadrunner CVODE", "numbalsoda lsoda", "numbalsoda dop853", "diffrax Tsit5, vmap"])
def test_peers_agree_where_they_are_installed(name):
    try:
        route = routes.PEERS[name](TASK, True)
    except routes.Absent as reason:
        pytest.skip(str(reason))
    mine = routes.engine_route(TASK, 1)
    other = route.outputs(route.solve())
    truth = mine.outputs(mine.solve())[: len(other)]
    assert (np.abs(other - truth).max(axis=1) / np.abs(truth).max(axis=1)).max() < 1e-4


def test_verb_passes_its_options_and_prints_json_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def run(**options: Any) -> dict[str, Any]:
        options.pop("say")("a table")
        asked.update(options)
        return {"sets": 3}

    monkeypatch.setattr(benchmark, "run", run)
    assert main(["benchmark", "--quick", "--seed", "7", "--out", "x.json", "--json"]) == 0
    printed = capsys.readouterr()
    assert asked == {"quick": True, "seed": 7, "path": "x.json"}
    assert json.loads(printed.out) == {"sets": 3} and "a table" in printed.err


NUMBERS = Path(__file__).parents[1] / "benchmarks" / "engine.json"


def test_the_page_says_what_was_measured():
    """Its figures are those of the committed numbers, every one."""
    text = (NUMBERS.parents[1] / "docs" / "engine.md").read_text(encoding="utf-8")
    found = json.loads(NUMBERS.read_text())
    assert page.filled(text, found) == text
    ours = found["routes"][0]
    assert f"| meningitis | 1 | 10,000 | {ours['us']:,.1f} (" in text
    found["commands"]["meningitis study"] = 61.0
    assert "| `meningitis study`, s | at most 60 | **61.00, missed** |" in page.figures(found)


def test_the_processor_has_a_name(tmp_path):
    record = tmp_path / "cpuinfo"
    record.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\n\nprocessor\t: 1\n")
    assert benchmark._processor(record) == "Some CPU, family 25, model 17"
    assert benchmark._processor(tmp_path / "none")
