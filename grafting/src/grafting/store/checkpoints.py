"""Import of the original DiT layout (facebookresearch/DiT) and of the released grafts, which replace some of its keys.

Keys: ``x_embedder``, ``t_embedder``, ``y_embedder``, ``blocks.N.attn.qkv``, ``blocks.N.mlp.fc1``, ``final_layer``; a
released graft (arXiv 2506.05340) holds another operator's keys under some ``blocks.N.attn`` or ``blocks.N.mlp``.
The original model uses timestep frequencies without diffusers' shift and an epsilon of 1e-6 in every norm: an import
sets both, and :mod:`grafting.store.folder` records what the configuration cannot express.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]

# Which keys below ``blocks.N.<site>`` betray which operator; the first whose marks are all there is taken.
MARKS: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("attn", "mamba2", frozenset({"A_log"})),
    ("attn", "hyena_se", frozenset({"in_proj", "short_filter", "inner_filter"})),
    ("attn", "hyena_x", frozenset({"in_proj", "short_filter"})),
    ("attn", "hyena_y", frozenset({"in_proj", "inner_filter"})),
    ("attn", "swa", frozenset({"Wqkv"})),
    ("mlp", "mlp_hyena_x", frozenset({"in_proj", "short_filter"})),
)
RENAMED = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
# Every diffusers block carries its own copy of the embedders that the original keeps once.
EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
CHECKPOINTS = (".pt", ".pth", ".safetensors")
"""How the names of checkpoints' files end."""


class CheckpointError(ValueError):
    """A file that is no DiT checkpoint, or one that says something this importer does not understand."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint in diffusers' terms.

    config: of ``DiTTransformer2DModel``. shared: its tensors, those of replaced operators left out. grafts: by
    (block, "attn" or "mlp") the operator's name, its options and its own tensors.
    """

    config: dict[str, Any]
    shared: dict[str, torch.Tensor]
    grafts: dict[tuple[int, str], tuple[str, dict[str, Any], dict[str, torch.Tensor]]]


def read_checkpoint(path: Path, weights: str = "ema") -> dict[str, torch.Tensor]:
    """Tensors of a ``.pt`` or ``.safetensors`` file; from a training dictionary its ``ema`` (or ``model``) entry.

    Pickles go through torch's weights-only loader; the one class allowed besides is ``argparse.Namespace``, which the
    released dictionaries hold beside their weights. Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: no safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors here
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: refused by the weights-only loader: {first}") from error
    if isinstance(content, dict) and not all(isinstance(value, torch.Tensor) for value in content.values()):
        if weights not in content:
            known = ", ".join(key for key in ("ema", "model") if key in content) or "neither ema nor model"
            raise CheckpointError(f"{path}: no weights under {weights!r}; the file holds {known}")
        content = content[weights]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors")
    return {key.removeprefix("module."): value for key, value in content.items()}


def checkpoint_config(path: Path) -> dict[str, Any]:
    """What the tensors of a file in the original layout say of the model, in diffusers' terms.

    Raises CheckpointError naming the file.
    """
    tensors = read_checkpoint(path)
    try:
        return {"_class_name": "DiTTransformer2DModel", **translate(tensors).config}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def translate(tensors: Tensors, heads: int | None = None) -> Imported:
    """The original layout in diffusers' terms. heads: default, that of the published sizes (72 channels at width 1152,
    64 otherwise). Raises CheckpointError naming every key that is missing or not understood.
    """
    missing = [
        key
        for key in ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
        if key not in tensors
    ]
    if missing:
        raise CheckpointError(f"not the original DiT layout: {', '.join(missing)} missing")
    width = tensors["x_embedder.proj.weight"].shape[0]
    heads = heads or (16 if width == 1152 else width // 64)
    if heads < 1 or width % heads:
        raise CheckpointError(f"heads {heads} does not divide the width {width}: give the number of heads")
    blocks: dict[int, dict[str, torch.Tensor]] = {}
    shared: dict[str, torch.Tensor] = {}
    embedders: dict[str, torch.Tensor] = {}
    unknown = []
    for key, value in tensors.items():
        stem, _, leaf = key.rpartition(".")
        if found := BLOCK.fullmatch(key):
            blocks.setdefault(int(found[1]), {})[found[2]] = value
        elif stem in TOP:
            shared[f"{TOP[stem]}.{leaf}"] = value
        elif stem in EMBEDDERS:
            embedders[f"{EMBEDDERS[stem]}.{leaf}"] = value
        elif key != "pos_embed":  # fixed sines, which diffusers computes
            unknown.append(key)
    if sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise CheckpointError(f"blocks {sorted(blocks)}: expected 0, 1, 2, … without a gap")
    grafts = {}
    for block, content in sorted(blocks.items()):
        prefix = f"transformer_blocks.{block}"
        shared |= {f"{prefix}.norm1.emb.{key}": value for key, value in embedders.items()}
        for site in ("attn", "mlp"):
            own = {k.removeprefix(f"{site}."): v for k, v in content.items() if k.startswith(f"{site}.")}
            try:
                found_operator = identify(site, own, width)
            except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
                what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "a tensor has another rank"
                raise CheckpointError(f"blocks.{block}.{site}: {what}") from error
            if found_operator:
                grafts[block, site] = (*found_operator, own)
                content = {k: v for k, v in content.items() if not k.startswith(f"{site}.")}
        for key, value in content.items():
            stem, _, leaf = key.rpartition(".")
            if stem == "attn.qkv":
                for name, part in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
                    shared[f"{prefix}.attn1.{name}.{leaf}"] = part
            elif stem in RENAMED:
                shared[f"{prefix}.{RENAMED[stem]}.{leaf}"] = value
            else:
                unknown.append(f"blocks.{block}.{key}")
    if unknown:
        raise CheckpointError(f"keys not understood: {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}")
    return Imported(config=_config(tensors, len(blocks), width, heads), shared=shared, grafts=grafts)


def identify(site: str, own: Tensors, width: int) -> tuple[str, dict[str, Any]] | None:
    """The operator whose keys ``own`` holds and its options; None for the host's own attention or MLP."""
    heads = {key.split(".")[0] for key in own}
    if site == "mlp" and heads == {"fc1", "fc2"}:
        ratio = own["fc1.weight"].shape[0] / width
        return None if ratio == 4 else ("mlp", {"ratio": int(ratio) if ratio == int(ratio) else ratio})
    for where, name, marks in MARKS:
        if where == site and marks <= heads:
            return name, SIZES[name](own, width) if name in SIZES else {}
    return None


