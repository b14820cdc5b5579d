"""The file format of a checkpoint, recognised by its bytes before torch reads any of it."""

import errno
import io
import mmap
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from madtp.errors import CheckpointError, listing, shorten
from madtp.files.inputs import open_regular

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before 1.6: a pickle of its magic number
LEGACY_PICKLES = 5  # magic number, protocol, machine, content, keys of the storages that follow
MOST_STEPS = 4_000_000  # of a pickle; checkpoints with optimizer and momentum encoders have some 200,000
SAVE = "Save it as {'model': model.state_dict(), 'epoch': ..., 'temperature': ...} with torch.save."

# What plain checkpoints refer to, and nothing else; of the rest the error names what it can.
_PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|complex)|torch\.([a-z]\w*|\w+Storage|\w*Tensor|Size)"
    r"|torch\.storage\.\w+|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout|torch\._tensor\._rebuild_from_type_v2"
)
# Torch would call these: a few bytes of a file could claim any amount of memory with them.
_CLAIMING = re.compile(r"builtins\.bytearray|_codecs\.encode|torch\._utils\._rebuild_device_tensor_\w+")
# What torch.load raises on damaged files, besides OSError.
DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AssertionError),
    *(KeyError, TypeError, AttributeError, IndexError, OverflowError),
)
_DAMAGED_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, IndexError)


class ForeignKind(NamedTuple):
    """A file that is not a checkpoint: what it is, with its article, and what to do."""

    what: str
    fix: str


_UNPACK = "Unpack it, and give --ckpt the .pt or .pth file in it."
_EARLIER = "Give --ckpt the checkpoint that it was made from."
_DOWNLOAD = "Download the file again: what came is the answer of a web server."
_SAFETENSORS = ForeignKind(
    "a safetensors file, which holds no temperature",
    "Convert it: torch.save({'model': safetensors.torch.load_file('x.safetensors'), 'temperature': ...}, 'x.pt').",
)
_LFS = ForeignKind("a git-lfs pointer, a line of text instead of the file", "Run 'git lfs pull' where it was cloned.")
_BEGINNINGS: tuple[tuple[re.Pattern[bytes], ForeignKind], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind)
    for pattern, kind in (
        (rb"version https://git-lfs", _LFS),
        (rb"\xef?\xbb?\xbf?\s*<(!doctype html|html|head|body)", ForeignKind("a web page", _DOWNLOAD)),
        (rb"\xef?\xbb?\xbf?\s*<(\?xml|error)", ForeignKind("an XML text", _DOWNLOAD)),
        (rb".{8}\{\s*\"", _SAFETENSORS),
        (rb"\x1f\x8b", ForeignKind("a gzip archive", _UNPACK)),
        (rb"BZh\d", ForeignKind("a bzip2 archive", _UNPACK)),
        (rb"\xfd7zXZ", ForeignKind("an xz archive", _UNPACK)),
        (rb"\x28\xb5\x2f\xfd", ForeignKind("a zstd archive", _UNPACK)),
        (rb"7z\xbc\xaf", ForeignKind("a 7z archive", _UNPACK)),
        (rb"Rar!", ForeignKind("a rar archive", _UNPACK)),
        (rb".{257}ustar", ForeignKind("a tar archive", _UNPACK)),
        (rb"\x93NUMPY", ForeignKind("a numpy array", SAVE)),
        (rb"\x89HDF", ForeignKind("an HDF5 file", SAVE)),
        (rb"GGUF", ForeignKind("a GGUF file", _EARLIER)),
        (rb"\x7fELF", ForeignKind("a program or library", "Give --ckpt the path of a .pt or .pth file.")),
        (rb"(ftrt|vtrt)\0", ForeignKind("a TensorRT plan", _EARLIER)),
        (rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a]", ForeignKind("an ONNX file", _EARLIER)),
    )
)
_TORCHSCRIPT = ForeignKind(
    "a TorchScript archive: it holds a program",
    "Save the state dict of the model that was scripted: "
    "torch.save({'model': torch.jit.load('x.pt').state_dict(), 'temperature': ...}, 'new.pt').",
)
_EXPORTED = ForeignKind("a program that torch.export saved", f"Go back to the model that was exported. {SAVE}")
_INDEX = ForeignKind(
    "the index of a checkpoint in several files (shards)", f"Load the shards into one model with their library. {SAVE}"
)


