"""Figures in the documents are those of the committed measurements."""

from __future__ import annotations

import json
import re
import runpy
from importlib.resources import files
from pathlib import Path
from typing import Any

from grafting.graft import graft
from grafting.lora import add_lora
from grafting.report import read_results
from grafting.report.goals import verdicts
from grafting.report.table import read_table
from grafting.report.table_page import qualities
from grafting.store.models import open_model
from grafting.study.recipe import RunRecipe
from grafting.teachers import teacher_folder
from grafting.training.muon import hidden_matrices, step_flops

HOME = Path(__file__).resolve().parents[1]
FULL = HOME / "src" / "grafting" / "assets" / "fashion" / "runs" / "full"
PAGE = (HOME / "docs" / "what-to-expect.md").read_text(encoding="utf-8")


def measured(name: str) -> Any:
    return json.loads((HOME / "benchmarks" / "results" / f"{name}.json").read_text())


def cells(first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    row = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", PAGE, re.MULTILINE)
    assert row is not None, first
    return [cell.strip() for cell in row[1].split("|")]


def test_operators_and_their_targets() -> None:
    content = measured("operators")
    assert content["protocol"]["tokens"] == 4096 and content["protocol"]["width"] == 1152
    one, two = ({row["operator"]: row for row in run["rows"]} for run in content["runs"])
    for name in one.keys() - {"mha"}:
        wanted = [
            f"{r['ratio']:.2f}x ({r['ratio_lowest']:.2f} to {r['ratio_highest']:.2f})" for r in (one[name], two[name])
        ]
        assert cells(name) == [*wanted, f"{one[name]['flop_bound']:.2f}x"]
        assert min(one[name]["ratio"], two[name]["ratio"]) >= one[name]["target"]


def test_stack() -> None:
    content = measured("stack")
    assert content["tokens"] == 16_384 and content["swapped"] * 2 == content["blocks"]
    found = re.search(r"\*\*(.+?)x\*\*, (\d+) % of the time bound of (.+?)x; FLOP bound (.+?)x\.", PAGE)
    assert found is not None
    assert found[1] == f"{content['speedup']:.2f}" and content["speedup"] >= 1.5
    assert found[2] == f"{100 * content['share_of_time_bound']:.0f}" and content["share_of_time_bound"] >= 0.95
    assert (found[3], found[4]) == (f"{content['time_bound']:.2f}", f"{content['flop_bound']:.2f}")


def test_stage_one() -> None:
    for row in measured("stage1")["rows"]:
        wanted = [f"{row['samples_per_second']:.0f}", f"{row['gain']:.2f}x", f"{row['bound']:.2f}x"]
        assert cells(str(row["sites"])) == [*wanted, f"{row['peak_mib']:.1f} MiB"]
        assert row["share_of_bound"] >= 0.85


def table(page: str, first: str) -> list[list[str]]:
    """The rows below the header that begins with ``first``, as cells."""
    text = (HOME / "docs" / page).read_text(encoding="utf-8")
    body = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in body]


def test_what_a_convolution_begins_from() -> None:
    rows = measured("mixing")["rows"]
    page = (HOME / "docs" / "grafting.md").read_text(encoding="utf-8")
    section = page.split("## What a convolution begins from\n")[1].split("\n## ")[0]
    lines = re.findall(r"(?m)^\| `(.+?)` \|.*?\|.*?\| (.*) \|$", section)
    told = {name: figures.split(" | ") for name, figures in lines}
    assert {f"{name}-50" for name in told} == {name for name in rows if name.endswith("-50")}
    for name, cells in told.items():
        row = rows[f"{name}-50"]
        wanted = [
            "–" if value is None else f"{value:+.4f}" for value in (row["start"], row.get("stage 1"), row["end"][0])
        ]
        other = row["minus other"]
        wanted.append("–" if other is None else "{:+.4f} ({:+.4f} to {:+.4f})".format(*other).replace("-", "−"))
        assert cells == wanted, name


