"""The Python code of the pages runs, and what they claim in passing holds."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import grafting
from grafting.cli import _parser, main
from grafting.cost import plan_cost
from grafting.hosts.shapes import bundled_config
from grafting.operators import list_operators
from grafting.plan import Plan
from grafting.study import RunRecipe
from grafting.teachers import teachers
from grafting.training.distill import DistillConfig, Learner
from grafting.training.loop import Loop, LoopConfig
from grafting.verbs.recipes import recipe_names, recipe_source

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_plans_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/plans.md", "python")
    exec(code, {})
    assert capsys.readouterr().out
    plan, recipe = (yaml.safe_load(text) for text in blocks("docs/plans.md", "yaml"))
    assert Plan.from_dict(plan).check({"_class_name": "DiTTransformer2DModel", **_config()}).problems == ()
    assert RunRecipe.from_dict(recipe).controls == ("procedure", "none", "untrained", "self")


def _config() -> dict[str, object]:
    text = (ROOT / "src/grafting/recipes/fashion-transformer.yaml").read_text()
    model: dict[str, object] = yaml.safe_load(text)["model"]
    return model


PAGES = sorted(str(page.relative_to(ROOT)) for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one(page: str) -> None:
    """Parsed as a shell and the command line do, and not run."""
    _parse((ROOT / page).read_text())


@pytest.mark.parametrize("name", recipe_names())
def test_every_command_in_the_head_of_a_recipe_is_one(name: str) -> None:
    _parse("\n".join(re.findall(r"^# {3}(.*)", recipe_source(name), re.MULTILINE)))


def _parse(text: str) -> None:
    """Lines that are a command, whatever of the shell stands around it."""
    for line in re.findall(r"^ *(?:[A-Z_]+=\S+ +|nohup +)*(grafting [^>\n]*)", text, re.MULTILINE):
        _parser().parse_args(shlex.split(re.sub(r"\s#.*", "", line))[1:])


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere_and_the_readme_to_every_page(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    assert page == "README.md" or f"]({page})" in (ROOT / "README.md").read_text(), "not linked"


def test_the_demo_s_index_leads_to_what_it_makes_and_to_what_ships() -> None:
    root = ROOT.parent
    links = re.findall(r'(?:href|src)="([^"]+)"', (root / "demo.html").read_text())
    made = {link for link in links if link.startswith("out/")}
    makefile = (root / "Makefile").read_text()
    assert made == set(re.findall(r"\$\(CURDIR\)/(out/\S+\.html)", makefile)) and "demo.html" in makefile
    shipped = (ROOT / "src" / "grafting" / "assets").glob("*/runs/*/report.html")
    assert {str(page.relative_to(root)) for page in shipped} <= set(links)
    assert all((root / link).exists() for link in set(links) - made)


def test_recipes_page_names_every_recipe_and_the_verb_that_takes_it() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)`", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(recipe_names())
    for name, verb in rows:
        content = yaml.safe_load(recipe_source(name))
        kind = content.get("kind", "run")
        assert verb == {"run": "run", "table": "study"}.get(kind, "pretrain"), name


def test_readme_names_every_operator_and_the_bounds_that_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in list_operators())
    assert main(["plan", "dit-xl-2-256", "--operator", "hyena_x", "--blocks", "interleaved 50%"]) == 0
    assert "FLOP bound       1.02x" in capsys.readouterr().out
    assert main(["plan", "pixart-sigma-2048", "--operator", "hyena_x"]) == 0
    assert "FLOP bound       1.49x" in capsys.readouterr().out


def test_the_package_says_where_it_runs() -> None:
    """Its locks are POSIX's: Windows cannot import what trains."""
    systems = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert [name.split(" :: ")[-1] for name in systems] == ["Linux", "MacOS"]
    assert "with Python 3.11 or later, on Linux or macOS" in (ROOT / "README.md").read_text()


def _printed(text: str, value: float) -> bool:
    """Whether ``text`` is ``value`` to the digits shown: four decimals, or two figures below a thousandth."""
    return float(text) == pytest.approx(value, rel=0.05 if value < 1e-3 else 0, abs=0 if value < 1e-3 else 6e-5)


