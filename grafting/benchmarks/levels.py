"""Where between noise and picture does a graft lose what its teacher draws? The graft at some noise levels alone.

    python grafting/benchmarks/levels.py out/pixart-scenes/carries-least/model --scenes 240 --out levels.json

The evaluation prompts of scenes are drawn from the same noise as everywhere else, by the graft where the level lies
within one part of the schedule and by its teacher everywhere else; then by either alone. The exact judge reads the
pictures. A part whose row is the teacher's is learnt well enough; one that is far below is where training should spend
its draws (``levels`` of both stages). Shown are the shares of prompts that are right, by task, and the difference to
the teacher's, paired, with its 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from grafting.files import write_json_atomic
from grafting.graft import handle_of
from grafting.sampling import Pipeline, Sampling
from grafting.store.models import Model, open_model
from grafting.study.scenes import embedded, judged, scene_prompts
from grafting.tasks import Verdict, differences, scores

LEVELS, EDGES = 1000, (200, 450, 700, 850)
BATCH = 60


class Divided(Pipeline):
    """A pipeline over a graft that is the graft from level ``first`` to below ``last`` and its teacher elsewhere."""

    first, last = 0, 0

    def _model(self, z: torch.Tensor, t: torch.Tensor, given: Any, sampling: Sampling) -> torch.Tensor:
        handle = handle_of(self.transformer)
        assert handle is not None
        with nullcontext() if self.first <= int(t) < self.last else handle.teacher():
            return super()._model(z, t, given, sampling)


def parts(edges: Sequence[int]) -> list[tuple[int, int]]:
    """The teacher alone, the parts into which ``edges`` divide the schedule, the graft alone.

    Raises ValueError for edges that are not between 0 and 1,000, in rising order, at least one.
    """
    if not edges or list(edges) != sorted(set(edges)) or not 0 < edges[0] <= edges[-1] < LEVELS:
        raise ValueError(f"edges {list(edges)}: rising, above 0 and below {LEVELS}, at least one")
    return [(0, 0), *pairwise((0, *edges, LEVELS)), (0, LEVELS)]


def measure(
    model: Model, edges: Sequence[int], sampling: Sampling, draw: Callable[[Divided], list[Verdict]]
) -> list[dict[str, Any]]:
    """A row for each of :func:`parts`; draw: what turns a pipeline into the judge's verdicts."""
    if model.own_teacher is None:
        raise ValueError(f"{model.name} is no graft that holds its teacher: name the folder of a delta")
    pipeline = Divided(model.transformer, model.autoencoder)
    found: list[dict[str, Any]] = []
    teacher: list[Verdict] = []
    for first, last in parts(edges):
        pipeline.first, pipeline.last = first, last
        mine = draw(pipeline)
        teacher = teacher or mine
        scored, apart = scores(mine), differences(mine, teacher)
        right = {score.task: score.value for score in (*scored.tasks, scored.overall)}
        change = {"value": apart.overall.value, "low": apart.overall.low, "high": apart.overall.high}
        found.append({"from": first, "to": last, "right": right, "minus teacher": change})
        print(line(found[-1]), flush=True)
    return found


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    change, where = row["minus teacher"], f"{row['from']} to {row['to']}" if row["to"] else "teacher"
    shares = " ".join(f"{100 * value:6.1f}" for value in row["right"].values())
    value, low, high = (100 * change[key] for key in ("value", "low", "high"))
    return f"{where:<12}{shares}   {value:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="the folder of a graft of a text-to-image teacher of scenes")
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--edges", type=int, nargs="+", default=EDGES, help="levels at which the schedule is divided")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sampling = Sampling(scheduler="dpm++", steps=20, guidance=3.0)
    model = open_model(arguments.model).to(torch.device(arguments.device))
    prompts = scene_prompts(model, arguments.scenes)
    asked, null = embedded(model.name, [prompt.text for prompt in prompts], torch.device(arguments.device))

    def draw(pipeline: Divided) -> list[Verdict]:
        pipeline.null_text = null
        return judged(prompts, [pipeline(asked, sampling=sampling, batch_size=BATCH)])

    heads = ("single", "two", "count", "colour", "place", "attr", "all")
    print(f"{'graft at':<12}" + " ".join(f"{head:>6}" for head in heads) + "   minus teacher")
    found = measure(model, arguments.edges, sampling, draw)
    if arguments.out:
        settings = {"scenes": arguments.scenes, "sampling": sampling.describe(), "threads": torch.get_num_threads()}
        settings |= {"plan": model.graft and model.graft.plan.to_dict()}
        write_json_atomic(arguments.out, {"settings": settings, "rows": found})


if __name__ == "__main__":
    main()
