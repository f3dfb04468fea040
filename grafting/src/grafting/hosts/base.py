"""What a descriptor answers. Shapes: B samples, N tokens, D channels of a token, C latent channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..activations import Streams
from ..diffusion import Diffusion, Schedule
from ..operators import Operator, parallel
from ..precision import autocast, in_half
from .shapes import KINDS, HostError, HostShape, Kind, Role, Site, read_sizes


class Host(ABC):
    """A family of models; :func:`grafting.hosts.register` makes one of your own known."""

    family: ClassVar[str]
    """What its models are called in errors and reports."""
    class_names: ClassVar[tuple[str, ...]] = ()
    """Classes of diffusers."""
    module_of: ClassVar[Mapping[Kind, str]]
    """Where in a block the module of each kind of site is."""
    cross_attention: ClassVar[str | None] = None
    condition: ClassVar[Literal["labels", "captions"]] = "captions"
    """What its models are asked for."""
    pipelines: ClassVar[tuple[str, ...]] = ()
    """Pipelines of diffusers whose captions its models read."""
    text_first: ClassVar[bool] = False
    """Whether the tokens of the text stand before the picture's in joint attention."""

    def shape(self, config: Mapping[str, Any]) -> HostShape:
        """Sizes from a diffusers configuration. Raises HostError where it lacks one or holds a bad one."""
        return read_sizes(self.sizes, config, str(config.get("_class_name", self.family)))

    @abstractmethod
    def sizes(self, config: Mapping[str, Any]) -> HostShape:
        """The same, in the family's own words; what it raises, KeyError among it, is told as HostError."""

    def classes(self, config: Mapping[str, Any]) -> int | None:
        """How many classes a model of this configuration knows, whose number stands for no class; None where it is
        asked for captions."""
        return config.get("num_embeds_ada_norm") if self.condition == "labels" else None

    def call(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """The denoiser's output (B, C or 2C, H, W) for latents z (B, C, H, W), timesteps t (B,) and condition c.

        A model whose weights are in bfloat16 runs under autocast, so that what is new in it may be in float32; its
        output is of the type of ``z``.
        """
        if not in_half(model):
            return self.run(model, z, t, c)
        with autocast(z.device, "bf16"):
            return self.run(model, z, t, c).to(z.dtype)

    @abstractmethod
    def run(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """What :meth:`call` gives, in whatever type the model gives it."""

    @abstractmethod
    def example(self, model: nn.Module, batch: int) -> Any:
        """A condition of ``batch`` samples, of the usual size, for what depends on sizes alone, such as time."""

    @abstractmethod
    def gates(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """By site, the factor (B, 1, D) that scales its output before it is added to the residual stream, in a pass
        of the same arguments as :meth:`call`'s; (B, S, D) where it gives S streams."""

    def schedule(self) -> Schedule:
        """What the family's models were trained under, where a model's own scheduler says no more."""
        return Diffusion()

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """The transformer's blocks, in order."""
        blocks = model.transformer_blocks
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def set_blocks(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        """Let the model run through ``blocks``, which it calls as it calls its own."""
        model.transformer_blocks = blocks

    def first_block(self, block: nn.Module, original: nn.Module, *, runs: bool) -> nn.Module:
        """``block`` as it must be to stand first in the place of ``original``, whatever else the model reads of that.

        runs: whether the original itself runs in another place, where its weights have their names.
        """
        return block

    def bare_block(self, block: nn.Module) -> nn.Module:
        """A block itself, out of what :meth:`first_block` may have put around it."""
        return block

    def projections(self, role: Role, block: nn.Module | None = None) -> tuple[str, ...]:
        """Paths within a block of the linear layers of one role; empty where the family has none. Of a family whose
        blocks differ those of ``block``, where it is given."""
        module = self.cross_attention if role == "cross" else self.module_of[role]
        layers = ("net.0.proj", "net.2") if role == "mlp" else ("to_q", "to_k", "to_v", "to_out.0")
        return () if module is None else tuple(f"{module}.{layer}" for layer in layers)

    def sites(self, model: nn.Module) -> list[Site]:
        """Every site, block by block."""
        return [Site(block, kind) for block in range(len(self.blocks(model))) for kind in KINDS]

    def get(self, model: nn.Module, site: Site) -> nn.Module:
        """The module at a site. Raises HostError for a block that does not exist."""
        return self.get_in(self._block(model, site), site.kind)

    def set(self, model: nn.Module, site: Site, module: nn.Module) -> None:
        """Put ``module`` at a site; it is called with hidden states (B, N, D) first, whatever else follows."""
        self.set_in(self._block(model, site), site.kind, module)

    def get_in(self, block: nn.Module, kind: Kind) -> nn.Module:
        """The operator of one block. Raises HostError for a block of a restructured model, which has no sites."""
        module = getattr(block, self.module_of[kind], None)
        if not isinstance(module, nn.Module):
            raise HostError(f"{type(block).__name__} has no site {kind}: the model's blocks were restructured")
        return module

    def cores(self, model: nn.Module, sites: Iterable[Site]) -> list[nn.Module]:
        """Of attention sites the modules that softmax runs in, which are told of their text where they read some."""
        return [self.get(model, site) for site in sites if site.kind == "attn"]

    def set_in(self, block: nn.Module, kind: Kind, module: nn.Module) -> None:
        """Put ``module`` into one block."""
        setattr(block, self.module_of[kind], module)

    def streams(self, module: nn.Module, output: Any) -> Streams:
        """What a site's module or a block returned: the picture's tokens (B, N, D), and of a family whose blocks carry
        text beside them, where that goes on, the text's (B, L, D).

        Of a module of diffusers that takes both as one, and does not know where the text ends, both as one: the picture
        stands last.
        """
        assert isinstance(output, torch.Tensor)
        return (output,)

    def fitted(self, kind: Kind, operator: Operator | None, original: nn.Module) -> nn.Module | None:
        """``operator`` as it stands in the place of ``original`` at a site of this kind: by itself, or within what the
        family keeps there of the original. Without an operator the control *none*; None where that is nothing."""
        return operator

    def _block(self, model: nn.Module, site: Site) -> nn.Module:
        blocks = self.blocks(model)
        if not 0 <= site.block < len(blocks):
            raise HostError(f"{site.name}: this model has blocks 0 to {len(blocks) - 1}")
        return blocks[site.block]

    def width(self, model: nn.Module) -> int:
        """D."""
        return self.shape(_config(model)).width

    def heads(self, model: nn.Module) -> int:
        """Attention heads."""
        return self.shape(_config(model)).heads

    def tokens(self, model: nn.Module) -> int:
        """N at the model's own resolution."""
        return self.shape(_config(model)).tokens

    def grid_of(self, model: nn.Module) -> tuple[int, int]:
        """(H, W) in tokens at the model's own resolution."""
        return self.shape(_config(model)).grid

    def grid(self, model: nn.Module, z: torch.Tensor) -> tuple[int, int]:
        """(H, W) in tokens of latents z (B, C, h, w), whatever the model's own resolution."""
        config = _config(model)
        patch = int(config["patch_size"]) if "patch_size" in config else self.shape(config).patch
        return z.shape[-2] // patch, z.shape[-1] // patch

    def level(self, timestep: torch.Tensor) -> int:
        """Of the first sample of a pass, from what the model is called with."""
        return int(timestep.flatten()[0])

    def grid_called(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """The same of a pass of the model with these arguments."""
        return self.grid(model, args[0] if args else kwargs["hidden_states"])

    def attention_weights(self, module: nn.Module) -> tuple[Any, Any]:
        """((wq, bq, wk, bk, wv, bv), (wo, bo)) of a diffusers attention; weights (D, D), biases (D,) or None."""
        a: Any = module
        qkv = tuple(x for linear in (a.to_q, a.to_k, a.to_v) for x in (linear.weight, linear.bias))
        return qkv, (a.to_out[0].weight, a.to_out[0].bias)

    def mlp_weights(self, module: nn.Module) -> tuple[Any, Any]:
        """((w1, b1), (w2, b2)) of a diffusers feed-forward with tanh-GELU; w1 (rD, D), w2 (D, rD)."""
        m: Any = module
        first, second = m.net[0].proj, m.net[2]
        return (first.weight, first.bias), (second.weight, second.bias)

    def copy_mlp(self, original: nn.Module, operator: Operator) -> bool:
        """Let ``operator`` start from the original channel mixer; returns whether anything was copied."""
        return operator.copy_from_mlp(*self.mlp_weights(original))

    def queries_keys(
        self, module: nn.Module, x: torch.Tensor, call: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys (B, heads, N, C) of a diffusers attention on x (B, N, D), the picture's tokens; queries are
        scaled already. call: what else the attention was given."""
        a: Any = module
        q, k = (linear(x).unflatten(2, (a.heads, -1)).transpose(1, 2) for linear in (a.to_q, a.to_k))
        return q * a.scale, k

    def weighed(self, scores: torch.Tensor) -> torch.Tensor:
        """The attention that products (…, N) of queries and keys stand for, which sums to 1 over keys."""
        return scores.softmax(-1)

    @torch.no_grad()
    def attention_map(self, module: nn.Module, x: torch.Tensor, call: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Attention probabilities (B, heads, N, N) of a site's module on its input, as :meth:`queries_keys` has it."""
        q, k = self.queries_keys(module, x, call)
        return self.weighed(q @ k.transpose(2, 3))

    # -- blocks side by side: see grafting.parallel ---------------------------------------------------------------

    def modulation(self, blocks: Sequence[nn.Module], x: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        """(k, B, 6, D): shift, scale and gate of attention, then of the MLP, of blocks called with x and ``call``.

        Asked of blocks that are :meth:`batchable` alone."""
        raise HostError(f"blocks of {self.family} do not run as one batch")

    def norms(self, block: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """The norms before attention and before the MLP, without weights; asked as :meth:`modulation` is."""
        raise HostError(f"blocks of {self.family} do not run as one batch")

    def between(self, blocks: Sequence[nn.Module], y: torch.Tensor, call: Mapping[str, Any]) -> torch.Tensor:
        """What comes between attention and MLP: y (k, B, N, D) to the same shape."""
        return y

    def batchable(self, blocks: Sequence[nn.Module], call: Mapping[str, Any]) -> bool:
        """Whether the blocks, called so, may run as one batch: no hook, mask, further argument or weight of a norm
        would be missed."""
        if call.get("attention_mask") is not None or call.get("cross_attention_kwargs"):
            return False
        if Host.norms is type(self).norms or Host.modulation is type(self).modulation:  # a family that says neither
            return False
        if not all(type(block).__name__ == "BasicTransformerBlock" and parallel.bare(block) for block in blocks):
            return False
        norms: list[tuple[Any, ...]] = [self.norms(block) for block in blocks]
        return all(
            type(norm).__name__ == "LayerNorm"
            and norm.weight is None
            and norm.bias is None
            and norm.eps == first.eps
            and parallel.bare(norm)
            for pair in norms
            for norm, first in zip(pair, norms[0], strict=True)
        )

    def attention_layers(self, blocks: Sequence[nn.Module]) -> tuple[Any, Any, int] | None:
        """By block the q, k, v projections, the output projections, and the heads; None where a block has another
        attention than the family's plain one."""
        modules: list[Any] = [self.get_in(block, "attn") for block in blocks]
        if not all(
            type(a).__name__ == "Attention"
            and type(a.processor).__name__ == "AttnProcessor2_0"
            and parallel.bare(a)
            and (a.norm_q, a.norm_k, a.group_norm, a.spatial_norm) == (None, None, None, None)
            and not a.residual_connection
            and a.rescale_output_factor == 1
            and a.to_out[1].p == 0
            for a in modules
        ):
            return None
        qkv, out = [(a.to_q, a.to_k, a.to_v) for a in modules], [a.to_out[0] for a in modules]
        fits = parallel.plain([layer for three in qkv for layer in three]) and parallel.plain(out)
        return (qkv, out, int(modules[0].heads)) if fits else None

    def perceptron_layers(self, blocks: Sequence[nn.Module]) -> tuple[Any, Any] | None:
        """The two layers of every block's tanh-GELU perceptron; None where a block has another channel mixer."""
        modules: list[Any] = [self.get_in(block, "mlp") for block in blocks]
        if not all(
            type(m).__name__ == "FeedForward"
            and parallel.bare(m)
            and parallel.bare(m.net[0])
            and getattr(m.net[0], "approximate", None) == "tanh"
            and m.net[1].p == 0
            for m in modules
        ):
            return None
        first, last = [m.net[0].proj for m in modules], [m.net[2] for m in modules]
        return (first, last) if parallel.plain(first) and parallel.plain(last) else None


def _config(model: nn.Module) -> Mapping[str, Any]:
    config: Any = model.config
    return dict(config)
