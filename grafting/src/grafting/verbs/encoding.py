"""People's own pictures on their way to training: ``encode``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import progress_lines
from .shared import MODEL, Verbs, alone, at_least, device_option, size_option, text_options

if TYPE_CHECKING:
    from ..data.shards import Encoded

SHOWN = 10
"""Pictures that are named when all is done; the manifest names every one."""


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("encode", encode, "pictures and captions to latents and embeddings, for --data", resume="")
    made.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a folder of pictures, an npz, or a dataset of Hugging Face: its folder, or owner/name:split",
    )
    made.add_argument("--model", required=True, metavar="MODEL", help=MODEL)
    made.add_argument(
        "--out", type=Path, required=True, help="the folder of the shards; a run found there is continued"
    )
    made.add_argument("--vae", metavar="MODEL", help="an autoencoder's folder or hub id, where the model brings none")
    text_options(made)
    size_option(made, "pixels")
    made.add_argument(
        "--condition", default="auto", help="labels, captions, or none; default: what the model is conditioned on"
    )
    made.add_argument("--caption-column", default="text", metavar="NAME", help="of captions in metadata (default text)")
    made.add_argument("--classes", type=Path, metavar="FILE", help="names of class folders, a line each, by label")
    made.add_argument("--mirror", action="store_true", help="the mirror image of every picture too")
    made.add_argument("--posterior", default="mean", help="of the autoencoder: its mean (default) or a sample")
    made.add_argument("--precision", default="fp32", help="of the autoencoder's matrix products: fp32 or bf16")
    made.add_argument("--dtype", default="float32", help="of what is stored: float32, float16 or bfloat16")
    made.add_argument("--batch", type=at_least(1), default=8)
    made.add_argument("--shard", type=at_least(1), default=512, metavar="N", help="pictures of one file (default 512)")
    made.add_argument("--seed", type=int, default=0, help="of posterior samples")
    device_option(made)


def encode(arguments: argparse.Namespace) -> None:
    """Pictures and captions to shards."""
    from ..data.encode import encode as write
    from ..data.encode_config import EncodeConfig

    classes = None
    if arguments.classes is not None:
        if not arguments.classes.is_file():
            raise ValueError(f"--classes {arguments.classes}: no such file")
        classes = tuple(line.strip() for line in arguments.classes.read_text(encoding="utf-8").splitlines())
    config = EncodeConfig(
        size=arguments.size,
        condition=arguments.condition,
        caption_column=arguments.caption_column,
        classes=classes,
        mirror=arguments.mirror,
        posterior=arguments.posterior,
        tokens=arguments.tokens,
        precision=arguments.precision,
        dtype=arguments.dtype,
        batch=arguments.batch,
        shard=arguments.shard,
        seed=arguments.seed,
    )
    found = write(
        arguments.source,
        arguments.out,
        arguments.model,
        config,
        vae=arguments.vae,
        text=arguments.text,
        device=alone(arguments).device,
        progress=progress_lines("encode "),
    )
    print(_summary(found))


def _summary(found: Encoded) -> str:
    """What was encoded, what was left out, and what was guessed."""
    manifest = found.manifest
    skipped, notes, ignored = manifest["skipped"], manifest["notes"], manifest["ignored"]
    lines = [f"{manifest['pictures']} of {manifest['listed']} pictures encoded"]
    lines += [f"left out: {entry['name']}: {entry['why']}" for entry in skipped["pictures"][:SHOWN]]
    lines += [f"note: {entry['name']}: {entry['note']}" for entry in notes[:SHOWN]]
    more = max(0, skipped["count"] - SHOWN) + max(0, len(notes) - SHOWN)
    if more:
        lines.append(f"and {more} more, see {found.folder / 'encoded.json'}")
    if ignored["count"]:
        lines.append(f"{ignored['count']} other files were no pictures, such as {ignored['names'][0]}")
    captions = manifest.get("captions", {})
    if captions.get("cut"):
        lines.append(f"{captions['cut']} captions were longer than the text encoder takes, and cut")
    if captions.get("empty"):
        lines.append(f"{captions['empty']} captions are empty, and taken for the empty prompt")
    return "\n".join([*lines, str(found.folder)])
