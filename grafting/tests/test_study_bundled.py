"""The whole way on the bundled teacher, and what its card promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from grafting.report import read_results
from grafting.sampling import Pipeline
from grafting.store.models import open_model
from grafting.study import RunRecipe, run
from grafting.study.bench import Study
from grafting.teachers import teachers

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet"),
]
RECIPES = Path(__file__).resolve().parents[1] / "src" / "grafting" / "recipes"


def test_demo_in_small_on_the_bundled_teacher(tmp_path: Path) -> None:
    """Few and small steps of the demo: from a solved start it beats an untrained graft beyond the interval."""
    changes = ["budget=0.05", "finetune.lr=2e-5", "calibration=64", "controls=[untrained]", "evaluate.triples=100"]
    changes += ["evaluate.samples=24", "evaluate.steps=10", "speed.rounds=2", "speed.sides=[8]"]
    results = run(RunRecipe.from_yaml(RECIPES / "demo.yaml", changes), tmp_path, say=lambda line: None)
    assert read_results(tmp_path / "results.json") == results
    teacher, hybrid, untrained = results.models[:3]
    assert [m.name for m in (teacher, hybrid, untrained)] == ["teacher", "hybrid", "untrained"]
    assert "beats untrained" in results.summary
    assert teacher.figures["recognised"].value > 0.5  # of 24 samples in few steps; the card has the real figure
    assert results.costs and results.costs[0].share < 0.05
    assert hybrid.denoising_difference is not None and hybrid.denoising_difference.value > 0


def test_solved_starts_of_the_bundled_teacher_explain_most_of_their_sites(tmp_path: Path) -> None:
    changes = ["budget=0", "controls=[]", "evaluate={triples: 50, grid: 0}", "speed=null", "calibration=128"]
    run(RunRecipe.from_yaml(RECIPES / "fashion-local-mean.yaml", changes), tmp_path, say=lambda line: None)
    handle = open_model(str(tmp_path / "hybrid" / "model")).graft
    assert handle is not None and len(handle.explained) == 6
    assert min(handle.explained.values()) > 0.5


def test_the_demo_takes_the_teachers_measurements_from_the_package(tmp_path: Path) -> None:
    """The shipped samples and losses are those of the demo's own protocol; measured again, the first samples agree."""
    said: list[str] = []
    study = Study(RunRecipe.from_yaml(RECIPES / "demo.yaml"), tmp_path, said.append)
    teacher = next(entry for entry in study.entries if entry.role == "teacher")
    losses, samples = study.denoise(teacher), study.sample(teacher)
    assert said == []  # nothing was computed
    assert losses.shape == (500,) and samples is not None and len(samples) == 200
    again = Pipeline(study.teacher, study.model.autoencoder)(
        study.labels()[:8], sampling=study.recipe.evaluate.sampling, seed=study.recipe.seed, batch_size=8
    )
    assert float((again - samples[:8]).abs().mean()) < 1e-3  # kept in half precision, another batch size
