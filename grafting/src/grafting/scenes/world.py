"""The scene world: up to four coloured shapes on a grey ground, drawn at random and rendered with soft edges.

Lengths are in units of 1/64 of the picture's side, x to the right and y downwards, whatever the side rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..settings import SettingsError, near
from ..tasks import TASKS

SHAPES = ("disc", "square", "triangle", "star", "heart", "ring", "cross", "crescent")

PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 75, 220),
    "yellow": (245, 215, 40),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "pink": (240, 70, 190),
    "cyan": (50, 205, 225),
}
"""One colour near each corner of the RGB cube. The ground is near its centre, so a soft edge meets no third colour."""

COLOURS = tuple(PALETTE)
RELATIONS = ("left of", "right of", "above", "below")

UNITS = 64
"""Units across a picture."""

GAP = 4
"""Least distance of two things' boxes, in units; the border is kept clear by half of it."""

DARKEST, LIGHTEST = 100, 150
"""Greys between which every ground lies."""

_SAMPLES = 8
"""Points across a pixel at which a mask is sampled."""

_DOMINANCE = 1.5
"""In a drawn relation, how many times larger the offset along its axis is than the one across."""

_TRIES = 30
"""Places tried at random before the things go one to a quarter of the picture."""

Array = NDArray[np.float32]
Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class World:
    """What scenes may hold; a smaller world is easier to learn.

    shapes, colours: some of :data:`SHAPES` and :data:`COLOURS`. most: things in a picture at most, 2 to 4.
    sizes: widths of things, even, 12 to 28 units. grid: their centres are multiples of 1, 2, 4 or 8. weights: how
    often training draws each of :data:`TASKS`.
    held_out_colours, held_out_pairs: (shape, colour) and (shape, shape) that no training caption names and no training
    picture shows together; entries about other shapes or colours than this world's say nothing.

    Raises:
        SettingsError: every value that is not allowed.
    """

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    most: int = 4
    sizes: tuple[int, ...] = (20, 26)
    grid: int = 1
    weights: tuple[float, ...] = (2.0, 1.0, 1.0, 2.0, 1.0, 1.0)
    held_out_colours: tuple[tuple[str, str], ...] = (
        ("disc", "blue"),
        ("square", "red"),
        ("triangle", "yellow"),
        ("star", "green"),
        ("ring", "pink"),
        ("heart", "black"),
    )
    held_out_pairs: tuple[tuple[str, str], ...] = (("disc", "triangle"), ("square", "star"), ("heart", "cross"))

    def __post_init__(self) -> None:
        problems = []
        for name, given, known in (("shapes", self.shapes, SHAPES), ("colours", self.colours, COLOURS)):
            problems += [f"{name}: unknown {value!r}: {near(value, known)}" for value in given if value not in known]
            if len(set(given)) < max(2, len(given)):
                problems.append(f"{name} is {given}, must be two or more different ones")
        if not 2 <= self.most <= 4:
            problems.append(f"most is {self.most}, must be 2, 3 or 4")
        if not self.sizes or any(size % 2 or not 12 <= size <= 28 for size in self.sizes):
            problems.append(f"sizes is {self.sizes}, must be even numbers from 12 to 28")
        if self.grid not in (1, 2, 4, 8):
            problems.append(f"grid is {self.grid}, must be 1, 2, 4 or 8")
        if len(self.weights) != len(TASKS) or min(self.weights, default=0) < 0 or not any(self.weights):
            problems.append(f"weights is {self.weights}, must be {len(TASKS)} numbers of 0 or more, not all of them 0")
        if problems:
            raise SettingsError(problems)
        for shape in self.shapes:
            if not self.colours_of(shape):
                problems.append(f"held_out_colours leaves no colour for {shape!r}")
        if all(self.holds_out_pair(a, b) for a in self.shapes for b in self.shapes if a != b):
            problems.append("held_out_pairs leaves no pair of shapes")
        if problems:
            raise SettingsError(problems)

    def colours_of(self, shape: str) -> tuple[str, ...]:
        """Colours in which training shows ``shape``."""
        return tuple(colour for colour in self.colours if (shape, colour) not in self.held_out_colours)

    def holds_out_pair(self, one: str, other: str) -> bool:
        """Whether training never shows both shapes in one picture."""
        return (one, other) in self.held_out_pairs or (other, one) in self.held_out_pairs