def check_format(path: Path) -> list[str]:
    """Hold a file to what torch.save writes, by its bytes and table of contents; nothing of it is run or unpacked.

    Returns:
        Names of the classes and functions in it that are not of plain tensors; torch's reader refuses them.

    Raises:
        CheckpointError: as for `madtp.checkpoint.archive.read_archive`, as far as the bytes tell.
    """
    try:
        if path.is_dir():
            raise _folder(path)
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
        kind = foreign_file(path, start)
        if kind is not None:
            raise CheckpointError(f"'{path}' is not a checkpoint of torch.save", f"It is {kind.what}.", kind.fix)
        names = _check_zip(path, size) if start.startswith(b"PK\3\4") else _check_pickles(path, start)
    except OSError as error:
        raise unreadable(path, error) from error
    if any(_CLAIMING.fullmatch(name) for name in names):
        raise more_than_tensors(path, names, "")
    return sorted(name for name in names if not _PLAIN.fullmatch(name))


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the system does not give."""
    if error.errno == errno.ENOMEM:
        return too_large(path)
    if isinstance(error, FileNotFoundError):
        return CheckpointError(
            f"no checkpoint at '{path}'", "The file does not exist.", "Give --ckpt the path of a .pt or .pth file."
        )
    return CheckpointError(
        f"cannot read the checkpoint '{path}'", f"{error.strerror or error}.", "Check the path and its permissions."
    )


def foreign_file(path: Path, start: bytes) -> ForeignKind | None:
    """What a file is that is not a checkpoint of torch.save; None for what may be one, or is nothing that is known.

    Args:
        start: its first 512 bytes.
    """
    if path.suffix == ".safetensors":
        return _SAFETENSORS
    if start.startswith(b"PK\3\4"):
        try:
            with zipfile.ZipFile(path) as archive:
                return _foreign_zip(archive.namelist())
        except _DAMAGED_ZIP:
            return None
    for pattern, kind in _BEGINNINGS:
        if pattern.match(start):
            return kind
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return _INDEX if b'"weight_map"' in start or b'"metadata"' in start else ForeignKind("a JSON text", _EARLIER)
    return None


def _foreign_zip(names: list[str]) -> ForeignKind | None:
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return _TORCHSCRIPT
    if any(
        name.endswith(("serialized_exported_program.json", "/archive_format", "models/model.json")) for name in names
    ):
        return _EXPORTED
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return ForeignKind("a numpy archive", SAVE)
    inner = [name for name in names if name.endswith((".pt", ".pth", ".bin"))]
    if inner:
        return ForeignKind(f"a zip archive with '{shorten(inner[0])}' in it", _UNPACK)
    return ForeignKind("a zip archive that was not written by torch.save", _UNPACK)


def _folder(path: Path) -> CheckpointError:
    """The error for a folder, saying whose it is."""
    why, fix = "There is a folder of that name.", "Give --ckpt the path of a .pt or .pth file."
    names = {entry.name for entry in path.iterdir()} if os.access(path, os.R_OK | os.X_OK) else set()
    if "config.json" in names:
        why = "It is a folder, as Hugging Face keeps models; MADTP's checkpoints are one file with other keys."
    elif {"zero_to_fp32.py", "latest"} & names:
        why = "It is a folder, as DeepSpeed keeps checkpoints."
        fix = "Run the zero_to_fp32.py in it, and give --ckpt the file that it writes."
    elif any(name.endswith(".distcp") for name in names):
        why = "It is a folder of a distributed checkpoint."
        fix = "Run 'python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER x.pt', and give it x.pt."
    elif {"data.pkl", "version"} <= names:
        why, fix = "It is a folder: a checkpoint that was unpacked.", "Give --ckpt the file that it was unpacked from."
    return CheckpointError(f"no checkpoint at '{path}'", why, fix)


def _check_zip(path: Path, size: int) -> set[str]:
    """Hold a zip file to what torch.save writes; what its pickle refers to.

    torch.save never compresses, so nothing in a file can be larger than the file: a few bytes that unpack to gigabytes
    are refused by the archive's table of contents.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            unpacked = sum(entry.file_size for entry in entries)
            if packed or unpacked > size:
                why = f"{len(packed)} entries are compressed" if packed else "Entries overlap"
                raise CheckpointError(
                    f"the checkpoint '{path}' is a zip file that torch.save did not write",
                    f"{why}: {size_text(size)} would become {size_text(unpacked)}. "
                    "torch.save stores entries as they are. Nothing was unpacked.",
                    "If you trust it, load it with torch.load and save it again with torch.save.",
                )
            root = entries[0].filename.partition("/")[0]
            return _names(path, io.BytesIO(archive.read(f"{root}/data.pkl")))
    except (*_DAMAGED_ZIP, KeyError) as error:
        raise damaged(path, "" if isinstance(error, KeyError) else str(error)) from error


