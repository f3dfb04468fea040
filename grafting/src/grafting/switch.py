"""What stands at a grafted site: the pretrained module and its stand-in, one of which runs, over the grid at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .activations import as_tokens
from .hosts import Host
from .joint import Joint, beside
from .operators import Operator
from .precision import beside_halves


class Nothing(nn.Module):
    """The control *none*: the site's output is zero."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Zeros of the input's shape, still on the graph of the input."""
        return hidden_states * 0


class Raster:
    """The token grid (H, W) of the pass that a model is in, read from what the model is called with.

    A checkpointed block runs again on the way back, when the model may have seen other latents since: the grid of its
    own pass goes with it. The model's own resolution counts until the first pass.
    """

    def __init__(self, host: Host, model: nn.Module) -> None:
        self.host, self.grid = host, host.grid_of(model)
        self._checkpoint: Callable[..., Any] | None = None
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def detach(self) -> None:
        """Watch the model no longer."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._leave(model)  # the last pass may have ended by an interrupt, which no hook after it sees
        self.grid = self.host.grid_called(model, args, kwargs)
        checkpoint: Any = getattr(model, "_gradient_checkpointing_func", None)
        if checkpoint is not None:
            self._checkpoint = checkpoint
            model._gradient_checkpointing_func = partial(self._keep, self.grid)  # type: ignore[assignment]

    def _leave(self, model: nn.Module, *_: Any) -> None:
        if self._checkpoint is not None:
            model._gradient_checkpointing_func = self._checkpoint  # type: ignore[assignment]
            self._checkpoint = None

    def _keep(self, grid: tuple[int, int], block: Callable[..., Any], *args: Any) -> Any:
        """The model's own checkpointing of a block that knows its grid."""

        def run(*args: Any) -> Any:
            self.grid = grid
            return block(*args)

        assert self._checkpoint is not None
        return self._checkpoint(run, *args)


class Switch(nn.Module):
    """A site that holds the original and its stand-in, and runs one of them.

    original: the pretrained module, never copied; None once the student has its own copy of the model.
    operator: an :class:`~grafting.operators.Operator`, one within a :class:`~grafting.joint.Joint`, or a control that
    is called as the original is. raster: of the model that the site is in. fade: the share that ``fading``, what was
    replaced, still has in the output; 0 but while it is being trained away from.
    """

    def __init__(self, original: nn.Module | None, operator: nn.Module, raster: Raster) -> None:
        super().__init__()
        self.original = original
        self.operator = operator
        self.raster = raster
        self.grafted = True
        self.fade = 0.0
        self.fading: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no part of the model

    @property
    def context_pre_only(self) -> bool:
        """Whether text ends at this site of joint attention, as diffusers' own modules say it."""
        return bool(getattr(self.operator if self.original is None else self.original, "context_pre_only", False))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """(B, N, D) to (B, N, D), or (B, D, H, W) on the grid to as much, through the chosen side; further arguments
        reach modules of the host's own kind.

        At a site of joint attention it gives two tensors, of the picture and of its text; in a single stream, where it
        is given both as one, it gives one (B, L + N, D), text first.
        """
        if not self.grafted:
            assert self.original is not None
            return self.original(hidden_states, *args, **kwargs)
        with beside_halves(self.operator, hidden_states) as cast:
            result = self.stand_in(hidden_states, *args, **kwargs)
        if cast:
            result = tuple(part.bfloat16() for part in result) if isinstance(result, tuple) else result.bfloat16()
        if self.fade:
            (before,) = self.fading
            gone = before(hidden_states, *args, **kwargs)
            if isinstance(result, tuple):
                return tuple(new + self.fade * (old - new) for new, old in zip(result, gone, strict=True))
            result = result + self.fade * (gone - result)
        return result

    def stand_in(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The new operator's output, whatever the switch says."""
        if isinstance(self.operator, Joint):
            if kwargs.get("ip_hidden_states") is not None:
                raise ValueError("ip_hidden_states: a grafted attention reads no picture prompts; leave them out")
            if kwargs.get("attention_mask") is not None:
                raise ValueError("attention_mask: a grafted attention reads all of the text; leave it out")
            return self.operator(hidden_states, grid=self.raster.grid, **beside(kwargs))
        if isinstance(self.operator, Operator):
            if kwargs.get("attention_mask") is not None:
                raise ValueError(
                    f"attention_mask: {type(self.operator).__name__} reads every token of the picture; leave it out"
                )
            result = self.operator(as_tokens(hidden_states), grid=self.raster.grid)
            if hidden_states.ndim == 3:
                return result
            return result.transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return self.operator(hidden_states, *args, **kwargs)
