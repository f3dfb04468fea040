"""Sizes of a model from its configuration, and what a site is called; imports nothing heavy, as planning needs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["attn", "mlp"]
KINDS: tuple[Kind, ...] = ("attn", "mlp")
Role = Literal["attn", "cross", "mlp"]
ROLES: tuple[Role, ...] = ("attn", "cross", "mlp")
"""What a block's projections are for: self-attention, cross-attention, the MLP."""
EMBEDDING = 256
"""Width of the sinusoidal embedding of timesteps in diffusers' hosts."""


class HostError(ValueError):
    """A model that no descriptor knows, or a question that a family cannot answer."""


@dataclass(frozen=True, order=True)
class Site:
    """One operator in one block: its token mixer (``attn``) or its channel mixer (``mlp``)."""

    block: int
    kind: Kind

    @property
    def name(self) -> str:
        """As printed and stored: ``blocks.3.attn``."""
        return f"blocks.{self.block}.{self.kind}"


@dataclass(frozen=True, kw_only=True)
class HostShape:
    """Sizes that plans and costs need.

    tokens: N of the model's own resolution, on ``grid`` (H, W). context_tokens: text tokens that cross-attention reads,
    padding included, 0 where there is none. parameters: of the whole model, 0 where they were not counted.
    block_parameters: of a block. first_parameters: of what the model reads of its first block beside running it, and
    keeps where that runs no longer. patch: latents along a side of a token. joint: text runs through the blocks beside
    the picture, in joint attention, and ends in the last; normed: whose queries and keys are normed. dual: how many
    blocks, the first, have a second attention, of the picture alone. single: how many blocks, the last, run picture and
    text through the same layers, and have one projection for attention and MLP, which is no site there; where there are
    such, text does not end. linear: attention is linear in the tokens, and the MLP a Mix-FFN. attn_parameters,
    mlp_parameters: of the host's own operators, where they are not the plain ones with a bias everywhere. embeds: every
    block embeds timestep and label and makes its modulation of them, and the head does what the first does. square: the
    model puts its tokens together as a square alone. told_size: it is told the size of its pictures.
    """

    family: str
    width: int
    heads: int
    depth: int
    grid: tuple[int, int]
    mlp_ratio: float
    context_tokens: int = 0
    patch_channels: int = 0
    out_channels: int = 0
    parameters: int = 0
    block_parameters: int = 0
    first_parameters: int = 0
    joint: bool = False
    normed: bool = False
    dual: int = 0
    linear: bool = False
    attn_parameters: int = 0
    mlp_parameters: int = 0
    single: int = 0
    patch: int = 1
    embeds: bool = False
    square: bool = False
    told_size: bool = False

    @property
    def tokens(self) -> int:
        """N = H x W."""
        return self.grid[0] * self.grid[1]

    @property
    def channels(self) -> int:
        """C of the latents."""
        return self.patch_channels // self.patch**2

    @property
    def latents(self) -> tuple[int, int]:
        """(H, W) of the latents."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    def having(self, kind: Kind) -> int:
        """How many blocks, the first, have a site of ``kind``."""
        return self.depth - (self.single if kind == "mlp" else 0)

    def own(self, kind: Kind) -> tuple[str, dict[str, Any]]:
        """The operator of the same kind as the model's own at sites of ``kind``, and its options."""
        if self.linear:
            return ("linear", {"feature_map": "relu"}) if kind == "attn" else ("mix_ffn", {"ratio": self.mlp_ratio})
        return ("mha" if kind == "attn" else "mlp"), {}

    def is_single(self, block: int) -> bool:
        """Whether the block of this number is one of the last, of a single stream."""
        return block >= self.depth - self.single

    def at(self, grid: tuple[int, int]) -> HostShape:
        """The same model over another grid (H, W) of tokens. Raises HostError for one that it cannot draw."""
        if self.square and grid[0] != grid[1]:
            raise HostError(f"{grid[0]} x {grid[1]} tokens: a {self.family} puts its tokens together as a square")
        return replace(self, grid=grid)


Source: TypeAlias = "nn.Module | Mapping[str, Any] | HostShape"
"""What sizes can be read from."""


def _linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias."""
    return inputs * outputs + outputs


def _common(config: Mapping[str, Any], family: str) -> HostShape:
    """What every family's configuration says in the same words."""
    side, patch = int(config["sample_size"]) // int(config["patch_size"]), int(config["patch_size"]) ** 2
    channels = int(config["in_channels"])
    return HostShape(
        family=family,
        width=int(config["num_attention_heads"]) * int(config["attention_head_dim"]),
        heads=int(config["num_attention_heads"]),
        depth=int(config["num_layers"]),
        grid=(side, side),
        mlp_ratio=4.0,
        patch_channels=channels * patch,
        out_channels=int(config.get("out_channels") or channels) * patch,
        patch=int(config["patch_size"]),
    )


