"""What several verbs take and do: options of a plan and of sampling, lines of progress, intervals."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..graft import Grafted
    from ..plan import Plan
    from ..sampling import Sampling
    from ..store.models import Model
    from ..training.team import Team

Verb = Callable[[argparse.Namespace], None]
MODEL = "a bundled teacher, a folder of diffusers or of a graft, an original DiT checkpoint, or an id of the hub"
CONFIGURATION = f"{MODEL}, or a bundled configuration"
STEPS = 20
"""Of a walk, where nothing else is asked for."""


class Verbs:
    """Where a group puts its verbs."""

    def __init__(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        self._subparsers = subparsers

    def add(self, name: str, run: Verb, help: str, *, resume: str | None = None) -> argparse.ArgumentParser:
        """A parser for ``grafting NAME``, which calls ``run`` with what was parsed.

        resume: what the same command line needs to go on after Ctrl-C: "" where it goes on by itself, None where
        nothing is kept. A verb that goes on by itself takes ``--resume`` too, as ``run`` has it.
        """
        made = self._subparsers.add_parser(name, help=help, description=help)
        if resume == "":
            made.add_argument("--resume", action="store_true", help="changes nothing: it goes on by itself")
        # Not "resume": defaults of the parser would become those of a verb's own --resume.
        made.set_defaults(run=run, goes_on_with=resume)
        return made


def plan_options(made: argparse.ArgumentParser) -> None:
    """Options for :func:`plan_of`."""
    made.add_argument("--plan", type=Path, metavar="FILE", help="a plan in YAML; else --operator, --site and --blocks")
    made.add_argument("--operator", metavar="NAME", help="such as swa or mlp:ratio=3; default: hyena_x")
    made.add_argument("--site", help="attn (default) or mlp")
    made.add_argument(
        "--blocks",
        type=_blocks,
        help="indices (1,3,5) or a pattern, such as 'last 25%%' or 'most local 50%%'; default: interleaved 50%%",
    )
    made.add_argument("--analysis", type=Path, metavar="FILE", help="of grafting analyze, for patterns of locality")


def asks_for_plan(arguments: argparse.Namespace) -> bool:
    """Whether any option of a plan is given, for a verb that does without one. Raises ValueError for an idle one."""
    asked = any(getattr(arguments, name) is not None for name in ("plan", "operator", "site", "blocks"))
    if arguments.analysis is not None and not asked:
        raise ValueError(f"--analysis {arguments.analysis} says which blocks are local: give --blocks or --plan too")
    return asked


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that ``--plan``, or ``--operator``, ``--site`` and ``--blocks``, ask for.

    Raises ValueError where both are given.
    """
    from ..plan import Plan, named_operator

    edit = {"site": "attn", "blocks": "interleaved 50%", "operator": "hyena_x"}
    given = {key: getattr(arguments, key) for key in edit if getattr(arguments, key) is not None}
    if arguments.plan:
        if given:
            raise ValueError(f"--plan names operators, sites and blocks itself: leave out --{', --'.join(given)}")
        if not arguments.plan.is_file():
            raise ValueError(f"--plan {arguments.plan}: no such file")
        plan = Plan.from_yaml(arguments.plan)
    else:
        edit |= given
        operator, options = named_operator(edit["operator"])
        plan = Plan.from_dict({"edits": [edit | {"operator": operator, "options": options}]})
    if not plan.by_locality:
        return plan
    from ..measure.suggest import located  # needs torch, which other plans do without

    return located(plan, arguments.model, arguments.analysis)


def folder_of(model: str, verb: str) -> Path:
    """Where ``verb`` writes about MODEL if nothing else is said; a study keeps each of its models in NAME/model."""
    named = Path(model)
    if named.name == "model" and named.parent.name:
        named = named.parent
    return Path("out") / f"{named.name}-{verb}"


def text_tokens_option(made: argparse.ArgumentParser) -> None:
    """``--text-tokens``, for what counts or times a model that reads text."""
    made.add_argument(
        "--text-tokens",
        type=at_least(1),
        metavar="N",
        help="of a prompt, with padding (default: its bundle's or pipeline's; 300, alpha 120, SD3 333, Flux dev 512)",
    )


def side_option(made: argparse.ArgumentParser) -> None:
    """``--side``, a grid of tokens (height, width)."""
    made.add_argument(
        "--side",
        type=height_width("a whole number of at least 1, or two such as 4x8 for height and width"),
        metavar="HxW",
        help="tokens of another size, N for a square (default: the model's own)",
    )


def size_option(made: argparse.ArgumentParser, help: str) -> None:
    """``--size``, pixels (height, width)."""
    kind = height_width("pixels such as 512, or 512x768 for height and width")
    made.add_argument("--size", type=kind, metavar="HxW", help=f"{help}, N for a square; default: the model's own")


def base_option(made: argparse.ArgumentParser) -> None:
    """``--base``, for a graft that is opened."""
    made.add_argument("--base", metavar="MODEL", help="a graft's pretrained model, where the graft does not name it")


def data_option(made: argparse.ArgumentParser) -> None:
    """``--data``, for what learns from images or is judged by them."""
    made.add_argument("--data", metavar="DATA", help="a folder of grafting encode, or an npz of images")


def device_option(made: argparse.ArgumentParser) -> None:
    """``--device``, for :func:`team_of`."""
    made.add_argument("--device", help="such as cpu or cuda:1; by default the GPU where there is one")


def team_of(arguments: argparse.Namespace) -> Team:
    """This process and its device, as ``--device``, ``accelerate launch`` and the machine say."""
    from ..training.team import Team

    return Team.current(arguments.device)


