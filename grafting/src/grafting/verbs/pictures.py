"""Pictures of a model: ``sample``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import progress_line
from .shared import (
    MODEL,
    Verbs,
    alone,
    at_least,
    base_option,
    device_option,
    integers,
    opened,
    sampling_of,
    sampling_options,
    size_option,
    text_options,
    vae_option,
    weights_option,
)

if TYPE_CHECKING:
    from ..store.models import Model


def add(verbs: Verbs) -> None:
    """Declare it."""
    made = verbs.add("sample", sample, "draw a grid of samples, or the pictures that GenEval judges")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--out", type=Path, required=True, metavar="PNG", help="with --geneval, a folder")
    made.add_argument("--count", type=at_least(1), help="samples over the classes, or --prompts, in turn (default 40)")
    made.add_argument("--labels", type=integers, metavar="L,L,…", help="the classes to draw, instead")
    made.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what to draw, of a model that takes text; several add up"
    )
    made.add_argument(
        "--prompts",
        metavar="FILE",
        help="the same from a file, one in each line; scenes: evaluation prompts of the scene world, a column a task",
    )
    size_option(made, "pixels of a picture")
    made.add_argument("--columns", type=at_least(1), metavar="N")
    made.add_argument("--zoom", type=at_least(1), metavar="N", help="pixels for one (default 2)")
    made.add_argument(
        "--geneval",
        type=Path,
        metavar="JSONL",
        help="evaluation_metadata.jsonl: pictures of each of its prompts, in the benchmark's layout; gone on with",
    )
    made.add_argument("--each", type=at_least(1), metavar="N", help="pictures of each of them (default 4)")
    made.add_argument(
        "--batch", type=at_least(1), metavar="N", help="pictures drawn together (default 64; with --geneval a prompt's)"
    )
    text_options(made)
    base_option(made)
    vae_option(made)
    weights_option(made)
    sampling_options(made)
    device_option(made)


def sample(arguments: argparse.Namespace) -> None:
    """A grid of samples as PNG, prompts above them, or a folder of pictures for GenEval's scorer."""
    if arguments.geneval is not None:
        _geneval(arguments)
        return
    told = [f"--{option}" for option in ("prompt", "prompts") if getattr(arguments, option)]
    for option in ("each", *(() if told else ("text", "tokens"))):
        if getattr(arguments, option) is not None:
            others = "" if option == "each" else ", --prompt or --prompts"
            raise ValueError(f"--{option} goes with --geneval{others}")
    if len(told) > 1:
        raise ValueError("--prompt and --prompts both say what to draw: give one of them")
    if (told and arguments.labels) or (arguments.prompt and arguments.count):
        raise ValueError(f"{told[0]} says what to draw: leave out --labels{' and --count' if arguments.prompt else ''}")
    import torch

    from ..files import write_bytes_atomic
    from ..hosts import host_for
    from ..report import grid_png
    from ..sampling import Pipeline, draw_labels
    from ..scenes import TASKS, evaluation_prompts
    from ..store.models import refuse_latents
    from ..study.material import null_class
    from ..study.scenes import embedded, world_of

    if arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a folder: name a PNG file")
    device = alone(arguments).device
    asked: Any = None
    null: dict[str, Any] | None = None
    of_scenes = arguments.prompts == "scenes"
    model = opened(arguments) if of_scenes else None  # its card says which world; else text first, it can be larger
    if model is None:
        titles = _prompts(arguments)
    else:
        titles = [prompt.text for prompt in evaluation_prompts(arguments.count or 40, world=world_of(model))]
    if titles:
        home = arguments.base or arguments.model
        asked, null = embedded(home, titles, device, text=arguments.text, tokens=arguments.tokens)
    model = (model or opened(arguments)).to(device)
    if asked is None and host_for(model.transformer).condition == "captions":
        raise ValueError(f"{arguments.model} is conditioned on text: say with --prompt or --prompts what to draw")
    if asked is None:
        classes = null_class(model.transformer)
        asked = torch.tensor(arguments.labels) if arguments.labels else draw_labels(arguments.count or 40, classes)
    refuse_latents(model)
    pipeline = Pipeline(model.transformer, model.autoencoder, null=null, size=_latents(arguments, model))
    sampling, batch, show = sampling_of(arguments), arguments.batch or 64, progress_line("sample")
    images = pipeline(asked, sampling=sampling, seed=arguments.seed, batch_size=batch, progress=show)
    channels = 3 if images.shape[1] >= 3 else 1
    columns = arguments.columns or min(len(TASKS) if of_scenes else 10, len(images))
    picture = grid_png(images[:, :channels], columns=columns, zoom=arguments.zoom or 2, titles=titles)
    write_bytes_atomic(arguments.out, picture)
    print(arguments.out)


