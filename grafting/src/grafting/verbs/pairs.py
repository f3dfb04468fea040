"""What a teacher draws to be learnt from: ``pairs``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..progress import progress_lines
from .shared import (
    MODEL,
    Verbs,
    alone,
    at_least,
    base_option,
    device_option,
    opened,
    sampling_of,
    sampling_options,
    text_options,
    vae_option,
    weights_option,
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
    weights_option(made)
    sampling_options(made)
    device_option(made)


def pairs(arguments: argparse.Namespace) -> None:
    """Pairs in the folder that ``--data`` takes."""
    from dataclasses import asdict

    from ..study.drawing import draw_pairs
    from ..study.recipe import PairsStage

    stage = PairsStage(
        **asdict(sampling_of(arguments)),
        **{name: getattr(arguments, name) for name in ("count", "prompts", "column", "text", "tokens")},
        **{name: getattr(arguments, name) for name in ("batch", "shard", "dtype")},
    )
    device = alone(arguments).device
    made = draw_pairs(
        opened(arguments),  # which moves there once what embeds prompts has left
        stage,
        arguments.out,
        seed=arguments.seed,
        device=device,
        base=arguments.base,
        progress=progress_lines(),
    )
    print(f"{len(made)} pairs in {arguments.out}")
