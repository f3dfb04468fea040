"""Channel mixers: the two-layer perceptron of any ratio, and its gated replacement whose filter runs over features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.base import Grid, Operator, Weights
from grafting.operators.convolution import naive_filter_1d
from grafting.operators.formulas import MlpFormulas, MlpHyenaXFormulas, hidden_size
from grafting.operators.registry import register


@register("mlp")
class Mlp(MlpFormulas, Operator):
    """y = fc2(gelu(fc1(x))) with the tanh form of GELU, as DiT's blocks have (ratio 4); the paper grafts 3 and 6."""

    out_name = "fc2"

    def make_layers(self) -> None:
        hidden = hidden_size(self.width, self.options["ratio"])
        self.fc1 = nn.Linear(self.width, hidden)
        self.fc2 = nn.Linear(hidden, self.width)

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        return F.gelu(self.fc1(x), approximate="tanh")

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        h = x @ self.fc1.weight.T + self.fc1.bias
        h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        return h @ self.fc2.weight.T + self.fc2.bias

    @torch.no_grad()
    def copy_from_mlp(self, fc1: Weights, fc2: Weights) -> bool:
        """A wider one contains the source exactly (extra units get zero output weights, so they start silent); a
        narrower one keeps the units with the largest product of input and output weight norms."""
        (w1, b1), (w2, b2) = fc1, fc2
        if w1.shape[1] != self.width or w2.shape != (self.width, w1.shape[0]):
            return False
        b1 = w1.new_zeros(w1.shape[0]) if b1 is None else b1
        importance = torch.cat([w1, b1[:, None]], dim=1).norm(dim=1) * w2.norm(dim=0)
        kept = importance.topk(min(len(w1), self.fc1.out_features)).indices.sort().values
        self.fc1.weight[: len(kept)] = w1[kept].to(self.fc1.weight)
        self.fc1.bias[: len(kept)] = b1[kept].to(self.fc1.bias)
        self.fc2.weight.zero_()
        self.fc2.weight[:, : len(kept)] = w2[:, kept].to(self.fc2.weight)
        self.fc2.bias.zero_()
        if b2 is not None:
            self.fc2.bias.copy_(b2)
        return True


@register("mlp_hyena_x")
class MlpHyenaX(MlpHyenaXFormulas, Operator):
    """Gated convolution as channel mixer: D → 3·r·D, a causal filter, y = q·k·v, r·D → D.

    The filter's channels are the token positions and it runs along the features, as in the released grafts, so the
    operator is tied to its number of tokens.
    """

    def make_layers(self) -> None:
        hidden = self.width * self.options["ratio"]
        assert self.tokens is not None
        self.in_proj = nn.Linear(self.width, 3 * hidden)
        self.short_filter = nn.Conv1d(self.tokens, self.tokens, self.options["kernel"], groups=self.tokens)
        self.out_proj = nn.Linear(hidden, self.width)

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        h = self.short_filter(F.pad(self.in_proj(x), (self.options["kernel"] - 1, 0)))
        q, k, v = h.chunk(3, dim=-1)
        return q * (k * v)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        h = self.in_proj(x)
        weight, bias = self.short_filter.weight, self.short_filter.bias
        h = naive_filter_1d(h.transpose(1, 2), weight, bias, before=self.options["kernel"] - 1).transpose(1, 2)
        hidden = h.shape[-1] // 3
        return self.out_proj(h[..., :hidden] * h[..., hidden : 2 * hidden] * h[..., 2 * hidden :])