def test_depth_to_width() -> None:
    content = measured("parallel")
    shown = table("restructure.md", "width")
    assert len(shown) == len(content["rows"]) and content["dtype"] == "float32"
    for cells, row in zip(shown, content["rows"], strict=True):
        fast, median = row["speedup"], row["of medians"]
        milliseconds = row["milliseconds"]
        assert cells == [
            f"{row['width']:,}",
            str(row["batch"]),
            f"{row['tokens']:,}",
            f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms",
            *(f"{fast[name]:.2f}x ({median[name]:.2f})" for name in ("branches", "scale", "dense")),
        ]
        assert fast["scale"] >= 1 and fast["dense"] >= 0.92  # nowhere slower, and what was asked


def test_analyses() -> None:
    content = measured("analysis")
    (whole, one), (memory,) = table("analyses.md", "what"), content["memory"]
    assert content["whole"]["samples"] == 256 and memory["tokens"] == 4096
    assert whole[1] == f"{content['whole']['analysis_seconds']:.0f} s" and content["whole"]["analysis_seconds"] < 120
    tensors, resident = memory["analysis_tensors_mib"], memory["analysis_resident_mib"]
    assert one[1] == f"{tensors:.0f} MiB of tensors; the process grew by {resident:.0f} MiB"
    assert max(tensors, resident) < 1024


def test_what_the_teacher_does_inside() -> None:
    """The bullets of the bundled teacher's analysis, out of the one that ships."""
    page = (HOME / "docs" / "analyses.md").read_text(encoding="utf-8")
    said = " ".join(page[page.index("## The bundled teacher") : page.index("## Plans by locality")].split())
    found = json.loads((teacher_folder("fashion") / "analysis.json").read_text())
    blocks, sites = {entry["block"]: entry for entry in found["blocks"]}, found["sites"]
    first = [entry["timesteps"][0] for entry in blocks.values()]
    assert f"L_8 {min(first):.2f} to {max(first):.2f}; even: {found['uniform']['raster']:.2f}" in said
    nearest = max(blocks.values(), key=lambda entry: entry["timesteps"][-1])
    assert f"block {nearest['block']} has {nearest['timesteps'][-1]:.2f} of its mass" in said
    assert f"at the last step, {nearest['raster']:.2f} over all steps" in said
    assert f"The most local half is {', '.join(map(str, found['ranking']['order'][:6]))} on the raster" in said
    low = sorted(block for block, entry in blocks.items() if entry["raster"] < 0.36)
    assert f"Blocks {', '.join(map(str, low[:-1]))} and {low[-1]} stay below 0.36" in said
    assert f"though block 11 has {blocks[11]['timesteps'][-1]:.2f} at its last" in said
    kurtosis = {entry["site"]: entry["output"]["kurtosis"] for entry in sites}
    assert f"excess kurtosis {min(kurtosis.values()):.0f} to {max(kurtosis.values()):.0f}" in said
    for kind, pair in (("mlp", (11, 10)), ("attn", (11, 0))):
        top = sorted((name for name in kurtosis if name.endswith(kind)), key=kurtosis.__getitem__, reverse=True)[:2]
        assert top == [f"blocks.{block}.{kind}" for block in pair]
        assert "({:.0f}, {:.0f})".format(*(kurtosis[name] for name in top)) in said
    assert {entry["loss"] for entry in sites} == {"l1"} and all("l2" in entry["risky"] for entry in sites)
    spread = [entry["output"]["variance"] ** 0.5 for entry in sites]
    assert f"standard deviations of {min(spread):.2g} to {max(spread):.1g}" in said
    corners = [entry["huber corner"] for entry in sites]
    assert f"lies at {min(corners):.1f} to {max(corners):.0f} of them" in said
    assert sum("huber" not in entry["risky"] for entry in sites) == 2 and "but for two sites" in said


def test_search() -> None:
    content = measured("search")
    assert content["sites"] == 24 and len(content["operators"]) == 7 and content["threads"] == 2
    minutes, seconds = divmod(round(content["seconds"]), 60)
    rows = table("search.md", "| measured")
    assert [row[1] for row in rows] == [f"{minutes} min {seconds} s", f"{content['again_seconds']:.1f} s"]
    assert content["seconds"] < 600


