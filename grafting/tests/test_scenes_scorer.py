"""The judge of scenes: what it finds in pictures, and GenEval's rules on what it found."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from grafting.scenes import (
    COLOURS,
    SHAPES,
    TASKS,
    Background,
    Prompt,
    Scene,
    Thing,
    Wanted,
    apart,
    distinct_captions,
    evaluation_prompts,
    find,
    judge,
    relations,
    render,
    scene_of,
    verdicts,
)
from grafting.scenes.world import Image
from grafting.tasks import Verdict, differences, scores
from grafting.teachers import teachers

COUNT = 360


@lru_cache(maxsize=1)
def truth() -> tuple[list[Prompt], list[Scene], list[Image]]:
    prompts = evaluation_prompts(COUNT, seed=11)
    scenes = [scene_of(prompt, 5, index) for index, prompt in enumerate(prompts)]
    return prompts, scenes, [render(scene) for scene in scenes]


def by_task(judged: list[Verdict]) -> dict[str, float]:
    return {score.task: score.value for score in scores(judged).tasks}


def test_true_renderings_score_99_per_cent_in_each_task() -> None:
    prompts, _, pictures = truth()
    found = by_task(verdicts(prompts, pictures))
    assert tuple(found) == TASKS and min(found.values()) >= 0.99


def test_pictures_and_object_lists_are_judged_alike_matched_and_shuffled() -> None:
    prompts, scenes, pictures = truth()
    things = [find(picture) for picture in pictures]
    for step in (0, 6, 12, 1):  # itself; two others of the same task, so that some are right; another task
        pairs = [(prompts[i], (i + step) % COUNT) for i in range(COUNT)]
        agree = [judge(prompt, things[j]) == judge(prompt, scenes[j].things) for prompt, j in pairs]
        assert np.mean(agree) >= 0.99
        right = np.mean([judge(prompt, things[j]) for prompt, j in pairs])
        assert right >= 0.99 if step == 0 else right < 0.5


def test_things_are_found_where_they_are() -> None:
    _, scenes, pictures = truth()
    exact = [Counter(find(picture)) == Counter(scene.things) for picture, scene in zip(pictures, scenes, strict=True)]
    assert np.mean(exact) >= 0.99
    scene = scenes[4]
    assert Counter(find(render(scene, 128))) == Counter(scene.things)


def test_blur_and_noise_are_borne() -> None:
    prompts, _, pictures = truth()
    rng = np.random.default_rng(0)
    spoilt = [
        np.clip(gaussian_filter(picture.astype(float), (0.8, 0.8, 0)) + rng.normal(0, 8, picture.shape), 0, 255)
        for picture in pictures[:300]
    ]
    found = by_task(verdicts(prompts[:300], [picture.astype(np.uint8) for picture in spoilt]))
    assert min(found.values()) >= 0.97


def blank() -> np.ndarray:
    return np.full((64, 64, 3), 125.0)


def test_what_is_no_shape_is_no_object() -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64]
    ellipse, speck, bar, stripes = blank(), blank(), blank(), blank()
    ellipse[((x - 32) / 26) ** 2 + ((y - 32) / 10) ** 2 < 1] = (220, 40, 40)
    speck[30:36, 30:36] = (220, 40, 40)
    bar[28:36, 8:56] = (45, 75, 220)
    stripes[:, np.arange(64) % 16 < 7] = (250, 250, 250)
    for picture in (blank(), ellipse, speck, bar, stripes, rng.uniform(0, 255, (64, 64, 3)), np.zeros((64, 64, 3))):
        assert find(picture.astype(np.uint8)) == ()


def test_a_thing_half_of_one_colour_and_half_of_another_is_no_thing_of_either() -> None:
    left = render(Scene((Thing("heart", "red", 26, 32, 32),)))
    right = render(Scene((Thing("heart", "cyan", 26, 32, 32),)))
    assert find(np.concatenate([left[:, :32], right[:, 32:]], 1)) == ()


def test_every_shape_in_every_colour_on_every_ground() -> None:
    for ground in (Background(100.0), Background(150.0), Background(125.0, 50.0, 0.0), Background(125.0, -20.0, 30.0)):
        for index, (shape, colour) in enumerate((s, c) for s in SHAPES for c in COLOURS):
            scene = Scene((Thing(shape, colour, (20, 26)[index % 2], 24 + index % 7, 30),), ground)
            assert find(render(scene)) == scene.things


def thing(x: float, y: float, shape: str = "disc", colour: str = "red", size: float = 20) -> Thing:
    return Thing(shape, colour, size, x, y)


def test_relations_by_hand() -> None:
    middle = thing(32, 32)
    assert relations(thing(12, 32), middle) == {"left of"}
    assert relations(middle, thing(12, 32)) == {"right of"}
    assert relations(thing(32, 12), middle) == {"above"}
    assert relations(thing(32, 52), middle) == {"below"}
    assert relations(thing(12, 12), middle) == {"left of", "above"}  # each 16 of 28.3 beyond the margin
    assert relations(thing(28.5, 32), middle) == frozenset()  # 3.5 apart, the margin is 4
    assert relations(thing(24.5, 32), middle) == frozenset()  # 3.5 of 7.5 are less than half
    assert relations(thing(23.5, 32), middle) == {"left of"}  # 4.5 of 8.5 are more
    assert relations(thing(12, 20), middle) == {"left of"}  # upwards 8 of 23.3
    assert relations(middle, middle) == frozenset()


def test_rules_by_hand() -> None:
    disc, square = thing(12, 32), thing(50, 32, "square", "blue")
    single = Prompt("single_object", "a disc", (Wanted(shape="disc"),))
    two = Prompt("two_object", "a disc and a square", (Wanted(shape="disc"), Wanted(shape="square")))
    assert judge(single, [disc]) and judge(single, [disc, disc, square]) and not judge(single, [square])
    assert judge(two, [square, disc]) and not judge(two, [disc, disc]) and not judge(two, [])

    counting = Prompt("counting", "two discs", (Wanted(shape="disc", count=2, exact=True),))
    assert judge(counting, [disc, disc]) and judge(counting, [disc, square, disc])
    assert not judge(counting, [disc]) and not judge(counting, [disc] * 3)

    colour = Prompt("colors", "a red disc", (Wanted(shape="disc", colour="red"),))
    pink = replace(disc, colour="pink")
    assert judge(colour, [disc]) and not judge(colour, [pink]) and not judge(colour, [replace(square, colour="red")])
    assert judge(colour, [disc, pink]) and not judge(colour, [pink, disc]), "the surest disc is the one asked about"

    left = Prompt(
        "position", "a disc left of a square", (Wanted(shape="square"), Wanted(shape="disc", relation="left of"))
    )
    assert judge(left, [disc, square]) and not judge(left, [replace(disc, x=60.0), square])
    assert not judge(left, [disc]) and not judge(left, [square])


def oracle(prompt: Prompt, things: list[Thing]) -> bool:
    """GenEval's metadata of the prompt, with its include and exclude, and its rules in corners of boxes and angles."""
    include: list[dict[str, Any]] = [
        {"class": w.shape, "count": w.count, "color": w.colour, "position": (w.relation, 0)} for w in prompt.wanted
    ]
    exclude: list[dict[str, Any]] = [
        {"class": w.shape, "count": w.count + 1} for w in prompt.wanted if prompt.task == "counting"
    ]
    kept: list[list[Thing]] = []
    for clause in include:
        there = [t for t in things if t.shape == clause["class"]]
        if len(there) < clause["count"]:
            return False
        there = there[: clause["count"]]
        if clause["color"] and [t.colour for t in there] != [clause["color"]] * clause["count"]:
            return False
        for one in there if clause["position"][0] else []:
            for other in kept[clause["position"][1]]:
                boxes = [(t.x - t.size / 2, t.y - t.size / 2, t.x + t.size / 2, t.y + t.size / 2) for t in (one, other)]
                axis = 0 if clause["position"][0] in ("left of", "right of") else 1
                centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
                ahead = centres[0][axis] - centres[1][axis]
                ahead *= -1 if clause["position"][0] in ("left of", "above") else 1
                margin = 0.1 * sum(b[2 + axis] - b[axis] for b in boxes)
                if not ahead - margin > 0.5 * math.dist(*centres):
                    return False
        kept.append(there)
    return all(sum(t.shape == clause["class"] for t in things) < clause["count"] for clause in exclude)


