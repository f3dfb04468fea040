"""Teachers that ship with the package: small, real, pretrained, in half precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import sha256, write_json_atomic, write_text_atomic
from .hosts.shapes import set_text_tokens

if TYPE_CHECKING:
    from torch import nn

    from .text import Embedded

PARTS = ("transformer", "autoencoder", "classifier")
PROMPTS = "prompts.safetensors"
"""Token states of the prompts that recipe and tests need, in the bundle of a text-to-image teacher."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A transformer with what it needs: its autoencoder, and the classifier that judges its samples.

    A text-to-image teacher has no classifier, and the states of some ``prompts`` instead.
    """

    name: str
    transformer: nn.Module
    autoencoder: nn.Module
    classifier: nn.Module | None = None
    prompts: Embedded | None = None
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
    """The bundled teacher ``name`` with its autoencoder, classifier or prompts, and card."""
    return read_bundle(teacher_folder(name))


def read_bundle(folder: Path) -> Teacher:
    """What :func:`bundle` wrote to ``folder``."""
    from diffusers import AutoencoderKL

    from .classifier import Classifier
    from .text import Embedded

    judge, prompts = folder / "classifier", folder / PROMPTS
    return Teacher(
        name=folder.name,
        transformer=_transformer(folder),
        autoencoder=AutoencoderKL.from_pretrained(folder / "autoencoder").float().eval(),
        classifier=Classifier.from_pretrained(judge).float().eval() if judge.is_dir() else None,
        prompts=Embedded.load(prompts) if prompts.is_file() else None,
        card=json.loads((folder / "teacher.json").read_text()),
    )


def _transformer(folder: Path) -> nn.Module:
    import diffusers

    named = json.loads((folder / "transformer" / "config.json").read_text())["_class_name"]
    model: nn.Module = getattr(diffusers, named).from_pretrained(folder / "transformer")
    if (tokens := prompt_tokens(json.loads((folder / "teacher.json").read_text()))) is not None:
        set_text_tokens(model, tokens)
    return model.float().eval()


def prompt_tokens(card: dict[str, Any]) -> int | None:
    """Tokens of a bundle's prompts in the mean, as its card says; None where it says nothing."""
    tokens: int | None = card.get("prompts", {}).get("tokens")
    return tokens


def bundle(sources: dict[str, Path], out: Path, card: dict[str, Any], prompts: Embedded | None = None) -> None:
    """Write the folders of ``sources`` (keys of :data:`PARTS`) to ``out`` in float16, with ``teacher.json`` last.

    Buffers that are not floating point keep their type. The card gets each part's hash and number of parameters.
    prompts: of a text-to-image teacher, which needs no classifier; the card says how many tokens they have in the mean,
    which costs count. Raises ValueError naming a part that is missing.
    """
    from safetensors.torch import load_file, save_file

    needed = [part for part in PARTS if part != "classifier" or prompts is None]
    missing = [part for part in needed if part not in sources]
    if missing:
        raise ValueError(f"a bundle needs {', '.join(needed)}; missing: {', '.join(missing)}")
    parts = {}
    for part in sources:
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
    if prompts is not None:
        prompts.save(out / PROMPTS)
        told = {"count": len(prompts.prompts), "tokens": round(len(prompts.values) / len(prompts.prompts))}
        card = card | {"prompts": told | {"sha256": sha256(out / PROMPTS)}}
    write_json_atomic(out / "teacher.json", card | {"parts": parts})
