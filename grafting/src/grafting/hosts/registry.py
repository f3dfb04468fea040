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
from .shapes import SHAPES, HostError, class_of

HOSTS: dict[str, Host] = {name: host for host in (DiT(), PixArt(), SD3(), Sana(), Flux()) for name in host.class_names}
"""By class."""
CLASSES: dict[str, type[nn.Module]] = {}
"""Those that :func:`register` was told of; all others are diffusers'."""


def register(host: Host, *kinds: type[nn.Module]) -> None:
    """Let ``host`` describe models of the classes ``kinds``, everywhere: a transformer of one's own has its own host, a
    subclass of one of diffusers', under another name, that of its base.

        grafting.hosts.register(DiT(), MyDiT)

    kinds: of diffusers' ``ModelMixin`` and ``ConfigMixin``. Configurations and grafts name a class without its module:
    whoever reads them registers it first.

    Raises HostError where ``host`` is no host, there is no class, or one is not of diffusers' or has a name that is
    taken.
    """
    from diffusers import ConfigMixin, ModelMixin

    if not isinstance(host, Host):
        raise HostError(f"{host!r} is no host: give an instance of a subclass of grafting.hosts.Host")
    if not kinds:
        raise HostError(f"no class is given that {type(host).__name__} describes")
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, ModelMixin) and issubclass(kind, ConfigMixin)):
            raise HostError(f"{kind!r} is no class of diffusers' ModelMixin and ConfigMixin, which save and load it")
        known = CLASSES.get(kind.__name__)
        again = known is not None and (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__)
        if kind.__name__ in HOSTS and not again:  # the cell of a notebook may run again
            raise HostError(f"another {kind.__name__} is registered already: give the class a name of its own")
    for kind in kinds:
        HOSTS[kind.__name__], SHAPES[kind.__name__], CLASSES[kind.__name__] = host, host.sizes, kind


def class_named(name: str) -> Any:
    """The class of that name, registered or diffusers', which makes models and loads them."""
    import diffusers

    return CLASSES.get(name) or getattr(diffusers, name)


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
