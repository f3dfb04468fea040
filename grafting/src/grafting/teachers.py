"""Teachers that ship with the package: small, real, pretrained, in half precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import sha256, write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from torch import nn

PARTS = ("transformer", "autoencoder", "classifier")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A transformer with what it needs: its autoencoder, and the classifier that judges its samples."""

    name: str
    transformer: nn.Module
    autoencoder: nn.Module
    classifier: nn.Module
    card: dict[str, Any]


def teachers() -> list[str]:
    """Names that :func:`load_teacher` takes."""
    root = files("grafting") / "assets"
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "teacher.json").is_file())


def teacher_folder(name: str) -> Path:
    """Where a bundled teacher lies. Raises ValueError naming those that ship."""
    if name not in teachers():
        raise ValueError(f"no bundled teacher {name!r}: {', '.join(teachers()) or 'none ships'}")
    return Path(str(files("grafting") / "assets" / name))


def load_teacher(name: str) -> nn.Module:
    """The bundled transformer ``name`` as a plain diffusers model in eval mode, float32."""
    return _transformer(teacher_folder(name))


def load_bundle(name: str) -> Teacher:
    """The bundled teacher ``name`` with its autoencoder, classifier and card."""
    from diffusers import AutoencoderKL

    from .classifier import Classifier

    folder = teacher_folder(name)
    return Teacher(
        name=name,
        transformer=_transformer(folder),
        autoencoder=AutoencoderKL.from_pretrained(folder / "autoencoder").float().eval(),
        classifier=Classifier.from_pretrained(folder / "classifier").float().eval(),
        card=json.loads((folder / "teacher.json").read_text()),
    )


def _transformer(folder: Path) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    model: nn.Module = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    return model.float().eval()


def bundle(sources: dict[str, Path], out: Path, card: dict[str, Any]) -> None:
    """Write the folders of ``sources`` (keys of :data:`PARTS`) to ``out`` in float16, with ``teacher.json`` last.

    Buffers that are not floating point keep their type. The card gets each part's hash and number of parameters.
    """
    from safetensors.torch import load_file, save_file

    missing = [part for part in PARTS if part not in sources]
    if missing:
        raise ValueError(f"a bundle needs {', '.join(PARTS)}; missing: {', '.join(missing)}")
    parts = {}
    for part in PARTS:
        (weights,) = sources[part].glob("*.safetensors")
        tensors = load_file(weights)
        target = out / part / weights.name
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}, target)
        write_text_atomic(target.parent / "config.json", (sources[part] / "config.json").read_text())
        count = sum(v.numel() for v in tensors.values() if v.is_floating_point())
        parts[part] = {
            "parameters": count,
            "sha256": sha256(target),
            "dtype": "float16",
        }
    write_json_atomic(out / "teacher.json", card | {"parts": parts})