def test_plans_of_a_search_lose_more_than_the_sum() -> None:
    page = " ".join((HOME / "docs" / "search.md").read_text(encoding="utf-8").split())
    (told,) = re.findall(r"what was measured is (.*?) \(`grafting", page)
    found = {f"{one['share']:.2f}": one for one in measured("search-front")["front"] if one["measured"]}
    said = re.findall(r"([\d.]+) times (?:the prediction )?at ([\d.]+\d)", told)
    assert len(said) == 4
    for times, share in said:
        assert f"{found[share]['measured']['value'] / found[share]['predicted']:.1f}" == times


def test_results_are_those_of_the_full_run() -> None:
    results = read_results(FULL / "results.json")
    page = " ".join((HOME / "docs" / "results.md").read_text(encoding="utf-8").split()).replace("−", "-")
    models = {model.name: model for model in results.models}

    def told(figure: Any, digits: int, sign: str = "") -> str:
        return "{:{s}.{n}f} ({:.{n}f} to {:.{n}f})".format(figure.value, figure.low, figure.high, s=sign, n=digits)

    for name in ("teacher", "half", "none", "untrained"):
        model = models[name]
        apart = "" if name == "teacher" else told(model.denoising_difference, 4, "+") + " "
        figures = f"{told(model.figures['fid_minus_floor'], 3)} | {told(model.figures['kid'], 4)}"
        loss = f"{model.denoising.value:.4f} | {apart}| {figures}"  # type: ignore[union-attr]
        assert f"{loss} | {100 * model.figures['recognised'].value:.1f} % |" in page, name
    floor = models["teacher"].figures["fid_minus_floor"].value
    more = {name: 100 * (models[name].figures["fid_minus_floor"].value / floor - 1) for name in ("half", "none")}
    assert f"FID - floor is {more['half']:.1f} % above" in page and f"of *none* {more['none']:.1f} %" in page
    assert f"{100 * results.costs[0].share:.1f} % of the teacher's training compute" in page
    assert f"; {100 * results.costs[0].share:.1f} % of the teacher's training" in (HOME / "README.md").read_text()
    for other, said in re.findall(r"than \*(none|untrained)\* by ([\d.]+)", page):
        ours, theirs = (models[name].denoising for name in ("half", other))
        assert f"{theirs.value - ours.value:.4f}" == said  # type: ignore[union-attr]
    assert f"{results.speed[-1].speedup:.2f}x at 1,024 tokens" in page


def test_pictures_are_drawn_from_the_measurements() -> None:
    drawn = runpy.run_path(str(HOME / "benchmarks" / "figures.py"))["drawn"]()
    for name, svg in drawn.items():
        assert (HOME / "docs" / f"{name}.svg").read_text(encoding="utf-8") == svg + "\n", name


def test_encoding() -> None:
    content = measured("encode")
    page = (HOME / "docs" / "data.md").read_text(encoding="utf-8")
    assert content["settings"]["side"] == 512 and content["parameters"] > 80e6, "of the size of SDXL's"
    assert f"{100 * content['share_of_autoencoder']:.0f} % of the autoencoder's own throughput" in page
    assert content["share_of_autoencoder"] >= 0.9


def test_pixart() -> None:
    page = (HOME / "docs" / "pixart.md").read_text(encoding="utf-8")
    stack, whole = measured("pixart"), measured("pixart-whole")
    ((_, *shown),) = table("pixart.md", "two blocks")
    assert shown == [f"{stack['seconds'][name]['minimum']:.2f}" for name in ("plain", "hybrid", "bound")]
    assert f"**{stack['speedup']:.2f}x**, {100 * stack['share_of_time_bound']:.0f} % of the time bound" in page
    assert stack["speedup"] >= stack["goals"]["speedup"] and stack["share_of_time_bound"] >= 0.95
    plain, hybrid = (whole["seconds"][name]["minimum"] for name in ("plain", "hybrid"))
    assert f"{plain:.0f} s and {hybrid:.0f} s, {whole['speedup']:.2f}x; FLOP bound {whole['flop_bound']:.2f}x" in page
    peak, weights = whole["peak_bytes"]["plain"] / 2**30, whole["weight_bytes"] / 2**30
    assert f"{peak:.2f} GiB of activations beside {weights:.2f} GiB of weights" in page


