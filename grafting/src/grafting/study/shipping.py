"""Put a finished run's measurements of its teacher beside that teacher, where runs of the same settings take them.

    python -m grafting.study.shipping OUT BUNDLE

BUNDLE gets ``reference.npz`` and ``measured/``: held-out losses, samples, their features and scores, each with the hash
of what it depends on. A run whose settings, weights, images or extractor differ makes its own instead.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ..files import sha256, write_bytes_atomic, write_json_atomic

PARTS = ("denoise.json", "sample.json", "features.json", "scenes.json")


def ship(out: Path, bundle: Path) -> None:
    """Copy from the run's folder ``out`` into the teacher's folder ``bundle``; what was shipped there before goes.

    Raises:
        ValueError: ``out`` holds no finished run.
    """
    source, target = out / "teacher", bundle / "measured"
    found = [name for name in PARTS if (source / name).is_file()]
    if not (out / "results.json").is_file() or not found:
        raise ValueError(f"{out}: no finished run whose teacher was measured")
    shutil.rmtree(target, ignore_errors=True)
    for name in found:
        part = json.loads((source / name).read_text())
        files = part["outcome"].get("files", ())
        for file in files:
            write_bytes_atomic(target / file, (source / file).read_bytes())
        write_json_atomic(target / name, part | {"sha256": {file: sha256(target / file) for file in files}})
    if (out / "reference.npz").is_file():
        write_bytes_atomic(bundle / "reference.npz", (out / "reference.npz").read_bytes())


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
