"""Speed of models beside its bounds: interleaved latency, parameters, peak memory, FLOPs, time without attention cores.

Absolute times depend on the machine and its load; ratios of interleaved runs are what to report.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LINEAR = "SanaLinearAttnProcessor2_0"
"""diffusers' linear attention, which calls no fused kernel."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds per call: ``minimum`` is the figure, ``low`` and ``high`` (quartiles) tell how busy the machine was."""

    minimum: float
    low: float
    median: float
    high: float
    rounds: int
    threads: int

    def speedup_over(self, other: Latency) -> float:
        """How many times faster than ``other``, by the minima."""
        return other.minimum / self.minimum


def latency(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 10,
    warmup: int = 2,
    device: torch.device | str | None = None,
) -> dict[str, Latency]:
    """Time every call in turn, round by round, so that a busy moment hits all of them; no gradients.

    device: what the calls compute on, as :func:`wait` has it.

    Raises:
        ValueError: fewer than two rounds.
    """
    if rounds < 2:
        raise ValueError(f"{rounds} rounds: a spread needs at least 2")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for k in range(warmup + rounds):
            for name, call in calls.items():
                wait(device)
                start = time.perf_counter()
                call()
                wait(device)
                if k >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(values: list[float]) -> Latency:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(
        minimum=min(values), low=low, median=median, high=high, rounds=len(values), threads=torch.get_num_threads()
    )


def wait(device: torch.device | str | None = None) -> None:
    """Until ``device`` has done what it was asked for, by default the current one of the accelerator, if there is one;
    a CPU has already."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if device is None or (found is not None and torch.device(device).type == found.type):
            torch.accelerator.synchronize(device)


def parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def flops(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one call (a multiply-add is two), counted on the meta device: nothing is computed or copied.

    torch's counter sees no SDPA on the CPU, but does on meta.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def to_meta(x: Any) -> Any:
        return x.to("meta") if isinstance(x, torch.Tensor) else x

    state = {name: to_meta(x) for name, x in [*module.named_parameters(), *module.named_buffers()]}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(module, state, tree_map(to_meta, args), tree_map(to_meta, kwargs))
    return int(counter.get_total_flops())


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Largest sum of bytes of tensors that ``call`` made and held at one time on ``device``, without gradients.

    On a GPU the allocator's own peak above what was held before; on a CPU the tensors that operations return are
    followed, so workspace inside a kernel is not seen.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.no_grad():
            call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.no_grad(), _LiveStorages() as live:
        call()
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Follows the storages of the tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in taken:  # a view or an in-place result is not new memory
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


@contextmanager
def without_cores(modules: Iterable[nn.Module], text_first: bool = False) -> Iterator[None]:
    """Inside, attention within ``modules`` returns its values untouched: projections stay, the core goes.

    The core is softmax, or all that SANA's linear attention does between its projections. The time of a model so
    treated is what no replacement of those cores that keeps the projections can beat. Only calls whose queries and
    values have the same shape, that is self-attention, are skipped. Of joint attention, over a picture and then its
    text, or the reverse where ``text_first``, only what the picture's tokens read of each other goes, for a graft keeps
    the rest.
    """
    mode = _SkipCores(text_first)
    hooks, linear = [], dict[Any, Any]()
    for module in modules:
        hooks.append(module.register_forward_pre_hook(mode.enter_module, with_kwargs=True))
        hooks.append(module.register_forward_hook(mode.leave_module, always_call=True))
        parts: list[Any] = [part for part in module.modules() if hasattr(part, "processor")]
        linear |= {part: part.processor for part in parts if type(part.processor).__name__ == LINEAR}
    try:
        for part in linear:
            part.processor = _values_alone
        with mode:
            yield
    finally:
        for part, own in linear.items():
            part.processor = own
        for hook in hooks:
            hook.remove()


def _values_alone(attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    """In the place of diffusers' :data:`LINEAR`: the projections and norms, and nothing between them."""
    for project, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k)):
        projected = project(hidden_states)
        if norm is not None:
            norm(projected)
    out: torch.Tensor = attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))
    return out


class _SkipCores(TorchFunctionMode):
    def __init__(self, text_first: bool) -> None:
        super().__init__()
        self.text_first = text_first
        self._joint: list[tuple[int, int]] = []
        """Of each module that is entered: tokens of the picture and of the text, if it was given both to attend to."""

    def enter_module(self, _: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        picture, text = args[0] if args else kwargs.get("hidden_states"), kwargs.get("encoder_hidden_states")
        self._joint.append((0, 0) if picture is None or text is None else (picture.shape[1], text.shape[1]))

    def leave_module(self, *_: Any) -> None:
        self._joint.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._joint and func is nn.functional.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs or {}).values())[:3]
            if query.shape == value.shape:
                n, text = self._joint[-1]
                if not text or query.shape[-2] != n + text:
                    return value
                before = text if self.text_first else 0
                own, other = slice(before, before + n), slice(text) if self.text_first else slice(n, None)
                read = func(query[..., own, :], key[..., other, :], value[..., other, :])
                told = func(query[..., other, :], key, value)
                return torch.cat([told, read] if self.text_first else [read, told], dim=-2)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class TimeBound:
    """``speedup`` that swapping the cores for nothing would give, from two interleaved latencies."""

    whole: Latency
    without: Latency

    @classmethod
    def of(cls, timed: Mapping[str, Latency]) -> TimeBound:
        """From the latencies of :func:`bound_calls`."""
        return cls(whole=timed["whole"], without=timed["bound"])

    @property
    def speedup(self) -> float:
        return self.without.speedup_over(self.whole)


def time_bound(
    call: Callable[[], object],
    modules: Iterable[nn.Module],
    *,
    rounds: int = 10,
    text_first: bool = False,
    device: torch.device | str | None = None,
) -> TimeBound:
    """Measure ``call`` as it is and without the attention cores of ``modules``, as :func:`without_cores` does it.

    device: as :func:`latency` has it.
    """
    return TimeBound.of(latency(bound_calls(call, modules, text_first), rounds=rounds, device=device))


def bound_calls(
    call: Callable[[], object], modules: Iterable[nn.Module], text_first: bool = False
) -> dict[str, Callable[[], None]]:
    """``call`` as it is, ``whole``, and without the attention cores of ``modules``, ``bound``, for :func:`latency`.

    Both go through the same interception, the former's over no module, so that its cost is on both sides.
    """

    def skipping(cores: Sequence[nn.Module]) -> None:
        with without_cores(cores, text_first):
            call()

    return {"whole": partial(skipping, ()), "bound": partial(skipping, tuple(modules))}
