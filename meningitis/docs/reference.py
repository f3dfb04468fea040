"""Write api.md from the docstrings of every public name: `python meningitis/docs/reference.py`."""

from __future__ import annotations

import importlib
import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

from meningitis.model import Model

HERE = Path(__file__).parent
MODULES = (
    "meningitis.model",
    "meningitis.models",
    "meningitis.symbolic",
    "meningitis.engine",
    "meningitis.analysis",
    "meningitis.frames",
    "meningitis.notation",
    "meningitis.glyphs",
    "meningitis.report",
    "meningitis.report.diagram",
    "meningitis.calendar",
    "meningitis.study",
)
HEAD = """# The library

Every public name with its docstring. Written by `python meningitis/docs/reference.py`; do not edit by hand.
Times are in days, states in persons, rates per day. Imports go downwards only: `model` knows nothing of `study`.
"""


def public(module: Any) -> list[str]:
    """Names in `__all__`, or the functions, classes and constants in capitals that the module itself defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    own = [n for n, x in vars(module).items() if getattr(x, "__module__", None) == module.__name__]
    return sorted((n for n in own if not n.startswith("_")), key=str.lower)


def section(name: str) -> str:
    """One module's part of the page."""
    module = importlib.import_module(name)
    parts = [f"## {name}", inspect.getdoc(module) or ""]
    for each in public(module):
        found = getattr(module, each)
        if not (inspect.isclass(found) or inspect.isroutine(found)):
            model = isinstance(found, Model)
            parts += [f"### `{each}`", f"{found.title}." if model else f"`{found!r}`"]
            continue
        parts += [f"### `{each}{signature(found)}`", inspect.getdoc(found) or ""]
        if inspect.isclass(found):
            parts.append("\n".join(members(found)))
    return "\n\n".join(part for part in parts if part)


def members(found: type) -> list[str]:
    """A line for each public method and property that the class itself defines."""
    lines = []
    for name, held in vars(found).items():
        function = held.__func__ if isinstance(held, classmethod) else held
        read = isinstance(function, property | cached_property)
        if not name.startswith("_") and (read or inspect.isfunction(function)):
            words = " ".join((inspect.getdoc(function) or "").split())
            lines.append(f"- `.{name}{'' if read else signature(function)}`: {words}")
    return lines


def signature(found: Any) -> str:
    """Its parameters by name; the fields of a frozen class are in its docstring."""
    if inspect.isclass(found) and not hasattr(found, "__dataclass_fields__"):
        return ""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return ""
    words, starred = [], False
    for p in parameters:
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        words.append(stars + p.name + ("=" if p.default is not p.empty else ""))
    return f"({', '.join(words)})"


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), *(section(name) for name in MODULES)]) + "\n"


if __name__ == "__main__":
    (HERE / "api.md").write_text(page(), encoding="utf-8")
