"""What a picture of the scene world shows: components of one colour, each matched with the renderer's masks.

Shapes: pictures (side, side, 3) bytes; inside, 64 x 64 pixels of a unit each.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .world import DARKEST, LIGHTEST, PALETTE, SHAPES, UNITS, Array, Image, Thing, mask

GOOD_MATCH = 0.7
"""Least overlap (soft intersection over union) of a component with a mask; below it the component is no object."""

SMALLEST, LARGEST = 12, 30
"""Widths of masks tried, in pixels."""

_LEAST_AREA = 40
"""Pixels below which a component is a speck: the smallest mask has more."""

_REACH = 2
"""How far around a component its soft edge is looked for, in pixels."""

_DARK, _LIGHT = DARKEST - 10, LIGHTEST + 10
"""Greys that are taken for ground."""

_COLOURS = np.array(list(PALETTE.values()), np.float32)
_NAMES = tuple(PALETTE)


def find(image: Image) -> tuple[Thing, ...]:
    """Every thing in a picture (side, side, 3), the best match first, its place to the pixel.

    A pixel belongs to the nearest colour of the palette, or to the ground where a grey is nearer. Each connected
    component of one colour becomes the share of each pixel that it covers, which is compared with the masks of all
    shapes at the sizes and places that its outline allows.

    Raises:
        ValueError: no bytes of that shape, or a side that is no multiple of 64.
    """
    pixels = _reduced(image)
    nearest = _nearest(pixels)
    ground = _ground(pixels, nearest)
    found = []
    for index in np.unique(nearest[nearest >= 0]):
        for part, (rows, columns) in _components(nearest == index):
            box = _grown(rows, columns)
            free = part[box] | (nearest[box] < 0)
            share = np.where(free, _share(pixels[box], ground[box], _COLOURS[index]), 0)
            inner = slice(rows.start - box[0].start, rows.stop - box[0].start)
            outer = slice(columns.start - box[1].start, columns.stop - box[1].start)
            match, shape, size, left, top = _best(share, inner, outer)
            if match >= GOOD_MATCH:
                x, y = box[1].start + left + size / 2, box[0].start + top + size / 2
                found.append((match, Thing(shape, _NAMES[index], size, x, y)))
    found.sort(key=lambda entry: -entry[0])
    return tuple(thing for _, thing in found)


def _reduced(image: Image) -> Array:
    """(64, 64, 3) means of squares of pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(f"picture of shape {image.shape} and type {image.dtype}: give (side, side, 3) bytes")
    scale = image.shape[0] // UNITS
    if image.shape[0] != max(scale, 1) * UNITS:
        raise ValueError(f"picture of side {image.shape[0]}: give a multiple of {UNITS}")
    return image.reshape(UNITS, scale, UNITS, scale, 3).mean((1, 3), dtype=np.float32)


def _nearest(pixels: Array) -> NDArray[np.int64]:
    """(64, 64) index of each pixel's nearest colour; -1 where a grey of the ground is nearer."""
    far = np.stack([np.square(pixels - colour).sum(-1) for colour in _COLOURS])
    grey = np.clip(pixels.mean(-1, keepdims=True), _DARK, _LIGHT)
    nearest = far.argmin(0)
    return np.where(np.square(pixels - grey).sum(-1) < far.min(0), -1, nearest)


def _ground(pixels: Array, nearest: NDArray[np.int64]) -> Array:
    """(64, 64, 3) the ground behind everything: the plane in each channel that fits pixels clear of all things."""
    from scipy.ndimage import binary_erosion

    clear = binary_erosion(nearest < 0, np.ones((5, 5)), border_value=1)
    if np.count_nonzero(clear) < UNITS:
        return np.full_like(pixels, (DARKEST + LIGHTEST) / 2)
    basis = _plane()
    weights = np.linalg.lstsq(basis[clear.ravel()], pixels[clear], rcond=None)[0]
    return (basis @ weights).reshape(pixels.shape)


@lru_cache(maxsize=1)
def _plane() -> Array:
    """(64 * 64, 3): a constant, across and down."""
    ramp = np.linspace(-1, 1, UNITS, dtype=np.float32)
    across, down = np.meshgrid(ramp, ramp)
    return np.stack([np.ones_like(across), across, down], -1).reshape(-1, 3)


def _components(where: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], tuple[slice, slice]]]:
    """The connected parts of a mask that are neither specks nor wider than any thing, each with its bounding box."""
    from scipy.ndimage import find_objects, label

    labels, _ = label(where)
    parts = [(labels == number + 1, box) for number, box in enumerate(find_objects(labels))]
    return [
        (part, box)
        for part, box in parts
        if np.count_nonzero(part[box]) >= _LEAST_AREA and max(side.stop - side.start for side in box) <= LARGEST
    ]


def _grown(rows: slice, columns: slice) -> tuple[slice, slice]:
    grown = [slice(max(side.start - _REACH, 0), min(side.stop + _REACH, UNITS)) for side in (rows, columns)]
    return grown[0], grown[1]


def _share(pixels: Array, ground: Array, colour: Array) -> Array:
    """How much of each pixel a thing of ``colour`` covers, 0 to 1: its place between ground and colour."""
    way = colour - ground
    return np.clip(((pixels - ground) * way).sum(-1) / np.square(way).sum(-1), 0, 1)


def _best(share: Array, rows: slice, columns: slice) -> tuple[float, str, int, int, int]:
    """The match and the shape, width, left and top of the mask that fits best around the outline (rows, columns)."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    best = (0.0, "", 0, 0, 0)
    total = float(share.sum())
    # The outline's pixels are at least half covered: where a shape ends in a tip, its mask is wider than they are.
    for size in range(max(min(height, width) - 1, SMALLEST), min(max(height, width) + 4, LARGEST) + 1):
        lefts = _starts(columns, size)
        tops = _starts(rows, size)
        room = np.pad(share, size)
        windows = np.lib.stride_tricks.sliding_window_view(room, (size, size))
        places = windows[tops[0] + size : tops[-1] + size + 1, lefts[0] + size : lefts[-1] + size + 1]
        flat = places.reshape(-1, size * size)
        masks, areas = _masks(size)
        both = np.minimum(flat[:, None], masks).sum(-1)
        match = both / (total + areas - both)
        place, shape = np.unravel_index(match.argmax(), match.shape)
        if match[place, shape] > best[0]:
            down, right = divmod(int(place), len(lefts))
            best = (float(match[place, shape]), SHAPES[shape], size, lefts[right], tops[down])
    return best


def _starts(outline: slice, size: int) -> range:
    """Where a mask of ``size`` may begin: within a pixel of lying flush with either end of the outline."""
    first, last = sorted((outline.start, outline.stop - size))
    return range(first - 1, last + 2)


@lru_cache(maxsize=64)
def _masks(size: int) -> tuple[Array, Array]:
    """The masks of all shapes at a width, (8, size²), and their areas."""
    masks = np.stack([mask(shape, size).ravel() for shape in SHAPES])
    return masks, masks.sum(-1)
