"""Images of users are decoded completely, or refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from madtp.data.images import MAX_PIXELS, check_image, exif_rotated, read_image
from madtp.data.preprocess import image_tensor
from madtp.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(PIXELS)


def with_orientation(picture: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_8_bit_mode_becomes_the_published_rgb(picture: Image.Image, mode: str, tmp_path: Path) -> None:
    image = (picture.convert("P").convert("PA") if mode == "PA" else picture).convert(mode)
    expected = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC))
    assert check_image(image) is image
    np.testing.assert_array_equal(image_tensor(image, 8), image_tensor(Image.fromarray(expected), 8))
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image.save(tmp_path / "x.png")
        read = read_image(tmp_path / "x.png")
        assert read.mode == mode
        np.testing.assert_array_equal(np.asarray(read.convert("RGB")), np.asarray(image.convert("RGB")))


def test_jpegs_of_print_and_grey_are_read(picture: Image.Image, tmp_path: Path) -> None:
    for mode in ("CMYK", "L"):
        picture.convert(mode).save(tmp_path / "x.jpg")
        assert read_image(tmp_path / "x.jpg").mode == mode


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_is_ignored_unless_asked_for(picture: Image.Image, suffix: str, tmp_path: Path) -> None:
    path = with_orientation(picture, tmp_path / f"x.{suffix}", 6)
    as_stored, turned = read_image(path), read_image(path, rotate=True)
    assert exif_rotated(as_stored)
    assert as_stored.size == (9, 6)
    assert not exif_rotated(turned)
    assert turned.size == (6, 9)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(as_stored), -1))


@pytest.mark.parametrize("orientation", [1, 9])
def test_upright_and_meaningless_orientations_turn_nothing(
    picture: Image.Image, orientation: int, tmp_path: Path
) -> None:
    path = with_orientation(picture, tmp_path / "x.png", orientation)
    assert not exif_rotated(read_image(path))
    np.testing.assert_array_equal(np.asarray(read_image(path, rotate=True)), PIXELS)
    assert not exif_rotated(picture)


def test_damaged_exif_data_does_not_matter(picture: Image.Image, tmp_path: Path) -> None:
    header = b"Exif\0\0II*\0"
    for number, data in enumerate((b"Exif\0\0garbage", header + b"\xff" * 8, header + b"\x08\0\0\0\x05\0\x12\x01\x07")):
        path = tmp_path / f"{number}.jpg"
        picture.save(path, exif=data)
        assert not exif_rotated(read_image(path))
        np.testing.assert_array_equal(np.asarray(read_image(path, rotate=True)), np.asarray(Image.open(path)))


def test_cut_files_are_refused_wherever_they_are_cut(picture: Image.Image, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    picture.resize((64, 64)).save(whole)
    data = whole.read_bytes()
    for end in range(0, len(data) - 2, 40):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match="cannot read the image"):
            read_image(path)


@pytest.mark.parametrize("name", ["nowhere.png", "", "x" * 300, "nul\0.png"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the image"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_more_than_8_bits_are_refused(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 4))
    image.save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="the left image has more than 8 bits"):
        check_image(image, "the left image")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_are_refused(picture: Image.Image, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    picture.save(path, save_all=True, append_images=[picture.rotate(180)])
    with pytest.raises(InputError, match="has 2 frames"):
        read_image(path)
    with Image.open(path) as image, pytest.raises(InputError, match="Save the frame that is meant"):
        check_image(image)
    picture.save(path)
    assert read_image(path).size == picture.size


def test_a_cameras_jpeg_with_a_preview_is_its_photo(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "x.mpo", save_all=True, append_images=[Image.new("RGB", (2, 2))])
    assert read_image(tmp_path / "x.mpo").size == picture.size


def test_sizes_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    huge = Image.new("1", (MAX_PIXELS // 4000 + 1, 4000))
    huge.save(tmp_path / "x.png")
    with pytest.raises(InputError, match="Scale it down"):
        read_image(tmp_path / "x.png")
    with pytest.raises(InputError, match="64 million"):
        check_image(huge)
    with pytest.raises(InputError, match="has no pixels"):
        check_image(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("value", [None, "x.png", PIXELS, b"png"])
def test_what_is_no_image_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="is not a PIL image"):
        check_image(value)


def test_a_cut_image_that_was_opened_and_not_decoded_is_refused(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    picture.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with Image.open(path) as image, pytest.raises(InputError, match="cannot decode the image"):
        check_image(image)


@pytest.mark.parametrize("decoded", [True, False])
def test_a_closed_image_is_refused(decoded: bool, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png")
    if decoded:
        image.load()
    image.close()
    with pytest.raises(InputError, match=r"(?s)image 3.*closed"):
        check_image(image, "image 3")


def test_an_image_whose_file_was_closed_before_it_was_decoded_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pass
    with pytest.raises(InputError, match="closed before"):
        check_image(image)
