"""Only regular files of a sensible size are read, whatever is behind a name; a byte-order mark is no text."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from madtp.files.inputs import open_regular, read_bytes, read_json, read_text, sha256


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, sha256, open_regular])
def test_what_could_be_read_for_ever_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="It is a pipe"):
        read(pipe)
    with pytest.raises(OSError, match="It is a device"):
        read(Path("/dev/zero"))
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="It is a device"):
        read(link)


def test_a_socket_a_folder_and_nothing_are_told_apart(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="It is a socket"):
            read_bytes(tmp_path / "socket")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "nothing")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match=r"1000000\.0 MB; at most 268\.4 MB"):
        read_bytes(path)
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(ValueError, match="at most"):
        read_bytes(path, most=4)


def test_text_with_and_without_a_mark_is_the_same(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_text('["café"]', encoding="utf-8")
    marked.write_text('["café"]', encoding="utf-8-sig")
    assert read_text(plain) == read_text(marked) == '["café"]'
    assert read_json(plain) == read_json(marked) == ["café"]
    marked.write_bytes("[]".encode("utf-16"))
    with pytest.raises(UnicodeDecodeError):
        read_text(marked)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", json.dumps("\ud800"), "", "[1,]"])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"."):
        read_json(path)
