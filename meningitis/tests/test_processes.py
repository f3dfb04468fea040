"""Models travel: pickled, copied, hashed, sent to other processes, and run in forked ones."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from textbook import SEIAR, SIR

from meningitis import symbolic
from meningitis.engine import compile as compiling
from meningitis.engine import simulate
from meningitis.engine.system import of_model
from meningitis.model import Compartment, Flow, InitialState, Model, Parameter, Scenario
from meningitis.models import BASIC, GENERALISED


@pytest.mark.parametrize("model", [BASIC, GENERALISED, SIR, SEIAR], ids=lambda model: model.name)
def test_a_model_can_be_pickled_copied_and_hashed(model: Model) -> None:
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert other == model and hash(other) == hash(model) and other.hash == model.hash
        assert other.rhs() == model.rhs() and other.initial_state() == model.initial_state()
    assert {model: 1, copy.deepcopy(model): 2} == {model: 2}
    assert len({*model.scenarios, *copy.deepcopy(model.scenarios)}) == len(model.scenarios)
    assert hash(copy.deepcopy(model.initial)) == hash(model.initial)


def test_whole_numbers_are_the_floats_that_are_read_back() -> None:
    def declared(number: type) -> Model:
        return Model(
            name="whole",
            compartments=(Compartment(name="S"), Compartment(name="I", infected=True)),
            parameters=(
                Parameter(name="b", default=number(1), bounds=(number(0), number(2))),
                Parameter(name="N", default=number(100), kind="count"),
            ),
            flows=(Flow(name="infection", source="S", target="I", rate="b*S*I/N", new_infection=True),),
            initial=InitialState(values={"S": number(99), "I": number(1)}),
            scenarios=(Scenario(name="a", overrides={"b": number(2)}, days=number(30)),),
            max_step=number(7),
        )

    whole, real = declared(int), declared(float)
    assert whole == real and whole.hash == real.hash == Model.from_yaml(whole.to_yaml()).hash


def test_models_go_to_the_workers_of_a_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(symbolic.growth, SIR, SIR.values()).result(timeout=300)
    assert found == symbolic.growth(SIR, SIR.values())
    assert found.rate == pytest.approx(0.4 * 0.99 - 0.1)


def final(model: Model) -> np.ndarray:
    return simulate(model, parameters={"b": np.linspace(0.2, 0.6, 40)}, days=100).states


def test_a_run_goes_on_in_a_forked_process_and_on_one_thread_to_the_same_bits() -> None:
    here = final(SIR)  # may start threads, after which a child that starts its own is killed
    alone = simulate(SIR, parameters={"b": np.linspace(0.2, 0.6, 40)}, days=100, threads=1).states
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        forked = pool.submit(final, SIR).result(timeout=300)
    np.testing.assert_array_equal(forked, here)
    np.testing.assert_array_equal(alone, here)


def test_a_kernel_that_has_to_be_compiled_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    solve = compiling.kernel.__wrapped__(of_model(SEIAR))  # loaded, and not yet compiled
    assert capsys.readouterr().err == "meningitis: compiling a kernel for this model, once: 10 to 40 seconds\n"
    folder = Path(solve.stats.cache_path)
    folder.mkdir(exist_ok=True)
    (folder / f"{solve.__module__}.solve-265.py311.nbi").touch()
    monkeypatch.setattr(compiling, "_load", lambda name, path: SimpleNamespace(solve=solve))
    assert compiling.kernel.__wrapped__(of_model(SEIAR)) is solve
    assert capsys.readouterr().err == ""
