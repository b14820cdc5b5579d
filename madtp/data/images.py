"""Image files and image objects of users: decoded completely, or refused with a reason."""

import os
import struct
import threading
import warnings
from functools import cache
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from madtp.errors import InputError
from madtp.files.inputs import open_regular

MAX_PIXELS = 64_000_000  # of one image; more is an accident or an attack
MOST_BYTES = 2**29  # of an image file
RUN_OTHERS = {"EPS"}  # formats that Pillow hands to another program, which runs what is in the file
UPRIGHT = 1  # EXIF orientation; 2 to 8 ask for a turn or a mirror image
# What Pillow raises for broken files; damaged EXIF data ends in the last four.
DECODING_ERRORS = (
    *(OSError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError),
    *(ValueError, TypeError, LookupError, struct.error),
)


class _Decoding:
    """One at a time: Pillow decodes an opened file where it is first needed, and two threads would tear the image."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)  # a thread that holds the lock does not live on in a child

    def renew(self) -> None:
        self.lock = threading.Lock()


_decoding = _Decoding()


@cache
def _formats() -> list[str]:
    """What Pillow reads by itself."""
    Image.init()
    return [name for name in Image.OPEN if name not in RUN_OTHERS]


def image_path(folder: Path, name: str, index: Path, allow_outside: bool = False) -> Path:
    """Where an image lies that a file names; symbolic links in the folder, which its owner made, are followed.

    Args:
        allow_outside: also take names that lead out of the folder.

    Raises:
        InputError: the name does, by being absolute or by "..".
    """
    if "\0" in name or allow_outside:
        return folder / name  # of a NUL no file can be, which is said where it is opened
    inner = os.path.normpath(name)  # what is judged is what is opened, also where "x/.." follows a link
    parts = Path(inner).parts
    leaves = parts[:1] == ("..",) and set(parts) != {".."}  # a folder above is no image, and is said to be missing
    if leaves or (os.path.isabs(inner) and not _is_below(inner, folder)):
        raise InputError(
            f"'{index}' names an image outside of '{folder}': '{name}'",
            "Annotations may come from others, and such a name could point at any file of this machine.",
            "Put the image there; or allow it, if you trust them: --allow-outside, allow_outside=True in Python.",
        )
    return folder / inner


def _is_below(name: str, folder: Path) -> bool:
    """Whether an absolute name is of the folder: as both are written, or, where a link leads to it, as they lie."""
    lies = Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder))
    return lies or Path(name).is_relative_to(os.path.abspath(folder))


def read_image(path: Path, *, rotate: bool = False) -> Image.Image:
    """Decode an image file completely. Its mode stays; preprocessing converts every mode to RGB.

    Args:
        path: of a PNG, JPEG or any other file that Pillow reads without running another program.
        rotate: follow the EXIF orientation. The published readers ignore it, so a photo can lie on its side: by default
            here too, and `exif_rotated` tells.

    Raises:
        InputError: missing, no image, truncated, too large to be meant, animated, or of more than 8 bits a channel.
    """
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is less
    try:
        with quiet, open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise OSError(f"It has more than {MOST_BYTES / 1e6:.0f} MB.")
            with Image.open(file, formats=_formats()) as image:
                _check(image, f"the image '{path}'")
                image.load()
                return ImageOps.exif_transpose(image) if rotate and exif_rotated(image) else image.copy()
    except DECODING_ERRORS as error:
        why = "cannot identify image file: it is none" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(
            f"cannot read the image '{path}'",
            getattr(error, "strerror", None) or why,
            "Replace it with a complete image file (PNG, JPEG, ...).",
        ) from error


def check_image(image: object, name: str = "the image") -> Image.Image:
    """An image handed over in memory, held to the rules of `read_image` and decoded if it was not yet.

    Several threads may hand over the same one, as long as nothing else decodes, turns or draws on it meanwhile.

    Raises:
        InputError: not a PIL image, or one that `read_image` would refuse.
    """
    if not isinstance(image, Image.Image):
        raise InputError(
            f"{name} is not a PIL image", f"It is of type {type(image).__name__}.", "Open it with PIL.Image.open."
        )
    try:
        with _decoding.lock:  # for images in memory too: their palette may still have to be put in place
            _check(image, name)
            image.load()
    except (*DECODING_ERRORS, AssertionError) as error:  # the last is Pillow's, and wordless, of a file that is closed
        why = str(error) or "Its file was closed before it was decoded."
        raise InputError(f"cannot decode {name}", why, "Hand over a complete image that is not closed.") from error
    return image


def exif_rotated(image: Image.Image) -> bool:
    """Whether the image's EXIF data asks for a turn or a mirror image that its pixels have not undergone."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) in range(UPRIGHT + 1, 9)
    except DECODING_ERRORS:  # damaged EXIF data says nothing, and the pixels may be fine
        return False


def _check(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise InputError(f"{name} has no pixels", f"It is {image.width} x {image.height}.", "Use another image.")
    if pixels > MAX_PIXELS:
        raise InputError(
            f"{name} has {image.width} x {image.height} pixels",
            f"More than {MAX_PIXELS // 10**6} million are not decoded.",
            "Scale it down.",
        )
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"{name} has more than 8 bits a channel (mode {image.mode})",
            "Its values would be cut off at 255, which shows another picture.",
            "Convert it to 8 bits, scaling the values.",
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews, the photo first
        raise InputError(
            f"{name} has {frames} frames",
            "The model sees one picture, and the first may show something else than the rest.",
            "Save the frame that is meant as a PNG or JPEG file.",
        )
