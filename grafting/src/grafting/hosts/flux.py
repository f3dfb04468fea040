"""``FluxTransformer2DModel``: FLUX.1 dev and schnell (Black Forest Labs 2024), of flow matching."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..activations import Streams
from ..conditions import GUIDANCE, POOLED, TEXT
from ..diffusion import BySize, Flow, Schedule
from ..operators import Operator
from ..operators.base import Places
from .beside_text import BesideText
from .shapes import FLUX_PATCH, KINDS, HostError, HostShape, Kind, Role, Site, flux_shape

USUAL_GUIDANCE = 3.5
"""What dev is told where a condition does not say it: the default of diffusers' pipeline."""
LEVELS = 1000
"""By which the pipeline divides a timestep, and the model multiplies it again."""
READ = WeakTensorKeyDictionary()
"""By ``img_ids``, which version of them was read, and the grid (H, W) that it says."""


class Flux(BesideText):
    """Blocks of two streams, and after them of one, numbered as one depth.

    The first have joint attention ``attn`` over text and picture, whose operator among the picture's tokens is a site,
    and an MLP for each, of which ``ff``, the picture's, is one. The others take text and picture as one; their ``attn``
    is a site, for the picture's tokens. Their MLP shares the output's projection and the gate with attention, and is
    none.

    Latents z (B, C, H, W) are packed into tokens (B, N, 4C), and back. The condition is a dictionary with
    ``encoder_hidden_states`` (B, L, D_text), ``pooled_projections`` (B, P) and, for dev, ``guidance`` (B,), 3.5 where
    it says none.
    """

    family = "Flux"
    class_names = ("FluxTransformer2DModel",)
    pipelines = ("FluxPipeline",)
    text_first = True

    def sizes(self, config: Mapping[str, Any]) -> HostShape:
        return flux_shape(config)

    def schedule(self) -> Schedule:
        """Dev's; schnell's own scheduler says a shift of 1."""
        return Flow(shift=BySize(), even=True)

    def run(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        """c: as said above. Raises HostError without states or pooled projections of the text, with a guidance for a
        model that is told none, or for latents that are no whole tokens."""
        self.check_condition(c)
        if any(side % FLUX_PATCH for side in z.shape[-2:]):
            raise HostError(f"latents of {z.shape[-2]} x {z.shape[-1]}: multiples of {FLUX_PATCH} on both sides")
        grid = self.grid(model, z)
        tokens = model(
            packed(z),
            encoder_hidden_states=c[TEXT],
            pooled_projections=c[POOLED],
            timestep=t / LEVELS,
            guidance=_guidance(model, c, z),
            img_ids=positions(grid, z.device),
            txt_ids=torch.zeros(c[TEXT].shape[1], 3, device=None if z.is_meta else z.device),
        ).sample
        return unpacked(tokens, grid)

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """Those of two streams, then those of one."""
        m: Any = model
        return nn.ModuleList([*m.transformer_blocks, *m.single_transformer_blocks])

    def set_blocks(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        """Nothing but what there is. Raises HostError for other blocks."""
        if list(blocks) != list(self.blocks(model)):
            raise HostError("blocks of Flux carry text beside the picture and are not rearranged")

    def sites(self, model: nn.Module) -> list[Site]:
        """Attention of every block, and the picture's MLP of those of two streams."""
        return [
            Site(number, kind)
            for number, block in enumerate(self.blocks(model))
            for kind in KINDS
            if kind == "attn" or not _single(block)
        ]

    def get_in(self, block: nn.Module, kind: Kind) -> nn.Module:
        """The operator of one block. Raises HostError for the MLP of a block of a single stream."""
        if kind == "mlp" and _single(block):
            raise HostError(
                "the MLP of a block of a single stream shares its output's projection and its gate with attention, and "
                "is no site"
            )
        return super().get_in(block, kind)

    def projections(self, role: Role, block: nn.Module | None = None) -> tuple[str, ...]:
        """Those of picture and text. In a block of a single stream both share them, and ``mlp`` has the projection of
        the output, which is attention's too."""
        if role == "cross":
            return ()
        if block is not None and _single(block):
            return ("attn.to_q", "attn.to_k", "attn.to_v") if role == "attn" else ("proj_mlp", "proj_out")
        paths = super().projections(role, block)
        if role == "mlp":
            return (*paths, *(path.replace("ff", "ff_context", 1) for path in paths))
        return (*paths, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")

    def gates(self, model: nn.Module, z: torch.Tensor, t: torch.Tensor, c: Any) -> dict[Site, torch.Tensor]:
        """Of two streams, third and sixth of the vectors that each block's norms make of timestep, guidance and pooled
        text: of attention the picture's and the text's.

        Of a single stream, attention goes through the projection of the output before the gate. Its factor is, of each
        channel, the length of what a unit there adds to the residual stream; so the weighted square of an error is that
        of what it adds, where errors of channels are independent.
        """
        embedder, guidance = cast(Any, model.time_text_embed), _guidance(model, c, z)
        told = (t, *(() if guidance is None else (guidance * LEVELS,)))
        embedded, gates, d = embedder(*told, c[POOLED]), dict[Site, torch.Tensor](), self.width(model)
        for index, block in enumerate(self.blocks(model)):
            b: Any = block
            norms = [b.norm] if _single(block) else [b.norm1, b.norm1_context]
            vectors = [norm.linear(norm.silu(embedded)).unflatten(1, (-1, d)) for norm in norms]
            if _single(block):
                lengths = (vectors[0][:, 2].square() @ b.proj_out.weight[:, :d].square()).sqrt()
                gates[Site(index, "attn")] = lengths[:, None].expand(-1, 2, -1)
            else:
                gates[Site(index, "attn")] = torch.stack([vector[:, 2] for vector in vectors], dim=1)
                gates[Site(index, "mlp")] = vectors[0][:, 5:6]
        return gates

    def streams(self, module: nn.Module, output: Any) -> Streams:
        if isinstance(output, torch.Tensor):
            raster = getattr(module, "raster", None)  # of a grafted site, which knows how many are the picture's
            n = output.shape[1] if raster is None else math.prod(raster.grid)
            return (output,) if n == output.shape[1] else (output[:, -n:], output[:, :-n])
        # A block returns the text first, attention of two streams second.
        text, picture = output if type(module).__name__.endswith("TransformerBlock") else output[::-1]
        return picture, text

    def fitted(self, kind: Kind, operator: Operator | None, original: nn.Module) -> nn.Module | None:
        if kind == "mlp":
            return operator
        from ..joint import Joint, SingleStream

        return (SingleStream if original.pre_only else Joint)(operator, original)

    def cores(self, model: nn.Module, sites: Iterable[Site]) -> list[nn.Module]:
        """The blocks, which are told of picture and text one by one, and have no other attention."""
        blocks = self.blocks(model)
        return [blocks[site.block] for site in sites if site.kind == "attn"]

    def grid(self, model: nn.Module, z: torch.Tensor) -> tuple[int, int]:
        """(H, W) in tokens of latents z (B, C, h, w)."""
        return z.shape[-2] // FLUX_PATCH, z.shape[-1] // FLUX_PATCH

    def level(self, timestep: torch.Tensor) -> int:
        """Of the first sample of a pass, from what the model is called with."""
        return round(float(timestep.flatten()[0]) * LEVELS)

    def grid_called(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """From ``img_ids`` (N, 3). Raises HostError where these are not of one picture, row by row."""
        ids = args[4] if len(args) > 4 else kwargs["img_ids"]
        if ids.is_meta:
            raise HostError("img_ids on the meta device say no positions: a graft reads its grid there, leave them out")
        if torch.compiler.is_compiling() or ids.is_inference():  # of which no version says that they are as they were
            return self.grid_read(ids)
        # A pipeline gives the same at every step, and to read them waits for a GPU.
        version, grid = READ.get(ids, (None, (0, 0)))
        if version != ids._version:
            grid = self.grid_read(ids)
            READ[ids] = ids._version, grid
        return grid

    @staticmethod
    def grid_read(ids: torch.Tensor) -> tuple[int, int]:
        """The grid that ``img_ids`` end at."""
        ids = ids[0] if ids.ndim == 3 else ids
        height, width = (int(side) + 1 for side in (ids[-1, 1:] - ids[0, 1:]).tolist())
        if height * width != len(ids):
            raise HostError(f"img_ids of {len(ids)} tokens end at {height} x {width}: one picture is known, row by row")
        return height, width

    def attention_weights(self, module: nn.Module) -> tuple[Any, Any]:
        """Of a single stream with the identity where the original projects nothing."""
        a: Any = module
        if not a.pre_only:
            return super().attention_weights(module)
        qkv = tuple(x for linear in (a.to_q, a.to_k, a.to_v) for x in (linear.weight, linear.bias))
        return qkv, (torch.eye(len(a.to_q.weight)), None)

    def queries_keys(
        self, module: nn.Module, x: torch.Tensor, call: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the picture's tokens alone, normed, and turned as ``call`` says it."""
        a: Any = module
        q, k = (
            norm(linear(x).unflatten(2, (a.heads, -1))) for norm, linear in ((a.norm_q, a.to_q), (a.norm_k, a.to_k))
        )
        if (turns := (call or {}).get("image_rotary_emb")) is not None:
            places = Places(cosines=turns[0], sines=turns[1])
            q, k = places.of_picture(q), places.of_picture(k)
        return q.transpose(1, 2) * q.shape[-1] ** -0.5, k.transpose(1, 2)


def packed(z: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, 2h, 2w) as tokens (B, h w, 4C), row by row."""
    return z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, h w, 4C) of a ``grid`` (h, w) as latents (B, C, 2h, 2w)."""
    parts = tokens.unflatten(1, grid).unflatten(3, (-1, 2, 2))
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def positions(grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """``img_ids`` (h w, 3) of a picture: 0, row and column. On the CPU for meta, which has no numbers."""
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    ids = torch.cat([torch.zeros(len(places), 1), places], dim=1)
    return ids if device.type == "meta" else ids.to(device)


def _guidance(model: nn.Module, c: Mapping[str, Any], z: torch.Tensor) -> torch.Tensor | None:
    """(B,) what a model is told that is told a guidance."""
    if not cast(Any, model.config).guidance_embeds:
        if GUIDANCE in c:
            raise HostError("this Flux model is told no guidance, as schnell is not: leave it out")
        return None
    told: torch.Tensor = c[GUIDANCE] if GUIDANCE in c else z.new_full((len(z),), USUAL_GUIDANCE)
    return told


def _single(block: nn.Module) -> bool:
    """Whether a block takes text and picture as one."""
    return hasattr(block, "proj_mlp")