def test_judge_agrees_with_genevals_rules_written_from_its_metadata() -> None:
    rng = np.random.default_rng(2)
    outcomes: Counter[tuple[str, bool]] = Counter()
    for prompt in evaluation_prompts(3000, seed=4):
        # Things that are often those of the prompt, so that every rule decides some of the cases.
        shapes = [w.shape for w in prompt.wanted for _ in range(w.count)]
        colours = [w.colour for w in prompt.wanted if w.colour] or ["red", "blue"]
        things = [
            Thing(
                str(rng.choice(shapes if rng.random() < 0.8 else SHAPES)),
                str(rng.choice(colours)),
                float(rng.integers(16, 28)),
                *rng.uniform(14, 50, 2).tolist(),
            )
            for _ in range(int(rng.integers(1, 5)))
        ]
        told = judge(prompt, things)
        assert told == oracle(prompt, things), (prompt, things)
        outcomes[prompt.task, told] += 1
    assert all(outcomes[task, told] >= 10 for task in TASKS for told in (True, False)), outcomes


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_spoilt_in_what_its_task_is_about_is_wrong(task: str) -> None:
    prompts, scenes, _ = truth()
    for prompt, scene in [(p, s) for p, s in zip(prompts, scenes, strict=True) if p.task == task][:15]:
        first, *others = scene.things
        if task in ("single_object", "two_object", "counting"):
            spoilt = Scene((*others,), scene.background)
        elif task == "position":
            flipped = [replace(t, x=64 - t.x, y=64 - t.y) for t in scene.things]
            spoilt = Scene((*flipped,), scene.background)
        else:
            other = next(c for c in COLOURS if c != first.colour)
            spoilt = Scene((replace(first, colour=other), *others), scene.background)
        assert not judge(prompt, find(render(spoilt))), prompt.text


