"""Finding the descriptor of a live module or a configuration, and the schedule that a module was trained under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..diffusion import Diffusion, Schedule
from .base import Host
from .dit import DiT
from .flux import Flux
from .pixart import PixArt
from .sana import Sana
from .sd3 import SD3
from .shapes import HostError, class_of

HOSTS: dict[str, Host] = {name: host for host in (DiT(), PixArt(), SD3(), Sana(), Flux()) for name in host.class_names}
"""By diffusers' class."""


def host_for(source: nn.Module | Mapping[str, Any]) -> Host:
    """The descriptor of a module or configuration. Raises HostError for a class that no family has."""
    return HOSTS[class_of(source)]


def schedule_of(model: nn.Module) -> Schedule:
    """What :func:`set_schedule` said of a live ``model``, else its family's; a DiT's for a class that no family has."""
    told = model.__dict__.get("_schedule")
    if isinstance(told, Schedule):
        return told
    try:
        return host_for(model).schedule()
    except HostError:
        return Diffusion()


def set_schedule(model: nn.Module, schedule: Schedule) -> None:
    """Let a live ``model`` and its copies be taught, measured and sampled under ``schedule``, which its configuration
    does not say."""
    object.__setattr__(model, "_schedule", schedule)
