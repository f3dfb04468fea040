"""Finding the descriptor of a live module or a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .base import Host
from .dit import DiT
from .pixart import PixArt
from .shapes import class_of

HOSTS: dict[str, Host] = {name: host for host in (DiT(), PixArt()) for name in host.class_names}
"""By diffusers' class."""


def host_for(source: nn.Module | Mapping[str, Any]) -> Host:
    """The descriptor of a module or configuration. Raises HostError for a class that no family has."""
    return HOSTS[class_of(source)]