def _latents(arguments: argparse.Namespace, model: Model) -> tuple[int, int] | None:
    """(H, W) in latents of the ``--size`` that is asked for; None where none is. Raises ValueError for broken ones."""
    from ..hosts import shape_of
    from ..sampling import pixels_per_latent

    if arguments.size is None:
        return None
    height, width = arguments.size
    factor = 1 if model.autoencoder is None else pixels_per_latent(model.autoencoder)
    step = factor * shape_of(model.transformer).patch
    if height % step or width % step:
        raise ValueError(f"--size {height}x{width}: multiples of {step}, for this model's patches")
    return height // factor, width // factor


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """What ``--prompt`` or a file of ``--prompts`` asks for; nothing where neither is given."""
    from ..data.pairs import Prompts

    if arguments.prompts is None:
        return arguments.prompt or []
    listed = Prompts.read(Path(arguments.prompts))
    return [listed.at(k) for k in range(arguments.count or listed.length or 0)]


def _geneval(arguments: argparse.Namespace) -> None:
    """The pictures of every prompt of ``evaluation_metadata.jsonl``, in the benchmark's own layout."""
    from dataclasses import asdict

    from ..conditions import as_row, together
    from ..data.encoders import encoders_of
    from ..hashes import tensors_hash
    from ..measure.geneval import read_prompts, write_pictures
    from ..random import generator
    from ..report import grid_png
    from ..sampling import Pipeline
    from ..store.folder import walked
    from ..store.models import refuse_latents

    for option in ("count", "labels", "prompt", "prompts", "size", "columns", "zoom"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for a grid, not for --geneval")
    arguments.goes_on_with = ""  # what Ctrl-C stops here, the same command goes on with
    prompts, sampling, each = read_prompts(arguments.geneval), sampling_of(arguments), arguments.each or 4
    device = alone(arguments).device
    encoders = encoders_of(arguments.base or arguments.model, vae=None, text=arguments.text, tokens=arguments.tokens)
    if encoders.condition == "labels":
        raise ValueError(f"{arguments.model} is conditioned on classes: GenEval is for models of text")
    embed = encoders.text(device)
    settings = {"seed": arguments.seed, "sampling": asdict(sampling), "text": embed.identity}
    # Alone: what is padded could differ in rounding.
    asked = [as_row(embed([prompt.text])[0][0]) for prompt in prompts]
    null = together([as_row(embed([""])[0][0])])
    del embed  # it can be larger than the model
    model = opened(arguments).to(device)
    refuse_latents(model)
    pipeline = Pipeline(model.transformer, model.autoencoder, null=null)
    settings |= {"model": tensors_hash(model.transformer.state_dict()), **walked(model.transformer)}
    settings["autoencoder"] = None if model.autoencoder is None else tensors_hash(model.autoencoder.state_dict())

    def draw(index: int, text: str) -> list[bytes]:
        # A prompt's own batches, and its own stream of noise: the same pictures whatever else is drawn.
        images = pipeline(
            together([asked[index]] * each),
            sampling=sampling,
            seed=generator(arguments.seed, "geneval", index).initial_seed(),
            batch_size=arguments.batch or each,
        )
        channels = 3 if images.shape[1] >= 3 else 1
        return [grid_png(image[None, :channels], columns=1, zoom=1) for image in images]

    drawn = write_pictures(prompts, arguments.out, draw, settings, samples=each, progress=progress_line("prompts"))
    print(f"{drawn} of {len(prompts)} prompts drawn now, {each} pictures each, in {arguments.out}")
