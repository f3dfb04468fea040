"""Folders of pictures and models small enough to encode them in a moment, and a process that is killed at it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WORDS = ["a", "red", "blue", "disc", "square", "left", "of", "the"]
CHANNELS, SIDE = 4, 16  # of latents; of pictures


def autoencoder(**settings: Any) -> Any:
    """Halves each side: 16 pixels become 8."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        **{"latent_channels": CHANNELS, "scaling_factor": 0.5, "shift_factor": 0.25, **settings},
    ).eval()


def tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyzéü,"]
    words = [(f"▁{word}", -1.0) for word in WORDS]
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *words, *letters], extra_ids=0
    )


def pixart_pipeline(**settings: Any) -> Any:
    """A PixArtSigmaPipeline with a tiny random T5, and ``settings`` of its transformer."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    words = tokenizer()
    torch.manual_seed(0)
    text = T5EncoderModel(T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        cross_attention_dim=16,
        **{"caption_channels": 16, "use_additional_conditions": False, **settings},
    )
    return PixArtSigmaPipeline(words, text.eval(), autoencoder(), transformer.eval(), DPMSolverMultistepScheduler())


def dit_folder(folder: Path, classes: int = 3) -> Path:
    """``transformer`` and ``vae``, as DiTPipeline has them."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_embeds_ada_norm=classes,
    ).save_pretrained(folder / "transformer")
    autoencoder().save_pretrained(folder / "vae")
    return folder


def pixels(seed: int, height: int = SIDE, width: int = SIDE, channels: int = 3) -> np.ndarray:
    """(H, W, C) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def picture(path: Path, seed: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Write random pixels; returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pixels(seed, height, width)
    Image.fromarray(made).save(path)
    return made


KILLED = """
import os, signal, sys
replace = os.replace
def cut_short(source, target):
    if os.path.basename(target) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = cut_short
from grafting.cli import main
main(sys.argv[2:])
"""


def killed(file: str, arguments: list[str]) -> None:
    """Run a command line in a process that is killed in the middle of writing ``file``."""
    process = subprocess.run([sys.executable, "-c", KILLED, file, *arguments], timeout=300, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