def _hyena(own: Tensors, width: int) -> dict[str, Any]:
    # A filter without a weight is named here as missing: what has no short filter at all is hyena_y.
    short = any(key.startswith("short_filter.") for key in own)
    return {"kernel": own[f"{'short' if short else 'inner'}_filter.weight"].shape[-1]}


def _mlp_hyena(own: Tensors, width: int) -> dict[str, Any]:
    return {"kernel": own["short_filter.weight"].shape[-1], "ratio": own["out_proj.weight"].shape[1] // width}


def _mamba(own: Tensors, width: int) -> dict[str, Any]:
    inner, (channels, _, kernel), heads = own["norm.weight"].shape[0], own["conv1d.weight"].shape, len(own["A_log"])
    sizes = {"expand": inner // width, "head_dim": inner // heads}
    return sizes | {"state": (channels - inner) // 2, "kernel": kernel}  # the chunk changes no result


# Options that the shapes of an operator's tensors tell; a window of swa is told by none.
SIZES: Mapping[str, Callable[[Tensors, int], dict[str, Any]]] = {
    "hyena_se": _hyena,
    "hyena_x": _hyena,
    "hyena_y": _hyena,
    "mlp_hyena_x": _mlp_hyena,
    "mamba2": _mamba,
}


def _config(tensors: Tensors, layers: int, width: int, heads: int) -> dict[str, Any]:
    embed, out = tensors["x_embedder.proj.weight"], tensors["final_layer.linear.weight"]
    patch = embed.shape[-1]
    # The published models have 256 tokens where the file does not say.
    tokens = tensors["pos_embed"].shape[-2] if "pos_embed" in tensors else 256
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": embed.shape[1],
        "out_channels": out.shape[0] // patch**2,
        "num_layers": layers,
        "sample_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        # The table's last row is the null class of guidance.
        "num_embeds_ada_norm": tensors["y_embedder.embedding_table.weight"].shape[0] - 1,
        "norm_eps": 1e-6,
    }


def unshift_timesteps(model: torch.nn.Module) -> None:
    """Give every block the original's timestep frequencies, exp(-ln(10000) i / 128), which diffusers' class shifts."""
    for module in model.modules():
        if hasattr(module, "downscale_freq_shift"):
            module.downscale_freq_shift = 0  # type: ignore[assignment]
