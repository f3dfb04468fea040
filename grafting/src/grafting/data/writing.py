"""A folder of shards on its way: which of them are whole, what is to be made, and the embedded captions of its items.

The files are those that :mod:`grafting.data.shards` reads. A shard follows from its own items alone and is written as a
whole, so that a run killed at any moment and started again gives the same files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..claims import ClaimError, differing, held
from ..conditions import POOLED, TEXT, as_row, each
from ..files import read_json, save_safetensors_atomic, sha256, write_json_atomic
from ..hashes import named
from .encoders import Embedder, misfit
from .shards import MANIFEST, NULL, shard_facts

SETTINGS = "settings.json"
TEMPORARY = re.compile(
    rf"\.(?:(?:latents|captions)-\d+\.safetensors|{'|'.join(map(re.escape, (NULL, SETTINGS, MANIFEST)))})\.\w+"
)
"""What a kill leaves of a file that :mod:`grafting.files` was writing here."""


class ShardFolder:
    """``count`` items, ``shard`` of them in one file, in the folder ``out``.

    settings: what the shards follow from, as plain data. A shard of other settings, or of fewer items, is made again.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, count: int, shard: int) -> None:
        self.out, self.count, self.shard = out, count, shard
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def claim(self, what: str) -> None:
        """Raises ClaimError where the folder holds ``what`` of other settings; these are noted with its first file, so
        that a refusal before that leaves nothing. What a kill left in a finished folder is removed."""
        for name in (MANIFEST, SETTINGS):
            if (self.out / name).is_file():
                there = read_json(self.out / name, ("settings",) if name == MANIFEST else ())
                if named := differing(there["settings"] if name == MANIFEST else there, self.settings):
                    raise ClaimError(
                        f"{self.out} holds {what} of other settings ({named}): name another folder or remove it"
                    )
        if (self.out / MANIFEST).is_file():
            self._clear()
            (self.out / SETTINGS).unlink(missing_ok=True)

    @contextmanager
    def worked_on(self) -> Iterator[None]:
        """The folder for this process alone while this is open; what a kill left half written is removed.

        Of a finished one there is no need: several read it. Raises ClaimError where another process is at it.
        """
        with held(self.out):
            self._clear()
            yield

    def _clear(self) -> None:
        for path in list(self.out.glob(".*")):
            if TEMPORARY.fullmatch(path.name):
                path.unlink()

    def reopen(self) -> None:
        """Make a finished folder one under way, of the same settings."""
        self._note()
        (self.out / MANIFEST).unlink()

    @property
    def shards(self) -> range:
        """Their numbers."""
        return range(-(-self.count // self.shard))

    def items(self, k: int) -> range:
        """Positions of shard k's items."""
        return range(k * self.shard, min((k + 1) * self.shard, self.count))

    def path(self, kind: str, k: int) -> Path:
        """Of shard k of ``latents`` or ``captions``."""
        return self.out / f"{kind}-{k:05d}.safetensors"

    def facts(self, kind: str, k: int) -> dict[str, Any] | None:
        """What a finished shard says; None where it is to be made."""
        found = shard_facts(self.path(kind, k))
        fits = found is not None and found.get("settings") == self.settings and found["items"] == len(self.items(k))
        return found if fits else None

    def write(self, kind: str, k: int, tensors: Mapping[str, torch.Tensor], **facts: Any) -> None:
        """Shard k, with what it says of itself."""
        self._write(self.path(kind, k), tensors, items=len(self.items(k)), **facts)

    def write_null(self, tensors: Mapping[str, torch.Tensor], **facts: Any) -> None:
        """The empty prompt, likewise."""
        self._write(self.out / NULL, tensors, **facts)

    def captions(
        self,
        caption: Callable[[int], str | None],
        embed: Embedder,
        *,
        config: Mapping[str, Any],
        batch: int,
        dtype: torch.dtype,
        tell: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """Embed what this encoder has not embedded yet, and the empty prompt; returns the encoder's identity.

        caption: of an item, None for none. embed: asked where any are to be made. config: of the transformer that is to
        read them. tell: called with (done, of all). Raises ValueError for what that does not read.
        """
        identity = dict(sorted(embed.identity.items()))  # as it comes back from a shard
        kept = [self.facts("captions", k) for k in self.shards]
        done = [k for k, facts in enumerate(kept) if facts is not None and facts["encoder"] == identity]
        last = shard_facts(self.out / NULL)  # written last of all
        if last is not None and last == {"settings": self.settings, "encoder": identity} and len(done) == len(kept):
            return identity
        finished = sum(len(self.items(k)) for k in done)
        tell(finished, self.count)

        def embedded(texts: list[str]) -> tuple[list[dict[str, torch.Tensor]], int]:
            found, more = embed(texts)
            # At once in what is stored: of SD3 a shard in float32 would take gigabytes.
            return [each(as_row(text), lambda tensor: tensor.to(dtype)) for text in found], more

        (empty,), _ = embedded([""])
        if (problem := misfit(empty, config, "states")) is not None:
            raise ValueError(f"the text encoder gives {problem[0]}, the model takes {problem[1]}")
        nothing = {key: torch.zeros_like(value) for key, value in empty.items()} | {TEXT: empty[TEXT][:, :0]}
        for k in self.shards:
            if k in done:
                continue
            told = {i: text for i in self.items(k) if (text := caption(i)) is not None}
            items, texts, cut = list(told), dict[int, dict[str, torch.Tensor]](), 0
            for start in range(0, len(items), batch):
                part = items[start : start + batch]
                found, more = embedded([told[i] for i in part])
                texts |= zip(part, found, strict=True)
                cut += more
                tell(finished + start + len(part), self.count)
            finished += len(self.items(k))
            rows = [texts.get(i, nothing) for i in self.items(k)]
            self.write("captions", k, caption_tensors(rows, starts=True), encoder=identity, cut=cut)
        self.write_null(caption_tensors([empty]), encoder=identity)
        tell(self.count, self.count)
        return identity

    def listed(self, k: int, *, captions: bool) -> dict[str, Any]:
        """The entry of shard k in the manifest."""
        facts = self.facts("latents", k)
        assert facts is not None
        found = {"first": self.items(k)[0], "items": len(self.items(k)), "samples": facts["samples"]}
        found["latents"] = file_entry(self.path("latents", k))
        return found | ({"captions": file_entry(self.path("captions", k))} if captions else {})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, last of all."""
        write_json_atomic(self.out / MANIFEST, {"format": 1, **manifest, "settings": self.settings})
        (self.out / SETTINGS).unlink(missing_ok=True)

    def _write(self, path: Path, tensors: Mapping[str, torch.Tensor], **facts: Any) -> None:
        """One entry of metadata, because safetensors writes several in any order."""
        self._note()
        told = json.dumps({"settings": self.settings, **facts}, ensure_ascii=False, sort_keys=True)
        save_safetensors_atomic(path, tensors, {"grafting": told})

    def _note(self) -> None:
        if not (self.out / SETTINGS).is_file():
            write_json_atomic(self.out / SETTINGS, self.settings)


def caption_tensors(rows: Sequence[Mapping[str, torch.Tensor]], *, starts: bool = False) -> dict[str, torch.Tensor]:
    """Captions as they are stored: their states (tokens of all, D) end to end, what is pooled (n, P), and where each
    ``starts`` (n + 1,)."""
    found = {"states": torch.cat([row[TEXT][0] for row in rows])}
    found |= {"pooled": torch.cat([row[POOLED] for row in rows])} if POOLED in rows[0] else {}
    return found | ({"starts": torch.tensor([0, *(row[TEXT].shape[1] for row in rows)]).cumsum(0)} if starts else {})


def autoencoder_facts(vae: Any) -> dict[str, Any]:
    """What a manifest says of the autoencoder that its latents are of, or of none."""
    identity: dict[str, Any] | None = None
    if vae is not None:
        name, rounded = named(vae)
        identity = {"class": type(vae).__name__, "sha256": name, "rounded": rounded}
    return {
        "scale": 1.0 if vae is None else vae.config.scaling_factor,
        "shift": 0.0 if vae is None else getattr(vae.config, "shift_factor", None) or 0.0,
        "encoders": {"autoencoder": identity},
    }


def file_entry(path: Path) -> dict[str, Any]:
    """Name, size and hash of a file, for the manifest."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def versions() -> dict[str, str]:
    """Of what the numbers in the shards depend on."""
    import diffusers
    import PIL

    return {
        "grafting": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "pillow": PIL.__version__,
    }