def test_which_thing_is_which() -> None:
    """Before and after, level by level; where the model does not read the exchange, half of the scenes are worse."""
    content = measured("binding")
    told = {row[0].split(":")[0].replace(" ", "_"): row[1:] for row in table("teacher.md", "exchanged")}
    for row in content["before"]:
        if row["task"] in ("position", "color_attr") and row["level"] in (450, 650):
            assert row["low"] < 0.5 < row["high"] and abs(row["rise"]) < 0.02
    for place, level in enumerate((450, 580, 650)):
        for which, when in enumerate(("before", "after")):
            for row in content[when]:
                name = row["task"].replace("two_object", "two_objects")
                if row["level"] == level:
                    wanted = f"{100 * row['worse']:.0f} % ({100 * row['rise']:+.0f} %)"
                    assert told[name][2 * place + which] == wanted, (name, level, when)


def test_what_half_of_the_text_teacher_took() -> None:
    content = measured("pixart-trials")
    assert table("pixart-scenes.md", "operator") == [trial(row) for row in content["rows"]]
    assert [row["stage 2"]["target"] for row in content["rows"]].index("teacher") == 1  # as the page says
    assert {row["stage 2"]["target"] for row in content["rows"][1:]} == {"teacher"}
    assert all(row["stage 2"]["steps"] * row["stage 2"]["batch"] == row["samples"] for row in content["rows"])
    rows = content["rows"]
    early, late = (rows[7], rows[-3]), rows[-2:]
    assert [row["operator"] for row in (*early, *late)] == 2 * ["hyena_x", "hyena_x_2d:kernel=7"]
    left = [long["guidance"]["600"] / short["guidance"]["600"] for short, long in zip(early, late, strict=True)]
    told = "left {:.2f} of the error at t = 600 with hyena_x (the row before the last), and {:.2f}".format(*left)
    assert told in (HOME / "docs" / "pixart-scenes.md").read_text(encoding="utf-8").replace("\n", " ")
    carried = [f"{100 * share:.1f}" for share in content["carried"]]
    assert table("pixart-scenes.md", "block") == [["carried, %", *carried]]


RUN = HOME / "src" / "grafting" / "assets" / "scenes" / "runs" / "pixart-scenes"
"""What ``grafting run pixart-scenes`` left."""


