"""The scene world: what pictures hold, what captions say, and that the two agree."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from grafting.scenes import SHAPES, TASKS, Background, Scene, Thing, World, render, training_sample
from grafting.scenes.prompts import NUMBERS, distinct_captions, evaluation_prompts, scene_of
from grafting.scenes.world import DARKEST, GAP, LIGHTEST, PALETTE, mask
from grafting.settings import SettingsError

SMALL = World(shapes=("disc", "square", "star"), colours=("red", "blue", "white"), most=2, weights=(1, 0, 0, 3, 0, 0))
SAMPLES = [training_sample(3, index) for index in range(1200)]
PLURALS = {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}


def named(text: str) -> tuple[list[tuple[str | None, str]], str | None]:
    """The (colour, shape) of every thing that a caption names, and its relation: read from the words alone."""
    words, things, colour, count = text.split(), [], None, 1
    for word in words:
        if word in NUMBERS:
            count = NUMBERS.index(word)
        elif word in PALETTE:
            colour = word
        elif word in SHAPES or word in PLURALS:
            things += [(colour, PLURALS.get(word, word))] * (count if word in PLURALS else 1)
            colour = None
    relation = re.search("left of|right of|above|below", text)
    return things, relation and relation[0]


def test_a_caption_is_true_of_its_scene_and_complete() -> None:
    relations: Counter[str] = Counter()
    for scene, text in SAMPLES:
        things, relation = named(text)
        assert Counter(shape for _, shape in things) == Counter(thing.shape for thing in scene.things), text
        for colour, shape in things:
            assert colour is None or (shape, colour) in {(thing.shape, thing.colour) for thing in scene.things}
        if relation:
            first, second = (next(t for t in scene.things if t.shape == shape) for _, shape in things)
            dx, dy = first.x - second.x, first.y - second.y
            told = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
            assert max(told, key=lambda name: told[name]) == relation, (text, scene)
            assert told[relation] >= 1.5 * min(abs(dx), abs(dy))
            relations[relation] += 1
    assert min(relations.values()) > 20 and len(relations) == 4


@pytest.mark.parametrize("grid", [1, 4])
def test_things_keep_apart_and_inside(grid: int) -> None:
    samples = SAMPLES if grid == 1 else [training_sample(3, index, world=World(grid=grid)) for index in range(1200)]
    places = {place for scene, _ in samples for thing in scene.things for place in (thing.x, thing.y)}
    assert places == set(range(12, 53, grid))  # all that a thing of 20 units can take
    for scene, _ in samples:
        for place, thing in enumerate(scene.things):
            half = thing.size / 2
            assert min(thing.x, thing.y) - half >= GAP / 2 and max(thing.x, thing.y) + half <= 64 - GAP / 2
            for other in scene.things[:place]:
                apart = max(abs(thing.x - other.x), abs(thing.y - other.y))
                assert apart - half - other.size / 2 >= GAP
        ground = scene.background
        swing = (abs(ground.across) + abs(ground.down)) / 2
        assert ground.level - swing >= DARKEST and ground.level + swing <= LIGHTEST


def test_what_a_caption_leaves_open_varies() -> None:
    scenes = [scene for scene, text in SAMPLES if text == "a picture of a heart" or text == "a heart"]
    assert len(scenes) > 20
    for values in (
        {scene.things[0].colour for scene in scenes},
        {scene.things[0].x for scene in scenes},
        {scene.background.level for scene in scenes},
    ):
        assert len(values) > 5
    assert {thing.size for scene in scenes for thing in scene.things} == {20, 26}
    assert {bool(scene.background.across) for scene in scenes} == {True, False}


def test_training_never_shows_or_names_what_is_held_out() -> None:
    world = World()
    for scene, _ in SAMPLES:
        kinds = {(thing.shape, thing.colour) for thing in scene.things}
        shapes = {thing.shape for thing in scene.things}
        assert not kinds & set(world.held_out_colours)
        assert not any(set(pair) <= shapes for pair in world.held_out_pairs)
    for text in distinct_captions():
        things, _ = named(text)
        assert not {(shape, colour) for colour, shape in things} & set(world.held_out_colours), text
        assert not any(set(pair) <= {shape for _, shape in things} for pair in world.held_out_pairs), text


def test_held_out_prompts_name_only_what_is_held_out() -> None:
    world = World()
    prompts = evaluation_prompts(120, held_out=True)
    assert Counter(prompt.task for prompt in prompts) == dict.fromkeys(
        ("two_object", "colors", "position", "color_attr"), 30
    )
    for prompt in prompts:
        things, _ = named(prompt.text)
        colours = {(shape, colour) for colour, shape in things} & set(world.held_out_colours)
        pairs = any(set(pair) <= {shape for _, shape in things} for pair in world.held_out_pairs)
        assert colours or pairs, prompt.text


def test_captions_are_drawn_from_the_distinct_ones_and_by_weight() -> None:
    pool = distinct_captions()
    assert len(set(pool)) == len(pool) and {text for _, text in SAMPLES} <= set(pool)
    small = distinct_captions(SMALL)
    assert len(small) == 3 * 3 + 3 * 7 and set(small) == {
        training_sample(0, index, world=SMALL)[1] for index in range(400)
    }
    coloured = sum(any(c in training_sample(2, i, world=SMALL)[1] for c in PALETTE) for i in range(400))
    assert abs(coloured - 300) < 4 * (400 * 0.75 * 0.25) ** 0.5


def test_the_counter_alone_decides() -> None:
    assert training_sample(3, 700) == SAMPLES[700]
    assert training_sample(4, 700) != SAMPLES[700]
    assert evaluation_prompts(30) == evaluation_prompts(60)[:30]
    assert evaluation_prompts(30) != evaluation_prompts(30, seed=1)


def test_evaluation_prompts_are_equal_per_task_and_cover_their_pools() -> None:
    prompts = evaluation_prompts(2000)
    counts = Counter(prompt.task for prompt in prompts)
    assert tuple(counts) == TASKS and max(counts.values()) - min(counts.values()) == 1
    assert {p.text for p in prompts} <= set(distinct_captions())
    counting = [p.text for p in prompts if p.task == "counting"]
    assert len(set(counting)) == 24 and max(Counter(counting).values()) == 14
    assert len({p.text for p in prompts if p.task == "color_attr"}) == counts["color_attr"]


def test_true_scenes_of_prompts() -> None:
    for index, prompt in enumerate(evaluation_prompts(60) + evaluation_prompts(40, held_out=True)):
        scene = scene_of(prompt, 0, index)
        things, _ = named(prompt.text)
        assert Counter(s for _, s in things) == Counter(t.shape for t in scene.things)


def test_a_rendering_by_hand() -> None:
    picture = render(Scene((Thing("square", "red", 20, 20, 30),), Background(120.0, 0.0, 10.0)))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    inside = np.zeros((64, 64), bool)
    inside[20:40, 10:30] = True
    assert (picture[inside] == PALETTE["red"]).all()
    rows = 120 + 10 * ((np.arange(64) + 0.5) / 64 - 0.5)
    assert np.abs(picture[:, 0].astype(float) - rows[:, None]).max() <= 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_masks(shape: str) -> None:
    small, large = mask(shape, 20), mask(shape, 40)
    assert small.min() >= 0 and small.max() == 1
    for edge in (large[0], large[-1], large[:, 0], large[:, -1]):
        assert edge.max() > 0.05, "the box is filled to its sides"
    # Twice as many pixels, taken four by four, are the small one but for where the points lie.
    assert np.abs(large.reshape(20, 2, 20, 2).mean((1, 3)) - small).max() < 0.1
    areas = {"disc": np.pi / 4, "square": 1, "triangle": 0.5, "ring": np.pi * 3 / 16, "cross": 1 - 0.66**2}
    if shape in areas:
        assert abs(large.mean() - areas[shape]) < 0.004
    if shape != "crescent":
        assert np.abs(large - large[:, ::-1]).max() < 0.02, "left and right are alike"
    others = [mask(other, 20) for other in SHAPES if other != shape]
    overlaps = [float(np.minimum(small, other).sum() / np.maximum(small, other).sum()) for other in others]
    assert max(overlaps) < 0.8


def test_a_larger_picture_is_the_same_scene() -> None:
    scene = training_sample(0, 5)[0]
    small, large = render(scene).astype(float), render(scene, 128).astype(float)
    assert np.abs(large.reshape(64, 2, 64, 2, 3).mean((1, 3)) - small).mean() < 0.5


def test_bad_worlds_say_everything_that_is_wrong() -> None:
    with pytest.raises(SettingsError) as caught:
        World(shapes=("disc", "dics"), colours=("red",), most=5, sizes=(13,), grid=3, weights=(1, 2))
    assert len(caught.value.problems) == 6 and "did you mean 'disc'" in str(caught.value)
    with pytest.raises(SettingsError, match="no colour for 'disc'"):
        World(colours=("red", "blue"), held_out_colours=(("disc", "red"), ("disc", "blue")))
    with pytest.raises(SettingsError, match="no pair"):
        World(shapes=("disc", "star"), held_out_pairs=(("star", "disc"),))


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        render(Scene(()), 100)
    with pytest.raises(ValueError, match="beyond the picture"):
        render(Scene((Thing("disc", "red", 20, 5, 30),)))
    with pytest.raises(ValueError, match="no combination out"):
        evaluation_prompts(5, world=World(held_out_colours=(), held_out_pairs=()), held_out=True)
