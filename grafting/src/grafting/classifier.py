"""A small convolutional classifier: the independent judge of samples and the feature extractor of small studies."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .files import save_safetensors_atomic, write_json_atomic


class Classifier(nn.Module):
    """Images (B, channels, H, W) in [-1, 1] to logits (B, classes); ``features`` gives the activations."""

    def __init__(self, channels: int = 1, classes: int = 10, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "widths": list(widths)}
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths[:-1]), widths, strict=True):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled (B, widths[-1]) and spatial (B, widths[-1], H/8, W/8) activations."""
        spatial = self.trunk(images)
        return spatial.mean((2, 3)), spatial

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images)[0])

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        save_safetensors_atomic(folder / "model.safetensors", self.state_dict())
        write_json_atomic(folder / "config.json", self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Classifier:
        """Read what :meth:`save_pretrained` wrote."""
        import json

        from safetensors.torch import load_file

        config = json.loads((folder / "config.json").read_text())
        model = cls(config["channels"], config["classes"], tuple(config["widths"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()
