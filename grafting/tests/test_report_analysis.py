"""What an analysis leaves on disk: figures agree with the measurement, and the verb ends in a page or one sentence."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from grafting.cli import main
from grafting.graft import graft
from grafting.measure.analysis import Analysis, AnalysisError, analyze
from grafting.measure.locality import curve
from grafting.measure.suggest import rank, read_ranking
from grafting.plan import Plan
from grafting.report.analysis import write_analysis
from grafting.report.heatmaps import coloured, heat_map, ramp
from grafting.sampling import Sampling

SAMPLING = Sampling(steps=3)


def made(depth: int = 4) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        num_layers=depth,
        sample_size=4,
        patch_size=1,
        num_embeds_ada_norm=3,
    ).eval()
    for block in model.transformer_blocks:
        block.attn1.to_q.weight.data *= 8  # attention that is not even
    return model


@pytest.fixture(scope="module")
def found() -> Analysis:
    return analyze(made(), name="small", samples=3, sampling=SAMPLING)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_tables_hold_what_was_measured(found: Analysis, tmp_path: Path) -> None:
    page = write_analysis(tmp_path, found, reaches=[5, 6], operator="swa")
    table = rows(tmp_path / "locality.csv")
    assert len(table) == 4 * 3 * 2 * (2 + 1), "k = 5 and 6 on the raster, one square within both on the grid"
    for row in table:
        place = (int(row["block"]), found.timesteps.index(int(row["timestep"])), int(row["head"]), int(row["k"]))
        assert float(row["locality"]) == pytest.approx(found.curves(row["distance"])[place].item(), rel=1e-5)  # type: ignore[arg-type]
    for row in rows(tmp_path / "activations.csv"):
        (site,) = (s for s in found.sites if (s.block, s.kind) == (int(row["block"]), row["site"]))
        spread = found.spreads[site, row["side"]][found.timesteps.index(int(row["timestep"]))]  # type: ignore[index]
        assert float(row["kurtosis"]) == pytest.approx(spread.kurtosis, rel=1e-4)
    # L_k of any k follows from what is kept.
    masses = load_file(tmp_path / "masses.safetensors")
    torch.testing.assert_close(curve(masses["raster"])[..., 7], found.curves("raster")[..., 7].float())
    content = json.loads((tmp_path / "analysis.json").read_text())
    assert content["reach"] == {"raster": 5, "grid": 1} and len(content["sites"]) == 8
    assert content["blocks"][2]["raster curve"][5] == pytest.approx(content["blocks"][2]["raster"], rel=1e-5)
    ranking = read_ranking(tmp_path)
    assert ranking.order == rank(found, k=5).order
    half = Plan.from_yaml(tmp_path / "plans" / "most-local-50.yaml")
    assert half.edits == Plan.most_local(ranking.values, operator="swa").edits
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "the page loads nothing"
    assert "plans/most-local-50.yaml" in text and "<svg" in text


def test_k_is_counted_in_what_blocks_are_ranked_by(found: Analysis, tmp_path: Path) -> None:
    write_analysis(tmp_path, found, reaches=[2, 1], distance="grid")
    assert json.loads((tmp_path / "analysis.json").read_text())["reach"] == {"raster": 12, "grid": 2}
    assert {row["k"] for row in rows(tmp_path / "locality.csv") if row["distance"] == "grid"} == {"1", "2"}
    ranking = read_ranking(tmp_path)
    wanted = found.curves("grid")[..., 2].mean((1, 2))
    assert ranking.reach == 2 and ranking.values == pytest.approx(wanted.tolist(), rel=1e-5)


def test_pictures_are_well_formed(found: Analysis, tmp_path: Path) -> None:
    write_analysis(tmp_path, found, distance="grid")
    assert json.loads((tmp_path / "analysis.json").read_text())["reach"] == {"raster": 2, "grid": 0}
    drawings = sorted((tmp_path / "figures").glob("*.svg"))
    assert len(drawings) == 6 + 3 * 2 * 2
    for path in drawings:
        ElementTree.fromstring(path.read_text())
    locality = ElementTree.fromstring((tmp_path / "figures" / "locality-raster.svg").read_text())
    assert len(locality.findall(".//{*}rect")) == 4 * 3
    for name, side in (("offsets", 7), ("attention", 16)):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            zoom = 120 // side
            assert image.size == (6 * side * zoom + 5 * 6, side * zoom)
    assert read_ranking(tmp_path).distance == "grid"


def test_colours_grow_darker_and_even_attention_has_one_colour() -> None:
    light = [sum(ramp(share / 20)) for share in range(21)]
    assert light == sorted(light, reverse=True) and len(set(light)) == 21
    even = coloured(torch.ones(1, 3, 3))
    assert (even == even[..., :1, :1]).all()
    assert coloured(torch.tensor([[[0.0, 1e9]]]))[0, :, 0].sum(0).tolist() == [
        pytest.approx(sum(ramp(end)) / 127.5 - 3, abs=1e-5) for end in (0, 1)
    ]
    assert heat_map([[float("nan")]], "t", rows=["0"], columns=["0"], down="b", across="t") == ""
    one = heat_map([[1.0, float("nan")]], "t", rows=["0"], columns=["0", "1"], down="b", across="t", logarithmic=True)
    assert one.count("<rect") == 1


def test_a_grafted_model_has_a_page_without_ranking(tmp_path: Path) -> None:
    model = made(2)
    graft(model, Plan.explicit(operator="hyena_x", blocks=[1]))
    page = write_analysis(tmp_path, analyze(model, samples=2, sampling=SAMPLING))
    assert not (tmp_path / "plans").exists() and "Suggested plans" not in page.read_text()
    with pytest.raises(AnalysisError, match="ranks no blocks"):
        read_ranking(tmp_path)
    graft(bare := made(2), Plan.all(operator="none"))
    page = write_analysis(tmp_path / "bare", analyze(bare, samples=2, sampling=SAMPLING))
    assert "No block has softmax attention left" in page.read_text()


def test_the_verb_writes_and_prints(tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", str(tiny_teacher), "--samples", "4", "--steps", "2", "--out", str(tmp_path / "a")]
    assert main([*command, "--k", "2,4"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "L_2 raster" in told[0] and told[-1] == str(tmp_path / "a" / "analysis.html")
    assert [int(line.split()[0]) for line in told[1:5]] == list(read_ranking(tmp_path / "a").order)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["depth"] == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--k", "2,16"], "k 16: distances are 0 to 15"),
        (["--k", "-1"], "k -1: distances"),
        (["--distance", "grid", "--k", "4"], "k 4: distances are 0 to 3"),
        (["--distance", "cube"], "raster or grid"),
        (["--operator", "hyena_z"], "hyena_z"),
        (["--samples", "0"], "--samples: '0' must be a whole number of at least 1"),
        (["--batch", "0"], "--batch: '0' must be a whole number of at least 1"),
        (["--operator", "mlp"], "--operator mlp: a channel operator, attention takes a mixer"),
        (["--steps", "1"], "--steps: '1' must be a whole number of at least 2"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    command = ["analyze", str(tiny_teacher), "--samples", "2", "--steps", "2", "--out", str(tmp_path / "a")]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("grafting analyze: ") and told in error
    assert not (tmp_path / "a").exists()


def test_ctrl_c_leaves_nothing_half_written(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grafting.measure import analysis

    def stop(x: torch.Tensor) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis.Spread, "of", stop)
    command = ["analyze", str(tiny_teacher), "--samples", "2", "--steps", "2", "--out", str(tmp_path / "a")]
    assert main(command) == 130
    assert not (tmp_path / "a").exists()
