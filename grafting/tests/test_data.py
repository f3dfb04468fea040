"""Subsets: balance, round trip, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grafting.data import LabelledImages, balanced, read_subset, write_subset


def test_subset_is_balanced_distinct_and_fixed() -> None:
    labels = torch.arange(1000) % 7
    picked = balanced(labels, 70, seed=0)
    assert len(set(picked.tolist())) == 70
    assert torch.bincount(labels[picked]).tolist() == [10] * 7
    assert torch.equal(picked, balanced(labels, 70, seed=0))
    assert not torch.equal(picked, balanced(labels, 70, seed=1))
    assert labels[picked].tolist() != sorted(labels[picked].tolist())


def test_refusals_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        balanced(torch.arange(9) % 3, 4, seed=0)
    with pytest.raises(ValueError, match="class 0 has 3 images, 4 are asked for"):
        balanced(torch.arange(9) % 3, 12, seed=0)


def test_bytes_survive(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (6, 1, 4, 4)).float() / 127.5 - 1
    train = LabelledImages(images=pixels, labels=torch.arange(6))
    test = LabelledImages(images=pixels[:2], labels=torch.arange(2))
    write_subset(tmp_path / "x.npz", train, test)
    again = read_subset(tmp_path / "x.npz")
    torch.testing.assert_close(again.images, pixels, atol=1e-6, rtol=0)
    assert torch.equal(again.labels, train.labels)
    assert len(read_subset(tmp_path / "x.npz", train=False).images) == 2


def test_labels_beyond_a_byte_survive_and_negative_ones_are_refused(tmp_path: Path) -> None:
    images, labels = torch.zeros(3, 1, 2, 2), torch.tensor([0, 256, 999])
    data = LabelledImages(images=images, labels=labels)
    write_subset(tmp_path / "x.npz", data, data)
    assert torch.equal(read_subset(tmp_path / "x.npz").labels, labels)
    with pytest.raises(ValueError, match="train label -1"):
        write_subset(tmp_path / "y.npz", LabelledImages(images=images, labels=labels - 1), data)
    assert not (tmp_path / "y.npz").exists()


def test_labels_of_bytes_are_read_as_integers(tmp_path: Path) -> None:
    import numpy as np

    pixels, labels = np.zeros((2, 1, 2, 2), np.uint8), np.array([3, 255], np.uint8)
    np.savez(tmp_path / "x.npz", train_images=pixels, train_labels=labels)
    assert torch.equal(read_subset(tmp_path / "x.npz").labels, torch.tensor([3, 255]))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"nonsense", "is not an npz"),
        (b"", "is not an npz"),
        (b"PK\x03\x04nonsense", "is not an npz"),
        ({"a": np.zeros(3)}, "is not an npz"),
        ({"train_images": np.zeros((2, 1, 4, 4)), "train_labels": np.zeros(2, int)}, "holds float64"),
        ({"train_images": np.zeros((2, 4, 4), np.uint8), "train_labels": np.zeros(2, int)}, "holds uint8"),
        ({"train_images": np.zeros((2, 1, 4, 4), np.uint8), "train_labels": np.zeros(3, int)}, "int64 .3,."),
        ({"train_images": np.zeros((0, 1, 4, 4), np.uint8), "train_labels": np.zeros(0, int)}, "at least 1"),
    ],
)
def test_another_file_of_images_is_named_in_a_sentence(content: Any, word: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"x\.npz.*{word}"):
        read_subset(path)
