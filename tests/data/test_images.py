"""Every kind of image that people have is read as the same RGB, or refused by name."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmt.data.folders import find_images, images_in
from rmt.data.images import decoded, image_size, read_image, read_image_like
from rmt.tools.predict import as_picture

HEIGHT, WIDTH = 12, 18
JPEG = {"quality": 100, "subsampling": 0}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Return smooth colours, which lossy formats keep nearly."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red, green = 255 * y / HEIGHT, 255 * x / WIDTH
    return Image.fromarray(np.stack([red, green, 128 + 0 * red], -1).astype(np.uint8))


def difference(ours: Image.Image, expected: Image.Image) -> float:
    assert ours.mode == "RGB"
    assert ours.size == expected.size
    return np.abs(np.asarray(ours, float) - np.asarray(expected.convert("RGB"), float)).max()


#: Suffix -> how to write it, and how much is lost.
FORMATS: dict[str, tuple[dict[str, Any], int]] = {
    "png": ({}, 0),
    "bmp": ({}, 0),
    "tif": ({}, 0),
    "ppm": ({}, 0),
    "jpg": (JPEG, 3),
    "jfif": (JPEG | {"format": "JPEG"}, 3),
    "webp": ({"lossless": True}, 0),
    "avif": ({"quality": 100}, 12),
    "jp2": ({"irreversible": False}, 0),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats(picture: Image.Image, suffix: str, tmp_path: Path) -> None:
    options, lost = FORMATS[suffix]
    picture.save(tmp_path / f"x.{suffix}", **options)
    assert difference(read_image(tmp_path / f"x.{suffix}"), picture) <= lost
    assert images_in(tmp_path) == [tmp_path / f"x.{suffix}"]
    assert image_size(tmp_path / f"x.{suffix}") == picture.size


def test_the_suffix_does_not_matter(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert difference(read_image(tmp_path / "x.jpg"), picture) == 0


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("L", "png", 0),
        ("1", "png", 0),
        ("P", "png", 0),
        ("P", "gif", 0),
        ("CMYK", "tif", 0),
        ("CMYK", "jpg", 6),
        ("YCbCr", "jpg", 6),
        ("RGBA", "png", 0),
        ("LA", "png", 0),
    ],
)
def test_modes(
    picture: Image.Image, mode: str, suffix: str, tolerance: int, tmp_path: Path
) -> None:
    stored = picture.convert(mode)
    stored.save(tmp_path / f"x.{suffix}", **JPEG if suffix == "jpg" else {})
    assert difference(read_image(tmp_path / f"x.{suffix}"), stored) <= tolerance


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey(suffix: str, tmp_path: Path) -> None:
    """Brightness is a matter of the format, not of what else is in the picture."""
    for top in (65535, 200):
        grey = np.linspace(0, top, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
        Image.fromarray(grey.astype(np.uint16)).save(tmp_path / f"x.{suffix}")
        ours = np.asarray(read_image(tmp_path / f"x.{suffix}"), float)
        assert np.abs(ours - grey[..., None] / 257).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_floats(top: float, tmp_path: Path) -> None:
    grey = np.linspace(0, top, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(tmp_path / "x.tif")
    ours = np.asarray(read_image(tmp_path / "x.tif"), float)
    assert np.abs(ours - grey[..., None] / top * 255).max() <= 1


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 9, HEIGHT))
    clear.save(tmp_path / "alpha.png")
    palette = Image.new("P", (WIDTH, HEIGHT), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(0, (0, 0, 9, HEIGHT))
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("alpha.png", "palette.png"):
        ours = read_image(tmp_path / name)
        assert ours.getpixel((0, 0)) == (0, 0, 255)
        assert ours.getpixel((WIDTH - 1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_rotation(picture: Image.Image, orientation: int, suffix: str, tmp_path: Path) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture.transpose(undo[orientation]) if orientation > 1 else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    stored.save(path, exif=exif, **JPEG)
    assert difference(read_image(path), picture) <= 4
    assert image_size(path) == picture.size
    # Annotations in the frame of the stored pixels come with its size.
    assert difference(read_image_like(path, picture.size), picture) <= 4
    if orientation > 4:
        assert difference(read_image_like(path, picture.size[::-1]), stored) <= 4
    assert difference(read_image_like(path, (1, 1)), picture) <= 4


def test_first_frame_of_an_animation(picture: Image.Image, tmp_path: Path) -> None:
    first, second = picture.convert("P"), Image.new("P", picture.size)
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    assert difference(read_image(tmp_path / "x.gif"), first) == 0


def bomb(path: Path) -> None:
    """Write the head of a PNG that would unpack to 10 gigapixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            check = zlib.crc32(kind + data)
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check))


