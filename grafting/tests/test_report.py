"""The results file round trips and the page shows what is in it, from one self-contained file."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from grafting.report import (
    Cost,
    Curve,
    Figure,
    ModelResult,
    Results,
    SiteMap,
    SpeedRow,
    figures_of,
    grid_png,
    read_results,
    render,
    write_page,
    write_results,
)
from grafting.report.curves import model_curves, site_curves
from grafting.report.figures import number


def results(folder: Path) -> Results:
    images = torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = []
    for k, (name, role) in enumerate(
        [("teacher", "teacher"), ("hyena_x 50 %", "hybrid"), ("procedure", "control"), ("none", "control")]
    ):
        (folder / f"grid{k}.png").write_bytes(grid_png(images, columns=10))
        fid = Figure(value=12.3 + 2 * k, low=11.0 + 2 * k, high=13.6 + 2 * k, floor=3.2)
        models.append(
            ModelResult(
                name=name,
                role=role,
                run="quick run",
                description="made up for this test",
                figures={"fid": fid, "kid": Figure(value=0.0123), "precision": Figure(value=0.7, floor=0.8)},
                protocol="N = 300, 20 DDIM steps (not Inception FID)",
                denoising=Figure(value=0.13 + 0.001 * k),
                denoising_difference=Figure(value=0.001 * k, low=0.001 * k - 2e-4, high=0.001 * k + 3e-4)
                if k
                else None,
                grid=f"grid{k}.png",
            )
        )
    curves = [
        Curve(
            name=f"blocks.{b}.attn",
            run="quick run",
            stage="stage 1",
            steps=tuple(range(0, 200, 10)),
            losses=tuple((0.5 + 0.1 * b) / (1 + 0.05 * s) for s in range(0, 200, 10)),
            held_out=((0, 0.6), (200, 0.1)) if b > 1 else (),
        )
        for b in range(1, 12, 2)
    ]
    return Results(
        title="hyena_x in half of the attention sites",
        run="quick run",
        summary="A page for a test: its numbers are made up.",
        models=tuple(models),
        curves=tuple(curves),
        maps=(
            SiteMap(
                model="hyena_x 50 %",
                run="quick run",
                sites={"attn": tuple("hyena_x" if b % 2 else None for b in range(12)), "mlp": (None,) * 11 + ("mlp",)},
            ),
        ),
        speed=(
            SpeedRow(
                model="hyena_x 50 %",
                run="bench",
                setting="4,096 tokens, 1 thread, fp32",
                speedup=1.25,
                low=1.22,
                high=1.3,
                seconds=1.2,
                teacher_seconds=1.5,
                flop_bound=1.23,
                time_bound=1.4,
            ),
        ),
        costs=(
            Cost(
                model="hyena_x 50 %", run="quick run", parts={"stage 1": 2e12, "stage 2": 5e12}, teacher_training=1e14
            ),
        ),
        notes=("Figures of the quick run.",),
        provenance={"grafting": "0.1.0", "seed": "0"},
    )


def test_results_round_trip(tmp_path):
    made = results(tmp_path)
    write_results(tmp_path / "results.json", made)
    assert read_results(tmp_path / "results.json") == made
    assert made.costs[0].share == pytest.approx(0.07)


def test_results_refuse_what_they_cannot_hold(tmp_path):
    made = results(tmp_path)
    broken = replace(made, models=(replace(made.models[0], figures={"fid": Figure(value=float("nan"))}),))
    with pytest.raises(ValueError, match="not finite"):
        write_results(tmp_path / "results.json", broken)
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(ValueError, match="did you mean 'models'"):
        Results.from_dict({"title": "x", "run": "y", "model": []})
    with pytest.raises(ValueError, match="schema 7"):
        Results.from_dict({"title": "x", "run": "y", "schema": 7})
    with pytest.raises(ValueError, match="incomplete"):
        Results.from_dict({"title": "x"})
    with pytest.raises(ValueError, match="teacher, hybrid, control"):
        ModelResult(name="a", role="student", run="b")


def test_page_is_whole_and_self_contained(tmp_path):
    made = results(tmp_path)
    write_page(tmp_path / "report.html", made)
    page = (tmp_path / "report.html").read_text()
    assert page == render(json.loads(json.dumps(asdict(made))), tmp_path)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "@import" not in page and "<script" not in page
    assert page.count("data:image/png;base64,") == 4
    for shown in ("12.3", "11.0 … 13.6", "+0.00100", "N = 300, 20 DDIM steps", "1.25×", "1.23×", "1.40×", "7 % of"):
        assert shown in page, shown
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 5
    for drawing in drawings:
        root = ET.fromstring(drawing)  # well-formed
        assert root.find("{http://www.w3.org/2000/svg}title").text
    hyena = next(d for d in drawings if "sites of" in d)
    assert hyena.count("attn: hyena_x") == 6 and hyena.count("untouched</title>") == 6 + 11


def test_every_figure_names_its_run_and_protocols_do_not_mix(tmp_path):
    made = results(tmp_path)
    other = replace(made.models[0], run="full run", protocol="N = 2000")
    page = render(replace(made, models=(*made.models, other)), tmp_path)
    quality = page[page.index("Quality of samples") :]
    # Two protocols, each in two tables: closeness to real images, and precision with the rest.
    assert quality.count("<tbody>", 0, quality.index("</section>")) == 4 and "full run" in quality


def test_the_first_screen_has_the_teacher_and_the_hybrid_and_what_the_hybrid_is_judged_by(tmp_path):
    made = results(tmp_path)
    page = render(made, tmp_path)
    first = page[page.index("key numbers") : page.index("Held-out denoising loss")]
    assert first.count("<img") == 2 and "procedure" not in first and page.count("<img") == 4
    assert all(alt.startswith("A grid of samples of ") for alt in re.findall(r'alt="([^"]*)"', page))
    for value in ("0.1310", "teacher’s 0.1300, by +0.0008 … +0.0013", "0.0123", "not Inception", "7 %"):
        assert value in first, value
    elsewhere = replace(made, models=tuple(replace(m, run="another") for m in made.models))
    assert "key numbers" not in render(elsewhere, tmp_path)  # a run beside it is no headline


def test_a_wide_table_is_split_and_says_how_far_its_intervals_reach(tmp_path):
    made = results(tmp_path)
    many = {name: Figure(value=1.0, low=0.5, high=1.5) for name in ("fid", "fid_minus_floor", "sfid", "kid", "recall")}
    page = render(replace(made, models=(replace(made.models[0], figures=many),)), tmp_path)
    heads = [h.count("<th>") for h in re.findall(r"<thead>.*?</thead>", page[page.index("Quality of") :], re.S)[:2]]
    assert heads == [4, 3] and "reach FID ±0.500, FID − floor ±0.500, KID ±0.500" in page


def paths(drawing: str, width: str) -> list[str]:
    return [p.get("d") for p in ET.fromstring(drawing).iter() if p.get("stroke-width") == width and "L" in p.get("d")]


def test_every_site_has_a_panel_with_its_held_out_error_on_it(tmp_path):
    """Places of points from the axes' definition: a factor of ten is the height, the last step the width."""
    line = Curve(
        name="blocks.0.attn", run="r", stage="s", steps=(0, 10), losses=(1.0, 0.1), held_out=((0, 0.5), (10, 0.2))
    )
    other = replace(line, name="blocks.1.attn", losses=(0.7, 0.3), held_out=())
    drawing = site_curves([line, other], "t")
    (judged,) = paths(drawing, "2.4")
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in judged.removeprefix("M").split("L"))
    (trained,) = paths(drawing, "1.0")  # thin beside a held-out curve, thicker alone
    (u0, v0), (u1, v1) = (map(float, point.split()) for point in trained.removeprefix("M").split("L"))
    assert len(paths(drawing, "1.6")) == 1 and (x0, x1) == (u0, u1)
    height = v1 - v0
    assert (y0 - v0) / height == pytest.approx(0.301, abs=2e-3) and (y1 - v0) / height == pytest.approx(0.699, abs=2e-3)
    assert drawing.count("<circle") == 2 and "0.200" in drawing and "blocks.1.attn" in drawing
    assert site_curves([], "t") == model_curves([replace(line, losses=(0.0, 0.0), held_out=())], "t") == ""


