"""A teacher small enough for whole studies in seconds: random weights, 4 x 4 pixels, no autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def the_threads_there_were() -> Iterator[None]:
    """A benchmark run in a test sets the process's threads; bits depend on them, also those of the tests after it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a bundle is laid out: ``transformer``, ``classifier``, ``images.npz`` and ``teacher.json``."""
    from diffusers import DiTTransformer2DModel

    from grafting.classifier import Classifier
    from grafting.data import LabelledImages, write_subset
    from grafting.files import write_json_atomic

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        sample_size=4,
        patch_size=1,
        in_channels=1,
        out_channels=2,
        num_embeds_ada_norm=3,
    ).save_pretrained(folder / "transformer")
    Classifier(channels=1, classes=3, widths=(8, 16)).save_pretrained(folder / "classifier")

    def images(n: int) -> LabelledImages:
        return LabelledImages(images=torch.rand(n, 1, 4, 4) * 2 - 1, labels=torch.arange(n) % 3)

    write_subset(folder / "images.npz", images(96), images(48))
    write_json_atomic(folder / "teacher.json", {"training": {"samples": 1_000_000}})
    return folder
