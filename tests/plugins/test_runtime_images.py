"""Images as the C++ runtime decodes, resizes and normalises them: bit for bit as Python does."""

import io
import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from madtp.data.default_samples import demo_samples
from madtp.data.images import read_image
from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD, image_tensor
from madtp.errors import InputError
from tests.helpers import tasks_probe
from tests.helpers.paths import TASKS
from tests.helpers.tasks_probe import ProbeError

BICUBIC = Image.Resampling.BICUBIC
SIZES = ((1, 1), (33, 8), (97, 61), (160, 120))


def painting(width: int, height: int, channels: int = 4) -> NDArray[np.uint8]:
    """[height, width, channels]: waves and noise, as photos have."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).normal(0, 9, (channels, height, width))
    waves = [np.sin(x / (7 + c) + c) * np.cos(y / (5 + c)) * 110 + 128 for c in range(channels)]
    return (np.stack(waves) + noise).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(
    color: int, depth: int, rows: bytes, *chunks: tuple[bytes, bytes], size: tuple[int, int] = (4, 4), passes: int = 0
) -> bytes:
    """A PNG file of raw rows, with chunks before the pixels; with `passes` of 1 the rows are of Adam7."""
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, passes)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def assert_as_pillow(data: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(tasks_probe.decode_image(data), expected)


def test_this_build_decodes_png_and_jpeg() -> None:
    assert tasks_probe.formats() == "PNG, JPEG"


def test_a_build_without_decoders_says_so_and_takes_pixels(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    command = [tasks_probe.built() / "bare", tmp_path / "x.png", tmp_path / "x.jpg"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        f"cannot read the image '{tmp_path / 'x.png'}'",
        "It is a PNG file, and this build has no decoder for it: it was compiled without libpng.",
        "Install libpng (Debian: libpng-dev) and build again; or hand over 8-bit RGB pixels.",
        f"cannot read the image '{tmp_path / 'x.jpg'}'",
        "It is a JPEG file, and this build has no decoder for it: it was compiled without libjpeg.",
        "Install libjpeg (Debian: libjpeg-dev) and build again; or hand over 8-bit RGB pixels.",
        "this build cannot read texts",
        "It was compiled without ICU, which knows accents and cases.",
        "Install ICU (Debian: libicu-dev) and build again; or hand over ids.",
        "'' 15 25 35",
    ]


@pytest.mark.parametrize("size", SIZES)
def test_jpegs_of_every_kind_decode_as_in_pillow(size: tuple[int, int]) -> None:
    pixels = painting(*size)
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            options = {"quality": 80, "subsampling": subsampling, "progressive": progressive}
            assert_as_pillow(file_of(Image.fromarray(pixels[..., :3]), "JPEG", **options))
    assert_as_pillow(file_of(Image.fromarray(pixels[..., 0]), "JPEG"))
    assert_as_pillow(file_of(Image.fromarray(pixels, "CMYK"), "JPEG"))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("size", SIZES)
def test_pngs_of_every_8_bit_mode_decode_as_in_pillow(size: tuple[int, int]) -> None:
    pixels = painting(*size)
    color, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        assert_as_pillow(file_of((grey if mode == "1" else Image.fromarray(pixels)).convert(mode), "PNG"))
    for bits in (1, 2, 4):
        assert_as_pillow(file_of(color.quantize(2**bits), "PNG", bits=bits))
    assert_as_pillow(file_of(color.quantize(11), "PNG", transparency=3))
    assert_as_pillow(file_of(grey, "PNG", transparency=120))
    assert_as_pillow(file_of(color, "PNG", transparency=(1, 2, 3)))


def test_unusual_pngs_decode_as_in_pillow() -> None:
    palette = (b"PLTE", bytes(range(12)))
    assert_as_pillow(
        png(3, 8, b"".join(b"\0" + bytes(range(y, y + 4)) for y in range(4)), palette)
    )  # some past its end
    for depth in (2, 4):
        assert_as_pillow(png(0, depth, b"".join(b"\0" + bytes([27 * y, 31 * y][: depth // 2]) for y in range(4))))
    for color, channels in ((2, 3), (4, 2), (6, 4)):  # 16 bits a channel
        assert_as_pillow(png(color, 16, b"".join(b"\0" + os.urandom(8 * channels) for _ in range(4))))
    assert_as_pillow(png(0, 8, b"".join(b"\0" + os.urandom(n) for n in (1, 1, 2, 2, 2, 4, 4)), passes=1))
    assert_as_pillow(png(0, 8, (b"\0" + os.urandom(4)) * 4, (b"gAMA", struct.pack(">I", 100000))))


@pytest.mark.parametrize("task", TASKS)
def test_the_demo_images_are_preprocessed_to_the_same_floats(task: str) -> None:
    for image in (image for sample in demo_samples(task, 16) for image in sample.images):
        pixels = tasks_probe.decode_image(file_of(image.convert("RGB"), "PNG"))
        for size in (64, 384):
            mine = tasks_probe.preprocess(pixels, size, IMAGE_MEAN, IMAGE_STD)
            np.testing.assert_array_equal(mine, image_tensor(image, size).numpy())


def one_axis_at_a_time(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Pillow's resize in the order of passes that it has from version 13 on, whichever version this is."""
    image = Image.fromarray(pixels)
    rows_first = height < image.height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if rows_first else (width, image.height)
    return np.asarray(image.resize(between, BICUBIC).resize((width, height), BICUBIC))


