"""The documentation says what is so: examples run, the YAML in the text is a model, named functions exist."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meningitis.model import Model
from meningitis.models import GENERALISED
from meningitis.symbolic import r0

HOME = Path(__file__).parents[1]
SAYS = {"derive_r0.py": r"R0 2\.29; share to vaccinate", "own_model.py": r"^beta/gamma$"}


@pytest.mark.parametrize("path", sorted((HOME / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run_and_say_what_they_should(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[path.name], done.stdout, re.MULTILINE), done.stdout


def test_the_declaration_in_the_text_is_a_model() -> None:
    text = (HOME / "docs" / "declare-your-own-model.md").read_text(encoding="utf-8")
    model = Model.from_yaml(text.split("```yaml\n")[1].split("```")[0])
    assert str(r0(model)) == "beta/gamma"


def test_every_function_that_the_reference_names_exists() -> None:
    text = (HOME / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(meningitis\.[\w.]+)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 9
    for module, offers in rows:
        held = importlib.import_module(module)
        for name in re.findall(r"`(\w+)(?=[`(])", offers):
            assert hasattr(held, name), f"{module}.{name}"


def test_the_parameter_table_lists_every_parameter() -> None:
    text = (HOME / "docs" / "model.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in GENERALISED.parameter_names)


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (HOME / "README.md").read_text(encoding="utf-8")):
        assert (HOME / target).exists(), target
