"""GenEval's files: the folder read back by a parser written from the benchmark's README, and its scorer's results."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grafting.claims import ClaimError
from grafting.cli import main
from grafting.measure.geneval import GenEvalPrompt, read_prompts, read_results, write_pictures
from grafting.tasks import TASKS

# Lines as the benchmark writes them, of things that it does not ask for; the last keeps bytes that JSON could lose.
LINES = (
    b'{"tag": "single_object", "include": [{"class": "lantern", "count": 1}], "prompt": "a photo of a lantern"}',
    b'{"tag": "counting", "include": [{"class": "acorn", "count": 3}], "exclude": [{"class": "acorn", "count": 4}], '
    b'"prompt": "a photo of three acorns"}',
    b'{"tag":"position",  "include": [], "prompt": "a caf\xc3\xa9 left of a \\u0068ut", "extra": 1.50}',
)


@pytest.fixture
def prompts(tmp_path: Path) -> list[GenEvalPrompt]:
    """Read from a file whose lines end as on Windows."""
    (tmp_path / "evaluation_metadata.jsonl").write_bytes(b"\r\n".join(LINES) + b"\r\n")
    return read_prompts(tmp_path / "evaluation_metadata.jsonl")


def picture(index: int, sample: int) -> bytes:
    """A PNG that tells its place."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (index, sample, 7)).save(buffer, "PNG")
    return buffer.getvalue()


class Drawing:
    """Draws four pictures of a prompt, and remembers what was asked."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.asked: list[tuple[int, str]] = []
        self.stop_at = stop_at

    def __call__(self, index: int, text: str) -> Sequence[bytes]:
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((index, text))
        return [picture(index, k) for k in range(4)]


def as_documented(folder: Path) -> dict[int, tuple[dict[str, Any], list[tuple[int, int]]]]:
    """By prompt its metadata and (index, sample) of its pictures, as the README describes a folder of images.

    Five digits name a prompt's folder, ``metadata.jsonl`` is the N-th line, and ``samples`` has 0000.png to 0003.png.
    """
    from PIL import Image

    found = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            continue
        assert re.fullmatch(r"\d{5}", entry.name), entry
        assert {path.name for path in entry.iterdir()} <= {"metadata.jsonl", "samples", "grid.png"}
        (line,) = (entry / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        told = []
        for path in sorted((entry / "samples").iterdir()):
            assert re.fullmatch(r"\d{4}\.png", path.name), path
            with Image.open(path) as image:
                red, green, _ = image.getpixel((0, 0))  # type: ignore[misc]
            told.append((int(red), int(green)))
        found[int(entry.name)] = (json.loads(line), told)
    return found


def contents(folder: Path) -> dict[str, str]:
    """Every file and the hash of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_is_what_the_benchmark_documents(prompts: list[GenEvalPrompt], tmp_path: Path) -> None:
    out, drawing = tmp_path / "out", Drawing()
    assert write_pictures(prompts, out, drawing, {"seed": 0}) == 3
    assert drawing.asked == list(enumerate(["a photo of a lantern", "a photo of three acorns", "a café left of a hut"]))
    found = as_documented(out)
    assert list(found) == [0, 1, 2]
    for index, (metadata, told) in found.items():
        assert metadata == json.loads(LINES[index]) and told == [(index, k) for k in range(4)]
        # Whole: what a parser would not give back is there too, such as the spelling of numbers and escapes.
        assert (out / f"{index:05d}" / "metadata.jsonl").read_bytes() == LINES[index] + b"\n"
    assert {path.name for path in out.iterdir()} == {"00000", "00001", "00002", "settings.json"}


def test_what_is_done_is_skipped_and_what_is_not_whole_is_drawn_again(
    prompts: list[GenEvalPrompt], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_pictures(prompts, out, Drawing(stop_at=2), {"seed": 0})
    assert list(as_documented(out)) == [0, 1]
    again = Drawing()
    assert write_pictures(prompts, out, again, {"seed": 0}) == 1 and [index for index, _ in again.asked] == [2]
    whole = contents(out)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-20])

    def missing(path: Path) -> None:
        path.unlink()

    def other_line(path: Path) -> None:
        (path.parents[1] / "metadata.jsonl").write_bytes(LINES[0])

    def more(path: Path) -> None:
        path.with_name("0004.png").write_bytes(picture(0, 4))

    for damage in (cut, missing, other_line, more):
        damage(out / "00001" / "samples" / "0003.png")
        assert contents(out) != whole
        again = Drawing()
        assert write_pictures(prompts, out, again, {"seed": 0}) == 1 and [index for index, _ in again.asked] == [1]
        assert contents(out) == whole
    assert write_pictures(prompts, out, Drawing(stop_at=0), {"seed": 0}) == 0