def test_models_of_one_stage_share_their_axes_and_keep_their_names(tmp_path):
    lines = [Curve(name=f"m{k}", run="r", stage=f"m{k}: stage 2", steps=(1, 9), losses=(2.0, 1.0)) for k in range(3)]
    page = render(Results(title="t", run="r", curves=tuple(lines)), tmp_path)
    (drawing,) = re.findall(r"<svg.*?</svg>", page, re.S)
    root = ET.fromstring(drawing)
    labels = {t.text: float(t.get("y")) for t in root.iter() if t.text and t.text.startswith("m")}
    heights = sorted(labels.values())
    assert set(labels) == {"m0", "m1", "m2"} and min(b - a for a, b in pairwise(heights)) >= 15
    assert heights[-1] < float(root.get("viewBox").split()[3]) and "stroke-dasharray" in drawing


def test_the_summary_is_one_line_per_hybrid(tmp_path):
    made = results(tmp_path)
    hybrids = tuple(replace(made.models[1], name=name) for name in ("half", "all"))
    text = "half (x at attn): it gains 1.5 to 2.0. It does. all (x): so."
    page = render(replace(made, models=hybrids, summary=text), tmp_path)
    assert "<p>half (x at attn): it gains 1.5 to 2.0. It does.</p>" in page and "<p>all (x): so.</p>" in page


