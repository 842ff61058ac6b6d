from pathlib import Path

import numpy as np
import pytest
from containers import TEST_IMAGES
from PIL import Image

from fastcifar import pictures
from fastcifar.errors import FastcifarError
from fastcifar.pictures import find_pictures, load_picture

RED, WHITE = [255, 0, 0], [255, 255, 255]


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(TEST_IMAGES[0]))
    np.testing.assert_array_equal(load_picture(path), TEST_IMAGES[0])


def test_the_middle_square_is_scaled(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 100), "blue")
    picture.paste((255, 0, 0), (100, 0, 200, 100))
    loaded = load_picture(save(tmp_path / "x.png", picture))
    assert loaded.shape == (32, 32, 3)
    # The filter looks a little beyond the square's edges.
    np.testing.assert_allclose(loaded.astype(int), np.broadcast_to(RED, loaded.shape), atol=16)
    assert (loaded[:, 3:-3] == RED).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (2000, 3)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    assert (load_picture(save(tmp_path / "x.png", Image.new("RGB", size, "red"))) == RED).all()


def test_modes(tmp_path: Path) -> None:
    square = (40, 40)
    grey16 = Image.fromarray(np.full(square, 0x8080, np.uint16))
    palette = Image.new("RGB", square, "red").convert("P", palette=Image.Palette.ADAPTIVE)
    clear = Image.new("RGBA", square, (255, 0, 0, 0))
    cases: dict[str, tuple[Image.Image, list[int]]] = {
        "1": (Image.new("1", square, 1), WHITE),
        "L": (Image.new("L", square, 77), [77, 77, 77]),
        "16-bit": (grey16, [128, 128, 128]),
        "P": (palette, RED),
        "RGBA": (clear, WHITE),
        "LA": (Image.new("LA", square, (0, 255)), [0, 0, 0]),
    }
    for name, (picture, expected) in cases.items():
        assert (load_picture(save(tmp_path / f"{name}.png", picture)) == expected).all(), name
    assert (load_picture(save(tmp_path / "cmyk.tif", Image.new("CMYK", square, (0, 255, 255, 0)))) == RED).all()
    assert (load_picture(save(tmp_path / "f.tif", Image.new("F", square, 0.0))) == 0).all()


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((255, 0, 0), (0, 0, 64, 32))  # red above white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    loaded = load_picture(save(tmp_path / "x.png", picture, exif=exif))
    assert (loaded[:, 20:] == RED).all()
    assert (loaded[:, :12] == WHITE).all()


def test_the_first_frame_of_one_that_moves(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    path = save(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (load_picture(path) == RED).all()


def test_what_is_no_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.png", Image.new("RGB", (50, 50)))
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    for name in ("text.png", "cut.png"):
        with pytest.raises(FastcifarError, match=rf"cannot read .*{name}: not a picture, or damaged"):
            load_picture(tmp_path / name)
    with pytest.raises(FastcifarError, match=r"cannot read .*none\.png: No such file"):
        load_picture(tmp_path / "none.png")
    monkeypatch.setattr(pictures, "_MAX_PIXELS", 2499)
    with pytest.raises(FastcifarError, match=r"good\.png is too large: 50 x 50 pixels"):
        load_picture(good)


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FastcifarError, match="folder holds no picture files"):
        find_pictures([folder])
    for name in ("b.png", "a.JPG", "notes.txt"):
        (folder / name).touch()
    assert find_pictures([Path("x"), folder]) == [Path("x"), folder / "a.JPG", folder / "b.png"]
