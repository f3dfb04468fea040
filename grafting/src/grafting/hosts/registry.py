"""Finding the descriptor of a live module, a configuration, or a configuration that ships with the package."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from torch import nn

from .base import Host, HostError, HostShape
from .dit import DiT
from .pixart import PixArt

HOSTS: tuple[Host, ...] = (DiT(), PixArt())

Source = nn.Module | Mapping[str, Any] | HostShape


def host_for(source: nn.Module | Mapping[str, Any]) -> Host:
    """The descriptor of a module or configuration.

    Raises:
        HostError: no family has this class; the message lists those that are known.
    """
    config = source.config if isinstance(source, nn.Module) and hasattr(source, "config") else source
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    name = name or type(source).__name__
    for host in HOSTS:
        if name in host.class_names:
            return host
    known = ", ".join(known for host in HOSTS for known in host.class_names)
    raise HostError(f"no host descriptor for {name}: known are {known}")


def shape_of(source: Source) -> HostShape:
    """Sizes of a live module, a configuration, or sizes themselves."""
    if isinstance(source, HostShape):
        return source
    host = host_for(source)
    return host.shape(dict(source.config) if isinstance(source, nn.Module) else source)  # type: ignore[arg-type]


def bundled_configs() -> list[str]:
    """Names of the configurations that ship for planning."""
    return sorted(entry.name.removesuffix(".json") for entry in (files("grafting.hosts") / "configs").iterdir())


def bundled_config(name: str) -> dict[str, Any]:
    """One of :func:`bundled_configs`. Raises HostError naming the nearest."""
    names = bundled_configs()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)
        raise HostError(f"no bundled configuration {name!r}: did you mean {near[0]!r}? there are {', '.join(names)}")
    content: dict[str, Any] = json.loads((files("grafting.hosts") / "configs" / f"{name}.json").read_text())
    return content
