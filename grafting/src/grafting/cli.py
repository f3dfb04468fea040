"""The command line: parses before anything heavy is imported; the verbs are in :mod:`grafting.verbs`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from .verbs import add_verbs

DEBUG = "GRAFTING_DEBUG"
"""Set to anything, it shows where an error came from, of which a user is told one sentence."""


class Misuse(Exception):
    """A command line that is refused, in one sentence."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{self.prog}: {message}; {self.prog} --help tells what is allowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input (one sentence), 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = _parser().parse_args(given)
    except Misuse as error:
        print(error, file=sys.stderr)
        return 2
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is left has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nstopped{_resuming(given, parsed.goes_on_with)}", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get(DEBUG):
            raise
        print(f"grafting {parsed.verb}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # Of torch, which is not imported to ask: on a GPU a class of its own, elsewhere the allocator's words.
        if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):
            raise
        told = " ".join(str(error).split("GPU")[0].split()).rstrip(".")
        key = {"run": "finetune.", "study": "finetune.", "finetune": ""}
        where = key.get(parsed.verb)
        lean = "" if where is None else f", or --set {where}checkpointing=true, or {where}micro_batch=N"
        print(f"grafting {parsed.verb}: {told}: a smaller batch needs less{lean}", file=sys.stderr)
        return 2
    return 0


def _resuming(given: Sequence[str], resume: str | None) -> str:
    """How to go on after Ctrl-C, for a verb that keeps what it has done."""
    if resume is None:
        return ""
    again = [*given, *([resume] if resume and resume not in given else [])]
    return f"; go on with: {shlex.join(['grafting', *again])}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="grafting", description="Edit pretrained diffusion transformers.")
    add_verbs(parser)
    return parser
