"""Encoding a folder of pictures against the autoencoder's own passes over the same pictures, in one run.

    python grafting/benchmarks/encode.py --pictures 3 --rounds 2 --out encode.json

The folder holds JPEGs of 1024 x 768 px. Encoding reads, turns, reduces and cuts them, runs an autoencoder of SDXL's
shape with random weights, and writes and hashes the shards; the ceiling is the autoencoder alone on tensors that are in
memory already. Rounds of both alternate; the share is that of the fastest of each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from grafting.data.encode import encode
from grafting.data.encode_config import EncodeConfig
from grafting.files import write_json_atomic

WIDTHS = (128, 256, 512, 512)


def main() -> None:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025,
    ).eval()
    vae.to(arguments.device)
    kind = {"_class_name": "PixArtTransformer2DModel", "in_channels": 4, "patch_size": 2}
    transformer = type("PixArtTransformer2DModel", (), {"config": {**kind, "sample_size": arguments.side // 8}})()
    model = SimpleNamespace(transformer=transformer, vae=vae)
    config = EncodeConfig(condition="none", batch=arguments.batch)
    x = torch.rand(arguments.batch, 3, arguments.side, arguments.side, device=arguments.device) * 2 - 1

    @torch.no_grad()
    def alone() -> None:
        for _ in range(arguments.pictures // arguments.batch):
            vae.encode(x).latent_dist.mean.cpu()

    seconds: dict[str, list[float]] = {"autoencoder": [], "encode": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        source = np.random.default_rng(0)
        for k in range(arguments.pictures):
            coarse = Image.fromarray(source.integers(0, 256, (24, 32, 3), np.uint8))
            coarse.resize((1024, 768)).save(folder / "pictures" / f"{k}.jpg", quality=90)
        with torch.no_grad():
            vae.encode(x)  # the first pass sets the kernels up
        for number in range(arguments.rounds):
            for what, run in (
                ("autoencoder", alone),
                ("encode", lambda number=number: encode(folder / "pictures", folder / f"out{number}", model, config)),
            ):
                start = time.perf_counter()
                run()
                seconds[what].append(time.perf_counter() - start)
    share = min(seconds["autoencoder"]) / min(seconds["encode"])
    found = {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "parameters": sum(p.numel() for p in vae.parameters()),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
        "dtype": "float32",
        "seconds": seconds,
        "spread": {name: statistics.pstdev(values) / statistics.mean(values) for name, values in seconds.items()},
        "pictures_per_second": {name: arguments.pictures / min(values) for name, values in seconds.items()},
        "share_of_autoencoder": share,
    }
    for what, rate in found["pictures_per_second"].items():
        print(f"{what:<12} {rate:.3f} pictures/s (spread {found['spread'][what]:.1%})")
    print(f"encoding runs at {share:.1%} of the autoencoder's own throughput, {arguments.threads} threads")
    if arguments.out:
        write_json_atomic(arguments.out, found)


if __name__ == "__main__":
    main()
