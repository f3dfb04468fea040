"""Endemic equilibria of closed populations with return to the susceptibles, against closed forms worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from textbook import SEIAR, SEIR, SIR, TWO_SEX, VECTOR, build

from meningitis.chapters.structure import thresholds
from meningitis.chapters.work import Work
from meningitis.model import Model
from meningitis.models import BASIC, GENERALISED
from meningitis.report import Report
from meningitis.symbolic import equilibria

START = {"S": "0.99*N", "I": "0.01*N"}
INFECTION = ("S", "I", "b*S*I/N", True)
SIS = build("sis", "S I", "I", {"b": 0.4, "g": 0.1, "N": 1e3}, [INFECTION, ("I", "S", "g*I", False)], START)
SIRS = build(
    "sirs", "S I R", "I", {"b": 0.4, "g": 0.1, "w": 0.02, "N": 1e3},
    [INFECTION, ("I", "R", "g*I", False), ("R", "S", "w*R", False)], START,
)  # fmt: skip


def pair(model: Model, **overrides: float) -> tuple[dict[str, float], tuple[complex, ...]]:
    """State and eigenvalues of the only endemic equilibrium, which is stable beside an unstable disease-free one."""
    free, endemic = equilibria(model, model.values(overrides=overrides)).points
    assert (free.kind, free.stable) == ("disease-free", False)
    assert (endemic.kind, endemic.stable) == ("endemic", True)
    return endemic.state, endemic.eigenvalues


@pytest.mark.parametrize("b", [0.11, 0.4, 2.0])
def test_sis(b: float) -> None:
    state, eigenvalues = pair(SIS, b=b)
    assert state == pytest.approx({"S": 1e3 * 0.1 / b, "I": 1e3 * (1 - 0.1 / b)}, rel=1e-8)
    assert eigenvalues == pytest.approx([0.1 - b], rel=1e-7)  # the logistic equation's


@pytest.mark.parametrize(("b", "w"), [(0.4, 0.02), (0.15, 0.5), (1.0, 1e-3)])
def test_sirs(b: float, w: float) -> None:
    state, eigenvalues = pair(SIRS, b=b, w=w)
    ill = (1 - 0.1 / b) / (1 + 0.1 / w)
    assert state == pytest.approx({"S": 100 / b, "I": 1e3 * ill, "R": 1e3 * ill * 0.1 / w}, rel=1e-8)
    force = b * ill
    expected = np.roots([1, force + w, force * (0.1 + w)])
    assert np.sort_complex(np.array(eigenvalues)) == pytest.approx(np.sort_complex(expected.astype(complex)), rel=1e-6)


def test_two_sexes() -> None:
    b, c, g, h = 0.3, 0.2, 0.1, 0.05
    state, eigenvalues = pair(TWO_SEX)
    x, y = (b * c - g * h) / (c * (b + g)), (b * c - g * h) / (b * (c + h))
    expected = {"F": 1e3 * (1 - x), "M": 2e3 * (1 - y), "X": 1e3 * x, "Y": 2e3 * y}
    assert state == pytest.approx(expected, rel=1e-8)
    jacobian = np.array([[-(b * y + g), b * (1 - x) / 2], [2 * c * (1 - y), -(c * x + h)]])
    assert sorted(z.real for z in eigenvalues) == pytest.approx(sorted(np.linalg.eigvals(jacobian)), rel=1e-7)


@pytest.mark.parametrize(("model", "b"), [(SIS, 0.09), (SIRS, 0.09), (TWO_SEX, 0.024)], ids=lambda x: str(x)[:5])
def test_below_the_threshold_the_disease_free_state_is_alone_and_stable(model: Model, b: float) -> None:
    found = equilibria(model, model.values(overrides={"b": b}))
    assert [(point.kind, point.stable) for point in found.points] == [("disease-free", True)]
    assert found.note == "no endemic equilibrium found"


@pytest.mark.parametrize("model", [BASIC, GENERALISED, SIR, SEIAR, VECTOR], ids=lambda m: m.name)
def test_without_return_to_the_susceptibles_none_is_endemic(model: Model) -> None:
    found = equilibria(model, model.values())
    assert [point.kind for point in found.points] == ["disease-free"]
    if model is not VECTOR:
        assert "infection dies out and none is endemic" in found.note
        assert found.points[0].stable is False  # R0 is above 1 in all of them


def test_the_study_tells_the_equilibria_of_a_model_with_births(tmp_path: Path) -> None:
    """S at the endemic one is the susceptibles of the disease-free one over R0, both by hand."""
    report = Report(out=tmp_path, title="", lead="")
    report.section("Thresholds")
    work = Work(report=report, models=(SIR, SEIR), seed=1, sobol_n=16, lhs_n=60, start=None, weeks="iso", days=70.0)
    thresholds(work)
    table = pd.read_csv(tmp_path / "tables" / "equilibria-seir.csv").set_index("equilibrium")
    R0 = 0.4 * 0.2 / (0.2 + 0.02) / (0.1 + 0.02)
    assert table["S"].to_dict() == pytest.approx({"disease-free": 1e3, "endemic": 1e3 / R0})
    assert table["stable"].to_dict() == {"disease-free": "no", "endemic": "yes"}
    assert list(work.results["equilibria"]) == ["seir"] and not (tmp_path / "tables" / "equilibria-sir.csv").exists()
