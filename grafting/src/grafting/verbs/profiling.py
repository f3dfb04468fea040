"""What a model costs and takes, and what a graft or a plan makes of that: ``profile``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .shared import (
    MODEL,
    Verbs,
    alone,
    asks_for_plan,
    at_least,
    base_option,
    device_option,
    interval,
    plan_of,
    plan_options,
    pretrained_of,
    side_option,
    text_tokens_option,
    weights_option,
)

if TYPE_CHECKING:
    from torch import nn

    from ..graft import Grafted
    from ..store.models import Model

BEFORE = " before"
"""Ends the name of a figure of the untouched model, which stands beside the same one of the model at hand."""


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add(
        "profile", profile, "parameters, FLOPs, latency, memory and time bound; of a graft or a plan, before and after"
    )
    made.add_argument("model", metavar="MODEL", help=MODEL)
    plan_options(made)
    base_option(made)
    weights_option(made)
    made.add_argument("--batch", type=at_least(1), default=8)
    side_option(made)
    text_tokens_option(made)
    made.add_argument("--rounds", type=at_least(2), default=10)
    made.add_argument("--json", action="store_true")
    device_option(made)


def profile(arguments: argparse.Namespace) -> None:
    """Parameters, FLOPs, latency, memory and the time bound at one resolution.

    A graft, or a plan, which is put into MODEL with random starts for it, is timed beside the untouched model. Adapters
    are merged first, as they are where the model is used: unmerged, every adapted layer is three products.
    """
    from ..hosts import shape_of
    from ..measure.speed import peak_bytes

    plan = plan_of(arguments) if asks_for_plan(arguments) else None
    device = alone(arguments).device
    model = _opened(arguments, planned=plan is not None).to(device)
    network, handle, teacher, missing = model.transformer, model.graft, model.transformer, ""
    if plan is not None:
        from ..graft import graft

        handle = graft(network, plan, init="random")
    _halved(network, like=network)  # before adapters are merged, which would widen what is in half
    merged = handle is not None and handle.adapters is not None
    if handle is not None and merged:
        from ..graft import ungraft

        handle = handle.own_copy()
        network, teacher = handle.model, ungraft(network)
    elif handle is not None and handle.private:
        teacher, missing = _untouched(handle, arguments)
        _halved(teacher.to(device), like=network)
    _read_alike(network, teacher, arguments.text_tokens)
    shape = shape_of(network)
    shape = shape.at(arguments.side or shape.grid)
    found: dict[str, Any] = {
        "model": arguments.model,
        **({"adapters": "merged"} if merged else {}),
        "tokens": shape.tokens,
        **({"grid": f"{shape.grid[0]} x {shape.grid[1]}"} if shape.grid[0] != shape.grid[1] else {}),
        **({"text tokens": shape.context_tokens} if shape.context_tokens else {}),
        "batch": arguments.batch,
        "device": str(device),
    }
    call = _pass(network, shape.grid, arguments.batch)
    if handle is None or missing:
        found |= _alone(network, call, handle, shape.grid, arguments)
    else:
        found |= _compared(handle, teacher, shape.grid, arguments)
    found["peak MiB"] = peak_bytes(call, device) / 2**20
    found |= {"not compared": missing} if missing else {}
    print(json.dumps(found, indent=2) if arguments.json else _table(found))


def _opened(arguments: argparse.Namespace, *, planned: bool) -> Model:
    """MODEL. Raises ValueError where it is a graft that shall take a plan, or none that a base is given for."""
    from ..store.models import open_model

    model = open_model(arguments.model, base=arguments.base, weights=arguments.weights)
    if planned and model.graft is not None:
        raise ValueError(f"{arguments.model} is a graft: a plan is timed in a pretrained model")
    if arguments.base is not None and model.graft is None:
        raise ValueError(f"--base {arguments.base}: {arguments.model} is no graft, and has no other model as its base")
    return model


def _untouched(handle: Grafted, arguments: argparse.Namespace) -> tuple[nn.Module, str]:
    """What a whole graft was made from, and ""; or the graft itself, and why it stands alone.

    Raises ValueError where ``--base`` names it and it is not that.
    """
    from ..store.configs import graft_folder
    from ..store.manifest import read_manifest

    name, base = arguments.model, arguments.base
    if base is None and (folder := graft_folder(name, weights=False)) is not None:
        base = read_manifest(folder)["base"]["name"]
    if base is None:
        return handle.model, f"{name} does not name the model that it was made from: give it with --base"
    try:
        return pretrained_of(handle, name, base).transformer, ""
    except (ValueError, OSError) as error:
        if arguments.base is not None:
            raise
        return handle.model, str(error)


def _halved(model: nn.Module, *, like: nn.Module) -> None:
    """All of a model in bfloat16 where ``like`` is held in it: its operators too, which need not learn here."""
    import torch

    from ..precision import in_half

    if in_half(like):
        torch.nn.Module.to(model, torch.bfloat16)  # diffusers' own warns at every cast


def _read_alike(network: nn.Module, teacher: nn.Module, tokens: int | None) -> None:
    """Let both be shown prompts of ``tokens`` tokens, or as long as the teacher's own."""
    from ..hosts import shape_of
    from ..hosts.shapes import set_text_tokens

    length = tokens or shape_of(teacher).context_tokens
    if length:
        for model in (network, teacher):
            set_text_tokens(model, length)


