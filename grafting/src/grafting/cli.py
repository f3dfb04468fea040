"""The command line: parses before anything heavy is imported; every verb is a thin call."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

Verb = Callable[[argparse.Namespace], None]
MODEL = "a bundled teacher, a folder of diffusers or of a graft, or an id of the hub"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input (one sentence), 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"grafting {parsed.verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grafting", description="Edit pretrained diffusion transformers.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Verb, help: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        return made

    made = verb("operators", _operators, "list the operators, with options and cost")
    made.add_argument("pattern", nargs="?", default="*", help="such as 'hyena*'")
    made.add_argument("--width", type=int, default=1152)
    made.add_argument("--heads", type=int, default=16)
    made.add_argument("--tokens", type=int, default=256)

    made = verb("inspect", _inspect, "show a model's sites, sizes and cost")
    made.add_argument("model", metavar="MODEL", help=f"{MODEL}, or a bundled configuration")

    made = verb("plan", _plan, "check a plan on a model and show its cost and bounds")
    made.add_argument("model", metavar="MODEL", help=f"{MODEL}, or a bundled configuration")
    _plan_options(made)
    made.add_argument("--side", type=int, metavar="N", help="tokens along one side of a square, for another size")
    made.add_argument("--json", action="store_true")

    made = verb("pretrain", _pretrain, "train an autoencoder, a transformer or a classifier by a recipe")
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one")
    made.add_argument("--out", type=Path, required=True, help="the run's folder; a run found there is continued")
    made.add_argument("--until", type=int, metavar="STEP", help="stop after this step; the same command goes on")

    made = verb("distill", _verb("distill"), "stage 1: graft a model and teach its new operators")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    _plan_options(made)
    made.add_argument("--init", default="default", help="default, random, copy or solve")
    made.add_argument("--calibration", type=int, default=256, metavar="N", help="samples that a solved start sees")
    _stage_options(made, steps=200)

    made = verb("finetune", _verb("finetune"), "stage 2: finetune a graft end to end")
    made.add_argument("model", metavar="GRAFT", help="the folder of a graft")
    made.add_argument("--base", metavar="MODEL", help="its pretrained model, where the graft does not name it")
    _stage_options(made, steps=300)

    made = verb("sample", _verb("sample"), "draw a grid of samples")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--out", type=Path, required=True, metavar="PNG")
    made.add_argument("--count", type=int, default=40, help="samples over the classes in turn (default 40)")
    made.add_argument("--labels", type=_integers, metavar="L,L,…", help="the classes to draw, instead")
    made.add_argument("--columns", type=int, metavar="N")
    made.add_argument("--zoom", type=int, default=2, metavar="N")
    _sampling_options(made)

    made = verb("evaluate", _verb("evaluate"), "held-out loss, and FID, KID and recognition of samples")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--against", metavar="MODEL", help="for the paired difference; a graft's own teacher by default")
    made.add_argument("--triples", type=int, default=1000, metavar="N", help="of the held-out loss (default 1000)")
    made.add_argument("--samples", type=int, default=0, metavar="N", help="judged by the classifier (default 0)")
    made.add_argument("--data", metavar="NPZ", help="images, where the model brings none")
    made.add_argument("--json", action="store_true")
    _sampling_options(made)

    made = verb("profile", _verb("profile"), "parameters, FLOPs, latency, memory and time bound")
    made.add_argument("model", metavar="MODEL", help=MODEL)
    made.add_argument("--base", metavar="MODEL", help="a graft's pretrained model, where the graft does not name it")
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--side", type=int, metavar="N", help="tokens along one side of a square, for another size")
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--json", action="store_true")

    made = verb("run", _run, "a recipe from end to end: graft, distil, finetune, measure, report")
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; dots go down")
    made.add_argument("--budget", type=float, help="multiplies the steps of both stages; 0 solves the start only")
    made.add_argument("--out", type=Path, help="the run's folder (default: out/ and the recipe's name)")
    made.add_argument("--resume", action="store_true", help="go on with the run in that folder")

    made = verb("report", _verb("report"), "write the page of a finished run again")
    made.add_argument("out", type=Path, metavar="OUT", help="the run's folder")

    made = verb("recipes", _recipes, "list the shipped recipes or copy one")
    made.add_argument("action", choices=["ls", "cp"])
    made.add_argument("name", nargs="?")
    made.add_argument("target", nargs="?", type=Path, default=Path())
    return parser


def _plan_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--plan", type=Path, metavar="FILE", help="a plan in YAML; else --operator, --site and --blocks")
    made.add_argument("--operator", default="hyena_x")
    made.add_argument("--site", default="attn")
    made.add_argument("--blocks", default="interleaved 50%", help="a pattern, such as 'last 25%%'")


def _stage_options(made: argparse.ArgumentParser, *, steps: int) -> None:
    made.add_argument("--out", type=Path, required=True, help="the graft's folder; a run found there is continued")
    made.add_argument("--steps", type=int, default=steps)
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the stage")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--data", metavar="NPZ", help="images, where the model brings none")


def _sampling_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--base", metavar="MODEL", help="a graft's pretrained model, where the graft does not name it")
    made.add_argument("--scheduler", default="ddim", help="ddim, ddpm or dpm++")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--guidance", type=float, default=1.0, help="1 is off")
    made.add_argument("--seed", type=int, default=0)


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _verb(name: str) -> Verb:
    def run(arguments: argparse.Namespace) -> None:
        from . import verbs

        getattr(verbs, name)(arguments)

    return run


def _run(arguments: argparse.Namespace) -> None:
    from . import verbs

    verbs.run(arguments, _recipe_source(arguments.recipe))


def _operators(arguments: argparse.Namespace) -> None:
    from .operators import OperatorError, get, list_operators

    names = list_operators(arguments.pattern)
    if not names:
        raise OperatorError(f"no operator matches {arguments.pattern!r}: there are {', '.join(list_operators())}")
    d, heads, n = arguments.width, arguments.heads, arguments.tokens
    lines = [
        f"width {d}, {heads} heads, {n} tokens\n\n{'operator':<18}{'kind':<10}{'parameters':>14}{'GFLOPs':>10}  options"
    ]
    for name in names:
        operator = get(name)
        options = ", ".join(f"{key}={option.default}" for key, option in operator.option_table.items())
        parameters, flops = operator.parameters_count(d, heads, n), operator.flops(d, heads, n)
        lines.append(f"{name:<18}{operator.kind:<10}{parameters:>14,}{flops / 1e9:>10.3f}  {options}")
    print("\n".join(lines))


def _config(name: str) -> dict[str, Any]:
    """A configuration of a model, without loading weights."""
    from .hosts import bundled_config, bundled_configs
    from .store.models import config_of

    return bundled_config(name) if name in bundled_configs() else config_of(name)


def _inspect(arguments: argparse.Namespace) -> None:
    from .cost import block_cost, host_flops
    from .hosts import shape_of

    shape = shape_of(_config(arguments.model))
    block = block_cost(shape)
    print(f"{arguments.model}: {shape.family}, {shape.depth} blocks, width {shape.width}, {shape.heads} heads")
    print(
        f"{shape.tokens} tokens ({shape.grid[0]} x {shape.grid[1]}), {host_flops(shape) / 1e9:.1f} GFLOPs per forward"
    )
    print(f"sites: blocks.0 to blocks.{shape.depth - 1}, attn and mlp each")
    for part in ("attn", "core", "mlp", "rest"):
        print(f"  {part:<6}{getattr(block, part) / block.total:>7.1%} of a block")


def _plan(arguments: argparse.Namespace) -> None:
    from .cost import plan_cost, table
    from .verbs import plan_of

    plan = plan_of(arguments)
    if arguments.side is not None and arguments.side < 1:
        raise ValueError(f"--side {arguments.side}: must be at least 1")
    grid = (arguments.side, arguments.side) if arguments.side else None
    cost = plan_cost(plan, _config(arguments.model), grid=grid)
    print(json.dumps(cost.to_dict(), indent=2) if arguments.json else table(cost, arguments.model))


def _recipe_text(name: str) -> str:
    if name not in _recipe_names():
        raise ValueError(f"no recipe {name!r}: there are {', '.join(_recipe_names())}")
    return (files("grafting") / "recipes" / f"{name}.yaml").read_text()


def _recipe_source(recipe: str) -> str:
    """The text of a file, or of a shipped recipe."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") and not path.is_file():
        raise ValueError(f"recipe {recipe}: no such file; shipped are {', '.join(_recipe_names())}")
    return path.read_text() if path.is_file() else _recipe_text(recipe)


def _recipe_names() -> list[str]:
    folder = files("grafting") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _pretrain(arguments: argparse.Namespace) -> None:
    from .training.pretrain import PretrainRecipe, pretrain

    recipe = PretrainRecipe.from_yaml(_recipe_source(arguments.recipe), arguments.recipe)
    pretrain(recipe, arguments.out, until=arguments.until)


def _recipes(arguments: argparse.Namespace) -> None:
    from .files import write_text_atomic

    if arguments.action == "ls":
        for name in _recipe_names():
            print(f"{name:<24}{_recipe_text(name).splitlines()[0].removeprefix('# ')}")
        return
    if not arguments.name:
        raise ValueError(f"recipes cp NAME [TARGET]: name one of {', '.join(_recipe_names())}")
    text = _recipe_text(arguments.name)
    target = arguments.target / f"{arguments.name}.yaml" if arguments.target.is_dir() else arguments.target
    if target.exists():
        raise ValueError(f"{target} exists: name another file")
    write_text_atomic(target, text)
    print(target)


if __name__ == "__main__":
    sys.exit(main())