def test_the_table_of_starts_is_the_recorded_one() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/starts.json").read_text())["rows"]
    page = (ROOT / "docs/grafting.md").read_text()
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| blocks." in line]
    assert [(row[0].strip("`"), row[1]) for row in shown] == [(row["operator"], row["site"]) for row in recorded]
    for row, kept in zip(shown, recorded, strict=True):
        error, steps = row[2].split(", ")
        assert _printed(error, kept["goal"]["error"]) and int(steps.split()[0]) == kept["goal"]["steps"]
        assert ("not at rest" in steps) == (not kept["goal"]["rested"])
        assert _printed(row[3], kept["random"]["tenth"])
        for cell, start in zip(row[4:], (kept.get("copy"), kept["solve"]), strict=True):
            if start is None:  # nothing of the original fits the operator's own weights
                assert cell == "–"
                continue
            first, tenth, reached = cell.split("; ")
            assert _printed(first, start["error"])
            assert _printed(tenth, start["tenth"])
            assert reached == ("no" if start["reached"] is None else f"{start['reached']:.0%}")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_nothing_twice(page: str) -> None:
    """A heading, or a point that begins in bold."""
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    begun = re.findall(r"^(?:#+ .*|- \*\*.*?\*\*.*)$", prose, re.MULTILINE)
    assert sorted(begun) == sorted(set(begun))