SIDES = st.integers(1, 130)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 9))
def test_any_size_is_resized_to_pillows_pixels(
    width: int, height: int, to_width: int, to_height: int, kind: int
) -> None:
    pixels = np.random.default_rng(kind).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind % 2:
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)  # the filter overshoots
    resized = tasks_probe.resize(pixels, to_width, to_height)
    np.testing.assert_array_equal(resized, one_axis_at_a_time(pixels, to_width, to_height))


def test_rows_may_lie_apart() -> None:
    pixels = painting(20, 10, 3)
    np.testing.assert_array_equal(
        tasks_probe.resize(pixels[:, :12], 7, 9, stride=60), tasks_probe.resize(pixels[:, :12].copy(), 7, 9)
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_orientation_is_followed_only_where_asked_for(suffix: str, tmp_path: Path) -> None:
    for orientation in range(10):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(painting(9, 6, 3)).save(path, exif=exif)
        for rotate in (False, True):
            np.testing.assert_array_equal(
                tasks_probe.read_image(path, rotate), np.asarray(read_image(path, rotate=rotate).convert("RGB"))
            )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_does_not_matter(tmp_path: Path) -> None:
    header = b"Exif\0\0II*\0"
    for data in (b"Exif\0\0garbage", header + b"\xff" * 8, header + b"\x08\0\0\0\x05\0\x12\x01\x07", header):
        path = tmp_path / "x.jpg"
        Image.fromarray(painting(9, 6, 3)).save(path, exif=data)
        np.testing.assert_array_equal(tasks_probe.read_image(path, rotate=True), np.asarray(Image.open(path)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_cut_files_are_refused_wherever_they_are_cut(kind: str) -> None:
    whole = file_of(Image.fromarray(painting(40, 30, 3)), kind)
    end = len(whole) - (0 if kind == "JPEG" else 16)  # of a PNG the last 16 bytes are a checksum and IEND
    for length in range(0, end, max(end // 40, 1)):
        with pytest.raises(ProbeError) as refused:
            tasks_probe.decode_image(whole[:length])
        assert refused.value.what == "cannot read the image"
        assert refused.value.fix
    np.testing.assert_array_equal(tasks_probe.decode_image(whole), np.asarray(Image.open(io.BytesIO(whole))))


def animation() -> bytes:
    frames = [Image.fromarray(painting(4, 4, 3) // (i + 1)) for i in range(3)]
    return file_of(frames[0], "PNG", save_all=True, append_images=frames[1:])


def damaged_text() -> bytes:
    data = png(0, 8, (b"\0" + bytes(4)) * 4, (b"tEXt", b"Comment\0a photo"))
    return data.replace(b"a photo", b"a phoXo")


REFUSED = {
    "a damaged comment": (damaged_text(), "cannot read the image"),
    "deep grey": (png(0, 16, (b"\0" + b"\x12\x34" * 4) * 4), "the image has more than 8 bits a channel"),
    "animation": (animation(), "the image has 3 frames"),
    "too many pixels": (png(0, 1, b"", size=(8001, 8000)), "the image has 8001 x 8000 pixels"),
    "one long side": (png(0, 1, b"", size=(2**31 - 1, 2**31 - 1)), "the image has 2147483647 x 2147483647 pixels"),
    "another format": (file_of(Image.new("RGB", (4, 4)), "BMP"), "cannot read the image"),
    "nothing": (b"", "cannot read the image"),
}


@pytest.mark.parametrize(("data", "what"), REFUSED.values(), ids=REFUSED)
def test_what_the_model_should_not_see_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(ProbeError) as refused:
        tasks_probe.decode_image(data)
    assert refused.value.what == what
    assert refused.value.why
    assert refused.value.fix


def test_every_file_that_python_refuses_is_refused(tmp_path: Path) -> None:
    for data, _ in REFUSED.values():
        path = tmp_path / "x.png"
        path.write_bytes(data)
        if not data.startswith(b"BM"):  # Pillow reads more formats
            with pytest.raises(InputError):
                read_image(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "fifo", "It is a pipe; only regular files are read."),
        (tmp_path, "It is a folder."),
        (Path("/dev/zero"), "It is a device; only regular files are read."),
        (tmp_path / "missing.png", "No such file or directory."),
    ):
        with pytest.raises(ProbeError) as refused:
            tasks_probe.read_image(path)
        assert refused.value.what == f"cannot read the image '{path}'"
        assert refused.value.why == why


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)  # sparse
    with pytest.raises(ProbeError) as refused:
        tasks_probe.read_image(path)
    assert refused.value.why == "It holds 536870913 bytes; at most 536870912 are read."


def test_pixels_that_cannot_be_are_refused() -> None:
    pixels = painting(4, 4, 3)
    for arguments, what in (
        ((pixels, 0, 5), "the resized image has no pixels"),
        ((pixels, 8001, 8000), "the resized image has 8001 x 8000 pixels"),
        ((pixels, 5, 5, 11), "the pixels of the image are not 8-bit RGB"),
    ):
        with pytest.raises(ProbeError) as refused:
            tasks_probe.resize(*arguments)
        assert refused.value.what == what