def dit_shape(config: Mapping[str, Any]) -> HostShape:
    """``DiTTransformer2DModel``: every block has its own timestep and label embedder and modulation."""
    shape = _common(config, "DiT")
    d = shape.width
    labels = (int(config.get("num_embeds_ada_norm") or 1000) + 1) * d
    embedder = _linear(EMBEDDING, d) + _linear(d, d) + labels
    block = 12 * d * d + 9 * d + embedder + _linear(d, 6 * d)
    ends = _linear(shape.patch_channels, d) + _linear(d, 2 * d) + _linear(d, shape.out_channels)
    parameters = shape.depth * block + ends
    sizes: dict[str, Any] = {"parameters": parameters, "block_parameters": block, "first_parameters": embedder}
    return replace(shape, **sizes, embeds=True, square=True)


ALPHA_TEXT, SIGMA_TEXT = 120, 300
SANA_TEXT = 300
SD3_TEXT = 77 + 256
"""Tokens of a prompt of SD3: CLIP's and T5's, one after the other, as the pipeline of diffusers pads them."""
FLUX_TEXT = {True: 512, False: 256}
"""Tokens of a prompt of Flux, which are T5's, by whether the model is told a guidance: of dev, and of schnell."""
TEXT_TOKENS = {
    "PixArtAlphaPipeline": ALPHA_TEXT,
    "PixArtSigmaPipeline": SIGMA_TEXT,
    "StableDiffusion3Pipeline": SD3_TEXT,
    "SanaPipeline": SANA_TEXT,
}
"""Tokens that a prompt is padded to, by the pipeline of diffusers: its own default."""


def told_sizes(config: Mapping[str, Any]) -> bool:
    """Whether a PixArt is told the size of its pictures, as alpha of 1024 px is; by default one of diffusers' side."""
    said = config.get("use_additional_conditions")
    return int(config["sample_size"]) == 128 if said is None else bool(said)


