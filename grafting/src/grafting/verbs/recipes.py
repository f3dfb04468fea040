"""The shipped recipes: ``recipes ls`` and ``recipes cp``."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path

from .shared import Verbs


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("recipes", recipes, "list the shipped recipes or copy one")
    made.add_argument("action", choices=["ls", "cp"])
    made.add_argument("name", nargs="?")
    made.add_argument("target", nargs="?", type=Path, default=Path())


def recipes(arguments: argparse.Namespace) -> None:
    """List them with the verb that takes each and their first line, or copy one."""
    from ..files import write_text_atomic

    if arguments.action == "ls":
        for name in recipe_names():
            text = recipe_text(name)
            print(f"{name:<24}{verb_of(text):<10}{text.splitlines()[0].removeprefix('# ')}")
        return
    if not arguments.name:
        raise ValueError(f"recipes cp NAME [TARGET]: name one of {', '.join(recipe_names())}")
    text = recipe_text(arguments.name)
    target = arguments.target / f"{arguments.name}.yaml" if arguments.target.is_dir() else arguments.target
    if target.exists():
        raise ValueError(f"{target} exists: name another file")
    write_text_atomic(target, text)
    print(target)


def verb_of(text: str) -> str:
    """What a recipe is given to: ``run``, ``study`` or ``pretrain``."""
    kind = re.search(r"^kind: *(\w+)", text, re.MULTILINE)
    return "run" if kind is None else "study" if kind[1] == "table" else "pretrain"


def text_of(path: Path) -> str:
    """A text file. Raises ValueError naming one that is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8") from None


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    folder = files("grafting") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The text of a shipped recipe. Raises ValueError for another name."""
    if name not in recipe_names():
        raise ValueError(f"no recipe {name!r}: there are {', '.join(recipe_names())}")
    return (files("grafting") / "recipes" / f"{name}.yaml").read_text()


def recipe_source(recipe: str) -> str:
    """The text of a file, or of a shipped recipe. Raises ValueError where there is neither."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") and not path.is_file():
        raise ValueError(f"recipe {recipe}: no such file; shipped are {', '.join(recipe_names())}")
    return text_of(path) if path.is_file() else recipe_text(recipe)