@dataclass(frozen=True)
class Thing:
    """One object: its box is ``size`` units wide and high around (x, y)."""

    shape: str
    colour: str
    size: float
    x: float
    y: float


@dataclass(frozen=True)
class Background:
    """A grey: its level (0 to 255) in the picture's middle, and how much it gains from left to right and downwards."""

    level: float = 125.0
    across: float = 0.0
    down: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Things, in no order that matters, before a background."""

    things: tuple[Thing, ...]
    background: Background = Background()


def draw_scene(
    rng: np.random.Generator, kinds: Sequence[tuple[str, str]], relation: str | None = None, *, world: World
) -> Scene:
    """A scene of things of the given (shape, colour), apart by :data:`GAP` or more; sizes, places, ground are random.

    relation: the first thing is clearly so to the second; needs two kinds.

    Raises:
        ValueError: no or more than four kinds; a relation unknown or not between two.
    """
    if not 1 <= len(kinds) <= 4:
        raise ValueError(f"{len(kinds)} things: a scene holds 1 to 4")
    if relation is not None and (relation not in RELATIONS or len(kinds) != 2):
        raise ValueError(f"relation {relation!r} of {len(kinds)} things: give one of {', '.join(RELATIONS)} and two")
    centres = None
    while centres is None:
        sizes = rng.choice(world.sizes, len(kinds))
        centres = _places(rng, sizes, world.grid)
        if relation is not None:
            centres = _turned(centres, relation)
    things = tuple(
        Thing(shape, colour, int(size), int(x), int(y))
        for (shape, colour), size, (x, y) in zip(kinds, sizes, centres, strict=True)
    )
    return Scene(things, _ground(rng))


def _places(rng: np.random.Generator, sizes: NDArray[np.int64], grid: int) -> NDArray[np.int64]:
    """Centres (n, 2) of boxes that keep their distance, multiples of ``grid``."""
    edge, half = UNITS // grid, UNITS // 2 // grid
    low = -(-(sizes + GAP) // (2 * grid))  # like edge and half in steps of the grid
    reach = (sizes[:, None] + sizes) / 2 + GAP
    upper = np.triu_indices(len(sizes), 1)
    tried = grid * rng.integers(low[:, None], (edge - low)[:, None] + 1, (_TRIES, len(sizes), 2))
    far = np.abs(tried[:, :, None] - tried[:, None]).max(-1) >= reach
    good = np.flatnonzero(far[:, upper[0], upper[1]].all(-1))
    if len(good):
        return np.asarray(tried[good[0]])
    quarters = np.array([(0, 0), (half, 0), (0, half), (half, half)])[rng.permutation(4)[: len(sizes)]]
    return np.asarray(grid * (quarters + rng.integers(low[:, None], half - low[:, None] + 1, (len(sizes), 2))))


def _turned(centres: NDArray[np.int64], relation: str) -> NDArray[np.int64] | None:
    """The two places mirrored or transposed until ``relation`` holds; None where they lie too near a diagonal."""
    along = 0 if relation in ("left of", "right of") else 1
    offset = np.abs(centres[0] - centres[1])
    if offset.max() < _DOMINANCE * offset.min():
        return None
    if offset[along] < offset[1 - along]:
        centres = centres[:, ::-1]
    before = bool(centres[0, along] < centres[1, along])
    return centres if before == (relation in ("left of", "above")) else UNITS - centres


def _ground(rng: np.random.Generator) -> Background:
    """Plain or graded, each half of the time."""
    first, second = rng.uniform(DARKEST, LIGHTEST, 2)
    if rng.random() < 0.5:
        return Background(float(first))
    across, down = rng.dirichlet((1.0, 1.0)) * rng.choice((-1, 1), 2) * abs(second - first)
    return Background(float((first + second) / 2), float(across), float(down))


def render(scene: Scene, side: int = UNITS) -> Image:
    """The picture (side, side, 3) of a scene; things whose places are whole units have exact, soft-edged masks.

    Raises:
        ValueError: ``side`` is no multiple of 64; a thing reaches beyond the picture.
    """
    if side < UNITS or side % UNITS:
        raise ValueError(f"side {side}: give a multiple of {UNITS}")
    scale, ground = side // UNITS, scene.background
    ramp = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    grey = np.float32(ground.level) + np.float32(ground.across) * ramp + np.float32(ground.down) * ramp[:, None]
    picture = np.repeat(grey[..., None], 3, -1)
    for thing in scene.things:
        size = round(thing.size * scale)
        left, top = round(thing.x * scale - size / 2), round(thing.y * scale - size / 2)
        if min(left, top) < 0 or max(left, top) + size > side:
            raise ValueError(f"{thing}: reaches beyond the picture of {UNITS} x {UNITS} units")
        patch = picture[top : top + size, left : left + size]
        patch += mask(thing.shape, size)[..., None] * (np.array(PALETTE[thing.colour], np.float32) - patch)
    return (picture + np.float32(0.5)).astype(np.uint8)


def cells(scene: Scene, across: int) -> NDArray[np.uint8]:
    """What lies where: the indices of shape and colour (2, across, across) of the thing in each of a grid of cells.

    A thing is in a cell where its box covers three eighths of it, of several the last one; in a cell of none stands the
    number of shapes, and of colours, that there are.
    """
    unit = UNITS / across
    found = np.empty((2, across, across), np.uint8)
    found[:] = np.array([len(SHAPES), len(COLOURS)])[:, None, None]
    edges = unit * np.arange(across + 1)
    for thing in scene.things:
        wide, high = (
            np.clip(
                np.minimum(edges[1:], middle + thing.size / 2) - np.maximum(edges[:-1], middle - thing.size / 2),
                0,
                None,
            )
            for middle in (thing.x, thing.y)
        )
        inside = np.outer(high, wide) >= 0.375 * unit**2
        found[:, inside] = np.array([SHAPES.index(thing.shape), COLOURS.index(thing.colour)])[:, None]
    return found


@lru_cache(maxsize=512)
def mask(shape: str, size: int) -> Array:
    """How much of each pixel (size, size) a shape covers whose box is ``size`` pixels wide; read-only, 0 to 1."""
    points = (np.arange(size * _SAMPLES) + 0.5) * (2 / (size * _SAMPLES)) - 1
    inside = _inside(shape, *np.meshgrid(points, points))
    covered = inside.reshape(size, _SAMPLES, size, _SAMPLES).mean((1, 3), dtype=np.float32)
    covered.flags.writeable = False
    return covered


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of the box [-1, 1] x [-1, 1], v downwards, a shape holds; every shape touches all four sides."""
    radius = np.hypot(u, v)
    if shape == "disc":
        return np.asarray(radius <= 1)
    if shape == "square":
        return np.ones(u.shape, np.bool_)
    if shape == "triangle":
        return np.asarray(2 * np.abs(u) <= v + 1)
    if shape == "ring":
        return np.asarray((radius <= 1) & (radius >= 0.5))
    if shape == "cross":
        return np.asarray((np.abs(u) <= 0.34) | (np.abs(v) <= 0.34))
    if shape == "heart":  # the sextic (x² + y² - 1)³ = x² y³, from -1.139 to 1.139 across and -1 to 1.236 upwards
        x, y = 1.139 * u, 0.118 - 1.118 * v
        return np.asarray((x * x + y * y - 1) ** 3 <= x * x * y**3)
    if shape == "crescent":  # a disc less a smaller one to its right; the horns end at x = 0.65
        x = 0.825 * (u + 1) - 1
        return np.asarray((np.hypot(x, v) <= 1) & (np.hypot(x - 0.4, v) >= 0.8))
    if shape == "star":
        turn = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, 0.45, 1.0)
        corners = np.stack([np.sin(turn) * reach, -np.cos(turn) * reach], -1)
        low, high = corners.min(0), corners.max(0)
        return _in_polygon(2 * (corners - low) / (high - low) - 1, u, v)
    raise ValueError(f"unknown shape {shape!r}: {near(shape, SHAPES)}")


def _in_polygon(corners: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points from which a ray to the right crosses the outline (n, 2) an odd number of times."""
    odd = np.zeros(u.shape, np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > v) != (y1 > v)) & (u < x0 + (v - y0) / (y1 - y0) * (x1 - x0))
    return odd
