"""One picture: its turn, its transparency, its depth, its size, and what is said of a broken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoding import picture, pixels
from PIL import Image

from grafting.data.pictures import PictureError, read_picture


def read(path: Path, size: tuple[int, int] = (16, 16), channels: int = 3) -> np.ndarray:
    return read_picture(path, channels=channels, size=size)


def adm(image: Image.Image, side: int) -> np.ndarray:
    """``center_crop_arr`` of openai/guided-diffusion, written from its description."""
    while min(*image.size) >= 2 * side:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = side / min(*image.size)
    image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), Image.Resampling.BICUBIC)
    array = np.array(image)
    y, x = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[y : y + side, x : x + side]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 23), (23, 9), (33, 70), (16, 17), (200, 31)])
def test_squares_are_cut_as_adm_does(height: int, width: int, tmp_path: Path) -> None:
    made = picture(tmp_path / "a.png", 3, height, width)
    assert np.array_equal(read(tmp_path / "a.png").transpose(1, 2, 0), adm(Image.fromarray(made), 16))


def test_rectangles_are_covered_and_cut_in_the_middle(tmp_path: Path) -> None:
    made = picture(tmp_path / "a.png", 4, 12, 30)
    assert np.array_equal(read(tmp_path / "a.png", (8, 30)).transpose(1, 2, 0), made[2:10])
    assert read(tmp_path / "a.png", (24, 16)).shape == (3, 24, 16)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(turn: int, tmp_path: Path) -> None:
    made = pixels(5)
    undo = {
        1: made,
        2: made[:, ::-1],
        3: made[::-1, ::-1],
        4: made[::-1],
        5: made.transpose(1, 0, 2),
        6: np.rot90(made, 1),
        7: made[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(made, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(undo[turn])).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png").transpose(1, 2, 0), made)


def test_transparent_pixels_are_white_and_half_of_one_is_half_white(tmp_path: Path) -> None:
    made = np.zeros((16, 16, 4), np.uint8)
    made[:8, :, 3], made[:8, :, 0] = 255, 200
    made[8:12, :, 3] = 128
    Image.fromarray(made).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png")
    assert found[:, 0, 0].tolist() == [200, 0, 0] and found[:, 15, 0].tolist() == [255] * 3
    assert found[:, 9, 0].tolist() == [127] * 3
    palette = Image.fromarray((np.arange(256) // 128).astype(np.uint8).reshape(16, 16), mode="L").convert("P")
    palette.save(tmp_path / "b.gif", transparency=1)
    found = read(tmp_path / "b.gif")
    assert found[:, 0, 0].max() < 2 and found[:, 15, 15].tolist() == [255] * 3


def test_grey_palettes_cmyk_and_sixteen_bits_become_three_channels(tmp_path: Path) -> None:
    grey = pixels(6, channels=1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read(tmp_path / "grey.png"), np.stack([grey] * 3))
    assert np.array_equal(read(tmp_path / "grey.png", channels=1), grey[None])
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read(tmp_path / "deep.png"), np.stack([grey] * 3))
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "ink.jpg")
    assert read(tmp_path / "ink.jpg")[0].min() > 200 and read(tmp_path / "ink.jpg")[1:].max() < 60
    assert np.array_equal(read_picture(grey[..., None], channels=3, size=(16, 16)), np.stack([grey] * 3))


def test_a_broken_picture_is_told_without_its_path(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 7, 64, 64)
    whole = (tmp_path / "a.jpg").read_bytes()
    cases = {"text.jpg": b"no picture", "empty.png": b"", "cut.jpg": whole[: len(whole) // 2], "head.jpg": whole[:20]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        for source in (tmp_path / name, content):
            with pytest.raises(PictureError) as told:
                read_picture(source, channels=3, size=(16, 16))
            assert str(told.value) and str(tmp_path) not in str(told.value) and "0x" not in str(told.value)
    with pytest.raises(PictureError, match="No such file"):
        read(tmp_path / "gone.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(PictureError, match="floating point"):
        read(tmp_path / "f.tiff")
