"""The model card in a graft's folder: what it is, what it needs, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..teachers import teachers
from .checkpoints import CHECKPOINTS
from .configs import HUB_ID

FOLDER = '"folder"'
"""What stands in the code for the place where the card lies."""


def card(manifest: Mapping[str, Any]) -> str:
    """The model card of a manifest, Markdown."""
    name, lora = manifest["base"]["name"] or "", manifest["lora"]
    changes = [
        *(f"- {e['operator']} at {e['site']}, blocks {e['blocks']}" for e in manifest["plan"]["edits"]),
        *(f"- {step}" for step in manifest["plan"].get("restructure", ())),
        *([f"- LoRA of rank {lora['rank']} on {', '.join(lora['targets'] or ['every role'])}"] if lora else []),
    ]
    based = f"base_model: {name}\n" if _on_hub(name) else ""  # by which the hub links a graft to its model
    extra = "" if manifest["whole"] else "\nOnly what is new is here; the pretrained model is needed beside it."
    parts = [
        f"---\nlibrary_name: grafting\n{based}---\n# A grafted diffusion transformer",
        f"A `{manifest['class']}` with some of its operators or blocks replaced or adapted:",
        "\n".join(changes),
        f"Pretrained model: {name or 'unnamed'}, tensors' SHA-256 `{manifest['base']['sha256']}`.{extra}",
        *_use(manifest, name),
    ]
    for title in ("protocol", "results"):
        if manifest[title]:
            rows = "\n".join(f"| {key} | {value} |" for key, value in manifest[title].items())
            parts.append(f"## {title.capitalize()}\n\n| | |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _use(manifest: Mapping[str, Any], name: str) -> list[str]:
    """How the folder is loaded, paragraph by paragraph."""
    peft = " peft" if manifest["lora"] and not manifest["whole"] else ""
    opened = [f"model = grafting.open_model({FOLDER})  # where this file lies"]
    if not manifest["whole"] and name and not _known(name) and Path(name).exists():
        opened[0] += "; on another machine with base=, the pretrained model there"
    elif not manifest["whole"] and not _known(name):
        opened = [
            'pretrained = "path/to/it"  # a folder of diffusers, a checkpoint, or an id of the hub',
            f"model = grafting.open_model({FOLDER}, base=pretrained)  # the folder is where this file lies",
        ]
    if manifest["whole"]:
        pipeline = f"pipe.transformer = grafting.load({FOLDER}).model.to(pipe.device, pipe.dtype)"
        holding = "with a transformer of this class"
    else:
        pipeline = f"grafting.load({FOLDER}, pipe.transformer)  # in place, until grafting.ungraft(pipe.transformer)"
        holding = "that holds the pretrained model"
    return [
        f"## Use\n\nThe Python package `grafting` {manifest['versions']['grafting']} or later is needed to load it: "
        "diffusers' own `from_pretrained` stops at this folder, on purpose, for it would drop what is new. "
        "In a clone of the package's repository:",
        f"```\npip install ./grafting{peft}\n```",
        _python(*opened),
        f"`model.transformer` is the model. In a pipeline `pipe` of diffusers {holding}:",
        _python(pipeline),
    ]


def _python(*lines: str) -> str:
    return "\n".join(["```python", "import grafting", "", *lines, "```"])


def _known(name: str) -> bool:
    """Whether the name of a pretrained model opens it on any machine."""
    return name in teachers() or _on_hub(name)


def _on_hub(name: str) -> bool:
    """Whether a name is an id of the hub; a path of two parts only looks like one."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).parent.exists() and not name.endswith(CHECKPOINTS)
