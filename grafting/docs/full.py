"""Ship the full run: its page beside the bundled teacher, its samples into docs/grids.png.

grafting run full && python grafting/docs/full.py out/full
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from grafting.files import write_bytes_atomic
from grafting.report.results import ModelResult, Results, read_results

HOME = Path(__file__).resolve().parents[1]
SHIPPED = HOME / "src" / "grafting" / "assets" / "fashion" / "runs" / "full"
PICTURE = HOME / "docs" / "grids.png"
SHOWN = {
    "teacher": "pretrained teacher",
    "half": "half of its attention is hyena_x_2d",
    "none": "half of its attention is gone",
}


def ship(out: Path) -> None:
    """Copy a finished run, without its models and samples. Raises ValueError where ``out`` holds none."""
    results = read_results(out / "results.json")
    shutil.rmtree(SHIPPED, ignore_errors=True)
    grids = [model.grid for model in results.models if model.grid is not None]
    for name in ("recipe.yaml", "results.json", "report.html", *grids):
        write_bytes_atomic(SHIPPED / name, (out / name).read_bytes())
    write_bytes_atomic(PICTURE, picture(results, SHIPPED))


def picture(results: Results, home: Path) -> bytes:
    """Samples side by side, from the same noise, with what was measured above them: PNG."""
    shown = {model.name: model for model in results.models if model.name in SHOWN}
    figure = Figure(figsize=(11.6, 2.8), layout="constrained")
    for axes, (name, words) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        axes.imshow(Image.open(home / str(shown[name].grid)))
        axes.set_title(f"{words}\n{figures(shown[name])}", fontsize=10)
        axes.axis("off")
    made = io.BytesIO()
    figure.savefig(made, dpi=100, format="png", metadata={"Software": None})
    return made.getvalue()


def figures(model: ModelResult) -> str:
    """The caption's second line."""
    assert model.denoising is not None
    return f"held-out loss {model.denoising.value:.4f}, FID − floor {model.figures['fid_minus_floor'].value:.3f}"


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