def test_pictures_are_drawn_by_one_process_at_a_time(prompts: list[GenEvalPrompt], tmp_path: Path) -> None:
    out, drawing = tmp_path / "out", Drawing()

    def draw(index: int, text: str) -> list[bytes]:
        with pytest.raises(ClaimError, match="another process is at work there"):
            write_pictures(prompts, out, Drawing(), {"seed": 0})
        return drawing(index, text)

    assert write_pictures(prompts, out, draw, {"seed": 0}) == 3
    assert {path.name for path in out.iterdir()} == {"00000", "00001", "00002", "settings.json"}


def test_other_settings_and_unknown_pictures_are_refused(prompts: list[GenEvalPrompt], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_pictures(prompts, out, Drawing(), {"seed": 0})
    with pytest.raises(ClaimError, match="pictures of other settings \\(seed 0 there, 1 now\\)"):
        write_pictures(prompts, out, Drawing(), {"seed": 1})
    with pytest.raises(ClaimError, match="samples 4 there, 2 now"):
        write_pictures(prompts, out, Drawing(), {"seed": 0}, samples=2)
    with pytest.raises(ClaimError, match="prompts"):
        write_pictures(prompts[:2], out, Drawing(), {"seed": 0})
    (out / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no settings\.json tells what of"):
        write_pictures(prompts, out, Drawing(), {"seed": 0})
    with pytest.raises(ValueError, match="4 pictures were drawn of prompt 0, not 3"):
        write_pictures(prompts, tmp_path / "three", Drawing(), {}, samples=3)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"tag": "colors", "prompt": "x"', "line 2 is not JSON"),
        (b"", "line 2 is not JSON"),
        (b'{"tag": "colors", "prompt": "caf\xe9"}', "line 2 is not JSON in UTF-8"),
        (b'["colors"]', "line 2 is no JSON object"),
        (b'{"tag": "colors"}', "line 2 lacks prompt"),
        (b'{"include": []}', "line 2 lacks tag, prompt"),
        (b'{"tag": "colours", "prompt": "x"}', "line 2: tag 'colours' is not one of single_object"),
        (b'{"tag": "colors", "prompt": 3}', "line 2: prompt is 3, must be text"),
        (b'{"tag": "colors", "prompt": " "}', "line 2: the prompt is empty"),
    ],
)
def test_a_bad_line_of_prompts_is_named(line: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join([LINES[0], line, LINES[1]]))
    with pytest.raises(ValueError, match=re.escape(f"{path}, {word}")):
        read_prompts(path)


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.jsonl: no such file"):
        read_prompts(tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        read_prompts(tmp_path / "empty.jsonl")


def results(path: Path, wrong: set[tuple[int, int]], *, prompts: int = 12, folder: str = "images") -> Path:
    """A file as ``evaluate_images.py`` writes it: pandas' lines with escaped slashes, pictures in no order."""
    lines = []
    for index in range(prompts):
        for sample in range(4):
            metadata = {"tag": TASKS[index % 6], "include": [], "prompt": f"prompt {index}"}
            line = {
                "filename": f"{folder}/{index:05d}/samples/{sample:04d}.png",
                "tag": metadata["tag"],
                "prompt": metadata["prompt"],
                "correct": (index, sample) not in wrong,
                "reason": "" if (index, sample) not in wrong else "expected acorn>=3, found 2",
                "metadata": json.dumps(metadata),
                "details": "{}",
            }
            lines.append(json.dumps(line).replace("/", "\\/"))
    lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    path.write_text("\n".join(lines) + "\n")
    return path


def test_results_become_the_scores_that_the_benchmark_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {(2, 0), (2, 1), (8, 3), (5, 0), (5, 1), (5, 2), (5, 3)}
    path = results(tmp_path / "a.jsonl", wrong)
    assert {(v.prompt, v.sample) for v in read_results(path) if not v.correct} == wrong
    assert main(["evaluate", "--geneval", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"][str(path)]
    # As summary_scores.py does: the mean of ``correct`` by tag, and the mean of these.
    shares: dict[str, list[bool]] = {}
    for line in path.read_text().splitlines():
        shares.setdefault(json.loads(line)["tag"], []).append(json.loads(line)["correct"])
    means = {tag: sum(right) / len(right) for tag, right in shares.items()}
    assert {score["task"]: score["value"] for score in found["tasks"]} == pytest.approx(means)
    assert found["overall"]["value"] == pytest.approx(sum(means.values()) / 6)
    assert means["counting"] == 5 / 8 and means["color_attr"] == 0.5


def test_two_files_are_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = results(tmp_path / "a.jsonl", {(2, 0), (2, 1)}, folder="/one/place")
    b = results(tmp_path / "b.jsonl", {(2, 1), (3, 0)}, folder="another")
    assert main(["evaluate", "--geneval", str(a), str(b), "--json"]) == 0
    change = json.loads(capsys.readouterr().out)["difference"]
    assert (change["overall"]["value"], change["overall"]["gained"], change["overall"]["lost"]) == (0, 1, 1)
    assert main(["evaluate", "--geneval", str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    assert "counting" in printed and "the mean of 6 of GenEval's 6 tasks" in printed and f"{a} minus {b}" in printed


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"correct": None}, "correct is null, must be true or false"),
        ({"correct": 1}, "correct is 1, must be true or false"),
        ({"filename": "picture.png"}, "does not end in NUMBER/samples/NUMBER.png"),
        ({"tag": "counts"}, "tag 'counts' is not one of"),
    ],
)
def test_a_bad_line_of_results_is_named(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = results(tmp_path / "a.jsonl", set())
    lines = path.read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"line 5.*{re.escape(word)}"):
        read_results(path)


def test_a_command_over_results_that_asks_for_the_wrong_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, fewer = results(tmp_path / "a.jsonl", set()), results(tmp_path / "b.jsonl", set(), prompts=11)
    for arguments, word in (
        ([], "name a MODEL"),
        (["fashion", "--geneval", str(a)], "leave out the model fashion"),
        (["--geneval", str(a), str(a)], "two of different models"),
        (["--geneval", str(a), str(fewer)], "sample 0 of prompt 11 is judged in the first only"),
        (["--geneval", str(tmp_path / "no")], "no such file"),
    ):
        assert main(["evaluate", *arguments]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


def pixels(path: Path) -> bytes:
    """Red, green and blue of every pixel."""
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a PixArt that draws 8 x 8 pixels, with a stand-in for its text encoder."""
    import torch
    from diffusers import PixArtTransformer2DModel
    from test_pairs import SIZES, Letters

    torch.manual_seed(0)
    made: Any = PixArtTransformer2DModel(in_channels=3, out_channels=6, **SIZES)
    made.save_pretrained(tmp_path / "painter" / "transformer")
    monkeypatch.setattr("grafting.data.encoders._text", lambda home, asked, trained, device: Letters())
    return tmp_path / "painter"


def test_sample_draws_the_folder_and_goes_on(
    painter: Path, prompts: list[GenEvalPrompt], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(name: str, *more: str) -> dict[str, str]:
        out = tmp_path / name
        lines = tmp_path / "evaluation_metadata.jsonl"
        assert main(["sample", str(painter), "--geneval", str(lines), "--out", str(out), "--steps", "2", *more]) == 0
        return contents(out)

    once = draw("once")
    assert list(as_documented(tmp_path / "once")) == [0, 1, 2] and len(once) == 3 * 5 + 1
    pictures = {name: content for name, content in once.items() if name.endswith(".png")}
    assert len(set(pictures.values())) == 12  # every picture has noise of its own
    (tmp_path / "once" / "00001" / "samples" / "0002.png").unlink()
    capsys.readouterr()
    assert draw("once") == once and "1 of 3 prompts drawn now" in capsys.readouterr().out
    # Two pictures of a prompt are the first two of four.
    fewer = [name for name in draw("fewer", "--each", "2", "--batch", "2") if name.endswith(".png")]
    assert sorted(fewer) == sorted(name for name in pictures if name[-5] in "01")
    for name in fewer:
        few, all_four = (pixels(tmp_path / out / name) for out in ("fewer", "once"))
        assert max(abs(a - b) for a, b in zip(few, all_four, strict=True)) <= 1  # a rounding of the batch
    seeds = draw("seed", "--seed", "1")
    assert not set(pictures.values()) & {content for name, content in seeds.items() if name.endswith(".png")}


def test_pictures_of_another_shift_are_not_mixed(
    painter: Path,
    prompts: list[GenEvalPrompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from grafting.diffusion import Flow
    from grafting.hosts.pixart import PixArt

    monkeypatch.setattr(PixArt, "schedule", lambda self: Flow())
    (painter / "scheduler").mkdir()
    lines, out = str(tmp_path / "evaluation_metadata.jsonl"), str(tmp_path / "out")
    for shift, status in ((3.0, 0), (2.0, 2)):
        told = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift}
        (painter / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
        assert main(["sample", str(painter), "--geneval", lines, "--out", out, "--steps", "2"]) == status
    assert "walked.shift None there, 2.0 now" in capsys.readouterr().err


def test_what_sample_refuses_for_geneval(
    painter: Path, tiny_teacher: Path, prompts: list[GenEvalPrompt], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, out = str(tmp_path / "evaluation_metadata.jsonl"), ["--out", str(tmp_path / "x")]
    for arguments, word in (
        ([str(tiny_teacher), "--geneval", lines], "is conditioned on classes"),
        ([str(painter), "--geneval", lines, "--count", "3"], "--count is for a grid"),
        ([str(tiny_teacher), "--each", "3"], "--each goes with --geneval"),
        ([str(painter), "--geneval", str(tmp_path / "no.jsonl")], "no such file"),
    ):
        assert main(["sample", *arguments, *out]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1