def test_half_of_the_text_teacher() -> None:
    run, content = json.loads((RUN / "results.json").read_text()), measured("pixart-half")
    page = (HOME / "docs" / "pixart-scenes.md").read_text(encoding="utf-8").replace("\n", " ").replace("−", "-")
    half, rows_alone = content["halves"]
    models = {model["name"]: model for model in run["models"] if model["name"] != "procedure"}
    assert models["carries-least"]["scenes"]["scores"] == half["scenes"], "bits and figures are of one run"
    assert models["teacher"]["scenes"]["scores"] == content["teacher"]["scenes"]

    shown = [(m["scenes"]["scores"], m["scenes"]["differences"], m["held_out"]["scores"]) for m in models.values()]
    shown.append((rows_alone["scenes"], rows_alone["minus teacher"], rows_alone["held_out"]))
    order = [name for plan in ("carries-least", "interleaved") for name in (plan, f"{plan}-none", f"{plan}-untrained")]
    order = ["teacher", *(name for name in order if name in models)]
    assert sorted(order) == sorted(models) and {"carries-least-none", "interleaved-none"} <= set(order)
    by_name = dict(zip([*models, "earlier form"], shown, strict=True))
    found = table("pixart-scenes.md", "of the prompts, %")
    assert len(found) == len(order) + 1
    for name, cells in zip([*order, "earlier form"], found, strict=True):
        scores, apart, new = by_name[name]
        wanted = [f"{100 * score['value']:.1f}" for score in scores.values()]
        lost = apart.get("overall")
        told = "–" if lost is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*_points(lost))
        assert [cell.replace("−", "-") for cell in cells[1:]] == [
            *wanted,
            told,
            f"{100 * new['overall']['value']:.1f}",
        ], name
        assert name.split("-")[-1] in cells[0] or name.split("-")[0] in cells[0]

    teacher, apart = content["teacher"], half["minus teacher"]["overall"]
    points = [f"{-100 * apart[key]:.1f}" for key in ("value", "high", "low")]
    right = "**{:.1f} % of 2,004 prompts are right, {} points ({} to {}) fewer"
    assert right.format(100 * half["scenes"]["overall"]["value"], *points) in page
    assert f"teacher’s {100 * teacher['scenes']['overall']['value']:.1f} %**" in page
    rest = [sum(map(int, one["correct"][1040:2004])) / 9.64 for one in (half, teacher)]
    assert "of the 964 that no other run had been judged by, {:.1f} and {:.1f} %".format(*rest) in page
    won = [int(a) - int(b) for a, b in zip(half["correct"][:2004], rows_alone["correct"][:2004], strict=True)]
    mean = sum(won) / 2004
    spread = 1.96 * ((sum(one * one for one in won) / 2004 - mean**2) / 2004) ** 0.5
    told = (100 * mean, 100 * (mean - spread), 100 * (mean + spread))
    assert "{:+.1f} points from it ({:+.1f} to {:+.1f})".format(*told) in page
    loss = half["loss minus teacher"]
    assert "Held-out loss +{:.4f} ({:.4f} to {:.4f})".format(*(loss[key] for key in ("value", "low", "high"))) in page
    parts = {name: 100 * flops / half["costs"]["teacher_training"] for name, flops in half["costs"]["parts"].items()}
    assert parts["stage 1"] + parts["LoRA"] < 10
    assert f"it took {parts['stage 1']:.1f} % in stage 1 and {parts['LoRA']:.1f} % in LoRA" in page
    assert f"and {parts['pairs']:.1f} % to draw the pairs" in page
    (fast,) = (row for row in half["speed"] if row["setting"].startswith("1,024 tokens"))
    told = [fast[key] for key in ("speedup", "low", "high", "time_bound")]
    assert "{:.2f}x as fast at 1,024 tokens ({:.2f} to {:.2f}; time bound {:.2f}x)".format(*told) in page


def test_halves_of_the_text_teacher_beside_their_controls() -> None:
    """As the run's own sentences have it."""
    run = json.loads((RUN / "results.json").read_text())
    said, losses = run["summary"].replace("−", "-"), {m["name"]: m["denoising_difference"] for m in run["models"]}
    page = (HOME / "docs" / "pixart-scenes.md").read_text(encoding="utf-8").replace("\n", " ").replace("−", "-")
    for plan in ("carries-least", "interleaved"):
        for control in ("none", "untrained"):
            if f"{plan}-{control}" not in losses:
                assert control == "untrained" and "Pictures of *untrained* have not been drawn yet" in page
                continue
            pattern = rf"it beats {plan}-{control}: ([+\d.]+) points \(([+\d.]+) … ([+\d.]+)\)"
            (found,) = re.findall(pattern, said)
            value, low, high = (figure.lstrip("+") for figure in found)
            assert f"*{plan}* beats its *{control}* by {value} points ({low} to {high})" in page
    (apart,) = re.findall(r"([-+\d.]+) points \(([-+\d.]+) … ([-+\d.]+)\) against interleaved", said)
    assert "*carries-least* is {} points ({} to {}) from *interleaved*".format(*apart) in page


def _points(figure: dict[str, float]) -> list[float]:
    return [100 * figure[key] for key in ("value", "low", "high")]


