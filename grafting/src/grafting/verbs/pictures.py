"""Pictures of a model: ``sample``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .shared import (
    MODEL,
    Verbs,
    alone,
    at_least,
    base_option,
    device_option,
    integers,
    opened,
    progress,
    sampling_of,
    sampling_options,
    vae_option,
)


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("sample", sample, "draw a grid of samples")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--out", type=Path, required=True, metavar="PNG")
    made.add_argument("--count", type=at_least(1), default=40, help="samples over the classes in turn (default 40)")
    made.add_argument("--labels", type=integers, metavar="L,L,…", help="the classes to draw, instead")
    made.add_argument("--columns", type=at_least(1), metavar="N")
    made.add_argument("--zoom", type=at_least(1), default=2, metavar="N")
    base_option(made)
    vae_option(made)
    sampling_options(made)
    device_option(made)


def sample(arguments: argparse.Namespace) -> None:
    """A grid of samples as PNG."""
    import torch

    from ..files import write_bytes_atomic
    from ..report import grid_png
    from ..sampling import Pipeline, draw_labels
    from ..study.stages import null_class

    if arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a folder: name a PNG file")
    device = alone(arguments).device
    model = opened(arguments).to(device)
    classes = null_class(model.transformer)
    labels = torch.tensor(arguments.labels) if arguments.labels else draw_labels(arguments.count, classes)
    drawn: Any = getattr(model.transformer.config, "in_channels", None)
    if model.autoencoder is None and drawn not in (1, 3):
        raise ValueError(
            f"{arguments.model} draws latents of {drawn} channels and brings no autoencoder to make images of them: "
            "give it with --vae, or put it into a subfolder vae of its folder, beside transformer"
        )
    pipeline = Pipeline(model.transformer, model.autoencoder)
    show = progress("sample")
    images = pipeline(labels, sampling=sampling_of(arguments), seed=arguments.seed, progress=show)
    channels = 3 if images.shape[1] >= 3 else 1
    columns = arguments.columns or min(10, len(images))
    write_bytes_atomic(arguments.out, grid_png(images[:, :channels], columns=columns, zoom=arguments.zoom))
    print(arguments.out)
