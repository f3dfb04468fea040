"""Pictures and captions to latents and embeddings, in shards, with the names of what could not be used.

The captions are embedded first, all of them, and the text encoder is given back; then the pictures are read by threads
while the autoencoder computes. A run killed at any moment and started again gives the same files, as
:mod:`grafting.data.writing` says.

Shapes: pictures (B, C, H, W) bytes; latents (B, C', h, w); states of a caption (L, D).
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..claims import ClaimError, differing
from ..files import read_json
from ..hashes import tensors_hash
from ..hosts import shape_of
from ..modes import evaluating
from ..precision import autocast
from ..progress import NamedProgress
from ..random import generator
from ..sampling import pixels_per_latent
from ..training.team import Team
from .encode_config import DTYPES, EncodeConfig
from .encoders import Embedder, Encoders, encoders_of
from .pictures import PictureError, read_picture
from .shards import MANIFEST, NULL, Encoded
from .sources import Condition, Source, open_source
from .writing import ShardFolder, autoencoder_facts, file_entry, versions

READERS = 8
"""Threads that read pictures; they wait for disks and for Pillow, which computes outside of Python's lock."""
IGNORED_NAMED = 100
"""Files beside the pictures that the manifest names; it counts all."""


def encode(
    source: Path | str,
    out: Path | str,
    model: Any,
    config: EncodeConfig | None = None,
    *,
    vae: Path | str | None = None,
    text: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: NamedProgress | None = None,
) -> Encoded:
    """Encode the pictures of ``source`` for ``model`` into the folder ``out``; what lies there is gone on with.

    Args:
        source: a folder of pictures, with folders of classes or captions in it; an npz or npy; a dataset on disk.
        model: a MODEL as :func:`grafting.open_model` takes it, or a live pipeline of diffusers.
        vae, text: a folder or hub id to take that encoder from, where the model brings none.
        device: where the encoders run; None: the GPU where there is one, as :func:`grafting.run` chooses, and of a live
            pipeline where it is.
        progress: told of ``captions`` and of ``pictures``.

    Raises:
        ValueError: there are no pictures, none could be encoded, or they do not go with the model.
        ClaimError: ``out`` holds pictures that were encoded with other settings, or is finished and holds captions of
            another text encoder; of an unfinished folder these are made again. Or another process encodes into it.
    """
    config = config or EncodeConfig()
    named = isinstance(model, (str, Path))
    encoders = encoders_of(
        model, vae=None if vae is None else str(vae), text=None if text is None else str(text), tokens=config.tokens
    )
    if device is None:
        device = Team.current().device if named else model.device
    return _Run(Path(source), Path(out), encoders, config, torch.device(device), progress).run()


