"""What needs no weights: ``operators``, ``inspect`` and ``plan``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .shared import CONFIGURATION, Verbs, at_least, integers, plan_of, plan_options, side_option, text_tokens_option

if TYPE_CHECKING:
    from ..hosts import HostShape


def add(verbs: Verbs) -> None:
    """Declare them."""
    made = verbs.add("operators", operators, "list the operators, with options and cost")
    made.add_argument("pattern", nargs="?", default="*", help="such as 'hyena*'")
    made.add_argument("--width", type=at_least(1), default=1152)
    made.add_argument("--heads", type=at_least(1), default=16)
    made.add_argument("--tokens", type=at_least(1), default=256)

    made = verbs.add("inspect", inspect, "show a model's sites, sizes and cost")
    made.add_argument("model", metavar="MODEL", help=CONFIGURATION)
    text_tokens_option(made)

    made = verbs.add("plan", plan, "check a plan on a model and show its cost and bounds")
    made.add_argument("model", metavar="MODEL", help=CONFIGURATION)
    plan_options(made)
    side_option(made)
    text_tokens_option(made)
    made.add_argument("--measured", type=Path, metavar="JSON", help="of grafting profile MODEL --json, or of stack.py")
    made.add_argument("--throughput", type=float, metavar="N", help="forward samples of MODEL a second, where known")
    made.add_argument("--tflops", type=float, metavar="N", help="TFLOP/s to reckon with, where nothing is measured")
    made.add_argument("--steps", type=integers, default=[200, 300], metavar="N,N", help="of both stages (200,300)")
    made.add_argument("--batch", type=at_least(1), default=64)
    made.add_argument("--out", type=Path, metavar="FILE", help="write the plan there, as YAML for --plan")
    made.add_argument("--json", action="store_true")


def operators(arguments: argparse.Namespace) -> None:
    """Every operator with its options, parameters and FLOPs at one size."""
    from ..operators import OperatorError, arithmetic, list_operators

    names = list_operators(arguments.pattern)
    if not names:
        raise OperatorError(f"no operator matches {arguments.pattern!r}: there are {', '.join(list_operators())}")
    d, heads, n = arguments.width, arguments.heads, arguments.tokens
    lines = [
        f"width {d}, {heads} heads, {n} tokens\n\n{'operator':<18}{'kind':<10}{'parameters':>14}{'GFLOPs':>10}  options"
    ]
    for name in names:
        operator = arithmetic(name)
        options = ", ".join(f"{key}={option.default}" for key, option in operator.option_table.items())
        parameters, flops = operator.parameters_count(d, heads, n), operator.flops(d, heads, n)
        lines.append(f"{name:<18}{operator.kind:<10}{parameters:>14,}{flops / 1e9:>10.3f}  {options}")
    print("\n".join(lines))


def inspect(arguments: argparse.Namespace) -> None:
    """A model's sizes, and what its blocks spend where."""
    from ..cost import block_cost, host_flops
    from ..joint_cost import second_attention

    shape = _shape(arguments)
    block = block_cost(shape)
    text = f", {shape.context_tokens} text tokens" if shape.context_tokens else ""
    print(f"{arguments.model}: {shape.family}, {shape.depth} blocks, width {shape.width}, {shape.heads} heads")
    print(
        f"{shape.tokens} tokens ({shape.grid[0]} x {shape.grid[1]}){text}, "
        f"{host_flops(shape) / 1e9:.1f} GFLOPs per forward"
    )
    print(f"sites: blocks.0 to blocks.{shape.having('mlp') - 1}, attn and mlp each")
    for part in ("attn", "core", "mlp", "rest"):
        print(f"  {part:<6}{getattr(block, part) / block.total:>7.1%} of a block")
    if shape.single:
        alone = block_cost(shape, shape.depth - 1)
        print(f"and blocks.{shape.depth - shape.single} to blocks.{shape.depth - 1}, of a single stream, attn alone")
        for part in ("attn", "core", "rest"):
            print(f"  {part:<6}{getattr(alone, part) / alone.total:>7.1%} of a block")
    if shape.dual:
        each = f"{second_attention(shape) / 1e9:.1f} GFLOPs each"
        print(f"  and a second attention, of the picture alone, in {shape.dual} of them: {each}")


def plan(arguments: argparse.Namespace) -> None:
    """A plan's cost, bounds, time and disk, from a configuration alone."""
    from ..cost import plan_cost, table
    from ..expect import STATED_RATE, expect, lines, read_measured, stated, throughput
    from ..files import write_text_atomic

    chosen = plan_of(arguments)
    if len(arguments.steps) != 2:
        raise ValueError(f"--steps {','.join(map(str, arguments.steps))}: must be two numbers, of stage 1 and stage 2")
    if sum(given is not None for given in (arguments.measured, arguments.throughput, arguments.tflops)) > 1:
        raise ValueError("--measured, --throughput and --tflops say the same thing: give one of them")
    cost = plan_cost(chosen, _shape(arguments), grid=arguments.side)
    measured = None
    if arguments.measured is not None:
        measured = read_measured(arguments.measured, cost)
        rate = measured.rate
    elif arguments.throughput is not None:
        rate = throughput(arguments.throughput, cost)
    else:
        rate = stated(STATED_RATE if arguments.tflops is None else arguments.tflops * 1e12)
    one, two = arguments.steps
    expected = expect(cost, rate, steps=(one, two), batch=arguments.batch, measured=measured)
    if arguments.out is not None:
        write_text_atomic(arguments.out, chosen.to_yaml())
    if arguments.json:
        print(json.dumps(cost.to_dict() | {"expected": expected.to_dict()}, indent=2))
        return
    print(f"{table(cost, arguments.model)}\n{lines(expected)}")


def _shape(arguments: argparse.Namespace) -> HostShape:
    """Sizes of MODEL, without loading weights, for prompts of ``--text-tokens``."""
    from ..hosts import bundled_config, bundled_configs, shape_of
    from ..hosts.shapes import with_text
    from ..store.configs import config_of

    name, tokens = arguments.model, arguments.text_tokens
    config = bundled_config(name) if name in bundled_configs() else config_of(name)
    return shape_of(config) if tokens is None else with_text(config, tokens)