@pytest.fixture(scope="module")
def bad(picture: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files that are named as images and cannot be read."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "zero.jpg").touch()
    (folder / "text.png").write_text("no image at all")
    for suffix in ("jpg", "png", "tif", "gif", "webp", "bmp"):
        path = folder / f"truncated_{suffix}.{suffix}"
        big = picture.resize((200, 150))
        big.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    bomb(folder / "bomb.png")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero.jpg", r"is empty \(0 bytes\)"),
        ("text.png", "is not an image that Pillow can read"),
        ("bomb.png", "is a decompression bomb.*MAX_IMAGE_PIXELS"),
        *((f"truncated_{s}.{s}", "is") for s in ("jpg", "png", "tif", "gif", "webp", "bmp")),
    ],
)
def test_refused_by_name(bad: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} {words}"):
        read_image(bad / name)


def test_truncated_jpeg_says_so(bad: Path) -> None:
    with pytest.raises(ValueError, match=r"truncated_jpg\.jpg is damaged: .*truncated"):
        read_image(bad / "truncated_jpg.jpg")


def test_bytes_of_chance(picture: Image.Image, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    refusals = []
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp", "ppm"):
        path = tmp_path / f"x.{suffix}"
        picture.save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for at in noise.integers(0, min(len(whole), 200), 3):
                damaged[at] = noise.integers(256)
            path.write_bytes(damaged)
            try:
                assert read_image(path).mode == "RGB"
            except ValueError as error:
                refusals.append(str(error).startswith(str(path)))
    assert refusals
    assert all(refusals)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="cannot be read: it is a folder"):
        read_image(tmp_path)


