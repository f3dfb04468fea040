"""Which extractor judges samples: the bundled classifier, the Inception of published figures, or a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ...classifier import Classifier
from ...files import sha256
from ...settings import imported
from .features import ClassifierExtractor, Extractor, Features

INCEPTION = "Inception FID"


class ExtractorError(ValueError):
    """An extractor that is not there, or is none."""


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """``classifier``: the one beside the teacher. ``inception``: the network of published FID; ``python``: your own.

    path: for ``inception``, a local file of the weights: TorchScript (``inception-2015-12-05.pt``, as StyleGAN ships
    it), or a state dictionary (``.pth``) for torch-fidelity; without one, torch-fidelity's own copy.
    name: for ``python``, ``module:attribute``, an :class:`~grafting.measure.quality.Extractor` or a function of
    nothing that makes one.
    """

    kind: Literal["classifier", "inception", "python"] = "classifier"
    path: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.kind == "python" and (not self.name or self.name.count(":") != 1):
            problems.append(f"name {self.name!r}: an extractor of kind python is module:attribute")
        if self.kind != "python" and self.name:
            problems.append(f"name {self.name!r}: only an extractor of kind python has one")
        if self.kind != "inception" and self.path:
            problems.append(f"path {self.path!r}: only an extractor of kind inception has one")
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def parse(cls, text: str) -> ExtractorConfig:
        """``classifier``, ``inception``, ``inception:FILE`` or ``python:module:attribute``. Raises ValueError."""
        kind, _, rest = text.partition(":")
        if kind not in ("classifier", "inception", "python"):
            raise ValueError(f"extractor {text!r}: classifier, inception, inception:FILE or python:module:attribute")
        return cls(kind=kind, **({("name" if kind == "python" else "path"): rest} if rest else {}))  # type: ignore[arg-type]


CLASSIFIER = ExtractorConfig()


def extractor_of(
    config: ExtractorConfig,
    classifier: Classifier | None,
    *,
    name: str = "classifier",
    device: torch.device | None = None,
) -> Extractor:
    """The extractor that ``config`` asks for, its network on ``device``.

    Raises:
        ExtractorError: it is not there, or cannot be used here.
    """
    if config.kind == "python":
        return _own(str(config.name))
    if config.kind == "inception":
        return InceptionExtractor(_inception(config.path, device), config.path)
    if classifier is None:
        raise ExtractorError(f"{name}: the model brings no classifier; name another extractor")
    return ClassifierExtractor(classifier, name=name)


def identity_of(extractor: Extractor) -> str:
    """What features depend on: the hash of the weights where it is known, else the extractor's name and label."""
    if isinstance(extractor, ClassifierExtractor):
        from ...hashes import tensors_hash

        return tensors_hash(extractor.classifier.state_dict())
    return str(getattr(extractor, "identity", f"{extractor.name}, {extractor.label}"))


class InceptionExtractor:
    """The 2015 Inception of published FIDs, over bytes (B, 3, H, W) that it resizes itself; grey images are tripled.

    network: gives (B, 2048) pooled features, or (pooled, logits). No sFID: neither source has the spatial features.
    """

    def __init__(self, network: Any, path: str | None = None) -> None:
        self.network, self.label = network, INCEPTION
        self.name = f"Inception of {Path(path).name}" if path else "Inception of torch-fidelity"
        self.identity = sha256(Path(path)) if path else self.name

    def __call__(self, images: torch.Tensor) -> Features:
        like = next(iter(self.network.parameters()), None)
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
        if like is not None:
            pixels = pixels.to(like.device)
        found = self.network(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels)
        pool, logits = (found, None) if isinstance(found, torch.Tensor) else (found[0], found[1])
        return Features(pool=pool.flatten(1).float(), logits=logits)


class _Scripted(torch.nn.Module):
    """StyleGAN's TorchScript file, which returns probabilities unless it is asked for features."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.script(pixels, return_features=True)


def _inception(path: str | None, device: torch.device | None) -> Any:
    if path is not None and not Path(path).is_file():
        raise ExtractorError(f"extractor inception: no file {path}")
    if path is not None and Path(path).suffix in (".pt", ".ts", ".jit"):
        try:
            network: Any = _Scripted(torch.jit.load(path, map_location=device or "cpu").eval())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ExtractorError(f"extractor inception: {path} is no TorchScript ({reason})") from None
        return network.eval()
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found, unused-ignore]
            FeatureExtractorInceptionV3,
        )
    except ImportError:
        raise ExtractorError(
            "extractor inception: torch-fidelity is not installed (pip install torch-fidelity), and path names no "
            "TorchScript file (.pt)"
        ) from None
    network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    return network.to(device or "cpu").eval()


def _own(name: str) -> Extractor:
    try:
        found = imported(name, f"extractor {name}")
    except ValueError as error:
        raise ExtractorError(str(error)) from error
    if callable(found) and (isinstance(found, type) or not hasattr(found, "label")):
        found = found()
    if not (callable(found) and hasattr(found, "name") and hasattr(found, "label")):
        raise ExtractorError(f"extractor {name}: not a callable with a name and a label")
    made: Extractor = found
    return made