def _pass(network: nn.Module, grid: tuple[int, int], batch: int) -> Any:
    """What runs a batch of random samples of ``grid`` (H, W) tokens through a model."""
    import torch

    from ..hosts import host_for, shape_of

    host, shape, like = host_for(network), shape_of(network).at(grid), next(network.parameters())
    z = torch.randn(batch, shape.channels, *shape.latents).to(like)
    t = torch.full((batch,), 500, device=like.device)
    y = host.example(network, batch)
    return lambda: host.run(network, z, t, y)


def _alone(
    network: nn.Module, call: Any, handle: Grafted | None, grid: tuple[int, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Figures of a model that is timed beside no other; of a pretrained one with what its attention cores take."""
    from ..cost import host_flops, plan_cost
    from ..hosts import host_for, shape_of
    from ..measure.speed import latency, time_bound

    how: dict[str, Any] = {"rounds": arguments.rounds, "device": next(network.parameters()).device}
    timed = latency({"model": call}, **how)["model"]
    found: dict[str, Any]
    if handle is not None:
        cost = plan_cost(handle.plan, network, grid=grid)
        flops = {f"GFLOPs per sample{BEFORE}": cost.flops_before / 1e9, "GFLOPs per sample": cost.flops_after / 1e9}
        found = {**flops, "flop_bound": cost.flop_bound}
    else:
        host = host_for(network)
        cores = host.cores(network, host.sites(network))
        bound = time_bound(call, cores, **how, text_first=host.text_first).speedup
        counted = host_flops(shape_of(network).at(grid)) / 1e9
        found = {"GFLOPs per sample": counted, "time bound of every core": bound}
    milliseconds = timed.minimum * 1000
    return {"threads": timed.threads, "parameters": _running(network), "milliseconds": milliseconds, **found}


def _compared(
    handle: Grafted, teacher: nn.Module, grid: tuple[int, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Figures of a hybrid and of the untouched model, timed in turn."""
    from contextlib import nullcontext

    from ..measure.beside import timed_beside

    seen = timed_beside(handle, teacher, grid=grid, batch=arguments.batch, rounds=arguments.rounds)
    with nullcontext() if handle.private else handle.teacher():
        untouched = _running(teacher)
    low, high = seen.spread
    return {
        "sites": len(handle.switches),
        "threads": seen.hybrid.threads,
        f"parameters{BEFORE}": untouched,
        "parameters": _running(handle.model),
        f"GFLOPs per sample{BEFORE}": seen.cost.flops_before / 1e9,
        "GFLOPs per sample": seen.cost.flops_after / 1e9,
        f"milliseconds{BEFORE}": seen.teacher.minimum * 1000,
        "milliseconds": seen.hybrid.minimum * 1000,
        "speedup": seen.speedup,
        "speedup_low": low,
        "speedup_high": high,
        "flop_bound": seen.cost.flop_bound,
        "time_bound": seen.time_bound,
    }


def _running(network: nn.Module) -> int:
    """Parameters of what runs: of a switch one side stands by."""
    from torch import nn

    from ..measure.speed import parameters
    from ..switch import Switch

    switches = [module for module in network.modules() if isinstance(module, Switch)]
    idle = [switch.original if switch.grafted else switch.operator for switch in switches]
    return parameters(network) - parameters(nn.ModuleList(part for part in idle if part is not None))


def _table(found: dict[str, Any]) -> str:
    """A figure a line, before and after in one."""
    lines = []
    for name, value in found.items():
        if name.endswith((BEFORE, "_low", "_high")):
            continue
        told = _told(value)
        if f"{name}{BEFORE}" in found:
            told = f"{_told(found[name + BEFORE])} -> {told}"
        if f"{name}_low" in found:
            told = interval({"value": value, "low": found[f"{name}_low"], "high": found[f"{name}_high"]})
        lines.append(f"{name:<26}{told}")
    return "\n".join(lines)


def _told(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "–" if value is None else str(value)
