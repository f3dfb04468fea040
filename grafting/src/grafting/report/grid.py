"""Pictures side by side in one PNG, each under what was asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIZE = 11
"""Of the letters above a picture, in pixels."""
LINES = 4
"""Lines above a picture at most; what is longer ends in an ellipsis."""


def grid_png(images: torch.Tensor, *, columns: int, gap: int = 2, zoom: int = 2, titles: Sequence[str] = ()) -> bytes:
    """A PNG of (N, 1 or 3, H, W) images in [-1, 1], row by row, enlarged by whole pixels.

    titles: N texts, each written above its picture; none where there are none.

    Raises:
        ValueError: no images, neither one nor three channels, or another number of titles.
    """
    import numpy as np
    from PIL import Image

    from ..sampling import pixels

    if len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)}: a grid takes (N, 1 or 3, H, W) with N at least 1")
    if titles and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles of {len(images)} images: give one of each")
    shown = pixels(images)
    shown = shown.repeat(3 // shown.shape[3], axis=3).repeat(zoom, axis=1).repeat(zoom, axis=2)
    if titles:
        shown = np.concatenate([_written(titles, shown.shape[2]), shown], axis=1)
    n, height, width, _ = shown.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for k, picture in enumerate(shown):
        y, x = k // columns * (height + gap), k % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _written(titles: Sequence[str], width: int) -> Any:
    """(N, height, width, 3) bytes: each text black on white, at the bottom of a strip as high as the longest needs."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SIZE)
    lines = [_wrapped(title, width, font.getlength) for title in titles]
    step = SIZE + 3
    height = step * max(map(len, lines)) + 2
    strips = []
    for wrapped in lines:
        strip = Image.new("RGB", (width, height), "white")
        for k, line in enumerate(wrapped):
            ImageDraw.Draw(strip).text((1, height - step * (len(wrapped) - k)), line, "black", font)
        strips.append(np.asarray(strip))
    return np.stack(strips)


def _wrapped(title: str, width: int, length: Any) -> list[str]:
    """The words of a text in lines that are as long as ``width`` lets them be, at most :data:`LINES` of them."""
    lines = [""]
    for word in title.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(joined) > width - 2:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} …"]
