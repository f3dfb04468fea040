"""Imports go down a floor or stay: read from the import statements of every module of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import grafting

ROOT = Path(grafting.__file__).parent

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "files",
        "progress",
        "hashes",
        "settings",
        "claims",
        "random",
        "tasks",
        "conditions",
        "precision",
        "modes",
        "operators",
    ),
    ("hosts", "joint", "joint_cost", "cost", "expect", "activations", "diffusion"),
    ("plan", "graft", "lora", "restructure", "parallel", "switch", "conventions", "initialise"),
    ("classifier", "teachers", "store", "data", "scenes", "text", "sampling", "steps"),
    ("training",),
    ("measure",),
    ("study", "report", "searching"),
    ("verbs", "cli", "__main__"),
)
"""Rooms by floor, lowest first; a room is a module or a package below ``grafting``."""

ALLOWED = {
    ("cost", "plan"): "a plan's cost is counted from the plan; frozen data, which knows no costs",
    ("cost", "restructure"): "so are the groups of a restructured model",
    ("data", "training"): "pictures are encoded where a model would train: the team knows which device that is",
}
"""Imports that go up, each with its reason."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """Full names of what a module imports of the package, at its top or inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "grafting")
        elif isinstance(node, ast.ImportFrom):
            home = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            if home.split(".")[0] == "grafting":
                yield from (f"{home}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The room of a full name; None for the package itself, such as ``__version__``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else None


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if has_code(path)}
    assert rooms - {"__init__"} == set(FLOOR_OF), "give a new room its floor in FLOORS above"


def has_code(path: Path) -> bool:
    """Whether it is a module or a package."""
    return path.suffix == ".py" or (path / "__init__.py").is_file()


@pytest.mark.parametrize("name", sorted(set(modules()) - {"grafting"}))
def test_imports_go_down_or_stay(name: str) -> None:
    mine = room(name)
    assert mine is not None
    for other in imported(name, modules()[name]):
        theirs = room(other)
        if theirs is not None and (mine, theirs) not in ALLOWED:
            assert FLOOR_OF[theirs] <= FLOOR_OF[mine], f"{name} imports {other}, which is above it"


def test_every_exception_is_needed_and_goes_up() -> None:
    used = {(room(name), room(other)) for name, path in modules().items() for other in imported(name, path)}
    for mine, theirs in ALLOWED:
        assert (mine, theirs) in used and FLOOR_OF[theirs] > FLOOR_OF[mine]
