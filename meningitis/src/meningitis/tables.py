"""YAML, and so JSON, read as plain data: a key given twice in one table is refused, where YAML keeps the last."""

from __future__ import annotations

from typing import Any


class TwiceError(ValueError):
    """A key stands twice in one table; the sentence says which, and on which lines."""


def read_yaml(text: str) -> Any:
    """The data of a YAML text: tables, lists, texts, numbers. Raises TwiceError, and yaml.YAMLError for no YAML."""
    import yaml

    data = yaml.safe_load(text)
    _refuse_twice(yaml.compose(text, yaml.SafeLoader), set())
    return data


def _refuse_twice(node: Any, seen: set[int]) -> None:
    """Go through a tree of YAML's nodes, each once however many anchors lead to it."""
    if id(node) in seen or getattr(node, "id", "scalar") == "scalar":
        return
    seen.add(id(node))
    if node.id == "sequence":
        for item in node.value:
            _refuse_twice(item, seen)
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if key.id == "scalar":
            line = key.start_mark.line + 1
            if (name := (key.tag, key.value)) in lines:
                raise TwiceError(f"'{key.value}' is given twice in one table, on lines {lines[name]} and {line}")
            lines[name] = line
        _refuse_twice(value, seen)
