"""What stands around a text-to-image transformer only while it learns, and is taken down from the model that is kept.

Shapes: states of captions (n, D); hidden states of B pictures (B, T, width), their T tokens row by row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from ...scenes.world import COLOURS, SHAPES

KEPT = 100
"""Directions of the states of captions that come out alike, to a factor of two; of what is fainter less is made."""

FAINTEST = 1e-9
"""Least size of a direction, by the largest: below it there is rounding."""

PARTS = (len(SHAPES) + 1, len(COLOURS) + 1)
"""What a token may show: each shape or none, each colour or none."""


class Whitened(nn.Module):
    """The first layer of a caption's projection, learning as if every direction of the states were of one size.

    Nearly all of the size of a text encoder's states is which words there are; which belongs to which is in fainter
    directions, and what is read from them at first is too faint to be learnt from. The layer's weight is that of
    whitened states times the whitening, which changes how it learns and not what it can say.
    """

    def __init__(self, states: torch.Tensor) -> None:
        """states: (n, D), of the captions learnt from."""
        super().__init__()
        values = states.double()
        sizes, ways = torch.linalg.eigh(values.mT @ values / len(values))
        sizes = sizes.clamp(min=FAINTEST * float(sizes[-1]))
        sizes = sizes + sizes[max(0, len(sizes) - 1 - KEPT)]
        self.register_buffer("whitening", (ways * sizes.rsqrt() @ ways.mT).float(), persistent=False)
        self.register_buffer("colouring", (ways * sizes.sqrt() @ ways.mT).float(), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # what is faint would drown in a loud one's rounding
            return weight @ self.whitening  # type: ignore[operator]

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight @ self.colouring  # type: ignore[operator]


class Semantics(nn.Module):
    """Reads what lies where from the hidden states of the middle of a transformer.

    The noise's error says little about which thing is where before it is nearly drawn; asked for in so many words, it
    is learnt earlier (compare Yu et al. 2024, arXiv 2410.06940, who align such states with a vision model's).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        width = model.config.num_attention_heads * model.config.attention_head_dim
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(width, sum(PARTS))
        self.hidden: torch.Tensor | None = None
        blocks = model.transformer_blocks
        self.hook = blocks[len(blocks) // 2].register_forward_hook(self._see)

    def _see(self, block: nn.Module, given: Any, hidden: torch.Tensor) -> None:
        self.hidden = hidden

    def error(self, cells: torch.Tensor) -> torch.Tensor:
        """Cross-entropies with what lies in the cells (B, 2, h, w) of the last pictures seen, summed."""
        assert self.hidden is not None
        told = self.read(self.norm(self.hidden)).float().split(PARTS, -1)
        self.hidden = None
        wanted = cells.long().flatten(2)
        return torch.stack(
            [cross_entropy(part.flatten(0, 1), wanted[:, k].flatten()) for k, part in enumerate(told)]
        ).sum()


def erect(model: Any, states: torch.Tensor | None, *, semantics: bool) -> None:
    """Whiten what the captions' projection learns from, by their ``states``, and put a head for semantics beside."""
    if states is not None:
        parametrize.register_parametrization(model.caption_projection.linear_1, "weight", Whitened(states))
    if semantics:
        model.semantics = Semantics(model)


@torch.no_grad()
def begin_text(model: Any, states: torch.Tensor) -> None:
    """Let all that reads captions begin anew, the projected ``states`` at a root mean square of one.

    Xavier's rule leaves them at a fraction of that, and products of queries and keys so faint that attention stays even
    over the words. A model that has learnt from an even mean which words there are gains nothing by reading them once
    more from their neighbours' states, which is where it says which belongs to which; so what was learnt stays behind.
    """
    project = model.caption_projection
    for module in (project, *(block.attn2 for block in model.transformer_blocks)):
        for p in module.parameters():
            nn.init.xavier_uniform_(p) if p.ndim == 2 else nn.init.zeros_(p)  # of whitened states, where they are so
    project.linear_2.weight /= project(states).square().mean().sqrt()
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)


def take_down(model: Any) -> None:
    """Leave the bare model, which says the same."""
    if parametrize.is_parametrized(model.caption_projection.linear_1):
        parametrize.remove_parametrizations(model.caption_projection.linear_1, "weight")
    if hasattr(model, "semantics"):
        model.semantics.hook.remove()
        del model.semantics
