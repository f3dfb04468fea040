"""The documentation says what is so: examples run, the YAML in the text is a model, named functions exist."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meningitis.cli import main
from meningitis.model import Model, parse_quantity
from meningitis.models import GENERALISED
from meningitis.notation import Notation
from meningitis.symbolic import r0

HOME = Path(__file__).parents[1]
SAYS = {
    "derive_r0.py": r"R0 2\.29; share to vaccinate",
    "own_model.py": r"^beta/gamma$",
    "seir.py": r"0\.3\s+0\.58\d+\s+0\.5839",  # the root of ln(0.999/s) = 1.5 (1 - s)
}
README = (HOME / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    meningitis ([^#\n]+)", README, re.MULTILINE)


@pytest.mark.parametrize("path", sorted((HOME / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run_and_say_what_they_should(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[path.name], done.stdout, re.MULTILINE), done.stdout


def declarations() -> list[str]:
    text = (HOME / "docs" / "declare-your-own-model.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("text", declarations())
def test_the_declarations_in_the_text_are_models(text: str) -> None:
    assert str(r0(Model.from_yaml(text))) == "beta/gamma"


def test_the_short_declaration_is_a_dozen_lines() -> None:
    assert len(declarations()[1].splitlines()) <= 12


@pytest.mark.parametrize("command", [c.strip() for c in COMMANDS if not c.startswith("study")])
def test_the_commands_of_the_readme_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_the_readme_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["thresholds", "--model", "basic", "--start", "2026-11-30"]) == 0
    printed = capsys.readouterr().out
    shown = README[README.index("    name      ") :].split("\n\n")[0]
    for line in shown.splitlines():
        assert line.strip() in printed


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xarray")
    scope: dict[str, object] = {}
    for part in README.split("```python\n")[1:]:
        exec(part.split("```")[0], scope)
    assert "<xarray.Dataset>" in capsys.readouterr().out


def test_the_reference_is_that_of_the_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("reference", HOME / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    text = (HOME / "docs" / "api.md").read_text(encoding="utf-8")
    for name in reference.MODULES:
        module = importlib.import_module(name)
        for each in reference.public(module):
            assert f"### `{each}" in text, f"{name}.{each}: run python meningitis/docs/reference.py"
        # The engine's words may change with every measurement; its names may not.
        if name != "meningitis.engine":
            assert reference.section(name) in text, f"{name}: run python meningitis/docs/reference.py"


def test_no_name_of_the_library_is_that_of_two_things() -> None:
    from meningitis import analysis, engine, symbolic

    held: list[str] = []
    for module in (analysis, engine, symbolic):
        held += module.__all__
    assert len(held) == len(set(held))


def test_the_parameter_table_is_the_declaration() -> None:
    text = (HOME / "docs" / "model.md").read_text(encoding="utf-8")
    write = Notation(GENERALISED)
    for p in GENERALISED.parameters:
        row = next(line for line in text.splitlines() if f"| `{p.name}` |" in line)
        symbol, _, meaning, default, sampled, source = (cell.strip() for cell in row.strip("| ").split("|"))
        assert symbol == write.text(GENERALISED.symbols[p.name])
        assert meaning and parse_quantity(default) == pytest.approx(p.default)
        if p.distribution.kind == "fixed":
            assert sampled == "fixed"
        else:
            kind, ends = sampled.split(", ")
            assert kind.replace("-", "") == p.distribution.kind
            low, high = (parse_quantity(end) for end in ends.split(" to "))
            assert (low, high) == (pytest.approx(p.distribution.low), pytest.approx(p.distribution.high))
        assert ("assumed" in source) == (p.source == "assumed")


@pytest.mark.parametrize("page", ["README.md", "docs/declare-your-own-model.md", "docs/model.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = HOME / page
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def defined(node: ast.stmt) -> set[str]:
    """Names that a statement of a file or of a class defines."""
    if isinstance(node, ast.Assign):
        return {x.id for target in node.targets for x in ast.walk(target) if isinstance(x, ast.Name)}
    return {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()


def test_the_readings_stand_where_the_page_says() -> None:
    import inspect

    from meningitis.analysis import adequacy, events
    from meningitis.chapters import outcomes

    text = (HOME / "docs" / "model.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text[text.index("| reading |") :].split("\n\n")[0].splitlines()[2:]]
    for *_, where, _ in rows:
        for place in re.findall(r"`([^`]+)`", where):
            if place.startswith("--"):
                continue
            path, _, dotted = place.partition(": ")
            body: list[ast.stmt] = ast.parse((HOME / "src/meningitis" / path).read_text(encoding="utf-8")).body
            for name in filter(None, dotted.partition("(")[0].split(".")):  # in that very file, not imported there
                body = next(getattr(node, "body", []) for node in body if name in defined(node))
    assert inspect.signature(adequacy).parameters["early_days"].default == 28
    assert inspect.signature(events).parameters["reporting_fraction"].default == 1
    assert (importlib.import_module("meningitis.analysis.events").NEAR, outcomes.SAME, outcomes.EFFICACY) == (
        0.01,
        0.05,
        0.9,
    )
