"""Reading what torch.save wrote, without running code or taking more memory than the file has bytes."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from madtp.checkpoint.format import DAMAGED, check_format, damaged, more_than_tensors, size_text, too_large, unreadable
from madtp.checkpoint.sizes import is_plain
from madtp.errors import CheckpointError, shorten

MOST_COPIES = 4  # of the bytes of a file that its tensors may claim: tied weights are two views of one storage
SPARE_BYTES = 2**26  # that they may claim besides


def read_archive(path: Path) -> tuple[Any, int]:
    """What torch.save put into a file, tensors memory-mapped where the format allows it, and the file's bytes.

    Raises:
        CheckpointError: no regular file, not written by torch.save, damaged, compressed, or holding more than data.
    """
    names = check_format(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about files that the errors below are about
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        return content, path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError as error:
        raise too_large(path) from error
    except pickle.UnpicklingError as error:
        raise more_than_tensors(path, names, _refused(str(error))) from error
    except DAMAGED as error:
        if type(error) is RuntimeError and "alloc" in str(error):
            raise too_large(path) from error
        raise damaged(path, str(error) if type(error) is RuntimeError else "") from error


def _refused(reason: str) -> str:
    named = re.search(r"GLOBAL (\S+)", reason)
    return f"it refers to {shorten(named[1])}" if named else "it has steps that torch.save does not write"


def check_claims(state: Mapping[str, Any], size: int, path: Path | str) -> None:
    """Refuse tensors that say they are far larger than the file: views that repeat a few bytes, never trained weights.

    Raises:
        CheckpointError: naming the largest.
    """
    claims = {
        key: value.numel() * value.element_size()
        for key, value in state.items()
        if is_plain(value) and value.device.type == "cpu"
    }
    if sum(claims.values()) > MOST_COPIES * size + SPARE_BYTES:
        largest = max(claims, key=lambda key: claims[key])
        raise CheckpointError(
            f"the tensors of '{path}' claim more than the file holds",
            f"Together {size_text(sum(claims.values()))}, in a file of {size_text(size)}; the largest is "
            f"{shorten(largest)}, {list(state[largest].shape)}: views that repeat the same bytes.",
            "Save the trained weights themselves: torch.save({key: value.contiguous() ...}).",
        )