def test_what_muon_itself_took() -> None:
    """Exactly, of the matrices that the recipe trains and of those that the teacher's last two parts trained."""
    recipe = RunRecipe.from_yaml((files("grafting") / "recipes" / "pixart-scenes.yaml").read_text())
    stage = recipe.stages[1]
    assert stage is not None and stage.optimizer == "muon" and stage.adapters is not None
    network, card = (
        open_model("scenes").transformer,
        json.loads((teacher_folder("scenes") / "teacher.json").read_text()),
    )
    theirs = step_flops(hidden_matrices(network.requires_grad_(True)))
    handle = graft(network, recipe.plans["carries-least"], init="random")
    add_lora(handle, stage.adapters)
    handle.train_grafted(adapters=True)
    mine = step_flops(hidden_matrices(handle.model))
    costs = measured("pixart-half")["halves"][0]["costs"]
    steps = sum(part["steps"] for part in card["training"]["parts"][-2:])
    taken = costs["parts"]["stage 1"] + costs["parts"]["LoRA"] + stage.steps * mine
    share = 100 * taken / (costs["teacher_training"] + steps * theirs)
    page = (HOME / "docs" / "pixart-scenes.md").read_text(encoding="utf-8")
    told = f"{mine / 1e9:.1f} GFLOP a step here, and {theirs / 1e9:.0f} GFLOP in each of the {steps:,}"
    told += f" (of {card['training']['steps']:,}) steps"
    assert told in page and f"Counted on both sides, the stages took {share:.1f} %" in page


def trial(row: dict[str, Any]) -> list[str]:
    """What a short run was told and what it gave, as the page has it."""
    one, two = row["stage 1"], row["stage 2"]
    lora, levels = two.get("lora"), two.get("levels")
    return [
        row["operator"],
        ", ".join(map(str, row["blocks"])),
        f"{one['steps']} x {one['batch']}" if one else "–",
        f"{two['steps']} x {two['batch']}",
        f"{two.get('optimizer', 'adamw')}, {two['lr']:g}",
        f"{lora.get('alpha', lora['rank']) / lora['rank']:g}" if lora else "all weights",
        f"{two.get('features', 1):g}",
        f"{levels['centre']:g} ± {levels['deviation']:g}" if levels else "even",
        f"{row['guidance']['600']:.2f}" if row["guidance"] else "–",
        f"{100 * row['right']['overall']:.1f}" if row["right"] else "–",
    ]


TABLE = HOME / "src" / "grafting" / "assets" / "fashion" / "runs" / "table"


def test_half_of_the_depth() -> None:
    rows = {row["name"]: row for row in json.loads((TABLE / "table.json").read_text(encoding="utf-8"))["rows"]}
    shown = table("restructure.md", "12 blocks to 6")
    assert [cells[0].split(":")[0].strip("`") for cells in shown] == ["depth-halved", "depth-dropped"]
    for cells in shown:
        row = rows[cells[0].split(":")[0].strip("`")]
        end = row["differences"]["loss"]
        early = [f"{row['stages'][moment]['value']:+.4f}" for moment in ("start", "stage 1")]
        assert cells[1:] == [*early, f"{end['value']:+.4f} ({end['low']:+.4f} to {end['high']:+.4f})"]


def test_searched_halves() -> None:
    rows = {row["name"]: row for row in json.loads((TABLE / "table.json").read_text(encoding="utf-8"))["rows"]}

    def told(figure: dict[str, float]) -> str:
        return "{:+.4f} ({:+.4f} to {:+.4f})".format(*(figure[key] for key in ("value", "low", "high")))

    shown = table("search.md", "plan | blocks")
    names = {"interleaved": ("hyena_x-50", "none-attn-50")}
    names |= {f"searched by `{by}`": (f"searched-{by}", f"searched-{by}-none") for by in ("loss", "carried")}
    names["searched of all operators"] = ("searched-any", "searched-any-none")
    assert [cells[0] for cells in shown] == list(names)
    for cells in shown:
        row, none = (rows[name] for name in names[cells[0]])
        over = row["over_other"] if row["other"] == "hyena_x-50" else {}
        assert not over or over["loss"]["high"] < 0  # beyond the interval
        wanted = [f"{row['stages']['start']['value']:+.4f}", told(row["differences"]["loss"])]
        wanted += [told(over["loss"]) if over else "–", told(none["differences"]["loss"])]
        assert [cell.replace("−", "-") for cell in cells[3:]] == wanted, cells[0]