def test_one_more_than_counted_is_wrong_and_one_more_of_another_shape_is_right() -> None:
    things = tuple(Thing("star", "red", 20, x, y) for x, y in ((14, 14), (50, 14)))
    prompt = Prompt("counting", "two stars", (Wanted(shape="star", count=2, exact=True),))
    assert judge(prompt, find(render(Scene(things))))
    assert judge(prompt, find(render(Scene((*things, thing(32, 50))))))
    assert not judge(prompt, find(render(Scene((*things, thing(32, 50, "star"))))))


def test_verdicts_feed_scores_and_paired_differences_and_held_out_stand_apart() -> None:
    prompts = evaluation_prompts(60, seed=3) + evaluation_prompts(40, seed=3, held_out=True)
    pictures = [render(scene_of(prompt, 1, index)) for index, prompt in enumerate(prompts)]
    good = verdicts(prompts, pictures)
    bad = verdicts(prompts, [*pictures[1:], pictures[0]])
    seen, held_out = apart(prompts, good)
    assert [v.prompt for v in seen] == list(range(60)) and [v.prompt for v in held_out] == list(range(60, 100))
    assert scores(held_out).overall.value == 1 and {score.task for score in scores(held_out).tasks} == {
        "two_object",
        "colors",
        "position",
        "color_attr",
    }
    change = differences(apart(prompts, bad)[0], seen)
    assert change.overall.value < -0.5 and change.overall.high < 0 and change.overall.gained == 0


def test_bad_pictures_are_refused() -> None:
    for wrong in (np.zeros((64, 64), np.uint8), np.zeros((64, 128, 3), np.uint8), np.zeros((64, 64, 3))):
        with pytest.raises(ValueError, match="bytes"):
            find(wrong)  # type: ignore[arg-type]
    for side in (32, 100):
        with pytest.raises(ValueError, match="multiple of 64"):
            find(np.zeros((side, side, 3), np.uint8))
    with pytest.raises(ValueError, match="one of each"):
        verdicts(evaluation_prompts(2), [np.zeros((64, 64, 3), np.uint8)])


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "scenes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert "overall         100.00 %" in capsys.readouterr().out
    assert f"the {len(distinct_captions()):,} captions" in page


@pytest.mark.heavy
@pytest.mark.skipif("scenes" not in teachers(), reason="no teacher of scenes ships yet")
def test_the_bundled_autoencoder_keeps_what_the_judge_reads() -> None:
    import torch

    import grafting

    autoencoder: Any = grafting.load_bundle("scenes").autoencoder
    assert autoencoder is not None
    prompts, _, pictures = truth()
    inputs = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = []
    with torch.no_grad():
        for start in range(0, COUNT, 50):
            parts.append(autoencoder.decode(autoencoder.encode(inputs[start : start + 50]).latent_dist.mode()).sample)
    back = ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert min(by_task(verdicts(prompts, back)).values()) >= 0.97
