"""Annotation files: their entries, with every fault named, and the images that they name. Nothing is decoded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp.data.images import image_path
from madtp.data.texts import shown, text_fault
from madtp.errors import InputError
from madtp.files.inputs import decode_text, read_bytes

PAGE = "docs/data.md"
MOST_BYTES = 2**31  # of an annotation file
IDS = ("question_id", "identifier", "image_id", "cocoid")  # of an entry, the first that it has names it in messages
IMAGE_FOLDERS = ("", "images")
LABELS = {"true": True, "false": False}
Id = int | str  # as the annotation writes it


@dataclass(frozen=True)
class SourceFile:
    """A file that was read."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Entry:
    """Entry `number` of an annotation file."""

    path: Path
    number: int
    content: dict[str, Any]

    @property
    def place(self) -> str:
        known = next((f" ({name} {shown(self.content[name])})" for name in IDS if name in self.content), "")
        return f"entry {self.number} of '{self.path}'{known}"

    def name(self, key: str) -> str:
        """A string that names something, a file or a split."""
        value = self.content.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self._error(key, f"It is {shown(value)}.", "It has to be a string with something in it.")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names."""
        value = self.content.get(key)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._error(key, f"It is {shown(value)}.", 'It has to be a list ["...", ...].')
        return tuple(value)

    def text(self, key: str) -> str:
        """A string that says something."""
        value = self.content.get(key)
        fault = text_fault(value)
        if fault is not None:
            raise self._error(key, f"It {fault}: {shown(value)}.", "It has to be a string with something in it.")
        return str(value)

    def texts(self, key: str, inner: str | None = None, blank: bool = False) -> tuple[str, ...]:
        """A list of strings, or of objects with a string `inner`; one string stands for a list of one.

        With `blank` strings that say nothing are taken too.
        """
        value = self.content.get(key)
        form = '["...", ...]' if inner is None else f'[{{"{inner}": "..."}}, ...]'
        if isinstance(value, str):
            return (self.text(key),)
        if not isinstance(value, list) or not value:
            raise self._error(key, f"It is {shown(value)}.", f"It has to be a list {form}, not empty.")
        texts = []
        for number, text in enumerate(value):
            if inner is not None:
                text = text.get(inner) if isinstance(text, dict) else None
            fault = text_fault(text)
            if fault is not None and not (blank and isinstance(text, str) and not text.strip()):
                why = f"Counted from 0, number {number} of it {fault}: {shown(value[number])}."
                raise self._error(key, why, f"It has to be a list {form}, and each has to say something.")
            texts.append(text)
        return tuple(texts)

    def id(self, key: str) -> Id:
        """A whole number, or a string that is not blank; nothing is made of it."""
        value = self.content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            why = f"It is {shown(value)}." if key in self.content else ""
            raise self._error(key, why, "It has to be a whole number, or a string with something in it.")
        return value

    def _error(self, key: str, why: str, fix: str) -> InputError:
        return InputError(f'{self.place} has no "{key}" that can be used', why, fix)


class AnnotationReader:
    """The annotation file of a folder; collects the files read and the images that are not there."""

    def __init__(self, folder: Path, path: Path, allow_outside: bool = False) -> None:
        self.folder, self.path, self.allow_outside = folder, path, allow_outside
        self.sources: list[SourceFile] = []
        self.missing: dict[Path, None] = {}  # a set that keeps its order
        self._images: dict[str, Path] = {}

    def json(self, path: Path) -> Any:
        """What a file holds; remembered as a source."""
        try:
            data = read_bytes(path, MOST_BYTES)
            content = json.loads(decode_text(data))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read '{path}'", str(error), "It has to be a JSON file; get it again.") from error
        self.sources.append(SourceFile(path, hashlib.sha256(data).hexdigest()))
        return content

    def entries(self, key: str | None = None, path: Path | None = None) -> list[Entry]:
        """The entries of the annotation file (or of `path`): of the list that it is, or of its list `key`."""
        path = path or self.path
        content = self.json(path)
        if key is not None:
            content = content.get(key) if isinstance(content, dict) else None
        if not isinstance(content, list) or not content:
            what = "is not a list of entries" if key is None else f'has no list "{key}"'
            raise InputError(f"'{path}' {what}, or an empty one", "", f"Get the file again; {PAGE} describes it.")
        for number, entry in enumerate(content):
            if not isinstance(entry, dict):
                raise InputError(
                    f"entry {number} of '{path}' is not an object", "", f"Get the file again; {PAGE} describes it."
                )
        return [Entry(path, number, entry) for number, entry in enumerate(content)]

    def image(self, name: str) -> Path:
        """Where an image lies; remembered as missing where it should if it is not there."""
        if name not in self._images:
            places = [self.folder / place for place in IMAGE_FOLDERS]
            paths = [image_path(place, name, self.path, self.allow_outside) for place in places]
            path = next((path for path in paths if is_there(path)), None)
            self._images[name] = path or self.folder / name
            if path is None:
                self.missing[self.folder / name] = None
        return self._images[name]


class UniqueIds:
    """Takes the id `name` of each entry, and refuses the second entry with the same.

    1 and "1" count as the same: as a name in a JSON object, which results are often joined by, they are.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: dict[str, Entry] = {}

    def take(self, entry: Entry, otherwise: str | None = None) -> Id:
        """The id; where the entry has none, `otherwise`, if there is such."""
        return self.add(entry.id(self._name) if otherwise is None or self._name in entry.content else otherwise, entry)

    def add(self, value: Id, entry: Entry) -> Id:
        """An id that was taken from the entry."""
        first = self._first.setdefault(str(value), entry)
        if first is not entry:
            raise InputError(
                f"{entry.place} has the {self._name} {value!s:.60} of entry {first.number}",
                'Each has to be there once (1 and "1" are one), or it would be counted twice.',
                "Remove one of them.",
            )
        return value


def in_folders(folder: Path, places: Sequence[str], name: str) -> Path | None:
    """`folder / place / name` of the first place that has it."""
    return next((path for place in places if is_there(path := folder / place / name)), None)


def is_there(path: Path, *, folder: bool = False) -> bool:
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:  # e.g. a name that is too long
        return False