def test_what_is_said_of_the_table() -> None:
    """Every loss in the sentences is a finished row's, and goals are told of the rows that reach them."""
    page = (HOME / "docs" / "findings.md").read_text(encoding="utf-8").replace("−", "-")
    said = "".join(line for line in page.splitlines(keepends=True) if not line.startswith("|"))
    results = read_table(TABLE / "table.json")
    told = (
        getattr(row, group).get("loss") for row in results.rows for group in ("differences", "over_none", "over_other")
    )
    known = {f"{figure.value:+.4f}" for figure in told if figure is not None}
    assert set(re.findall(r"[+-]0\.\d{4}", said)) <= known

    def named(start: str, end: str) -> set[str]:
        goals = " ".join(said[said.index("## Goals") :].split())
        return set(re.findall(r"`([\w-]+)`", goals.split(start)[1].split(end)[0]))

    assert re.findall(r"[+-]0\.\d{4}", said)
    for share, sentence in ((50, ("At half", "within 5 %")), (75, ("At three quarters", "within 20 %"))):
        judged = [v for v in verdicts(results) if v.goal.share == share and v.goal.budget is None and not v.control]
        assert {v.row.removesuffix(f"-{share}") for v in judged if v.reached == "yes"} == named(*sentence)
    hybrids = [row for row in results.rows if row.role == "hybrid" and row.share in (50, 75) and not row.variant]
    worse = {row.name for row in hybrids if (row.differences["kid"].low or 0) > 0}
    assert worse == named("By KID", "alone of these")


def test_the_table_so_far() -> None:
    """Every finished row of the table proper, in its order, as the shipped figures have it."""
    content = json.loads((TABLE / "table.json").read_text(encoding="utf-8"))
    floor = content["rows"][0]["figures"]["fid_minus_floor"]["value"]
    proper = [row for row in content["rows"][1:] if not row["variant"]]
    shown = table("findings.md", "row")
    assert [cells[0].strip("`") for cells in shown] == [row["name"] for row in proper]

    def told(figure: dict[str, float] | None, digits: int) -> str:
        if figure is None:
            return "–"
        return "{:+.{n}f} ({:+.{n}f} to {:+.{n}f})".format(*(figure[key] for key in ("value", "low", "high")), n=digits)

    for cells, row in zip(shown, proper, strict=True):
        apart, over = row["differences"], row["over_none"]
        more = f"{row['figures']['fid_minus_floor']['value'] / floor - 1:+.0%}"
        steps = " + ".join(str(row["steps"].get(stage, 0)) for stage in ("stage 1", "stage 2")) if row["steps"] else "–"
        wanted = [steps, told(apart.get("loss"), 4), told(over.get("loss"), 4), told(apart.get("fid"), 3), more]
        wanted.append(told(apart.get("kid"), 4))
        assert [cell.replace("−", "-") for cell in cells[1:]] == wanted, row["name"]
    page = (HOME / "docs" / "findings.md").read_text(encoding="utf-8")
    front = next(
        drawing for drawing in qualities(read_table(TABLE / "table.json")) if drawing.name == "front-pass-loss"
    )
    assert (HOME / "docs" / "table.svg").read_text(encoding="utf-8") == front.svg
    drawn = runpy.run_path(str(HOME / "docs" / "table.py"))
    assert drawn["told"](read_table(TABLE / "table.json"), page) == page
    made, missing = len(content["rows"]), len(content["missing"])
    assert f"{made} of {made + missing} rows" in page
    assert set(content["missing"].values()) <= {"not run yet"}, "why a row failed is of the machine where it did"
