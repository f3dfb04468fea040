"""Files of the GenEval benchmark (Ghosh et al. 2023, arXiv 2310.11513; github.com/djghosh13/geneval): its prompts, the
folder of pictures that its scorer walks through, and the results that the scorer writes.

The scorer itself, an object detector, stays outside: ``docs/geneval.md`` says how to run it.

    OUT/00000/metadata.jsonl        the first line of evaluation_metadata.jsonl, as it was
    OUT/00000/samples/0000.png …    pictures of that prompt
    OUT/00001/ …
    OUT/settings.json               what the pictures were drawn with; the scorer reads numbered folders only
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..claims import claim, held
from ..files import json_lines, write_bytes_atomic
from ..tasks import TASKS, Verdict

SETTINGS = "settings.json"
_UNFINISHED = ".unfinished"
_PICTURE = re.compile(r"(?:^|[/\\])(\d+)[/\\]samples[/\\](\d+)\.png$")


@dataclass(frozen=True, kw_only=True)
class GenEvalPrompt:
    """One line of ``evaluation_metadata.jsonl``. task: its ``tag``. line: its bytes, without the end of the line."""

    task: str
    text: str
    line: bytes


def read_prompts(path: Path | str) -> list[GenEvalPrompt]:
    """The prompts of ``evaluation_metadata.jsonl``, in its order.

    Raises:
        ValueError: no such file, no line in it, or a line that is no JSON object with a ``prompt`` and a known ``tag``;
            the line is named.
    """
    found = []
    for where, line, content in json_lines(Path(path), {"tag": str, "prompt": str}):
        if not content["prompt"].strip():
            raise ValueError(f"{where}: the prompt is empty")
        found.append(GenEvalPrompt(task=_task(where, content), text=content["prompt"], line=line))
    return found


def write_pictures(
    prompts: Sequence[GenEvalPrompt],
    out: Path,
    draw: Callable[[int, str], Sequence[bytes]],
    settings: Mapping[str, Any],
    *,
    samples: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Fill ``out`` with the pictures of every prompt; returns how many prompts were drawn, the others being there.

    A prompt's folder is written elsewhere and appears whole. One that is not whole is drawn again.

    draw: from a prompt's index and text to its ``samples`` pictures, as PNG files. settings: what else the pictures
    depend on, noted in ``out``.

    Raises:
        ClaimError: ``out`` holds pictures of other settings, or another process draws into it.
        ValueError: it holds pictures that no settings are noted of, or ``draw`` returned another number.
    """
    if not (out / SETTINGS).is_file() and any(_numbered(out)):
        raise ValueError(f"{out} holds pictures, and no {SETTINGS} tells what of: name another folder or remove it")
    lines = hashlib.sha256(b"\n".join(prompt.line for prompt in prompts)).hexdigest()
    everything = {"prompts": lines, "samples": samples, **settings}
    with held(out):
        claim(out / SETTINGS, everything, begun=any(_numbered(out)), what="pictures")
        scratch, drawn = out / _UNFINISHED, 0
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            for index, prompt in enumerate(prompts):
                folder, making = (place / f"{index:05d}" for place in (out, scratch))
                if not _whole(folder, prompt, samples):
                    pictures = draw(index, prompt.text)
                    if len(pictures) != samples:
                        raise ValueError(f"{len(pictures)} pictures were drawn of prompt {index}, not {samples}")
                    for k, picture in enumerate(pictures):
                        write_bytes_atomic(making / "samples" / _name(k), picture)
                    write_bytes_atomic(making / "metadata.jsonl", prompt.line + b"\n")
                    shutil.rmtree(folder, ignore_errors=True)
                    making.rename(folder)
                    drawn += 1
                if progress is not None:
                    progress(index + 1, len(prompts))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return drawn


def read_results(path: Path | str) -> list[Verdict]:
    """Verdicts from the file that GenEval's ``evaluate_images.py`` writes, one picture a line, in any order.

    A picture's prompt and sample are the numbers in its file's name.

    Raises:
        ValueError: no such file, no line in it, or a line that is none of the scorer's; the line is named.
    """
    found = []
    for where, _, content in json_lines(Path(path), {"filename": str, "tag": str, "prompt": str, "correct": bool}):
        picture = _PICTURE.search(content["filename"])
        if picture is None:
            raise ValueError(f"{where}: filename {content['filename']!r} does not end in NUMBER/samples/NUMBER.png")
        found.append(
            Verdict(
                task=_task(where, content),
                prompt=int(picture[1]),
                sample=int(picture[2]),
                correct=content["correct"],
                text=content["prompt"],
            )
        )
    return found


def _task(where: str, content: Mapping[str, Any]) -> str:
    if content["tag"] not in TASKS:
        raise ValueError(f"{where}: tag {content['tag']!r} is not one of {', '.join(TASKS)}")
    return str(content["tag"])


def _name(k: int) -> str:
    return f"{k:04d}.png"


def _numbered(out: Path) -> list[Path]:
    return [folder for folder in out.iterdir() if folder.name.isdigit()] if out.is_dir() else []


def _whole(folder: Path, prompt: GenEvalPrompt, samples: int) -> bool:
    """Whether a prompt's folder has its line and its pictures, none cut short and no others."""
    from PIL import Image

    metadata, pictures = folder / "metadata.jsonl", sorted((folder / "samples").glob("*.png"))
    if not metadata.is_file() or metadata.read_bytes() != prompt.line + b"\n":
        return False
    if [picture.name for picture in pictures] != [_name(k) for k in range(samples)]:
        return False
    for picture in pictures:
        try:
            with Image.open(picture) as opened:
                opened.verify()
        except (OSError, SyntaxError):  # PIL's word for a broken PNG
            return False
    return True
