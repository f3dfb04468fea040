"""What every model of a study is asked to draw, from the same noise: classes, prompts of scenes, held-out captions."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conditions import SIZES, Condition, count, rows
from ..files import save_safetensors_atomic
from ..hashes import tensors_hash
from ..hosts import host_for
from ..progress import ProgressLine
from ..sampling import Pipeline, draw_labels
from ..scenes import Prompt
from ..store.configs import ModelError
from ..store.models import Model
from .material import Material, null_class
from .recipe import EvaluateStage
from .scenes import embedded, scene_prompts


class Asked:
    """Of one model and its data.

    A model of classes is asked for these in turn. A model of text is asked for the scene world's evaluation prompts,
    those of held-out combinations last; where the protocol has none, for the captions of held-out pictures, in their
    order and again from the first where there are fewer.
    """

    def __init__(
        self, config: EvaluateStage, model: Model, material: Material, seed: int, device: torch.device
    ) -> None:
        self.config, self.model, self.material, self.seed, self.device = config, model, material, seed, device
        self.reads_text = reads_text(model)

    @cached_property
    def scenes(self) -> tuple[Prompt, ...]:
        """The prompts that the judge of scenes knows, one of each sample; none where samples are of something else."""
        return scene_prompts(self.model, self.config.prompts, self.config.held_out) if self.config.prompts else ()

    @property
    def texts(self) -> list[str]:
        """What stands above each picture, where that is known."""
        return [prompt.text for prompt in self.scenes]

    @property
    def columns(self) -> int:
        """Of a grid: prompts of scenes have a column for each task."""
        tasks = len({prompt.task for prompt in self.scenes})
        return tasks or min(10, self.config.grid)

    @cached_property
    def labels(self) -> torch.Tensor:
        """(drawn,) classes. Raises ModelError for a model of text."""
        return draw_labels(self.config.drawn, null_class(self.model.transformer), self.config.labels, self.seed)

    @property
    def classes(self) -> torch.Tensor | None:
        """The same; None of a model of text."""
        return None if self.reads_text else self.labels

    @cached_property
    def _states(self) -> tuple[Condition, Any]:
        if not self.reads_text:
            return self.labels, None
        if self.scenes:
            return embedded(self.model.name, self.texts, self.device)
        held_out = self.material.conditions(train=False)
        asked = rows(held_out, torch.arange(self.config.drawn) % count(held_out))
        # What is drawn has the model's own size, whatever that of the pictures was.
        return {key: tensor for key, tensor in asked.items() if key != SIZES}, self.material.null

    @property
    def condition(self) -> Condition:
        """A row per sample; prompts are embedded when they are first asked for."""
        return self._states[0]

    @property
    def null(self) -> Any:
        """Of a model of text, the empty prompt's row."""
        return self._states[1]

    def first(self, network: nn.Module, count: int) -> torch.Tensor:
        """(count, C, H, W) the first of a model's samples, as :meth:`draw` has them, to be looked at; kept nowhere."""
        pipeline = Pipeline(network, self.model.autoencoder, null=self.null)
        wanted = rows(self.condition, slice(0, count))
        return pipeline(wanted, sampling=self.config.sampling, seed=self.seed, batch_size=self.config.batch)

    def draw(self, network: nn.Module, out: Path, *, size: int, name: str) -> list[str]:
        """Draw a model's samples into files of ``size`` in the folder ``out``, in half precision; returns their names.

        Those that are there already are left alone. name: of the model, for the line of progress.
        """
        config = self.config
        pipeline = Pipeline(network, self.model.autoencoder, null=self.null)
        chunks = [slice(start, min(start + size, config.drawn)) for start in range(0, config.drawn, size)]
        steps = [-(-(chunk.stop - chunk.start) // config.batch) * config.sampling.steps for chunk in chunks]
        names, done, progress = [], 0, ProgressLine(sum(steps), 0, f"{name}: passes of sampling")
        for chunk, more in zip(chunks, steps, strict=True):
            names.append(f"{chunk.start:06d}.safetensors")
            if not (out / names[-1]).is_file():
                images = pipeline(
                    rows(self.condition, chunk),
                    sampling=config.sampling,
                    seed=self.seed,
                    first_index=chunk.start,
                    batch_size=config.batch,
                    progress=lambda step, _, before=done: progress.show(before + step),  # type: ignore[misc]
                )
                save_safetensors_atomic(out / names[-1], {"images": images.half()})
            done += more
        return names

    @property
    def settings(self) -> dict[str, Any]:
        """What the samples depend on besides a protocol of classes: the prompts, or where the captions are from.

        Of prompts their states too, where these lie beside the model; an encoder would have to be loaded to be hashed.
        """
        if not self.reads_text:
            return {}
        if not self.scenes:
            return {"captions": self.material.identity["images"]}
        prompts = {"prompts": hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()}
        kept = self.model.prompts
        return prompts if kept is None else prompts | {"states": tensors_hash({"values": kept.values})}


def reads_text(model: Model) -> bool:
    """Whether a model is asked for prompts, and not for classes."""
    return host_for(model.transformer).condition == "captions"


def problems(config: EvaluateStage, model: Model) -> list[str]:
    """Why a model cannot be asked this, or what it draws not be judged; known before there are any data."""
    if not reads_text(model):
        return [f"prompts {config.prompts}: {model.name} is conditioned on classes"] if config.prompts else []
    found = []
    judge = config.extractor.kind != "classifier" or model.classifier is not None
    given = {"reference": config.reference, "floor": config.floor, "extractor": judge}
    missing = ", ".join(name for name, there in given.items() if not there)
    if config.samples and config.prompts:
        found.append(
            f"samples {config.samples} and prompts {config.prompts}: {model.name} takes text, and what it draws is of "
            "held-out captions or of prompts: ask for 0 of one"
        )
    elif config.samples and missing:
        found.append(
            f"samples {config.samples}: {model.name} takes text, and FID and KID of what it draws of held-out captions "
            f"are against pictures that are named: give {missing} too, or ask for 0, and for prompts where it draws "
            "scenes"
        )
    try:
        _ = scene_prompts(model, config.prompts, config.held_out) if config.prompts else ()
    except ModelError as error:
        found.append(f"prompts {config.prompts}: {error}")
    return found
