"""`python -m meningitis.benchmark [--quick] [--out FILE]`."""

from __future__ import annotations

import argparse

from meningitis.benchmark import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m meningitis.benchmark", description="The engine beside its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer sets, rounds and sizes, and no study")
    parser.add_argument("--out", metavar="FILE", help="write the numbers as JSON")
    arguments = parser.parse_args()
    run(quick=arguments.quick, path=arguments.out)
