"""Models of text by what the exact judge of scenes says of their pictures: ``evaluate --scenes``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..progress import progress_line
from .shared import alone, opened, sampling_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..scenes import Prompt
    from ..store.models import Model
    from ..tasks import Verdict

TEACHER = "teacher"


def evaluate(arguments: argparse.Namespace) -> None:
    """Six task scores and their mean of every MODEL, beside the teacher's and the paired difference to these."""
    names: list[str] = arguments.model
    if not names or len(set(names)) < len(names):
        raise ValueError("--scenes: name one MODEL or several different ones to be judged")
    if arguments.against in names:
        raise ValueError(f"--against {arguments.against}: that is one of the models to be compared with it")
    judge = _judge(arguments, names if arguments.against is None else [*names, arguments.against])
    found: dict[str, list[Verdict]] = {}
    theirs: dict[str, list[Verdict]] = {}
    for name in names:
        model = opened(arguments, name)
        if arguments.against is None and model.own_teacher is not None and not theirs:
            with model.own_teacher.teacher() as network:
                theirs[TEACHER] = judge(model, network, TEACHER)
        found[name] = judge(model, model.transformer, name)
    if arguments.against is not None:
        other = opened(arguments, arguments.against)
        theirs[arguments.against] = judge(other, other.transformer, arguments.against)
    _show(arguments, found, theirs)


def _judge(arguments: argparse.Namespace, names: Sequence[str]) -> Callable[[Model, nn.Module, str], list[Verdict]]:
    """What draws the prompts with a network of one of ``names`` and judges its pictures.

    Each is opened once before any draws, so that what is wrong with the last is told at once; models of one home, as
    grafts of one teacher are, share the states of the prompts.
    """
    from ..conditions import rows
    from ..sampling import Pipeline
    from ..store.configs import home_of
    from ..study.scenes import embedded, judged, scene_prompts

    device, sampling = alone(arguments).device, sampling_of(arguments)
    prompts: tuple[Prompt, ...] = ()
    states: dict[str, Any] = {}
    source = ""

    def home(model: Model) -> str:
        return home_of(arguments.base or model.name)

    for name in names:
        model = opened(arguments, name)
        if arguments.against is None and model.own_teacher is not None:
            if source and model.own_teacher.source_hash != source:
                raise ValueError(f"{name} is a graft of another teacher than those before: name one with --against")
            source = model.own_teacher.source_hash
        asked = scene_prompts(model, arguments.scenes, arguments.held_out)
        if prompts and asked != prompts:
            raise ValueError(f"{name} was taught another world of scenes than {names[0]}: they share no prompts")
        prompts = asked
        if home(model) not in states:
            texts = [prompt.text for prompt in prompts]
            states[home(model)] = embedded(arguments.base or model.name, texts, device)

    def judge(model: Model, network: nn.Module, name: str) -> list[Verdict]:
        condition, null = states[home(model)]
        model.to(device)
        pipeline, show = Pipeline(network, model.autoencoder, null=null), progress_line(f"scenes of {name}")

        def drawn() -> Iterator[torch.Tensor]:
            size = arguments.batch
            for start in range(0, len(prompts), size):
                part = rows(condition, slice(start, start + size))
                yield pipeline(part, sampling=sampling, seed=arguments.seed, first_index=start, batch_size=size)
                show(min(start + size, len(prompts)), len(prompts))

        return judged(prompts, drawn())

    return judge


def _show(
    arguments: argparse.Namespace, found: Mapping[str, list[Verdict]], theirs: Mapping[str, list[Verdict]]
) -> None:
    """A table per model beside its teacher; combinations that training never showed after the others."""
    from ..tasks import differences, scores, table

    protocol = f"{arguments.scenes:,} prompts, {sampling_of(arguments).describe()}, seed {arguments.seed}"
    plain: dict[str, Any] = {"protocol": protocol}
    parts = {"scenes": slice(arguments.scenes)}
    if arguments.held_out:
        parts["held out"] = slice(arguments.scenes, None)
    for title, of in parts.items():
        scored = {name: scores(verdicts[of]) for name, verdicts in {**found, **theirs}.items()}
        paired = {
            name: differences(verdicts[of], teacher[of])
            for name, verdicts in found.items()
            for teacher in theirs.values()
        }
        plain[title] = {
            "scores": {name: score.to_dict() for name, score in scored.items()},
            "differences": {name: apart.to_dict() for name, apart in paired.items()},
        }
        if arguments.json:
            continue
        if title != "scenes":
            print(f"\n{arguments.held_out:,} prompts of combinations that training never showed")
        for name, apart in paired.items():
            print(table({name: scored[name], **{other: scored[other] for other in theirs}}, apart))
        if not paired:
            print(table(scored))
    print(json.dumps(plain, indent=2) if arguments.json else protocol)
