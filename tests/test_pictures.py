import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.containers import TEST_IMAGES

from fastcifar.data.cifar10 import Images
from fastcifar.errors import FastcifarError
from fastcifar.inference import pictures
from fastcifar.inference.pictures import find_pictures, load_picture

RED, WHITE = [255, 0, 0], [255, 255, 255]


def load_image(path: Path) -> Images:
    """Load a picture for which nothing had to be assumed."""
    picture = load_picture(path)
    assert picture.note == ""
    assert picture.image is not None
    return picture.image


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(TEST_IMAGES[0]))
    np.testing.assert_array_equal(load_image(path), TEST_IMAGES[0])


def test_the_middle_square_is_scaled(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 100), "blue")
    picture.paste((255, 0, 0), (100, 0, 200, 100))
    loaded = load_image(save(tmp_path / "x.png", picture))
    assert loaded.shape == (32, 32, 3)
    # The filter looks a little beyond the square's edges.
    np.testing.assert_allclose(loaded.astype(int), np.broadcast_to(RED, loaded.shape), atol=16)
    assert (loaded[:, 3:-3] == RED).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (2000, 3)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    assert (load_image(save(tmp_path / "x.png", Image.new("RGB", size, "red"))) == RED).all()


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
        assert (load_image(save(tmp_path / f"{name}.png", picture)) == expected).all(), name
    assert (load_image(save(tmp_path / "cmyk.tif", Image.new("CMYK", square, (0, 255, 255, 0)))) == RED).all()
    assert (load_image(save(tmp_path / "f.tif", Image.new("F", square, 0.0))) == 0).all()


def grey(value: int, dtype: type[np.generic] = np.uint16) -> Image.Image:
    return Image.fromarray(np.full((40, 40), value, dtype))


