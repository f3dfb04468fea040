"""The command line: parsing only. A verb's work, and every heavy import, happens in `meningitis.verbs`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from meningitis.given import Refused

VERBS = {
    "models": "list the shipped models and their scenarios",
    "show": "show one model: flows, parameters with units and sources, equations",
    "simulate": "run a scenario and print its weekly course",
    "r0": "next-generation matrix, R0, R at the start, growth, doubling time, control thresholds",
    "thresholds": "conditions for carriage and illness to spread, and the events along a run in order",
    "sensitivity": "indices of R0, with --outcomes of all outcomes, or with --global PRCC and Sobol indices of all",
    "final-size": "share ever infected: over carrier odds and the proportion ill at once, or a sweep of your own",
    "profile": "case-carrier ratios over time, at one set of values or swept",
    "compare": "two parameter sets side by side: cases and deaths averted",
    "study": "the whole study: page, figures, tables, results.json",
    "benchmark": "time the engine beside its peers",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, with the nearest verb where one is misspelt."""

    def error(self, message: str) -> NoReturn:
        """Print one sentence and leave with status 2."""
        if "invalid choice: '" in message:
            import difflib

            given = message.split("invalid choice: '")[1].split("'")[0]
            choices = [word.strip(" ')") for word in message.split("choose from ")[-1].split(",")]
            close = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
            hint = f", did you mean '{close[0]}'?" if close else f"; allowed are {', '.join(choices)}"
            option = message.removeprefix("argument ").partition(":")[0]
            message = f"{'there is no verb' if option == 'VERB' else f'{option} has no choice'} '{given}'{hint}"
        print(f"meningitis: {message}", file=sys.stderr)
        raise SystemExit(2)


TAKES = {
    "models": ("form",),
    "show": ("values", "form"),
    "simulate": ("values", "days", "calendar", "form"),
    "r0": ("values", "form"),
    "thresholds": ("values", "days", "calendar", "form"),
    "sensitivity": ("values", "form"),
    "final-size": ("values", "days", "sweep", "form"),
    "profile": ("values", "days", "calendar", "sweep", "form"),
    "compare": ("values", "days", "form"),
    "study": ("values", "days", "calendar"),
    "benchmark": (),
}
"""The groups of options that each verb takes: what it could only ignore it refuses."""

DAYS = "length of the run (default: the scenario's)"


def _shared() -> dict[str, Parser]:
    shared = {name: Parser(add_help=False) for name in ("values", "days", "calendar", "sweep", "form")}
    group = shared["values"].add_argument_group("model and values")
    group.add_argument("--model", metavar="NAME|FILE", help="shipped model or YAML declaration (default: generalised)")
    group.add_argument("--scenario", metavar="NAME", help="named values (default: the model's first scenario)")
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one value, e.g. 70/year; repeat"
    )
    group.add_argument("--params", metavar="FILE", help="YAML or JSON table of values, overridden by --set")
    shared["days"].add_argument("--days", type=float, metavar="N", help=DAYS)
    calendar = shared["calendar"]
    calendar.add_argument(
        "--start", metavar="DATE", help="first day, YYYY-MM-DD: dates and epidemiological weeks appear"
    )
    calendar.add_argument("--weeks", choices=("iso", "cdc"), help="system of epidemiological weeks (default: iso)")
    shared["sweep"].add_argument(
        "--sweep", action="append", default=[], metavar="NAME=V1,V2,...",
        help="values of one parameter to compare; repeat for all combinations with another's",
    )  # fmt: skip
    form = shared["form"].add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")
    return shared


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs, built without importing anything heavy."""
    top = Parser(prog="meningitis", description="A compartmental model of meningitis epidemics with carriers.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    shared = _shared()
    sub = {
        name: verbs.add_parser(name, help=words, description=words, parents=[shared[part] for part in TAKES[name]])
        for name, words in VERBS.items()
    }
    sub["r0"].add_argument(
        "--efficacy",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="efficacy against infection, carriage included, for the critical coverage (default: 1)",
    )
    for name in ("thresholds", "simulate", "study"):
        sub[name].add_argument(
            "--reporting-fraction",
            type=float,
            default=1.0,
            metavar="RATIO",
            help="suspected cases per case of the model, above 1 where other illness is suspected (default: 1)",
        )
    asked = sub["sensitivity"].add_mutually_exclusive_group()
    asked.add_argument("--global", dest="worldwide", action="store_true", help="PRCC and Sobol instead")
    asked.add_argument(
        "--outcomes", action="store_true", help="indices of cases, deaths, peak weekly incidence and all infected too"
    )
    sub["sensitivity"].add_argument("--days", type=float, metavar="N", help=f"with --outcomes or --global: {DAYS}")
    sampling = sub["sensitivity"].add_argument_group("only with --global")
    for group in (sampling, sub["study"]):
        group.add_argument(
            "--checkpoint",
            metavar="DIR",
            help="keep finished sampled runs here: the same command goes on after an interruption",
        )
        group.add_argument("--seed", type=int, metavar="N", help="seed of every random draw (default: 1)")
        group.add_argument(
            "--sobol-n", type=int, metavar="N", help="Sobol base samples, a power of two (default: 4096)"
        )
        group.add_argument("--lhs-n", type=int, metavar="N", help="Latin hypercube samples (default: 2000)")
    sub["simulate"].add_argument(
        "--bands", type=int, metavar="N", help="percentiles over N draws of the sampled parameters, not one run"
    )
    sub["profile"].add_argument(
        "--step", type=float, default=7.0, metavar="DAYS", help="days from one row to the next (default: 7)"
    )
    sub["compare"].add_argument(
        "--with-scenario", metavar="NAME", help="scenario of the second set (default: the same)"
    )
    sub["compare"].add_argument(
        "--with",
        dest="other",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="value in the second set; repeat",
    )
    sub["study"].add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    sub["study"].description = f"{VERBS['study']}; without --model, of the basic and the generalised model"
    benchmark = sub["benchmark"]  # one fixed task, so none of the options on models and values
    benchmark.add_argument("--quick", action="store_true", help="seconds instead of minutes: fewer sets and sizes")
    benchmark.add_argument("--seed", type=int, default=1, help="seed of the parameter sets")
    benchmark.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    benchmark.add_argument("--json", action="store_true", help="print the figures as JSON")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0; 2 with one sentence on stderr for bad input; 130 when interrupted."""
    arguments, unknown = parser().parse_known_args(argv)
    try:
        if unknown:
            raise Refused(f"{arguments.verb} takes no {unknown[0]}: see meningitis {arguments.verb} --help")
        from meningitis import verbs

        verbs.run(arguments)
        sys.stdout.flush()
    except Refused as refusal:
        print(f"meningitis: {refusal}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is left has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("meningitis: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
