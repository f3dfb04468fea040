"""The benchmark of which thing is which: what is exchanged, and what models that read everything or nothing get."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from grafting.scenes import evaluation_prompts
from grafting.scenes.prompts import DEFAULT, distinct_captions
from grafting.scenes.world import World
from grafting.tasks import TASKS
from grafting.text import Embedded

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "binding.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_one_thing_is_exchanged(script: dict[str, Any]) -> None:
    """A caption of the same task that says something else: with the same words where colours change places."""
    captions, left_out = set(distinct_captions()), 0
    for prompt in evaluation_prompts(300):
        other = script["exchanged"](prompt, DEFAULT)
        if other is None:
            left_out += prompt.task == "color_attr"
            continue
        before, after = Counter(prompt.text.split()), Counter(other.split())
        assert other != prompt.text
        if prompt.task == "color_attr":
            assert before == after and other.split()[1] == prompt.text.split()[-2]
        elif prompt.task == "position":
            (gone,), (come,) = before - after, after - before
            assert {gone, come} in ({"left", "right"}, {"above", "below"})
        elif prompt.task != "counting":
            assert (before - after).total() == (after - before).total() == 1
        assert other in captions
    assert left_out > 0
    small = World(shapes=("disc", "star"), colours=("red", "white"), most=2)
    for prompt in evaluation_prompts(40, world=small):
        other = script["exchanged"](prompt, small)
        assert other is None or other in distinct_captions(small)


class Stub:
    """A text encoder whose states are a number for each caption: zero for those that are true."""

    def __init__(self, true: set[str]) -> None:
        self.true = true

    def embed(self, prompts: list[str]) -> Embedded:
        values = torch.tensor([[float(prompt not in self.true)] for prompt in dict.fromkeys(prompts)])
        return Embedded(
            prompts=tuple(dict.fromkeys(prompts)), values=values, offsets=torch.arange(len(values) + 1), encoder="stub"
        )


@pytest.mark.parametrize("reads", [True, False])
def test_the_share_tells_who_reads(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """Models made for it: one is worse by its caption's state, the other says the same whatever the caption is."""

    class Host:
        @staticmethod
        def call(_: Any, zt: torch.Tensor, __: Any, text: dict[str, torch.Tensor]) -> torch.Tensor:
            return zt * (1 + reads * text["encoder_hidden_states"][:, 0, :, None, None])

    namespace = script["measure"].__globals__
    monkeypatch.setitem(namespace, "host_for", lambda _: Host)
    true = {prompt.text for prompt in evaluation_prompts(len(TASKS))}
    rows = script["measure"]("scenes", 1, Stub(true), (900,))
    assert [row["task"] for row in rows] == list(TASKS) and {row["n"] for row in rows} == {1}
    for row in rows:
        assert row["worse"] == float(reads) and (row["rise"] > 1) == reads
        assert 0 <= row["low"] <= row["worse"] <= row["high"] <= 1 and row["high"] - row["low"] > 0.5
    cells = script["table"](rows).splitlines()[1:]
    assert len(cells) == len(TASKS) and all(line.split()[1] == ("100%" if reads else "0%") for line in cells)
