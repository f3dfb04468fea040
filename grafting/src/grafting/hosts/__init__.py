"""One descriptor per family, of diffusers or registered: its sites, how to call a model, where gates and weights are.

What is of one family alone is answered here; outside, a family is named by the import of original DiT checkpoints, by
the recipes of ``pretrain`` and by what diffusers' pipelines call their parts. A descriptor reads a live module; sizes
are read from a configuration too, without torch, which is imported when a descriptor is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .shapes import HostError, HostShape, Site, bundled_config, bundled_configs, shape_of

if TYPE_CHECKING:
    from .base import Host as Host
    from .registry import host_for as host_for
    from .registry import register as register
    from .registry import schedule_of as schedule_of
    from .registry import set_schedule as set_schedule

__all__ = [
    "Host",
    "HostError",
    "HostShape",
    "Site",
    "bundled_config",
    "bundled_configs",
    "host_for",
    "register",
    "schedule_of",
    "set_schedule",
    "shape_of",
]


def __getattr__(name: str) -> Any:
    if name == "Host":
        from .base import Host

        return Host
    if name in ("host_for", "register", "schedule_of", "set_schedule"):
        from . import registry

        return getattr(registry, name)
    raise AttributeError(f"module 'grafting.hosts' has no attribute {name!r}")