def with_significant_bits(path: Path, num_bits: int) -> Path:
    """Put an sBIT chunk into a grey PNG, after its header."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + png_chunk(b"sBIT", bytes([num_bits])) + content[33:])
    return path


def test_16_bits_have_the_range_that_the_file_states(tmp_path: Path) -> None:
    # 2,056 of 4,095, of 65,535 and of 16,383 are 128, 8 and 32 of 255.
    assert load_image(save(tmp_path / "full.png", grey(2056)))[0, 0, 0] == 8
    assert load_image(with_significant_bits(save(tmp_path / "12.png", grey(2056)), 12))[0, 0, 0] == 128
    assert load_image(with_significant_bits(save(tmp_path / "14.png", grey(2056)), 14))[0, 0, 0] == 32
    # As in the PNG standard, values are scaled to 16 bits, whichever sBIT the chunk states.
    assert load_image(with_significant_bits(save(tmp_path / "scaled.png", grey(0x8080)), 12))[0, 0, 0] == 128
    for name, tags, expected in (
        ("full.tif", {}, 8),
        ("12.tif", {281: 4095}, 128),
        ("14.tif", {281: 16383}, 32),
        ("wrong.tif", {281: 255}, 8),  # the file's values exceed it
        ("zero.tif", {281: 0}, 8),
    ):
        assert load_image(save(tmp_path / name, grey(2056), tiffinfo=tags))[0, 0, 0] == expected, name
    (tmp_path / "x.pgm").write_bytes(b"P5 40 40 4095\n" + (2056).to_bytes(2, "big") * 1600)
    assert load_image(tmp_path / "x.pgm")[0, 0, 0] == 128


@pytest.mark.parametrize(
    ("value", "num_bits", "expected"),
    [(2056, 12, 136), (2056, None, 8), (0x8080, 12, 128), (2056, 16, 8)],  # 2,056 has 8 in its upper byte, 4,095 has 15
)
def test_16_bits_a_colour(tmp_path: Path, value: int, num_bits: int | None, expected: int) -> None:
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + value.to_bytes(2, "big") * 3 * 32) * 32)
    chunks = [(b"IHDR", header), *([(b"sBIT", bytes([num_bits] * 3))] if num_bits else []), (b"IDAT", pixels)]
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in (*chunks, (b"IEND", b""))))
    assert (load_image(path) == expected).all()


def test_12_bits_a_pixel(tmp_path: Path) -> None:
    pixels = bytes([0x80, 0x88, 0x08]) * 800  # pairs of 0x808, which is 128 of 255
    tags = [(256, 40), (257, 40), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 40), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)
    assert (load_image(tmp_path / "x.tif") == 128).all()


@pytest.mark.parametrize(("value", "white"), [(200, 255), (255, 255), (256, 4095), (4096, 65535), (65535, 65535)])
def test_32_bits_have_the_least_usual_range_and_it_is_said(tmp_path: Path, value: int, white: int) -> None:
    path = save(tmp_path / "x.tif", grey(value, np.int32))
    picture = load_picture(path)
    assert picture.image is not None
    assert (picture.image == round(255 * value / white)).all()
    assert picture.note == (
        f"{path} does not say its range of values: 0..{white:,} is assumed (its greatest is {value:,})"
    )
    assert (load_image(save(path, grey(value, np.int32), tiffinfo={281: 65535})) == round(255 * value / 65535)).all()


def test_integers_of_no_known_range_are_refused(tmp_path: Path) -> None:
    for value, problem in (
        (-1, r"has negative values \(down to -1\): scale it to 0\.\.65,535"),
        (65_536, r"has values up to 65,536, of no known range: scale it to 0\.\.65,535"),
    ):
        with pytest.raises(FastcifarError, match=rf"x\.tif {problem}"):
            load_picture(save(tmp_path / "x.tif", grey(value, np.int32)))


def test_special_files_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket.png")  # a socket's path may have 107 characters
        (tmp_path / "link.png").symlink_to("pipe.png")
        for path in (*(tmp_path / f"{name}.png" for name in ("pipe", "socket", "link")), Path("/dev/zero")):
            with pytest.raises(FastcifarError, match=f"^cannot read {path}: it is not a regular file$"):
                load_picture(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FastcifarError, match=r"folder\.png: it is a folder"):
        load_picture(tmp_path / "folder.png")


def test_a_piped_picture_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(tmp_path / "x.png", Image.new("RGB", (50, 50), "red")).read_bytes()
    for limit in (len(content), len(content) - 1):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        monkeypatch.setattr(pictures, "_MAX_PIPED_BYTES", limit)
        path = Path(f"/dev/fd/{reading}")
        if limit == len(content):
            assert (load_image(path) == RED).all()
        else:
            with pytest.raises(FastcifarError, match=rf"{path} is too large: more than {limit} bytes"):
                load_picture(path)
        os.close(reading)


def test_floats_are_scaled_and_nan_is_black(tmp_path: Path) -> None:
    values = np.full((32, 32), 0.5, np.float32)
    values[0, :4] = (np.nan, np.inf, -np.inf, -3)
    values[1, 0] = 0.25
    loaded = load_image(save(tmp_path / "x.tif", Image.fromarray(values)))
    assert loaded[0, :5, 0].tolist() == [0, 0, 0, 0, 255]
    assert loaded[1, 0].tolist() == [128, 128, 128]


def test_transparency_is_white(tmp_path: Path) -> None:
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (0, 0, 32, 64))
    half = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    for name in ("x.png", "x.gif"):
        loaded = load_image(save(tmp_path / name, palette, transparency=1))
        assert (loaded[:, :12] == WHITE).all()
        assert (loaded[:, 20:] == RED).all()
    for mode, color in (("RGB", (1, 2, 3)), ("L", 7)):
        clear = Image.new(mode, (64, 64), color)
        assert (load_image(save(tmp_path / f"{mode}.png", clear, transparency=color)) == WHITE).all()
    assert (load_image(save(tmp_path / "half.png", half)) == [255, 127, 127]).all()
    # The colour of a transparent pixel does not bleed into its neighbours.
    half.paste((0, 255, 0, 0), (0, 0, 32, 64))
    loaded = load_image(save(tmp_path / "edge.png", half))
    assert loaded[..., 0].min() == 255


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((255, 0, 0), (0, 0, 64, 32))  # red above white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    loaded = load_image(save(tmp_path / "x.png", picture, exif=exif))
    assert (loaded[:, 20:] == RED).all()
    assert (loaded[:, :12] == WHITE).all()


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_the_first_frame_of_one_that_moves(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    options = {"lossless": True} if name == "x.webp" else {}
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    assert (load_image(path) == RED).all()


def test_a_damaged_exif_block_does_not_spoil_the_pixels(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"):
        path = save(tmp_path / "x.jpg", Image.new("RGB", (64, 64), "red"), exif=exif)
        assert load_image(path).tolist() == [[[254, 0, 0]] * 32] * 32  # red after JPEG


def png_chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for side, size in ((20_000, "more than 100,000,000"), (12_000, "12,000 x 12,000")):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT"))
        with pytest.raises(FastcifarError, match=rf"bomb\.png is too large: {size} pixels"):
            load_image(path)


def test_a_file_that_is_not_a_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.png", Image.new("RGB", (50, 50)))
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "zero.png").touch()
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name in ("text.png", "cut.png", "zero.png", "x.eps"):  # the last needs another program
        with pytest.raises(FastcifarError, match=rf"cannot read .*{name}: not a picture, or damaged"):
            load_image(tmp_path / name)
    (tmp_path / "link.png").symlink_to("nowhere")
    for name in ("none.png", "link.png"):
        with pytest.raises(FastcifarError, match=rf"cannot read .*{name}: No such file"):
            load_image(tmp_path / name)
    monkeypatch.setattr(pictures, "_MAX_PIXELS", 2499)
    with pytest.raises(FastcifarError, match=r"good\.png is too large: 50 x 50 pixels"):
        load_image(good)


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FastcifarError, match=r"folder holds no picture files$"):
        find_pictures([folder])
    (folder / "sub.png").mkdir()
    (folder / "link.png").symlink_to("nowhere")
    hidden = (".hidden.png", "._b.png", ".DS_Store", "Thumbs.db", "b.png.xmp")
    for name in ("b.png", "a.JPG", "notes.txt", "weights.h5", "paper.pdf", "film.mpg", *hidden):
        (folder / name).touch()
    assert find_pictures([Path("x"), folder]) == [Path("x"), folder / "a.JPG", folder / "b.png"]
    assert find_pictures([folder / "._b.png"]) == [folder / "._b.png"]  # because it is named


def test_folders_in_a_folder(tmp_path: Path) -> None:
    for name in ("dog/a.png", "cat/small/b.png", ".git/c.png", "__MACOSX/d.png", "@eaDir/e.png", "empty/f.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "cat" / "loop").symlink_to("..")
    with pytest.raises(FastcifarError, match=r"recursive is needed: only the sub-folders of .* hold picture files"):
        find_pictures([tmp_path])
    assert find_pictures([tmp_path], recursive=True) == [tmp_path / "cat/small/b.png", tmp_path / "dog/a.png"]
    with pytest.raises(FastcifarError, match=r"empty holds no picture files$"):
        find_pictures([tmp_path / "empty"], recursive=True)