def _check_pickles(path: Path, start: bytes) -> set[str]:
    """What the pickles of a file from before torch 1.6 refer to, read without running any of them."""
    if not start or not os.path.getsize(path):  # the latter of /proc, whose files have no size
        raise damaged(path, "", empty=True)
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # A pickle cannot claim more than is left of a mapped file.
        stream: Any = content
        if start.startswith(LEGACY):
            return set[str]().union(*(_names(path, stream) for _ in range(LEGACY_PICKLES)))
        if re.match(rb"\x80[\x02-\x05]", start):
            try:
                names = _names(path, stream)
            except CheckpointError:
                names = set()
            raise more_than_tensors(path, names, "it is a plain Python pickle")
    raise damaged(path, "")


def _names(path: Path, file: IO[bytes]) -> set[str]:
    """Classes and functions that a pickle refers to, as `module.name`; nothing of it is run."""
    names, strings = set[str](), ("", "")
    try:
        for step, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if step > MOST_STEPS:
                raise CheckpointError(
                    f"the checkpoint '{path}' holds far more than a model",
                    f"Its pickle has more than {MOST_STEPS:,} steps; that of a model has some 200,000.",
                    SAVE,
                )
            if operation.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", ".", 1).replace("__builtin__.", "builtins."))
            elif operation.name == "STACK_GLOBAL":
                names.add(".".join(strings))
            elif isinstance(argument, str):
                strings = (strings[1], argument)
    except DAMAGED as error:  # cut short, or bytes that are no pickle
        raise damaged(path, "") from error
    return names


def more_than_tensors(path: Path, names: Iterable[str], what: str) -> CheckpointError:
    """The error for a file that could run code, or claim memory, with the lines that save its tensors alone."""
    others = sorted(name for name in names if not _PLAIN.fullmatch(name))
    refers = f"it refers to {listing(others)}" if others else what
    if others and what.startswith("it is"):
        refers = f"{what}, and refers to {listing(others)}"
    whole = any(name.startswith("torch.nn.modules.") for name in others)
    state = (
        "content.state_dict()  # or content['model'].state_dict()"
        if whole
        else "content['model']  # or content['state_dict'], or model.state_dict() of a whole model"
    )
    temperature = "0.5  # that it was trained at" if whole else "float(content['temperature'])"
    return CheckpointError(
        f"the checkpoint '{path}' holds more than tensors, numbers and strings",
        f"Loading it could run code stored in it, or take any memory: {refers}. Nothing of it was run.",
        "If you trust it, save its tensors alone, where its classes can be imported:\n"
        f"  content = torch.load('{path.name}', map_location='cpu', weights_only=False)\n"
        f"  state = {state}\n"
        f"  temperature = {temperature}\n"
        "  torch.save({'model': state, 'temperature': temperature}, 'new.pt')",
    )


def damaged(path: Path, reason: str, *, empty: bool = False) -> CheckpointError:
    """The error for a file that is cut short, or of another kind; `reason` is what a reader said of it."""
    reason = reason.strip().split(". ")[0].splitlines()[0][:200] if reason.strip() else ""
    why = f"The file is truncated, or was not written by torch.save{f' ({reason})' if reason else ''}."
    return CheckpointError(
        f"cannot read the checkpoint '{path}'",
        "The file is empty." if empty else why,
        "Copy or download it again and compare its size with the original.",
    )


def too_large(path: Path) -> CheckpointError:
    """The error for a file that does not fit into memory."""
    return CheckpointError(
        f"cannot read the checkpoint '{path}'",
        "It asks for more memory than this machine gives; the file is damaged, or too large.",
        "Compare its size with the original, or use a machine with more memory.",
    )


def size_text(number: int) -> str:
    """Bytes as "1,234 MB"."""
    power = min((len(str(number)) - 1) // 3, 4)
    return f"{number // 1000**power:,} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