def scaled(autoencoder: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Latents as the transformer takes them: the inverse of what the pipelines do before they decode."""
    config: Any = autoencoder.config
    return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


class _Run:
    """One source on its way into one folder."""

    def __init__(
        self,
        source: Path,
        out: Path,
        encoders: Encoders,
        config: EncodeConfig,
        device: torch.device,
        progress: NamedProgress | None,
    ) -> None:
        self.encoders, self.config, self.device = encoders, config, device
        self.tell = progress or (lambda *_: None)
        asked = encoders.condition if config.condition == "auto" else config.condition
        if asked not in ("none", encoders.condition):
            raise ValueError(f"condition {asked}: {encoders.name} is conditioned on {encoders.condition}, or none")
        self.condition: Condition = asked  # type: ignore[assignment]
        self.source: Source = open_source(
            source,
            self.condition,
            caption_column=config.caption_column,
            classes=config.classes,
            count=encoders.classes if self.condition == "labels" else None,
        )
        self.autoencoder = encoders.autoencoder()
        if config.posterior == "sample" and type(self.autoencoder).__name__ == "AutoencoderDC":
            raise ValueError("posterior sample: an AutoencoderDC gives one latent and no distribution; leave it out")
        self.size, self.shape = self._sizes()
        self.vae_hash = None if self.autoencoder is None else tensors_hash(self.autoencoder.state_dict())
        self.shards = ShardFolder(out, self._settings(), count=len(self.source), shard=config.shard)

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """(H, W) of a prepared picture, and (C, h, w) of its latents. Raises ValueError where they fit no model."""
        wanted = shape_of(self.encoders.config)
        channels, factor = wanted.channels, 1
        if self.autoencoder is not None:
            own: Any = self.autoencoder.config
            factor = pixels_per_latent(self.autoencoder)
            if own.latent_channels != channels:
                raise ValueError(
                    f"the autoencoder gives {own.latent_channels} channels, {self.encoders.name} takes {channels}"
                )
        elif channels not in (1, 3):
            raise ValueError(
                f"{self.encoders.name} takes latents of {channels} channels and brings no autoencoder: name one as vae"
            )
        height, width = self.config.size or (wanted.latents[0] * factor, wanted.latents[1] * factor)
        step = factor * wanted.patch
        if height % step or width % step:
            raise ValueError(f"size {height} x {width}: multiples of {step}, for this model's patches")
        return (height, width), (channels, height // factor, width // factor)

    @property
    def channels(self) -> int:
        """Of a picture."""
        network: Any = self.autoencoder
        return self.shape[0] if network is None else int(network.config.in_channels)

    def _settings(self) -> dict[str, Any]:
        """What the shards follow from, but for the text encoder, as plain data."""
        config = self.config
        found: dict[str, Any] = {
            "source": self.source.identity,
            "condition": self.condition,
            "size": list(self.size),
            "autoencoder": self.vae_hash,
            "mirror": config.mirror,
            "posterior": config.posterior,
            "precision": config.precision,
            "dtype": config.dtype,
            "batch": config.batch,
            "shard": config.shard,
        }
        if config.posterior == "sample":
            found["seed"] = config.seed
        if self.condition == "captions":
            found["caption_column"] = config.caption_column
        if config.classes is not None:
            found["classes"] = list(config.classes)
        return found

    def run(self) -> Encoded:
        """Everything that is not there yet, and the manifest."""
        self.shards.claim("encoded pictures")
        embed = self.encoders.text(self.device) if self.condition == "captions" else None
        if (self.shards.out / MANIFEST).is_file():
            self._check_text(embed)
            return Encoded(self.shards.out)
        with self.shards.worked_on():
            text = None
            if embed is not None:
                text = self.shards.captions(
                    self._caption,
                    embed,
                    config=self.encoders.config,
                    batch=self.config.batch,
                    dtype=DTYPES[self.config.dtype],
                    tell=lambda done, of: self.tell("captions", done, of),
                )
            del embed
            gc.collect()  # the text encoder is not needed any more, and can be larger than all that follows
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._pictures()
            manifest = self._manifest(text)
            if not manifest["samples"]:
                name, why = manifest["skipped"]["pictures"][0].values()
                raise ValueError(f"none of {len(self.source)} pictures could be encoded; the first, {name}: {why}")
            self.shards.finish(manifest)
            return Encoded(self.shards.out)

    def _caption(self, i: int) -> str | None:
        return None if self.source.captions is None or i in self.source.problems else self.source.captions[i]

    def _check_text(self, embed: Embedder | None) -> None:
        """Raises ClaimError where the finished captions are another encoder's: something may have learnt from them."""
        there = read_json(self.shards.out / MANIFEST, ("encoders",))["encoders"].get("text")
        if embed is not None and (named := differing(there or {}, embed.identity)):
            raise ClaimError(
                f"{self.shards.out} holds captions of another text encoder ({named}): name another folder or remove it"
            )

    # -- pictures ----------------------------------------------------------------------------------------------------

    def _pictures(self) -> None:
        todo = [k for k in self.shards.shards if self.shards.facts("latents", k) is None]
        done = len(self.source) - sum(len(self.shards.items(k)) for k in todo)
        self.tell("pictures", done, len(self.source))
        if self.autoencoder is not None:
            self.autoencoder.to(self.device)
        wanted = [i for k in todo for i in self.shards.items(k) if i not in self.source.problems]
        with evaluating(self.autoencoder), ThreadPoolExecutor(READERS) as readers:
            try:
                stream = self._read(readers, wanted)
                for k in todo:
                    self._shard(k, stream, done)
                    done += len(self.shards.items(k))
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
        self.tell("pictures", done, len(self.source))

    def _read(self, readers: ThreadPoolExecutor, wanted: Sequence[int]) -> Iterator[np.ndarray | PictureError]:
        """Prepared pictures in order, some batches ahead of the autoencoder."""
        ahead: deque[Future[np.ndarray | PictureError]] = deque()
        for i in wanted:
            ahead.append(readers.submit(self._picture, i))
            if len(ahead) > 4 * self.config.batch:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _picture(self, i: int) -> np.ndarray | PictureError:
        try:
            return read_picture(self.source.read(i), channels=self.channels, size=self.size)
        except PictureError as error:
            return error

    def _shard(self, k: int, stream: Iterator[np.ndarray | PictureError], done: int) -> None:
        """Encode the items of one shard and write it, with the names of those that could not be; ``done`` were."""
        skipped, items, parts = list[tuple[str, str]](), list[int](), list[torch.Tensor]()
        waiting: list[np.ndarray] = []

        def compute() -> None:
            if waiting:
                parts.append(self._latents(np.stack(waiting), items[-len(waiting) :]))
                waiting.clear()

        for seen, i in enumerate(self.shards.items(k), start=1):
            problem = self.source.problems.get(i)
            picture = PictureError(problem) if problem else next(stream)
            if isinstance(picture, PictureError):
                skipped.append((self.source.names[i], str(picture)))
                continue
            items.append(i)
            waiting.append(picture)
            if len(waiting) == self.config.batch:
                compute()
                self.tell("pictures", done + seen, len(self.source))
        compute()
        each = 2 if self.config.mirror else 1
        latents = torch.cat(parts) if parts else torch.empty(0, *self.shape)
        tensors = {
            "latents": latents.to(DTYPES[self.config.dtype]),
            "items": torch.tensor(items, dtype=torch.int64).repeat_interleave(each),
        }
        if self.source.labels is not None:
            labels = [self.source.labels[i] for i in items]
            tensors["labels"] = torch.tensor(labels, dtype=torch.int64).repeat_interleave(each)
        self.shards.write("latents", k, tensors, samples=len(latents), skipped=skipped)

    @torch.no_grad()
    def _latents(self, pixels: np.ndarray, items: list[int]) -> torch.Tensor:
        """(B, C, h, w), or with mirror images (2B, C, h, w), each after its picture; scaled."""
        x = torch.from_numpy(pixels).to(self.device).float() / 127.5 - 1
        pairs = [x, x.flip(-1)] if self.config.mirror else [x]
        found = torch.stack([self._encoded(part, items, side) for side, part in enumerate(pairs)], dim=1)
        return found.flatten(0, 1).float().cpu()

    def _encoded(self, x: torch.Tensor, items: list[int], side: int) -> torch.Tensor:
        network: Any = self.autoencoder
        if network is None:
            return x
        with autocast(self.device, self.config.precision):
            found = network.encode(x.to(next(network.parameters())))
        posterior = getattr(found, "latent_dist", None)
        if posterior is None:  # an AutoencoderDC has one latent and no distribution
            return scaled(network, found.latent.float())
        z = posterior.mean.float()
        if self.config.posterior == "sample":
            noise = [
                torch.randn(z.shape[1:], generator=generator(self.config.seed, "posterior", i, side)) for i in items
            ]
            z = z + posterior.std.float() * torch.stack(noise).to(z)
        return scaled(network, z)

    # -- the manifest ------------------------------------------------------------------------------------------------

    def _manifest(self, text: dict[str, Any] | None) -> dict[str, Any]:
        shards, skipped, cut = list[dict[str, Any]](), list[Sequence[str]](), 0
        for k in self.shards.shards:
            shards.append(self.shards.listed(k, captions=text is not None))
            skipped += (self.shards.facts("latents", k) or {})["skipped"]
            if text is not None:
                cut += (self.shards.facts("captions", k) or {})["cut"]
        samples = sum(shard["samples"] for shard in shards)
        found: dict[str, Any] = {
            "condition": self.condition,
            "samples": samples,
            "pictures": samples // (2 if self.config.mirror else 1),
            "listed": len(self.source),
            "shape": list(self.shape),
            "mirrored": self.config.mirror,
            "skipped": {"count": len(skipped), "pictures": [{"name": name, "why": why} for name, why in skipped]},
            "notes": [{"name": self.source.names[i], "note": note} for i, note in sorted(self.source.notes.items())],
            "ignored": {"count": len(self.source.ignored), "names": list(self.source.ignored[:IGNORED_NAMED])},
            **autoencoder_facts(self.autoencoder),
            "shards": shards,
            "versions": versions(),
        }
        if text is not None and self.encoders.told_sizes:
            found["told_size"] = list(self.size)
        if self.condition == "labels":
            found["classes"] = {str(label): name for label, name in sorted(self.source.classes.items())}
            found["known_classes"] = self.encoders.classes
        if text is not None:
            found["encoders"]["text"] = text
            found["captions"] = {"empty": sum(self._caption(i) == "" for i in range(len(self.source))), "cut": cut}
            found["null"] = file_entry(self.shards.out / NULL)
        return found