def pixart_shape(config: Mapping[str, Any]) -> HostShape:
    """``PixArtTransformer2DModel``: cross-attention to text, one timestep embedder for all blocks.

    A configuration may say ``text_tokens``; else prompts are of alpha's length where the model is told sizes, of
    Sigma's elsewhere.
    """
    tokens = config.get("text_tokens") or (ALPHA_TEXT if told_sizes(config) else SIGMA_TEXT)
    shape = replace(_common(config, "PixArt"), context_tokens=int(tokens), told_size=told_sizes(config))
    d, text = shape.width, int(config.get("cross_attention_dim") or shape.width)
    block = 12 * d * d + 9 * d + 2 * _linear(d, d) + 2 * _linear(text, d) + 6 * d
    embedder = _linear(EMBEDDING, d) + _linear(d, d) + _linear(d, 6 * d)
    if told_sizes(config):
        embedder += 2 * (_linear(EMBEDDING, d // 3) + _linear(d // 3, d // 3))
    captions = config.get("caption_channels")
    prompt = _linear(int(captions), d) + _linear(d, d) if captions else 0
    ends = _linear(shape.patch_channels, d) + 2 * d + _linear(d, shape.out_channels)
    return replace(shape, parameters=shape.depth * block + embedder + prompt + ends, block_parameters=block)


def sd3_shape(config: Mapping[str, Any]) -> HostShape:
    """``SD3Transformer2DModel``: text has what the picture has, in joint attention, and ends in the last block."""
    tokens = int(config.get("text_tokens") or SD3_TEXT)
    dual = config.get("dual_attention_layers") or ()
    if list(dual) != list(range(len(dual))):
        raise ValueError(f"dual_attention_layers {list(dual)}: the first blocks are known here")
    shape = _common(config, "SD3")
    shape = replace(shape, context_tokens=tokens, joint=True, normed=config.get("qk_norm") is not None, dual=len(dual))
    d, size = shape.width, shape.width // shape.heads
    norms = 4 * size if shape.normed else 0
    perceptron = _linear(d, 4 * d) + _linear(4 * d, d)
    block = 2 * (4 * _linear(d, d) + perceptron + _linear(d, 6 * d)) + norms
    second = 4 * _linear(d, d) + _linear(d, 3 * d) + norms // 2
    unread = _linear(d, d) + perceptron + _linear(d, 4 * d)  # of the text in the last block
    embedder = _linear(EMBEDDING, d) + _linear(int(config["pooled_projection_dim"]), d) + 2 * _linear(d, d)
    ends = _linear(shape.patch_channels, d) + _linear(d, 2 * d) + _linear(d, shape.out_channels)
    ends += _linear(int(config["joint_attention_dim"]), int(config["caption_projection_dim"]))
    parameters = shape.depth * block + shape.dual * second - unread + embedder + ends
    return replace(shape, parameters=parameters, block_parameters=block)


def sana_shape(config: Mapping[str, Any]) -> HostShape:
    """``SanaTransformer2DModel``: as PixArt, but for linear attention and an MLP that is convolved on the grid."""
    shape = replace(_common(config, "SANA"), context_tokens=int(config.get("text_tokens") or SANA_TEXT), linear=True)
    d, text, ratio = shape.width, int(config["cross_attention_dim"]), float(config.get("mlp_ratio", 2.5))
    hidden, norms = int(ratio * d), 2 * d if config.get("qk_norm") is not None else 0
    attn = 3 * (_linear(d, d) if config.get("attention_bias") else d * d) + _linear(d, d) + norms
    cross = 2 * _linear(d, d) + 2 * _linear(text, d) + norms
    mlp = _linear(d, 2 * hidden) + 2 * hidden * (9 + 1) + hidden * d
    block = attn + cross + mlp + 6 * d + (2 * d if config.get("norm_elementwise_affine") else 0)
    embedder = _linear(EMBEDDING, d) + _linear(d, d) + _linear(d, 6 * d)
    prompt = _linear(int(config["caption_channels"]), d) + _linear(d, d) + d
    ends = _linear(shape.patch_channels, d) + 2 * d + _linear(d, shape.out_channels)
    return replace(
        shape,
        mlp_ratio=ratio,
        normed=norms > 0,
        parameters=shape.depth * block + embedder + prompt + ends,
        block_parameters=block,
        attn_parameters=attn,
        mlp_parameters=mlp,
    )


FLUX_LATENTS, FLUX_PATCH = 128, 2
"""Latents along a side, where a configuration of Flux says no ``sample_size``, and those along a side of a token, into
which the pipeline packs them."""


def flux_shape(config: Mapping[str, Any]) -> HostShape:
    """``FluxTransformer2DModel``: blocks of two streams, then of one; text runs through all of them.

    A configuration may say ``text_tokens``; else prompts are of dev's length where the model is told a guidance, of
    schnell's elsewhere. Its ``in_channels`` are those of a token.
    """
    channels, guided = int(config["in_channels"]), bool(config.get("guidance_embeds"))
    if int(config.get("out_channels") or channels) != channels:
        raise ValueError(
            f"in_channels {channels}, out_channels {config['out_channels']}: a Flux that is shown another picture, as "
            "Fill, Canny and Depth are, is not known here"
        )
    single = int(config["num_single_layers"])
    if int(config.get("patch_size") or 1) != 1 or channels % FLUX_PATCH**2 or single < 1:
        raise ValueError(
            f"patch_size {config.get('patch_size')}, in_channels {channels}, num_single_layers {single}: a patch of 1, "
            f"a multiple of {FLUX_PATCH**2}, at least one block of a single stream"
        )
    side = int(config.get("sample_size") or FLUX_LATENTS)
    of_latents = {"sample_size": side, "patch_size": FLUX_PATCH, "in_channels": channels // FLUX_PATCH**2}
    shape = _common({**config, **of_latents, "out_channels": None}, "Flux")
    tokens, depth = int(config.get("text_tokens") or FLUX_TEXT[guided]), shape.depth + single
    d, norms = shape.width, 2 * (shape.width // shape.heads)
    perceptron = _linear(d, 4 * d) + _linear(4 * d, d)
    double = 2 * (4 * _linear(d, d) + perceptron + _linear(d, 6 * d) + norms)
    alone = 3 * _linear(d, d) + norms + _linear(d, 4 * d) + _linear(5 * d, d) + _linear(d, 3 * d)
    embedder = (1 + guided) * (_linear(EMBEDDING, d) + _linear(d, d))
    embedder += _linear(int(config["pooled_projection_dim"]), d) + _linear(d, d)
    ends = _linear(channels, d) + _linear(int(config["joint_attention_dim"]), d) + _linear(d, 2 * d)
    parameters = shape.depth * double + single * alone + embedder + ends + _linear(d, channels)
    sizes: dict[str, Any] = {"depth": depth, "single": single, "context_tokens": tokens, "parameters": parameters}
    return replace(shape, **sizes, joint=True, normed=True, block_parameters=double)


def kept(lends: str, *, wide: bool, last: bool, single: bool = False) -> tuple[str, ...]:
    """Projections and norms of a joint attention that stay beside an operator which ``lends`` all of its own to the
    text, the values or nothing (:class:`grafting.joint.Joint`).

    wide: what the picture reads of the text has an output projection of its own. last: in the last block, where text
    asks for nothing, so that nothing answers it. single: where picture and text share the projections, and neither has
    one of the output.
    """
    if single:
        return (*(() if lends == "all" else ("to_q", "to_k", "to_v")), "norm_q", "norm_k")
    own = {"all": (), "values": ("to_q", "to_k"), "nothing": ("to_q", "to_k", "to_v")}[lends]
    names = [*own, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", *(["to_out"] if wide else [])]
    names += ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]
    unasked = {"add_q_proj", "norm_added_q", "to_add_out", *(() if lends == "all" else ("to_k", "norm_k", "to_v"))}
    return tuple(name for name in names if not (last and name in unasked))


SHAPES: dict[str, Callable[[Mapping[str, Any]], HostShape]] = {
    "DiTTransformer2DModel": dit_shape,
    "PixArtTransformer2DModel": pixart_shape,
    "SD3Transformer2DModel": sd3_shape,
    "SanaTransformer2DModel": sana_shape,
    "FluxTransformer2DModel": flux_shape,
}
"""By class, diffusers' and those that :func:`grafting.hosts.register` was told of."""
LEGACY = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}
"""What older configurations, among them those of the published DiT and PixArt, call a class, by ``norm_type``."""


def class_of(source: nn.Module | Mapping[str, Any]) -> str:
    """The class of a live module or a configuration, of diffusers' today's name for an older one.

    Raises:
        HostError: no family has this class; the message lists those that are known.
    """
    if type(source).__name__ in SHAPES:  # whatever the checkpoint that it was read from says
        return type(source).__name__
    config = source if isinstance(source, Mapping) else getattr(source, "config", None)
    name = None
    if isinstance(config, Mapping):
        name = config.get("_class_name")
        name = LEGACY.get((str(name), str(config.get("norm_type"))), name)
    name = name or ("a configuration without _class_name" if isinstance(source, Mapping) else type(source).__name__)
    if name not in SHAPES:
        raise HostError(
            f"no host descriptor for {name}: known are {', '.join(SHAPES)}; grafting.hosts.register adds one"
        )
    return str(name)


def shape_of(source: Source) -> HostShape:
    """Sizes of a live module, a configuration, or sizes themselves.

    Raises:
        HostError: no family has this class, or its configuration lacks a size or holds a bad one.
    """
    if isinstance(source, HostShape):
        return source
    name = class_of(source)
    return read_sizes(SHAPES[name], source if isinstance(source, Mapping) else _config(source), name)


def read_sizes(read: Callable[[Mapping[str, Any]], HostShape], config: Mapping[str, Any], name: str) -> HostShape:
    """What ``read`` makes of the configuration of a ``name``. Raises HostError where a size lacks or is a bad one."""
    try:
        return read(dict(config))
    except KeyError as error:
        raise HostError(f"the configuration of {name} lacks {error.args[0]}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise HostError(f"the configuration of {name} holds a bad size: {error}") from None


def with_text(source: Source, tokens: int) -> HostShape:
    """Sizes for prompts of ``tokens`` tokens. Raises HostError for none, or a model that reads no text."""
    shape = shape_of(source)
    if tokens < 1:
        raise HostError(f"{tokens} text tokens: at least 1")
    if not shape.context_tokens:
        raise HostError(f"{tokens} text tokens: a {shape.family} reads no text")
    return replace(shape, context_tokens=tokens)


def set_text_tokens(model: nn.Module, tokens: int) -> None:
    """Let costs and times of a live ``model`` be of prompts of ``tokens`` tokens, which its configuration does not say.

    Raises HostError for a model that reads no text.
    """
    with_text(model, tokens)
    object.__setattr__(model, "_text_tokens", tokens)


def _config(model: nn.Module) -> dict[str, Any]:
    """Of a live model, with the length of its prompts where that was set."""
    tokens = model.__dict__.get("_text_tokens")
    return {**model.config, **({} if tokens is None else {"text_tokens": tokens})}  # type: ignore[dict-item]


def bundled_configs() -> list[str]:
    """Names of the configurations that ship for planning."""
    return sorted(entry.name.removesuffix(".json") for entry in (files("grafting.hosts") / "configs").iterdir())


def bundled_config(name: str) -> dict[str, Any]:
    """One of :func:`bundled_configs`. Raises HostError naming the nearest."""
    names = bundled_configs()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)
        raise HostError(f"no bundled configuration {name!r}: did you mean {near[0]!r}? there are {', '.join(names)}")
    content: dict[str, Any] = json.loads((files("grafting.hosts") / "configs" / f"{name}.json").read_text())
    return content
