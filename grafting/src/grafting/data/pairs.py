"""Pairs that a teacher draws itself: a prompt or a label, and the latents that the teacher makes of it.

They are what the paper finetunes PixArt-Sigma on, in the place of pictures that nobody may share. The k-th pair has the
k-th prompt, or class, in turn, and noise of its own, from a stream that no evaluation draws from. The same batches give
the same bits; batches of another size the same latents up to rounding.

The folder is that of :func:`grafting.encode`, and is learnt from as such.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..conditions import together
from ..files import json_lines, text_lines
from ..hashes import tensors_hash
from ..hosts import host_for
from ..progress import NamedProgress
from ..random import generator
from ..sampling import Pipeline, Sampling
from ..store.folder import walked
from .encode_config import DTYPES
from .shards import MANIFEST, NULL, Encoded, stored_caption
from .writing import ShardFolder, autoencoder_facts, file_entry, versions

if TYPE_CHECKING:
    from ..scenes import World
    from .encoders import Embedder


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts by index, without end. identity: says which they are. length: of a list, after which it begins again."""

    identity: str
    at: Callable[[int], str]
    length: int | None = None

    @classmethod
    def of(cls, texts: Sequence[str]) -> Prompts:
        """A list, from the start again after its end. Raises ValueError where it is empty."""
        if not texts:
            raise ValueError("no prompts: at least one is needed")
        kept = tuple(texts)
        digest = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
        return cls(identity=digest, at=lambda k: kept[k % len(kept)], length=len(kept))

    @classmethod
    def scenes(cls, seed: int, world: World | None = None) -> Prompts:
        """The captions that training draws in a world of scenes, the default one unless said."""
        from ..scenes import World, training_sample

        world = world or World()
        named = "" if world == World() else f", {world}"
        return cls(identity=f"scenes, seed {seed}{named}", at=lambda k: training_sample(seed, k, world=world)[1])

    @classmethod
    def read(cls, path: Path | str, column: str = "prompt") -> Prompts:
        """A text file with a prompt in each line, or a ``.jsonl`` whose objects have it as ``column``.

        Raises ValueError naming the file, and the line that is empty, is no JSON, or lacks the column.
        """
        path = Path(path)
        if path.suffix == ".jsonl":
            found = [(where, str(content[column])) for where, _, content in json_lines(path, {column: str})]
        else:
            found = list(text_lines(path))
        for where, text in found:
            if not text.strip():
                raise ValueError(f"{where}: the prompt is empty")
        return cls.of([text.strip() for _, text in found])


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """seed: of the noise. batch: pairs drawn together. shard: pairs of one file, what a kill costs at most; a multiple
    of ``batch``, so that another number of pairs has the same batches. dtype: of what is stored."""

    seed: int = 0
    batch: int = 16
    shard: int = 128
    dtype: str = "float32"

    def __post_init__(self) -> None:
        problems = []
        if self.batch < 1:
            problems.append(f"batch {self.batch}: at least 1")
        elif self.shard < 1 or self.shard % self.batch:
            problems.append(f"shard {self.shard}: must be a multiple of the batch, {self.batch}")
        if self.dtype not in DTYPES:
            problems.append(f"dtype {self.dtype!r}: {', '.join(DTYPES)}")
        if problems:
            raise ValueError("; ".join(problems))


