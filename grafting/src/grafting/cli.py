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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input (one sentence), 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
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
    made.add_argument("model", metavar="MODEL", help="a folder, a bundled teacher or a bundled configuration")

    made = verb("plan", _plan, "check a plan on a model and show its cost and bounds")
    made.add_argument("model", metavar="MODEL", help="a folder, a bundled teacher or a bundled configuration")
    made.add_argument("--plan", type=Path, metavar="FILE", help="a plan in YAML; else --operator, --site and --blocks")
    made.add_argument("--operator", default="hyena_x")
    made.add_argument("--site", default="attn")
    made.add_argument("--blocks", default="interleaved 50%", help="a pattern, such as 'last 25%%'")
    made.add_argument("--side", type=int, metavar="N", help="tokens along one side of a square, for another size")
    made.add_argument("--json", action="store_true")

    made = verb("pretrain", _pretrain, "train an autoencoder, a transformer or a classifier by a recipe")
    made.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped one")
    made.add_argument("--out", type=Path, required=True, help="the run's folder; a run found there is continued")
    made.add_argument("--until", type=int, metavar="STEP", help="stop after this step; the same command goes on")

    made = verb("recipes", _recipes, "list the shipped recipes or copy one")
    made.add_argument("action", choices=["ls", "cp"])
    made.add_argument("name", nargs="?")
    made.add_argument("target", nargs="?", type=Path, default=Path())
    return parser


def _operators(arguments: argparse.Namespace) -> None:
    from .operators import OperatorError, get, list_operators

    names = list_operators(arguments.pattern)
    if not names:
        raise OperatorError(f"no operator matches {arguments.pattern!r}: there are {', '.join(list_operators())}")
    d, heads, n = arguments.width, arguments.heads, arguments.tokens
    print(
        f"width {d}, {heads} heads, {n} tokens\n\n{'operator':<18}{'kind':<10}{'parameters':>14}{'GFLOPs':>10}  options"
    )
    for name in names:
        operator = get(name)
        options = ", ".join(f"{key}={option.default}" for key, option in operator.option_table.items())
        parameters, flops = operator.parameters_count(d, heads, n), operator.flops(d, heads, n)
        print(f"{name:<18}{operator.kind:<10}{parameters:>14,}{flops / 1e9:>10.3f}  {options}")


def _config(name: str) -> dict[str, Any]:
    """A configuration from a folder, a bundled teacher or a bundled configuration, without loading weights."""
    from .hosts import HostError, bundled_config, bundled_configs

    bundled = Path(str(files("grafting") / "assets" / name / "transformer"))
    for path in (bundled / "config.json", Path(name) / "config.json", Path(name) / "transformer" / "config.json"):
        if path.is_file():
            content: dict[str, Any] = json.loads(path.read_text())
            return content
    if name in bundled_configs():
        return bundled_config(name)
    known = ", ".join(bundled_configs())
    raise HostError(f"{name!r} is no folder with a config.json, no bundled teacher, and none of {known}")


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
    from .plan import Plan

    if arguments.plan:
        plan = Plan.from_yaml(arguments.plan)
    else:
        edit = {"site": arguments.site, "blocks": arguments.blocks, "operator": arguments.operator}
        plan = Plan.from_dict({"edits": [edit]})
    if arguments.side is not None and arguments.side < 1:
        raise ValueError(f"--side {arguments.side}: must be at least 1")
    grid = (arguments.side, arguments.side) if arguments.side else None
    cost = plan_cost(plan, _config(arguments.model), grid=grid)
    print(json.dumps(cost.to_dict(), indent=2) if arguments.json else table(cost, arguments.model))


def _recipe_text(name: str) -> str:
    if name not in _recipe_names():
        raise ValueError(f"no recipe {name!r}: there are {', '.join(_recipe_names())}")
    return (files("grafting") / "recipes" / f"{name}.yaml").read_text()


def _recipe_names() -> list[str]:
    folder = files("grafting") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _pretrain(arguments: argparse.Namespace) -> None:
    import yaml

    from .training.pretrain import PretrainRecipe, pretrain

    path = Path(arguments.recipe)
    content = yaml.safe_load(path.read_text() if path.is_file() else _recipe_text(arguments.recipe))
    if not isinstance(content, dict):
        raise ValueError(f"{arguments.recipe}: no mapping of settings")
    pretrain(PretrainRecipe.from_dict(content, arguments.recipe), arguments.out, until=arguments.until)


def _recipes(arguments: argparse.Namespace) -> None:
    from .files import write_text_atomic

    if arguments.action == "ls":
        print("\n".join(_recipe_names()))
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
