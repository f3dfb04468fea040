"""One descriptor per family of diffusers: what is a site, how to call the model, where its gates and weights are.

Nothing outside this folder names a model class. A descriptor reads a live module or a bare configuration.
"""

from __future__ import annotations

from .base import Host, HostError, HostShape, Site
from .registry import bundled_config, bundled_configs, host_for, shape_of

__all__ = [
    "Host",
    "HostError",
    "HostShape",
    "Site",
    "bundled_config",
    "bundled_configs",
    "host_for",
    "shape_of",
]