def test_every_error_is_had_from_the_top_and_told_on_the_page() -> None:
    raised: dict[str, str] = {}
    for path in (ROOT / "src" / "grafting").rglob("*.py"):
        home = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
        raised |= dict.fromkeys(re.findall(r"^class (\w+Error)\(", path.read_text(), re.MULTILINE), home)
    del raised["PictureError"]  # of one picture among many, which is counted and never reaches a caller
    section = (ROOT / "docs/grafting.md").read_text().partition("## Errors")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+Error)`", section)) - {"ValueError"} == set(raised) <= set(grafting.__all__)
    for name, home in raised.items():
        found = getattr(grafting, name)
        assert found is getattr(import_module(home), name) and issubclass(found, ValueError)


@pytest.mark.heavy
@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_readme_runs_on_the_bundled_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("README.md", "python")
    assert re.findall(r"^(?:import|from) .*", code, re.MULTILINE) == ["import grafting"]
    assert set(re.findall(r"grafting\.(\w+)", code)) <= set(grafting.__all__)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "out" / "half" / "graft.json").is_file()


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_analyses_page_runs_on_the_analysis_that_ships() -> None:
    scope: dict[str, object] = {}
    for code in blocks("docs/analyses.md", "python"):
        exec(code, scope)
    for link in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "docs/analyses.md").read_text()):
        assert (ROOT / "docs" / link).is_file(), link


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_measuring_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    for code in blocks("docs/measuring.md", "python"):
        exec(code.replace("draw_labels(100,", "draw_labels(2,").replace("n=1024", "n=8"), scope)
    assert tuple(scope["images"].shape) == (2, 1, 32, 32)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.startswith("Estimate(value=0.")


@pytest.mark.skipif("fashion" not in teachers(), reason="no bundled teacher ships yet")
def test_data_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    encoding, writing = blocks("docs/data.md", "python")
    exec(encoding, {})
    assert capsys.readouterr().out.startswith("20 (")
    scope: dict[str, Any] = {}
    exec(writing, scope)
    assert scope["material"].count(train=True) == 23 and scope["hybrid"].private


DIT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "`hyena_x_2d`": ("attn", "hyena_x_2d", {}),
    "`swa_2d`": ("attn", "swa_2d", {}),
    "`linear`": ("attn", "linear", {}),
    "no attention at all (`none`)": ("attn", "none", {}),
    "`mlp`, ratio 3": ("mlp", "mlp", {"ratio": 3}),
    "no MLP at all (`none`)": ("mlp", "none", {}),
}


@pytest.mark.parametrize("row", DIT)
def test_the_page_of_dit_says_what_plans_cost(row: str) -> None:
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", (ROOT / "docs/dit.md").read_text(), re.MULTILINE)
    site, operator, options = DIT[row]
    wanted = []
    for side in (16, 32, 64):
        whole, half = (
            plan_cost(
                Plan.from_dict({"edits": [{"site": site, "blocks": blocks, "operator": operator, "options": options}]}),
                bundled_config("dit-xl-2-256"),
                grid=(side, side),
            ).flop_ratio
            for blocks in ("all", "interleaved 50%")
        )
        wanted.append(f"{whole:.2f}x ({half:.2f}x)")
    assert [cell.strip() for cell in line.split("|")] == wanted


def test_the_page_of_flux_runs_and_says_what_plans_cost() -> None:
    (code,) = blocks("docs/flux.md", "python")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert tuple(scope["latents"].shape) == (1, 96, 64)
    model, said = "", 0
    for line in re.findall(r"^\| .*x\) \|$", (ROOT / "docs/flux.md").read_text(), re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        model = f"flux-{found[1]}-1024" if (found := re.match(r"\*\*(\w+)\*\*", name)) else model
        for cell, side in zip(cells, (64, 128), strict=True):
            *whole, half = [float(figure) for figure in re.findall(r"([\d.]+)x", cell)]
            operators = re.findall(r"`(\w+)`", name)
            for operator, figure in zip(operators, whole * (len(operators) // len(whole)), strict=True):
                for share, wanted in (("all", figure), ("interleaved 50%", half)):
                    plan = Plan.from_dict({"edits": [{"site": "attn", "blocks": share, "operator": operator}]})
                    cost = plan_cost(plan, bundled_config(model), grid=(side, side))
                    assert wanted == pytest.approx(cost.flop_ratio, abs=0.0051), (model, operator, side, share)
                    said += 1
    assert said == 40
    every = Plan.from_dict({"edits": [{"site": "attn", "blocks": "all", "operator": "swa"}]})
    bounds = [plan_cost(every, bundled_config("flux-dev-1024"), grid=(side, side)).core_bound for side in (64, 128)]
    assert f"dev would gain {bounds[0]:.2f}x and {bounds[1]:.2f}x" in (ROOT / "docs/flux.md").read_text()
    half = Plan.from_dict({"edits": [{"site": "attn", "blocks": "interleaved 50%", "operator": "swa_2d"}]})
    cost = plan_cost(half, bundled_config("flux-dev-1024"))
    new, held = cost.new_parameters / 1e9, cost.shape.parameters / 1e9
    page = " ".join((ROOT / "docs/flux.md").read_text().split())
    assert f"{2 * held:.0f} GB, where float32 takes {4 * held:.0f}" in page
    one, two = bytes_of_what_learns()
    assert f"takes {one} bytes a number in stage 1" in page and f"and {two} in stage 2" in page
    in_half, whole = (" and ".join(f"{size * held + each * new:.0f} GB" for each in (one, two)) for size in (2, 4))
    assert f"{new:.1f} billion numbers, come to {in_half}, and to {whole} beside" in page


def bytes_of_what_learns() -> tuple[int, int]:
    """Per number, in stage 1 and in stage 2, of a model that learns."""
    layer = torch.nn.Linear(8, 8, bias=False)

    def held(optimizer: torch.optim.Optimizer) -> int:
        return sum(state.nbytes for moments in optimizer.state.values() for state in moments.values() if state.ndim)

    layer.weight.grad = torch.zeros_like(layer.weight)
    config = LoopConfig(steps=1, lr=1e-3)
    loop = Loop(layer, lambda _: {"loss": layer.weight.square().sum()}, config, None, "x")
    loop.optimizers[0].step()
    second = layer.weight.nbytes + layer.weight.grad.nbytes + held(loop.optimizers[0]) + loop.ema["weight"].nbytes
    learner = Learner(
        parameters=dict(layer.named_parameters()),
        optimizer=torch.optim.AdamW(layer.parameters(), lr=1e-3),
        settings=DistillConfig.attn,
        best={"weight": layer.weight.detach().clone()},
    )
    learner.optimizer.step()  # a gradient is there while its site is visited, and of one site at a time
    first = layer.weight.nbytes + held(learner.optimizer) + learner.best["weight"].nbytes
    return first // layer.weight.numel(), second // layer.weight.numel()


def test_the_page_of_stable_diffusion_3_runs_and_says_what_plans_cost() -> None:
    (code,) = blocks("docs/sd3.md", "python")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert tuple(scope["latents"].shape) == (1, 16, 16, 16)
    page, model, said = (ROOT / "docs/sd3.md").read_text(), "", 0
    for row in json.loads((ROOT / "benchmarks/results/joint.json").read_text())["rows"]:
        told = "| `{operator}` | {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f}) | {flop_ratio:.2f}x |"
        assert told.format(**row) in page
    for line in re.findall(r"^\| (?:.*x.*) \|$", page.partition("Measured")[0], re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        model = f"sd{found[1]}-{found[2]}-1024" if (found := re.match(r"\*\*([\d.]+) (\w+)\*\*", name)) else model
        operators = re.findall(r"`(\w+)`", name)
        if len(cells) != 2 or not model or not operators:
            continue
        for cell, side in zip(cells, (64, 128), strict=True):
            figures, half = re.match(r"(.*) \((.*)x\)$", cell).groups()  # type: ignore[union-attr]
            told = [float(figure) for figure in re.findall(r"([\d.]+)x", figures)]
            for operator, figure in zip(operators, told * (len(operators) // len(told)), strict=True):
                for share, wanted in (("all", figure), ("interleaved 50%", float(half))):
                    plan = Plan.from_dict({"edits": [{"site": "attn", "blocks": share, "operator": operator}]})
                    cost = plan_cost(plan, bundled_config(model), grid=(side, side))
                    assert wanted == pytest.approx(cost.flop_ratio, abs=0.0051), (model, operator, side, share)
                    said += 1
    assert said == 44
