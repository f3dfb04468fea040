"""Scores by task: against the definition, against a closed-form standard error, and between models."""

from __future__ import annotations

import numpy as np
import pytest

from grafting.tasks import TASKS, Verdict, differences, scores, table


def verdicts(
    shares: dict[str, float], *, prompts: int, samples: int, seed: int, together: bool = False
) -> list[Verdict]:
    """Pictures that are right with a probability of their task; with ``together`` all pictures of a prompt alike."""
    source = np.random.default_rng(seed)
    made, index = [], 0
    for task, share in shares.items():
        for _ in range(prompts):
            luck = source.random(1 if together else samples)
            right = np.broadcast_to(luck, samples) < share
            made += [Verdict(task=task, prompt=index, sample=k, correct=bool(right[k])) for k in range(samples)]
            index += 1
    return made


def test_a_hand_made_example() -> None:
    made = [Verdict(task="counting", prompt=7, sample=k, correct=k < 1) for k in range(4)]
    made += [Verdict(task="single_object", prompt=3, sample=k, correct=True) for k in range(2)]
    found = scores(made)
    assert [score.task for score in found.tasks] == ["single_object", "counting"]  # in GenEval's order
    single, counting = found.tasks
    assert (single.value, single.correct, single.n, single.prompts) == (1.0, 2, 2, 1)
    assert (counting.value, counting.correct, counting.n, counting.prompts) == (0.25, 1, 4, 1)
    assert found.overall.value == 0.625 and (found.overall.correct, found.overall.n) == (3, 6)
    assert found.to_dict()["overall"]["prompts"] == 2


@pytest.mark.parametrize(("together", "effective"), [(False, 800), (True, 200)])
def test_the_interval_has_the_width_of_the_normal_approximation(together: bool, effective: int) -> None:
    """Independent pictures count each; where the pictures of a prompt agree, only prompts count."""
    found = scores(verdicts({"colors": 0.5}, prompts=200, samples=4, seed=0, together=together)).tasks[0]
    wanted = 2 * 1.96 * (found.value * (1 - found.value) / effective) ** 0.5
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(wanted, rel=0.12)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    truth = {"single_object": 0.9, "position": 0.3, "color_attr": 0.5}
    mean, hits, trials = sum(truth.values()) / 3, 0, 120
    for seed in range(trials):
        overall = scores(verdicts(truth, prompts=40, samples=2, seed=seed), rounds=400).overall
        hits += overall.low <= mean <= overall.high
    # A binomial of 120 trials at 0.95 lies within four of its standard errors.
    assert abs(hits / trials - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


def test_a_paired_difference_cancels_what_prompts_share() -> None:
    base = verdicts(dict.fromkeys(TASKS, 0.6), prompts=50, samples=2, seed=1)
    worse = [
        Verdict(task=v.task, prompt=v.prompt, sample=v.sample, correct=v.correct and v.prompt % 25 != 0) for v in base
    ]
    found, mine, theirs = differences(worse, base), scores(worse), scores(base)
    for change, a, b in zip(found.tasks, mine.tasks, theirs.tasks, strict=True):
        assert change.task == a.task and change.value == pytest.approx(a.value - b.value)
        assert change.gained == 0 and change.lost == b.correct - a.correct
    assert found.overall.value == pytest.approx(mine.overall.value - theirs.overall.value)
    assert found.overall.high <= 0 and found.overall.low <= found.overall.value
    assert found.overall.high - found.overall.low < (mine.overall.high - mine.overall.low) / 2
    turned = differences(base, worse)
    assert turned.overall.value == -found.overall.value and turned.overall.gained == found.overall.lost


def test_a_model_against_itself_is_exactly_equal() -> None:
    made = verdicts({"colors": 0.5, "position": 0.2}, prompts=9, samples=3, seed=2)
    found = differences(made, made[::-1])
    assert all((d.value, d.low, d.high, d.gained, d.lost) == (0, 0, 0, 0, 0) for d in (*found.tasks, found.overall))


def test_the_order_of_verdicts_does_not_matter() -> None:
    made = verdicts({"colors": 0.5, "position": 0.2}, prompts=9, samples=3, seed=2)
    assert scores(made) == scores(made[::-1])


def test_the_table_shows_every_task_and_the_difference() -> None:
    a = verdicts({"colors": 0.5, "position": 0.2}, prompts=9, samples=3, seed=2)
    b = verdicts({"colors": 0.9, "position": 0.2}, prompts=9, samples=3, seed=3)
    found, change = {"hybrid": scores(a), "teacher": scores(b)}, differences(a, b)
    lines = table(found, change).splitlines()
    assert lines[0].split() == ["task", "hybrid", "teacher", "hybrid", "minus", "teacher"]
    assert [line.split()[0] for line in lines[1:4]] == ["colors", "position", "overall"]
    assert f"{100 * change.overall.value:+.2f}" in lines[3] and f"{found['teacher'].tasks[0].correct}/27" in lines[1]
    assert lines[4] == "overall: the mean of 2 of GenEval's 6 tasks"


def right(**changed: object) -> Verdict:
    return Verdict(**({"task": "colors", "prompt": 0, "correct": True} | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ([], "no pictures"),
        ([right(task="colours")], "task 'colours' is not one of single_object"),
        ([right(), right()], "sample 0 of prompt 0 is judged twice"),
        ([right(), right(task="position", sample=1)], "prompt 0 is of colors and of position"),
    ],
)
def test_verdicts_that_cannot_be_scored(made: list[Verdict], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        scores(made)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ([right(), right(sample=1)], "sample 1 of prompt 0 is judged in the second only"),
        ([right(text="a disc")], "prompt 0 differs between the two: '' of colors and 'a disc' of colors"),
        ([right(task="position")], "of colors and '' of position"),
    ],
)
def test_pairs_of_different_pictures_are_refused(other: list[Verdict], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        differences([right()], other)


def test_an_interval_needs_rounds() -> None:
    with pytest.raises(ValueError, match="1 rounds"):
        scores([right()], rounds=1)
