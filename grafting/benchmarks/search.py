"""Time of a whole search on a bundled teacher with nothing kept from before, and of another budget after it.

    python grafting/benchmarks/search.py --out search.json

The scores that ship beside the teacher are not looked at: every operator is solved and scored at every site.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from grafting.files import write_json_atomic
from grafting.searching.search import search
from grafting.store.models import open_model


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="fashion")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = replace(open_model(asked.teacher), folder=None)
    with TemporaryDirectory() as kept:
        began = time.perf_counter()
        front = search(model, out=Path(kept))
        scored = time.perf_counter()
        search(model, cost="parameters", out=Path(kept))
        again = time.perf_counter()
    found = {
        "teacher": asked.teacher,
        "threads": asked.threads,
        "torch": torch.__version__,
        "sites": len({(score.block, score.kind) for score in front.scores}),
        "operators": list(dict.fromkeys(one.name for one in front.operators)),
        "seconds": scored - began,
        "again_seconds": again - scored,
    }
    print(
        f"{found['teacher']}, {found['sites']} sites, {len(found['operators'])} operators, {asked.threads} threads: "
        f"{found['seconds']:.0f} s; another cost after it {found['again_seconds']:.1f} s"
    )
    if asked.out:
        write_json_atomic(asked.out, found)


if __name__ == "__main__":
    main()
