"""Joint attention of a picture and its text (Esser et al. 2024, arXiv 2403.03206) with another operator in the picture.

In such a block all tokens attend to all. A graft changes how the picture's tokens see each other, and keeps the rest:
text still attends to text and picture, and the picture to text. Shapes: N tokens of the picture, L of the text, H heads
of C channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hosts.shapes import kept
from .operators import Operator
from .operators.attention import Attention, read_text
from .operators.base import Grid, Places, Text

LOOKED_AT = 64
"""Queries of a sample whose attention says at the start how much of it the picture has."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the operator makes of the picture: features (B, N, F), what is added to their outputs, and keys and values
    (B, N, H, C) for the text to see; None where the operator has none."""

    features: Tensor | None
    added: Tensor | float = 0.0
    keys: Tensor | None = None
    values: Tensor | None = None


def beside(call: Mapping[str, Any]) -> dict[str, Any]:
    """What a joint attention reads of the further arguments of diffusers' own: its text, and where tokens stand."""
    turns = call.get("image_rotary_emb")
    return {"context": call.get("encoder_hidden_states"), "places": turns and Places(cosines=turns[0], sines=turns[1])}


class Joint(nn.Module):
    """An operator among the picture's tokens, within what else the joint attention ``original`` of diffusers does.

    operator: of the kind of attention, it sees text under one normaliser with the tokens that it may see, and lends the
    text its own projections. Of another kind, what the picture reads from text is added to its features (its outputs,
    where the features are wider than a token): softmax over the text and one key more, which stands for the picture as
    N tokens of equal weight do, times ``balance``, a learned factor's logarithm for each head. None is the control
    *none*: the picture's tokens see text alone. Whatever the operator has not is a copy of the original's.

    Where positions are told by turning queries and keys, each is turned by its own token's, whatever window it is in.
    """

    single: ClassVar[bool] = False
    """Whether picture and text come as one, through the same projections."""

    def __init__(self, operator: Operator | None, original: nn.Module) -> None:
        super().__init__()
        a: Any = original
        self.operator, self.heads = operator, int(a.heads)
        self.context_pre_only = bool(a.context_pre_only)
        """Whether text ends here: it is read and not written, in a model's last block."""
        last_layer = None if operator is None else operator.out_projection
        self.wide = last_layer is None or last_layer.in_features != last_layer.out_features
        lends = "nothing" if operator is None else operator.lends
        names = kept(lends, wide=self.wide, last=self.context_pre_only, single=self.single)
        originals = {name: getattr(a, name, None) for name in names}
        if "to_out" in originals:
            originals["to_out"] = a.to_out[0]
        self.kept = nn.ModuleDict({name: copy.deepcopy(part) for name, part in originals.items() if part is not None})
        self.balance = None if lends == "all" else nn.Parameter(torch.zeros(self.heads))

    @property
    def needs_tokens(self) -> bool:
        """Whether it runs at one number of tokens alone."""
        return self.operator is not None and self.operator.needs_tokens

    @property
    def out_projection(self) -> nn.Linear:
        """The operator's last layer."""
        assert self.operator is not None
        return self.operator.out_projection

    def forward(
        self, x: Tensor, *, grid: Grid | None = None, context: Tensor, places: Places | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens x (B, N, D) of the picture and ``context`` (B, L, D) of its text, to as many of both.

        Text that ends here comes back as it was.
        """
        out, told = self.both(x, grid, self.text(context, places))
        return out, context if told is None else self.kept["to_add_out"](told)

    def both(self, x: Tensor, grid: Grid | None, text: Text) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) of the picture, and what its text gets (B, L, D), to be projected; None where it asks nothing."""
        seen = self.picture(x, grid, text)
        out = seen.added if seen.features is None else self.out_projection(seen.features) + seen.added
        assert isinstance(out, Tensor)
        if text.asked is None:
            return out, None
        keys = text.placed(self.project("to_k", x, "norm_k")) if seen.keys is None else seen.keys
        values = self.project("to_v", x) if seen.values is None else seen.values
        told = F.scaled_dot_product_attention(
            text.asked.transpose(1, 2),
            torch.cat([keys, text.seen], dim=1).transpose(1, 2),
            torch.cat([values, text.values], dim=1).transpose(1, 2),
        )
        return out, told.transpose(1, 2).flatten(2)

    def regression(self, x: Tensor, y: Tensor, *, grid: Grid | None, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the operator's last layer reads, and what it should give where the picture's tokens get y (B, N, D).

        call: what else the original was given.
        """
        told = beside(call)
        seen = self.picture(x, grid, self.text(told["context"], told["places"]))
        assert seen.features is not None
        return seen.features, y - seen.added

    def picture(self, x: Tensor, grid: Grid | None, text: Text) -> Seen:
        """What becomes of the picture's tokens x (B, N, D)."""
        if self.operator is None:
            return Seen(features=None, added=self.projected(self.read(x, text)))
        features, keys, values = self.operator(x, grid=grid, text=text)
        if isinstance(self.operator, Attention):
            return Seen(features=features, keys=keys, values=values)
        if self.wide:
            return Seen(features=features, added=self.projected(self.read(x, text)), values=values)
        return Seen(features=features + self.read(x, text), values=values)

    def projected(self, read: Tensor) -> Tensor:
        """What the picture reads (B, N, D), as the original projects what it gives."""
        out: Tensor = self.kept["to_out"](read) if "to_out" in self.kept else read
        return out

    def read(self, x: Tensor, text: Text) -> Tensor:
        """(B, N, D) what the picture's tokens get from text, which is less the more the picture counts."""
        q = text.placed(self.project("to_q", x, "norm_q")).transpose(1, 2)
        # In float32 at least: bfloat16 knows the logarithm of some thousand tokens in steps of 6 %.
        wide = torch.promote_types(q.dtype, torch.float32)
        picture = q.new_full((1, 1, 1, 1), q.shape[2], dtype=wide).log()
        read, share = read_text(q * q.shape[-1] ** -0.5, text, picture)
        assert self.balance is not None
        # The factor comes after, in float32: a key's weight in half precision would know it in steps of 6 %.
        factor, share = self.balance.float().exp().view(1, -1, 1, 1), share.float()
        read = (read.float() / (1 - share + share * factor)).to(read.dtype)
        return read.transpose(1, 2).flatten(2)

    @torch.no_grad()
    def weigh(self, q: Tensor, k: Tensor) -> None:
        """Let ``balance`` start where the picture counts as it does in the original, in the mean over queries.

        q, k: of the picture there (B, H, N, C), q scaled already. Nothing to do for an operator that lends its own.
        """
        if self.balance is not None:
            some = q[:, :, :: max(1, q.shape[2] // LOOKED_AT)].float()
            total = (some @ k.float().transpose(2, 3)).logsumexp(-1)
            self.balance.copy_((total - torch.tensor(float(k.shape[2])).log()).mean((0, 2)))

    def text(self, context: Tensor, places: Places | None = None) -> Text:
        """What the text has to say and to ask, and what the picture's queries and keys are normed by."""
        return Text(
            queries=None if self.context_pre_only else self.project("add_q_proj", context, "norm_added_q"),
            keys=self.project("add_k_proj", context, "norm_added_k"),
            values=self.project("add_v_proj", context),
            places=places,
            **self.norms,
        )

    @property
    def norms(self) -> dict[str, Any]:
        """Of the picture's queries and keys."""
        return {name: self.kept[name] if name in self.kept else None for name in ("norm_q", "norm_k")}  # noqa: SIM401

    def project(self, name: str, x: Tensor, norm: str = "") -> Tensor:
        """x (B, n, D) through one of the original's projections to (B, n, H, C), normed where it has that norm."""
        heads: Tensor = self.kept[name](x).unflatten(2, (self.heads, -1))
        return self.kept[norm](heads) if norm in self.kept else heads


class SingleStream(Joint):
    """The same where text and picture come as one, the text first, through projections that both share, and go out
    without one of the output: the block that is around projects them together with its MLP.

    An operator of the kind of attention lends the text its own projections; its last layer, which is for the picture
    alone, is the only one that the original has not.
    """

    single = True

    def forward(  # type: ignore[override]
        self, x: Tensor, *, grid: Grid, context: Tensor | None = None, places: Places | None = None
    ) -> Tensor:
        """Tokens x (B, L + N, D) to as many; ``grid`` says how many are the picture's."""
        text, picture = self.apart(x, grid)
        out, told = self.both(picture, grid, self.text(text, places))
        assert told is not None
        return torch.cat([told, out], dim=1)

    def regression(self, x: Tensor, y: Tensor, *, grid: Grid | None, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """x: of text and picture (B, L + N, D); all else is the picture's."""
        assert grid is not None
        text, picture = self.apart(x, grid)
        return super().regression(picture, y, grid=grid, call={**call, "encoder_hidden_states": text})

    @staticmethod
    def apart(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """The text's tokens (B, L, D) and the picture's (B, N, D)."""
        tokens = math.prod(grid)
        return x[:, :-tokens], x[:, -tokens:]

    def text(self, context: Tensor, places: Places | None = None) -> Text:
        if isinstance(self.operator, Attention):
            q, k, v = self.operator.split_heads(context)
        else:
            q, k, v = (self.project(name, context) for name in ("to_q", "to_k", "to_v"))
        shared = Text(keys=k, values=v, places=places, **self.norms)
        q, k = shared.normed(q, k)
        return replace(shared, queries=q, keys=k)