def test_large_but_no_bomb(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the size at which Pillow warns and twice that, where it refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    picture.save(tmp_path / "x.png")
    assert difference(read_image(tmp_path / "x.png"), picture) == 0


def test_finding(picture: Image.Image, tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a.jpeg", "b/deep/x.png", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        picture.save(tmp_path / name, "PNG")
    (tmp_path / "b" / "notes.txt").write_text("x")
    (tmp_path / "b" / "._2.png").write_text("what macOS leaves in archives")

    def found(*sources: str) -> list[str]:
        paths = find_images([tmp_path / source for source in sources])
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found("b") == ["b/10.JPG", "b/2.png", "b/deep/x.png"]
    assert found("a.jpeg", "odd", "b/2.png", "a.jpeg") == ["a.jpeg", "odd", "b/2.png", "a.jpeg"]
    assert found("b/*") == ["b/10.JPG", "b/2.png", "b/notes.txt"]
    assert found("**/*.png") == ["b/2.png", "b/deep/x.png"]
    assert images_in(tmp_path)[0].name == "a.jpeg"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder .*empty' holds no image \(\.jpg"):
        found("empty")
    with pytest.raises(ValueError, match=r"no file, folder or pattern .*\*\.bmp' matches a file"):
        found("*.bmp")


def test_names_with_the_signs_of_patterns(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a[1].png")
    assert find_images([tmp_path / "a[1].png"]) == [tmp_path / "a[1].png"]


def test_arrays(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    assert difference(as_picture(pixels), picture) == 0
    assert difference(as_picture(pixels[..., 0]), Image.fromarray(pixels[..., 0])) == 0
    alpha = np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    assert difference(as_picture(alpha), picture) == 0
    assert difference(as_picture(picture), picture) == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_not_images(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an array of uint8, \(H, W\) or \(H, W, 3\)"):
        as_picture(array)


def test_hidden_folders_and_folders_named_as_images(picture: Image.Image, tmp_path: Path) -> None:
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "folder.png/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    assert images_in(tmp_path) == [tmp_path / "a.png", tmp_path / "folder.png" / "b.png"]


def test_addresses(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a b.png")
    address = (tmp_path / "a b.png").as_uri()
    assert find_images([address]) == [tmp_path / "a b.png"]
    assert as_picture(address).size == picture.size
    with pytest.raises(ValueError, match=r"https://x\.org/a\.png is on the network; download it"):
        as_picture("https://x.org/a.png")


@pytest.mark.usefixtures("unchecked_annotations")
def test_a_picture_whose_file_ends_early(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with (
        Image.open(tmp_path / "a.jpg") as lazy,
        pytest.raises(ValueError, match=r"a\.jpg is damaged"),
    ):
        as_picture(lazy)
    with pytest.raises(ValueError, match="a list is not an image"):
        as_picture([1, 2])


def test_what_is_not_there_stays_for_a_report(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    names = [tmp_path / "a.png", tmp_path / "gone.png"]
    assert find_images(names) == names


class TestImagesFromStrangers:
    def test_a_line_of_pixels(self, tmp_path: Path) -> None:
        """Its short side resized to 256 would make a picture of 15 GB."""
        Image.new("L", (1, 60_000)).save(tmp_path / "line.png")
        with pytest.raises(ValueError, match=r"line\.png has 1x60000 pixels: .* 200 times"):
            read_image(tmp_path / "line.png")

    @pytest.mark.parametrize("suffix", ["eps", "pdf", "pcx", "icns"])
    def test_formats_that_are_not_promised(self, suffix: str, tmp_path: Path) -> None:
        Image.new("RGB", (16, 16)).save(tmp_path / f"a.{suffix}")
        with pytest.raises(ValueError, match="is not an image that Pillow can read"):
            read_image(tmp_path / f"a.{suffix}")

    def test_16_bit_grey_takes_little_memory(self, tmp_path: Path) -> None:
        """40 million pixels: 80 MB of them, and not five times that as floats."""
        Image.fromarray(np.full((5000, 8000), 40_000, np.uint16)).save(tmp_path / "deep.png")
        tracemalloc.start()
        image = read_image(tmp_path / "deep.png")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert image.getpixel((7, 7)) == (156, 156, 156)
        assert peak < 250e6

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        for read in (read_image, image_size):
            with pytest.raises(ValueError, match=r"pipe\.png cannot be read: it is a pipe"):
                read(tmp_path / "pipe.png")


@pytest.mark.parametrize("where", range(0, 40, 3))
def test_damaged_exif_does_not_matter(where: int, tmp_path: Path) -> None:
    """The pixels are good; they are read as they are stored, or as the rest of the EXIF says."""
    pixels = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9003: "2020:01:01 00:00:00"}
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "x.jpg")
    assert upright.size == (24, 32)
    assert decoded(upright).size == (24, 32)  # not turned again
    content = bytearray((tmp_path / "x.jpg").read_bytes())
    at = content.index(b"Exif\0\0") + 6 + where
    content[at : at + 3] = b"\xff\xff\xff"
    (tmp_path / "y.jpg").write_bytes(content)
    found = read_image(tmp_path / "y.jpg")
    assert found.size in ((24, 32), (32, 24))
    assert image_size(tmp_path / "y.jpg") == found.size
    stored = np.asarray(upright if found.size == upright.size else upright.rotate(90, expand=True))
    assert np.array_equal(np.asarray(found), stored)


def test_exif_that_ends_early(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 24), "red")
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0x" * 9,
    ):
        image.save(tmp_path / "x.jpg", exif=exif)
        assert read_image(tmp_path / "x.jpg").size == image_size(tmp_path / "x.jpg") == (32, 24)
