"""How pictures and captions are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..precision import PRECISIONS
from .sources import Condition

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How pictures and captions are encoded.

    size: (H, W) in pixels; the model's own square by default. condition: ``labels`` (folders of classes), ``captions``,
    ``none``, or ``auto``: what the model is conditioned on. classes: the names of class folders in the order of their
    labels. mirror: the mirror image of every picture as well; a caption then says left for right. posterior: the
    autoencoder's ``mean``, or a ``sample``, as DiT and PixArt were trained on. tokens: of a caption at most, for SD3
    CLIP's 77 and T5's together; by default what the model was trained with. dtype: of what is stored. batch: of the
    autoencoder and the text encoder. shard: items of one file.
    """

    size: tuple[int, int] | None = None
    condition: Literal["auto", "labels", "captions", "none"] = "auto"
    caption_column: str = "text"
    classes: tuple[str, ...] | None = None
    mirror: bool = False
    posterior: Literal["mean", "sample"] = "mean"
    tokens: int | None = None
    precision: str = "fp32"
    dtype: str = "float32"
    batch: int = 8
    shard: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} {getattr(self, name)}: at least 1" for name in ("batch", "shard") if getattr(self, name) < 1
        ]
        if self.size is not None and min(self.size) < 1:
            problems.append(f"size {self.size}: at least 1")
        if self.tokens is not None and self.tokens < 1:
            problems.append(f"tokens {self.tokens}: at least 1")
        if self.condition not in ("auto", *get_args(Condition)):
            problems.append(f"condition {self.condition!r}: auto, {', '.join(get_args(Condition))}")
        if self.posterior not in ("mean", "sample"):
            problems.append(f"posterior {self.posterior!r}: mean or sample")
        if self.precision not in PRECISIONS:
            problems.append(f"precision {self.precision!r}: {' or '.join(PRECISIONS)}")
        if self.dtype not in DTYPES:
            problems.append(f"dtype {self.dtype!r}: {', '.join(DTYPES)}")
        if problems:
            raise ValueError("; ".join(problems))
