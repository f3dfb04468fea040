"""Channel mixers: the two-layer perceptron of any ratio, and gated ones, filtered over features or the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grafting.operators.base import Grid, Operator, Weights, assign
from grafting.operators.convolution import Filter2d, make_identity, naive_filter_1d
from grafting.operators.formulas import MixFfnFormulas, MlpFormulas, MlpHyenaXFormulas, hidden_size
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


SLOPE = 1.702  # gelu(u) is silu(1.702 u) / 1.702 within 0.021 (Hendrycks & Gimpel, arXiv 1606.08415)
OPEN = 1.2784645  # silu of it is 1


@register("mix_ffn")
class MixFfn(MixFfnFormulas, Operator):
    """y = out_proj(h ⊙ silu(g)), [h, g] = f(silu(in_proj x)), f a depthwise square filter on the grid.

    The Mix-FFN of SANA (Xie et al., arXiv 2410.10629), ratio 2.5 there and the filter 3 x 3, for any host.
    """

    def make_layers(self) -> None:
        hidden, taps = hidden_size(self.width, self.options["ratio"]), self.options["kernel"]
        self.in_proj = nn.Linear(self.width, 2 * hidden)
        self.filter = Filter2d(2 * hidden, taps)
        self.out_proj = nn.Linear(hidden, self.width)

    def features(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        h, g = self.filter(F.silu(self.in_proj(x)), grid).chunk(2, dim=-1)
        return h * F.silu(g)

    def naive(self, x: Tensor, *, grid: Grid | None = None) -> Tensor:
        u = x @ self.in_proj.weight.T + self.in_proj.bias
        u = self.filter.naive(u / (1 + (-u).exp()), grid)
        h, g = u[..., : u.shape[-1] // 2], u[..., u.shape[-1] // 2 :]
        return (h * g / (1 + (-g).exp())) @ self.out_proj.weight.T + self.out_proj.bias

    @torch.no_grad()
    def copy_from_mlp(self, fc1: Weights, fc2: Weights) -> bool:
        """Each unit looks at its own token, through an open gate: the source's units, with GELU to within 0.021.

        Fewer or more units as in `Mlp`.
        """
        units = Mlp(width=self.width, ratio=self.options["ratio"]).to(self.in_proj.weight)
        if not units.copy_from_mlp(fc1, fc2):
            return False
        hidden = units.fc1.out_features
        assign(self.in_proj, SLOPE * units.fc1.weight, SLOPE * units.fc1.bias, slice(hidden))
        assign(self.in_proj, torch.zeros_like(units.fc1.weight), None, slice(hidden, None))
        make_identity(self.filter, at=self.options["kernel"] // 2)
        assert self.filter.bias is not None
        self.filter.bias[hidden:] = OPEN
        assign(self.out_proj, units.fc2.weight / SLOPE, units.fc2.bias)
        return True

    @torch.no_grad()
    def copy_from_mix_ffn(self, in_proj: Weights, filters: Weights, out_proj: Weights) -> bool:
        """A wider one contains the source exactly, through extra units of no output; a narrower one keeps the units of
        the largest product of input, filter and output norms. Filters of another size are laid on one centre."""
        (w1, b1), (taps, b2), (w3, b3) = in_proj, filters, out_proj
        if w1.shape[1] != self.width or w3.shape != (self.width, len(w1) // 2):
            return False
        importance = (w1.norm(dim=1) * taps.flatten(1).norm(dim=1)).view(2, -1).prod(0) * w3.norm(dim=0)
        there, own = len(w1) // 2, self.out_proj.in_features
        kept = importance.topk(min(there, own)).indices.sort().values
        for half in range(2):  # the units, and their gates
            mine, theirs = slice(half * own, half * own + len(kept)), kept + half * there
            assign(self.in_proj, w1[theirs], None if b1 is None else b1[theirs], mine)
            self.filter.weight[mine] = _centred(taps[theirs], self.options["kernel"]).to(self.filter.weight)
            assert self.filter.bias is not None
            self.filter.bias[mine] = 0.0 if b2 is None else b2[theirs].to(self.filter.bias)
        self.out_proj.weight.zero_()
        self.out_proj.weight[:, : len(kept)] = w3[:, kept].to(self.out_proj.weight)
        self.out_proj.bias.zero_()
        if b3 is not None:
            self.out_proj.bias.copy_(b3)
        return True


def _centred(taps: Tensor, size: int) -> Tensor:
    """Filters (C, 1, K, K) as (C, 1, size, size): cut to the middle, or with zeros around; both sizes are odd."""
    more = (size - taps.shape[-1]) // 2
    return F.pad(taps, (more,) * 4)