def alone(arguments: argparse.Namespace) -> Team:
    """The same for what one process does. Raises ValueError where there are several."""
    team = team_of(arguments)
    if team.size > 1:
        raise ValueError(f"{team.size} processes were launched, and this is the work of one: run it by itself")
    return team


def vae_option(made: argparse.ArgumentParser) -> None:
    """``--vae``, for :func:`opened`."""
    made.add_argument(
        "--vae", metavar="MODEL", help="an autoencoder's folder or hub id, for a model of latents that brings none"
    )


def text_options(made: argparse.ArgumentParser) -> None:
    """``--text`` and ``--tokens``, for what embeds prompts."""
    made.add_argument("--text", metavar="MODEL", help="a pipeline to take the text encoder of, where MODEL has none")
    made.add_argument(
        "--tokens",
        type=at_least(1),
        metavar="N",
        help="of a prompt at most, SD3's with CLIP's 77 (default: the model's)",
    )


def opened(arguments: argparse.Namespace, name: str | None = None) -> Model:
    """The model that MODEL (or ``name``), ``--base``, ``--vae`` and ``--weights`` ask for."""
    from ..store.models import open_model, with_autoencoder

    model = open_model(name or arguments.model, base=arguments.base, weights=arguments.weights)
    return with_autoencoder(model, arguments.vae) if arguments.vae else model


def pretrained_of(handle: Grafted, name: str, base: str) -> Model:
    """The model ``base``, of which the graft ``name`` keeps no weights, in float32, to stand beside it.

    Raises ModelError where it cannot be opened, ValueError for another model than the graft was made from; of a
    released graft, which does not say which that is, for one of other sizes.
    """
    from ..hashes import is_of
    from ..hosts import shape_of
    from ..store.configs import ModelError, graft_folder
    from ..store.folder import other_constant
    from ..store.manifest import read_manifest
    from ..store.models import open_model

    try:
        found = open_model(base)
    except ModelError as error:
        raise ModelError(f"{error}; it is the teacher of {name}: say with --base where it is") from error
    other = f"{base} is not the teacher of {name}"
    folder = graft_folder(name, weights=False)
    if folder is None:
        if shape_of(found.transformer) != shape_of(handle.model):
            raise ValueError(f"{other}: it is of other sizes")
        return found
    if not is_of(found.transformer, handle.source_hash, handle.rounded):
        raise ValueError(f"{other}, whose hash is {handle.source_hash[:12]}")
    if odd := other_constant(found.transformer, read_manifest(folder)):
        raise ValueError(f"{other}: {odd}")
    return found


def weights_option(made: argparse.ArgumentParser) -> None:
    """``--weights``, for what may run on a model that does not learn."""
    made.add_argument(
        "--weights", default="fp32", help="how what does not learn is held: fp32, or bf16 in half the memory"
    )


def precision_of(arguments: argparse.Namespace) -> str:
    """Of passes. Raises ValueError for another than that of weights in bfloat16."""
    given: str | None = arguments.precision
    if arguments.weights == "bf16" and given not in (None, "bf16"):
        raise ValueError(f"--precision {given}: it is bf16 with --weights bf16")
    return given or arguments.weights


def sampling_options(made: argparse.ArgumentParser) -> None:
    """Options for :func:`sampling_of`."""
    made.add_argument("--scheduler", default="ddim", help="ddim, ddpm or dpm++")
    made.add_argument("--steps", type=at_least(2), default=STEPS)
    made.add_argument(
        "--spacing", default="linspace", help="of the timesteps: linspace (DiT's) or leading (diffusers')"
    )
    made.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="classifier-free, by a second pass; 1, as Flux is drawn, is off",
    )
    made.add_argument(
        "--guided-channels", type=at_least(1), metavar="N", help="guide the first N channels (DiT: 3), not all"
    )
    made.add_argument("--clip", action="store_true", help="bound the clean sample to [-1, 1] at every step")
    made.add_argument(
        "--precision", help="of the model's matrix products: fp32 (default) or bf16; that of --weights where given"
    )
    made.add_argument("--seed", type=int, default=0)


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """How the options ask to sample. Raises ValueError for options that do not go together."""
    from ..sampling import Sampling

    if arguments.guided_channels is not None and arguments.guidance == 1:
        raise ValueError(
            f"--guided-channels {arguments.guided_channels} says nothing while guidance is off: give --guidance too"
        )
    return Sampling(
        scheduler=arguments.scheduler,
        steps=arguments.steps,
        spacing=arguments.spacing,
        guidance=arguments.guidance,
        guided_channels=arguments.guided_channels,
        clip=arguments.clip,
        precision=precision_of(arguments),
    )


def integers(text: str) -> list[int]:
    """``1,2,3``, for argparse."""
    return [int(part) for part in text.split(",")]


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers from ``least`` on, for argparse."""

    def whole(text: str) -> int:
        if not re.fullmatch(r"\s*[-+]?\d+\s*", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
        return int(text)

    return whole


def height_width(told: str) -> Callable[[str], tuple[int, int]]:
    """``HxW``, or one number for a square, for argparse; ``told``: what it must be, in words."""

    def both(text: str) -> tuple[int, int]:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
            raise argparse.ArgumentTypeError(f"{text!r} must be {told}")
        height, _, width = text.partition("x")
        return int(height), int(width or height)

    return both


def _blocks(text: str) -> str | list[int]:
    """Indices, or else a pattern, which the plan reads."""
    return integers(text) if re.fullmatch(r"[\d\s,]*\d", text) else text


def interval(figure: dict[str, Any]) -> str:
    """A figure with its interval, where it has one."""
    low, high = figure["low"], figure["high"]
    return f"{figure['value']:.5g}" + ("" if low is None else f"   ({low:.5g} … {high:.5g})")