def generate_pairs(
    transformer: nn.Module,
    out: Path | str,
    count: int,
    *,
    vae: nn.Module | None = None,
    sampling: Sampling | None = None,
    config: PairsConfig | None = None,
    prompts: Prompts | None = None,
    text: Callable[[], Embedder] | None = None,
    device: torch.device | str | None = None,
    progress: NamedProgress | None = None,
) -> Encoded:
    """Draw ``count`` pairs of ``transformer`` into the folder ``out``; what lies there is gone on with.

    Args:
        vae: of the model, noted beside its latents, which are not decoded.
        prompts: of a text-to-image model; without them pairs are of class labels, all classes in turn.
        text: gives what embeds the prompts, which is released before the first pair is drawn.
        device: where it draws; ``transformer`` is moved there once ``text`` is released. None: where it is.
        progress: told of ``captions`` and of ``latents``.

    Raises:
        ValueError: ``count`` is below 1 or below what is there, or prompts have no ``text`` to embed them.
        ClaimError: ``out`` holds pairs of other settings, or another process draws into it.
    """
    sampling, config = sampling or Sampling(), config or PairsConfig()
    folder, run = Path(out), progress or (lambda *_: None)
    if count < 1:
        raise ValueError(f"{count} pairs: at least 1")
    if prompts is not None and text is None:
        raise ValueError("prompts are given and nothing that embeds them")
    if (prompts is None) != (host_for(transformer).condition == "labels"):
        wanted = "classes: give no prompts" if prompts is not None else "text: give prompts"
        raise ValueError(f"{type(transformer).__name__} is conditioned on {wanted}")
    model: Any = transformer
    told = Pipeline(transformer, vae).told_size
    settings = {
        "model": tensors_hash(transformer.state_dict()),
        "prompts": None if prompts is None else prompts.identity,
        "sampling": asdict(sampling),
        **asdict(config),
        **({} if told is None else {"told_size": told}),
        **walked(transformer),
    }
    embed = None if text is None or prompts is None else text()
    if embed is not None:
        settings["text"] = embed.identity  # the latents follow from the states
    shards = ShardFolder(folder, settings, count=count, shard=config.shard)
    shards.claim("pairs")
    if (folder / MANIFEST).is_file():
        there = len(Encoded(folder))
        if there > count:
            raise ValueError(f"{folder} holds {there} pairs already: {count} are asked for, name another folder")
        if there == count:
            return Encoded(folder)
    with shards.worked_on():
        if (folder / MANIFEST).is_file():
            shards.reopen()  # the manifest says nothing true once the last file grows
        encoder = None
        if prompts is not None and embed is not None:
            encoder = shards.captions(
                prompts.at,
                embed,
                config=model.config,
                batch=config.batch,
                dtype=DTYPES[config.dtype],
                tell=lambda done, of: run("captions", done, of),
            )
            del embed
            gc.collect()  # the text encoder is not needed any more, and can be larger than the model
        if device is not None:
            transformer.to(device)
        pipeline = Pipeline(transformer, vae, null=None if encoder is None else _null(folder))
        todo = [k for k in shards.shards if shards.facts("latents", k) is None]
        done = count - sum(len(shards.items(k)) for k in todo)

        def tell(more: int) -> None:
            run("latents", done + more, count)

        tell(0)
        for k in todo:
            tensors = _drawn(pipeline, shards, k, sampling, config, captions=prompts is not None, tell=tell)
            shards.write("latents", k, tensors, samples=len(tensors["latents"]))
            done += len(shards.items(k))
        shards.finish(_manifest(pipeline, shards, sampling, encoder))
    return Encoded(folder)


def _drawn(
    pipeline: Pipeline,
    shards: ShardFolder,
    k: int,
    sampling: Sampling,
    config: PairsConfig,
    *,
    captions: bool,
    tell: Callable[[int], None],
) -> dict[str, torch.Tensor]:
    """The tensors of shard k; ``tell`` is called with how many are drawn after each batch."""
    items = torch.tensor(shards.items(k), dtype=torch.int64)
    labels = None if captions else items % pipeline.null_class
    # Of its own stream: sample k of an evaluation from the same seed must not be a picture that was learnt from.
    noise = generator(config.seed, "pairs").initial_seed()
    parts = []
    for rows in items.split(config.batch):
        first = int(rows[0])
        place = first - shards.items(k)[0]
        condition: Any = _texts(shards, k, place, len(rows)) if labels is None else labels[place : place + len(rows)]
        parts.append(
            pipeline.latents(condition, sampling=sampling, seed=noise, first_index=first, batch_size=config.batch)
        )
        tell(place + len(rows))
    tensors = {"latents": torch.cat(parts).to(DTYPES[config.dtype]), "items": items}
    return tensors if labels is None else tensors | {"labels": labels}


def _texts(shards: ShardFolder, k: int, place: int, count: int) -> dict[str, torch.Tensor]:
    """The condition of ``count`` captions of shard k, as training reads it."""
    from safetensors import safe_open

    with safe_open(shards.path("captions", k), framework="pt") as file:
        texts: dict[str, torch.Tensor] = together([stored_caption(file, place + i) for i in range(count)])
        return texts


def _null(folder: Path) -> dict[str, torch.Tensor]:
    """The condition of the empty prompt, one row."""
    from safetensors import safe_open

    with safe_open(folder / NULL, framework="pt") as file:
        found: dict[str, torch.Tensor] = together([stored_caption(file)])
        return found


def _manifest(
    pipeline: Pipeline, shards: ShardFolder, sampling: Sampling, encoder: Mapping[str, Any] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "condition": "labels" if encoder is None else "captions",
        "samples": shards.count,
        "pictures": shards.count,
        "listed": shards.count,
        "shape": [pipeline.channels, *pipeline.size],
        "mirrored": False,
        "drawn": sampling.describe(),
        **autoencoder_facts(pipeline.vae),
        "shards": [shards.listed(k, captions=encoder is not None) for k in shards.shards],
        "versions": versions(),
    }
    if encoder is None:
        found["known_classes"] = pipeline.null_class
    else:
        found["encoders"]["text"] = dict(encoder)
        found["null"] = file_entry(shards.out / NULL)
        if pipeline.told_size is not None:
            found["told_size"] = list(pipeline.told_size)
    return found