def test_names_are_escaped_and_an_empty_page_stands(tmp_path):
    page = render(Results(title="<script>alert(1)</script>", run="a & b"), tmp_path)
    assert "<script" not in page and "a &amp; b" in page and "<section>" not in page
    made = results(tmp_path)
    evil = replace(made, models=tuple(replace(m, name="<b>x") for m in made.models))
    assert "<b>x" not in render(evil, tmp_path)


def test_a_grid_outside_the_folder_is_refused(tmp_path):
    made = results(tmp_path)
    for grid in ("../x.png", "missing.png", "/etc/hostname"):
        with pytest.raises(ValueError, match="not a file inside"):
            render(replace(made, models=(replace(made.models[0], grid=grid),)), tmp_path)


def test_grid_places_pictures_row_by_row():
    from PIL import Image

    images = torch.full((3, 1, 2, 2), -1.0)
    images[2] = 1.0
    sheet = Image.open(io.BytesIO(grid_png(images, columns=2, gap=1, zoom=1)))
    assert sheet.size == (5, 5)
    assert sheet.getpixel((0, 0)) == (0, 0, 0) and sheet.getpixel((2, 0)) == (255, 255, 255)
    assert sheet.getpixel((0, 3)) == (255, 255, 255) and sheet.getpixel((3, 0)) == (0, 0, 0)
    with pytest.raises(ValueError, match="N at least 1"):
        grid_png(images[:0], columns=2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12.345, "12.3"), (0.01234, "0.0123"), (-0.5, "-0.500"), (1234.5, "1234"), (3e-6, "3.00e-06")],
)
def test_numbers_keep_three_digits(value, text):
    assert number(value) == text


def test_measured_quality_becomes_figures_with_floors():
    from grafting.measure.quality import Estimate, Protocol, Quality
    from grafting.sampling import Sampling

    protocol = Protocol(
        n=2, sampling=Sampling(), labels="balanced", extractor="e", extractor_label="l", reference="r", seed=0
    )
    quality = Quality(
        figures={"fid": Estimate(value=5.0, low=4.0, high=6.0), "recall": Estimate(value=0.5)},
        floors={"fid": 2.0},
        protocol=protocol,
    )
    assert figures_of(quality.to_dict()) == {
        "fid": Figure(value=5.0, low=4.0, high=6.0, floor=2.0),
        "recall": Figure(value=0.5),
    }
