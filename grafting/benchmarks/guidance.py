"""How much of what guidance multiplies does a graft of a text-to-image model miss? Noise level by noise level.

    python grafting/benchmarks/guidance.py out/pixart-scenes/carries-least/model --data out/pixart-scenes/pairs

The latents of held-out pairs are given noise of one level at a time. Shown are squared errors of the graft's noise
against its teacher's, under the pair's own caption, under none, and of the difference of the two, which is what
guidance multiplies; each as a share of the mean square of the teacher's own difference. No picture is drawn: seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grafting.diffusion import Diffusion
from grafting.files import write_json_atomic
from grafting.store.models import open_model
from grafting.study.material import Material

LEVELS = (150, 350, 500, 600, 700, 800, 950)


@torch.no_grad()
def measure(handle: Any, z: torch.Tensor, y: Any, null: Any, levels: Sequence[int]) -> list[dict[str, float]]:
    """A row for each of ``levels``: of z (B, C, H, W) under the conditions y and ``null``, B rows each."""
    schedule, channels, found = Diffusion(), z.shape[1], []
    for level in levels:
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(level))
        t = torch.full((len(z),), level)
        zt = schedule.add_noise(z, t, noise)

        def given(zt: torch.Tensor = zt, t: torch.Tensor = t) -> list[torch.Tensor]:
            return [handle.host.call(handle.model, zt, t, condition)[:, :channels] for condition in (y, null)]

        mine = given()
        with handle.teacher():
            wanted = given()
        errors = [one - other for one, other in zip(mine, wanted, strict=True)]
        whole = (wanted[0] - wanted[1]).square().mean()
        shares = [(error.square().mean() / whole).item() for error in (*errors, errors[0] - errors[1])]
        found.append({"level": level} | dict(zip(("caption", "none", "difference"), shares, strict=True)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="the folder of a graft's delta")
    parser.add_argument("--data", required=True, help="a folder of grafting pairs, or of encode with captions")
    parser.add_argument("--pairs", type=int, default=96, help="of those held out (default 96)")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = open_model(arguments.model)
    if model.own_teacher is None:
        raise SystemExit(f"{model.name} is no graft that holds its teacher: name the folder of a delta")
    material, n = Material(model, arguments.data), arguments.pairs
    z = material.latents(train=False)[:n]
    y = {key: value[:n] for key, value in material.conditions(train=False).items()}
    null = {key: value.expand(len(z), *value.shape[1:]) for key, value in material.null.items()}
    found = measure(model.graft, z, y, null, arguments.levels)
    print(f"{'level':<8}{'caption':>10}{'none':>10}{'difference':>12}")
    for row in found:
        print(f"{row['level']:<8}{row['caption']:>10.3f}{row['none']:>10.3f}{row['difference']:>12.3f}")
    if arguments.out:
        write_json_atomic(arguments.out, {"pairs": len(z), "plan": model.graft.plan.to_dict(), "rows": found})


if __name__ == "__main__":
    main()
