"""Joint attention of a picture and its text (Esser et al. 2024, arXiv 2403.03206) with another operator in the picture.

In such a block all tokens attend to all. A graft changes how the picture's tokens see each other, and keeps the rest:
text still attends to text and picture, and the picture to text. Shapes: N tokens of the picture, L of the text, H heads
of C channels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operators import Operator
from .operators.attention import Attention
from .operators.base import Beside, Grid

TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


class Joint(nn.Module):
    """An operator among the picture's tokens, within what else the joint attention ``original`` of diffusers does.

    operator: of the kind of attention, it sees text under one normaliser with the tokens that it may see, and lends the
    text its own projections. Of another kind, what the picture reads from text is added to its features (its outputs,
    where the features are wider than a token): softmax over the text and one key more, which stands for the picture as
    N tokens of equal weight do, times ``balance``, a learned factor's logarithm for each head that starts at 0. None is
    the control *none*: the picture's tokens see text alone. Whatever the operator has not is a copy of the original's.
    """

    def __init__(self, operator: Operator | None, original: nn.Module) -> None:
        super().__init__()
        a: Any = original
        self.operator, self.heads = operator, int(a.heads)
        self.context_pre_only = bool(a.context_pre_only)
        """Whether text ends here: it is read and not written, in a model's last block."""
        wide = operator is not None and operator.out_projection.in_features != operator.out_projection.out_features
        self.wide = operator is None or wide
        kept = {*TEXT, *NORMS}
        lent = "nothing" if operator is None else operator.lends
        if lent != "all":
            kept |= {"to_q", "to_k"} if lent == "values" else {"to_q", "to_k", "to_v"}
            self.balance = nn.Parameter(torch.zeros(self.heads))
        if self.context_pre_only:  # text asks for nothing, so that nothing answers it
            kept -= {"add_q_proj", "norm_added_q", "to_add_out", "to_k", "to_v"}
            kept -= set() if lent == "all" else {"norm_k"}
        originals = {name: getattr(a, name, None) for name in sorted(kept)}
        if self.wide:
            originals["to_out"] = a.to_out[0]
        self.kept = nn.ModuleDict({name: copy.deepcopy(part) for name, part in originals.items() if part is not None})

    @property
    def needs_tokens(self) -> bool:
        """Whether it runs at one number of tokens alone."""
        return self.operator is not None and self.operator.needs_tokens

    @property
    def out_projection(self) -> nn.Linear:
        """The operator's last layer."""
        assert self.operator is not None
        return self.operator.out_projection

    def forward(self, x: Tensor, *, grid: Grid | None = None, context: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens x (B, N, D) of the picture and ``context`` (B, L, D) of its text, to as many of both.

        Text that ends here comes back as it was.
        """
        text = self.text(context)
        features, added, k, v = self.picture(x, grid, text)
        out = added if self.operator is None else self.out_projection(features) + added
        if self.context_pre_only:
            return out, context
        keys, values = (
            torch.cat([mine, theirs], dim=1).transpose(1, 2) for mine, theirs in ((k, text[1]), (v, text[2]))
        )
        told = F.scaled_dot_product_attention(text[0].transpose(1, 2), keys, values)
        return out, self.kept["to_add_out"](told.transpose(1, 2).flatten(2))

    def regression(self, x: Tensor, y: Tensor, *, grid: Grid | None, context: Tensor) -> tuple[Tensor, Tensor]:
        """What the operator's last layer reads, and what it should give where the site gives y (B, N + L, D)."""
        features, added, _, _ = self.picture(x, grid, self.text(context))
        return features, y[:, : x.shape[1]] - added

    def picture(self, x: Tensor, grid: Grid | None, text: tuple[Any, Tensor, Tensor]) -> tuple[Any, Any, Any, Any]:
        """Features (B, N, F), what is added to their outputs, and keys and values (B, N, H, C) for the text to read."""
        _, keys, values = text
        if isinstance(self.operator, Attention):
            self.operator.check_input(x, grid)
            norms = {name: self.kept[name] if name in self.kept else None for name in NORMS[:2]}  # noqa: SIM401
            features, theirs, values = self.operator.joint(x, Beside(keys=keys, values=values, **norms), grid=grid)
            return features, 0.0, theirs, values
        told: Any = None
        lent: Tensor | None = None
        k: Tensor | None = None
        v: Tensor | None = None
        if self.operator is not None:
            self.operator.check_input(x, grid)
            told, lent = self.operator.lending(x, grid=grid)
        read = self.read(self.project("to_q", x, "norm_q"), keys, values)
        if not self.context_pre_only:
            k = self.project("to_k", x, "norm_k")
            v = self.project("to_v", x) if lent is None else lent.unflatten(2, (self.heads, -1))
        return (told, self.kept["to_out"](read), k, v) if self.wide else (told + read, 0.0, k, v)

    def read(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, N, D) what queries (B, N, H, C) of the picture get from text, less the share that the picture has."""
        picture = q.new_full((), q.shape[1]).log() + self.balance.to(q.dtype)
        scores = torch.zeros(1, self.heads, 1, keys.shape[1] + 1, dtype=q.dtype, device=q.device)
        scores = torch.cat([scores[..., 1:], picture.view(1, -1, 1, 1)], dim=-1)  # on top of the product with a key
        keys, values = (F.pad(t, (0, 0, 0, 0, 0, 1)).transpose(1, 2) for t in (keys, values))  # which is zero
        read = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=scores)
        return read.transpose(1, 2).flatten(2)

    def text(self, context: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Queries (None where text ends here), keys and values (B, L, H, C) of the text."""
        q = None if self.context_pre_only else self.project("add_q_proj", context, "norm_added_q")
        return q, self.project("add_k_proj", context, "norm_added_k"), self.project("add_v_proj", context)

    def project(self, name: str, x: Tensor, norm: str = "") -> Tensor:
        """x (B, n, D) through one of the original's projections to (B, n, H, C), normed where it has that norm."""
        heads: Tensor = self.kept[name](x).unflatten(2, (self.heads, -1))
        return self.kept[norm](heads) if norm in self.kept else heads
