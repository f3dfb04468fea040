"""What a teacher draws to be learnt from: ``pairs``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .shared import (
    MODEL,
    Verbs,
    alone,
    at_least,
    base_option,
    device_option,
    opened,
    progress,
    sampling_of,
    sampling_options,
    text_options,
    vae_option,
)


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add(
        "pairs", pairs, "prompts or classes and the latents that a model draws of them, to learn from", resume=""
    )
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt in each line of a text, or objects in a .jsonl; scenes: the scene world's captions",
    )
    made.add_argument("--column", default="prompt", metavar="KEY", help="of the prompt in a .jsonl (default prompt)")
    made.add_argument("--count", type=at_least(1), metavar="N", help="pairs (default: one of every prompt)")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="what lies there is gone on with")
    text_options(made)
    made.add_argument("--batch", type=at_least(1), default=16, metavar="N", help="pairs drawn together (default 16)")
    made.add_argument("--shard", type=at_least(1), default=128, metavar="N", help="pairs of one file (default 128)")
    made.add_argument("--dtype", default="float32", help="of what is stored: float32, float16 or bfloat16")
    base_option(made)
    vae_option(made)
    sampling_options(made)
    device_option(made)


def pairs(arguments: argparse.Namespace) -> None:
    """Pairs in the folder that ``--data`` takes."""
    from ..data.encoders import encoders_of
    from ..data.pairs import PairsConfig, Prompts, generate_pairs
    from ..study.scenes import world_of

    config = PairsConfig(seed=arguments.seed, batch=arguments.batch, shard=arguments.shard, dtype=arguments.dtype)
    sampling, prompts, count = sampling_of(arguments), None, arguments.count
    if arguments.prompts not in (None, "scenes"):
        prompts = Prompts.read(Path(arguments.prompts), arguments.column)
        count = count or prompts.length
    if count is None:
        raise ValueError("--count: how many pairs, where no file of prompts tells")
    device = alone(arguments).device
    encoders = encoders_of(arguments.base or arguments.model, vae=None, text=arguments.text, tokens=arguments.tokens)
    if arguments.prompts is not None and encoders.condition == "labels":
        raise ValueError(f"{arguments.model} is conditioned on classes: leave out --prompts")
    model = opened(arguments).to(device)
    if arguments.prompts == "scenes":
        prompts = Prompts.scenes(arguments.seed, world_of(model))
    shows: dict[str, Callable[[int, int], None]] = {}

    def show(what: str, done: int, of: int) -> None:
        shows.setdefault(what, progress(what))(done, of)

    made = generate_pairs(
        model.transformer,
        arguments.out,
        count,
        vae=model.autoencoder,
        sampling=sampling,
        config=config,
        prompts=prompts,
        text=lambda: encoders.text(device),
        progress=show,
    )
    print(f"{len(made)} pairs in {arguments.out}")
