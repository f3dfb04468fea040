"""One picture as pixels: turned as its EXIF says, on white where it is transparent, reduced, and cut to its middle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Names of files that are taken for pictures, in either case."""


class PictureError(ValueError):
    """A picture that cannot be read, and why, without its name."""


def read_picture(source: Path | bytes | np.ndarray, *, channels: int, size: tuple[int, int]) -> np.ndarray:
    """(channels, H, W) bytes of a file, of a file's content, or of an array (H, W), (H, W, 1) or (H, W, 3) of bytes.

    Raises PictureError for whatever keeps a file from being a whole picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(source, np.ndarray):
            return crop(_coloured(Image.fromarray(source.squeeze()), channels), size)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return crop(_coloured(_turned(opened), channels), size)
    except UnidentifiedImageError:
        # Pillow's own words name the path, or the address of a buffer.
        raise PictureError("no picture that Pillow can read") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        said = str(error).replace(str(source), "the file") if isinstance(source, Path) else str(error)
        raise PictureError(said.strip().split("\n")[0] or type(error).__name__) from None


def crop(image: Image, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W) bytes of an image of mode L or RGB: as ADM and DiT prepare ImageNet, for rectangles too.

    It is halved by areas while it is at least twice too large, then scaled bicubically until it just covers ``size``
    (H, W), and its middle is taken (``center_crop_arr`` of openai/guided-diffusion).
    """
    from PIL.Image import Resampling

    height, width = size
    while min(image.width / width, image.height / height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covering != image.size:
        image = image.resize(covering, Resampling.BICUBIC)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width].transpose(2, 0, 1))


def _turned(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _coloured(image: Image, channels: int) -> Image:
    """In RGB or in grey; 16 bits are reduced to 8, which Pillow's own conversion would cut off instead."""
    from PIL import Image as Images

    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        deep = deep if deep.max(initial=0) < 256 and image.mode == "I" else (deep * 255 + 32767) // 65535
        image = Images.fromarray(deep.clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise PictureError("pixels in floating point, of which nobody knows the range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Images.alpha_composite(Images.new("RGBA", above.size, "white"), above)
    return image.convert("RGB" if channels == 3 else "L")
