"""Readers of the standard annotation files of every task (docs/data.md). Nothing here decodes an image."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp.data.images import image_path
from madtp.data.texts import check_answers, shown, text_fault
from madtp.errors import InputError
from madtp.files.inputs import decode_text, read_bytes

TASKS = ("nlvr", "vqa", "caption", "retrieval", "clip")
RETRIEVAL_TASKS = ("retrieval", "clip")
SPLITS = ("test", "val", "train")  # by default the first of test and val whose file is there
ANNOTATION_FOLDERS = ("", "annotation", "annotations")
IMAGE_FOLDERS = ("", "images")
ANSWER_LIST = "answer_list.json"
COCO_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015"}
FLICKR_IMAGES = "flickr30k-images"
LABELS = {"true": True, "false": False}
PAGE = "docs/data.md"
MOST_BYTES = 2**31  # of an annotation file
NAMED = 3  # missing images that a message names
IDS = ("question_id", "identifier", "image_id", "cocoid")  # of an entry, the first that it has names it in messages

Id = int | str  # as the annotation writes it


@dataclass(frozen=True)
class NlvrItem:
    """Two images, and a sentence that is true of them or not (None where the file does not say).

    `key` is the entry's identifier, or without one its number as text.
    """

    images: tuple[Path, Path]
    sentence: str
    label: bool | None
    key: Id


@dataclass(frozen=True)
class VqaItem:
    """An image, a question about it, and what people answered (ten answers in VQAv2, none in its test split)."""

    image: Path
    question: str
    answers: tuple[str, ...]
    key: Id


@dataclass(frozen=True)
class CaptionItem:
    """An image and the captions that people wrote for it.

    `key` is the image's id; where the file gives none, the image's name there, and `named` is true.
    """

    image: Path
    captions: tuple[str, ...]
    key: Id
    named: bool = False


Item = NlvrItem | VqaItem | CaptionItem


@dataclass(frozen=True)
class RetrievalData:
    """Images, all texts in the order of their images, and the indices of the texts of each image."""

    images: list[Path]
    texts: list[str]
    texts_of_image: list[list[int]]


@dataclass(frozen=True)
class Source:
    """A file that was read."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A split of a data set, read for a task.

    Attributes:
        task: one of TASKS.
        split: "test", "val" or "train".
        sources: the files that it was read from, the annotation file first.
        items: one for each question, sentence, or (caption, retrieval, clip) image.
        retrieval: the same for the tasks that rank; None for the others.
        answer_list: the answers that vqa ranks, where the file is there.
        missing: image files that are not there; items that need them were left out.
    """

    task: str
    split: str
    sources: tuple[Source, ...]
    items: tuple[Item, ...]
    retrieval: RetrievalData | None
    answer_list: tuple[str, ...] | None
    missing: tuple[Path, ...]

    @property
    def annotation(self) -> Path:
        """The annotation file."""
        return self.sources[0].path

    @property
    def sha256(self) -> str:
        """Of the annotation file."""
        return self.sources[0].sha256

    def __len__(self) -> int:
        return len(self.items)


def read_dataset(
    task: str, folder: Path, split: str | None = None, *, skip_missing: bool = False, allow_outside: bool = False
) -> Dataset:
    """What the standard annotation file in `folder` says for a task.

    Args:
        task: one of TASKS.
        folder: holds the annotation file (or has it in `annotation/`), and the images at the paths that the file names
            (or in `images/`).
        split: "test", "val" ("dev" is the same) or "train"; None takes test if it is there, else val.
        skip_missing: leave out what needs an image that is not there, instead of refusing the folder.
        allow_outside: also take images whose names lead out of the folder.

    Raises:
        InputError: no such folder, file or split, an entry that cannot be used, images that are not there.
    """
    if task not in TASKS:
        raise InputError(f"there is no task '{task}'", "", f"The tasks are {', '.join(TASKS)}.")
    if split not in (None, "dev", *SPLITS):
        raise InputError(f"there is no split '{split}'", "", f"The splits are {', '.join(SPLITS)}.")
    if not _exists(folder, folder=True):
        raise InputError(
            f"there is no folder '{folder}'",
            "It should hold a data set.",
            "Name one with an annotation file and images.",
        )
    path, split = _find_annotation(task, folder, "val" if split == "dev" else split)
    reader = _Reader(folder, path, allow_outside)
    items: Sequence[Item]
    if task == "nlvr":
        items = _nlvr(reader)
    elif task == "vqa":
        items = _original_vqa(reader, split) if path.name.startswith("v2_") else _vqa(reader)
    else:
        items = _karpathy(reader, split) if path.name.startswith("dataset_") else _captions(reader)
    kept = tuple(item for item in items if not any(image in reader.missing for image in _images(item)))
    if reader.missing and not (skip_missing and kept):
        raise _missing_error(reader, [image for item in items for image in _images(item)], len(kept))
    answers = _answer_list(reader) if task == "vqa" else None
    return Dataset(
        task,
        split,
        tuple(reader.sources),
        kept,
        _retrieval_data(kept) if task in RETRIEVAL_TASKS else None,
        answers,
        tuple(reader.missing),
    )


def annotation_names(task: str, split: str) -> tuple[tuple[str, ...], ...]:
    """Names of the annotation files of a split: one tuple for each data set, its preferred file first."""
    if task == "nlvr":
        return ((f"nlvr_{'dev' if split == 'val' else split}.json",),)
    if task == "vqa":
        return ((f"vqa_{split}.json", f"v2_OpenEnded_mscoco_{COCO_YEARS[split]}_questions.json"),)
    return (
        (f"coco_karpathy_{split}.json", "dataset_coco.json"),
        (f"flickr30k_{split}.json", "dataset_flickr30k.json"),
    )


def _find_annotation(task: str, folder: Path, split: str | None) -> tuple[Path, str]:
    """The annotation file, and the split that it is of."""
    splits = SPLITS[:2] if split is None else (split,)
    for candidate in splits:
        found = []
        for names in annotation_names(task, candidate):
            there = [path for name in names if (path := _in_folders(folder, ANNOTATION_FOLDERS, name)) is not None]
            found.extend(there[:1])
        if len(found) > 1:
            raise InputError(
                f"'{folder}' holds two data sets: '{found[0].name}' and '{found[1].name}'",
                "Which of them is meant cannot be told.",
                "Give each a folder of its own.",
            )
        if found:
            return found[0], candidate
    wanted = [name for candidate in splits for names in annotation_names(task, candidate) for name in names]
    raise InputError(
        f"'{folder}' has no annotation file of the task {task}",
        f"Looked for {', '.join(dict.fromkeys(wanted))}.",
        "Put it there, or name another split.",
    )


@dataclass(frozen=True)
class _Entry:
    """Entry `number` of an annotation file."""

    path: Path
    number: int
    content: dict[str, Any]

    @property
    def where(self) -> str:
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
        return InputError(f'{self.where} has no "{key}" that can be used', why, fix)


class _Reader:
    """The annotation file of a folder; collects the files read and the images that are not there."""

    def __init__(self, folder: Path, path: Path, allow_outside: bool = False) -> None:
        self.folder, self.path, self.allow_outside = folder, path, allow_outside
        self.sources: list[Source] = []
        self.missing: dict[Path, None] = {}  # a set that keeps its order
        self._images: dict[str, Path] = {}

    def json(self, path: Path) -> Any:
        """What a file holds; remembered as a source."""
        try:
            data = read_bytes(path, MOST_BYTES)
            content = json.loads(decode_text(data))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read '{path}'", str(error), "It has to be a JSON file; get it again.") from error
        self.sources.append(Source(path, hashlib.sha256(data).hexdigest()))
        return content

    def entries(self, key: str | None = None, path: Path | None = None) -> list[_Entry]:
        """The entries of the annotation file (or of `path`): of the list that it is, or of its list `key`."""
        path = path or self.path
        content = self.json(path)
        if key is not None:
            content = content.get(key) if isinstance(content, dict) else None
        if not isinstance(content, list) or not content:
            what = "is no list of entries" if key is None else f'has no list "{key}"'
            raise InputError(f"'{path}' {what}, or an empty one", "", f"Get the file again; {PAGE} describes it.")
        for number, entry in enumerate(content):
            if not isinstance(entry, dict):
                raise InputError(
                    f"entry {number} of '{path}' is no object", "", f"Get the file again; {PAGE} describes it."
                )
        return [_Entry(path, number, entry) for number, entry in enumerate(content)]

    def image(self, name: str) -> Path:
        """Where an image lies; remembered as missing where it should if it is not there."""
        if name not in self._images:
            places = [self.folder / place for place in IMAGE_FOLDERS]
            paths = [image_path(place, name, self.path, self.allow_outside) for place in places]
            path = next((path for path in paths if _exists(path)), None)
            self._images[name] = path or self.folder / name
            if path is None:
                self.missing[self.folder / name] = None
        return self._images[name]


class _UniqueIds:
    """Takes the id `name` of each entry, and refuses the second entry with the same.

    1 and "1" count as the same: as a name in a JSON object, which results are often joined by, they are.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: dict[str, _Entry] = {}

    def take(self, entry: _Entry, otherwise: str | None = None) -> Id:
        """The id; where the entry has none, `otherwise`, if there is such."""
        return self.add(entry.id(self._name) if otherwise is None or self._name in entry.content else otherwise, entry)

    def add(self, value: Id, entry: _Entry) -> Id:
        """An id that was taken from the entry."""
        first = self._first.setdefault(str(value), entry)
        if first is not entry:
            raise InputError(
                f"{entry.where} has the {self._name} {value!s:.60} of entry {first.number}",
                'Each has to be there once (1 and "1" are one), or it would be counted twice.',
                "Remove one of them.",
            )
        return value


def _nlvr(reader: _Reader) -> list[NlvrItem]:
    items, ids = [], _UniqueIds("identifier")
    for entry in reader.entries():
        names = entry.names("images")
        if len(names) != 2 or not all(name.strip() for name in names):
            raise InputError(f"{entry.where} does not name two images", 'It has to have "images": [left, right].')
        label = entry.content.get("label")
        if label is not None and str(label).lower() not in LABELS:
            raise InputError(f"the label of {entry.where} is {label!r:.60}", 'It has to be "True" or "False".')
        items.append(
            NlvrItem(
                (reader.image(names[0]), reader.image(names[1])),
                entry.text("sentence"),
                None if label is None else LABELS[str(label).lower()],
                ids.take(entry, str(entry.number)),
            )
        )
    return items


def _vqa(reader: _Reader) -> list[VqaItem]:
    """The files of BLIP; a question of Visual Genome has one answer, a string."""
    items, ids = [], _UniqueIds("question_id")
    for entry in reader.entries():
        answers = entry.texts("answer") if "answer" in entry.content else ()
        items.append(VqaItem(reader.image(entry.name("image")), entry.text("question"), answers, ids.take(entry)))
    return items


def _original_vqa(reader: _Reader, split: str) -> list[VqaItem]:
    """VQAv2 as its authors publish it: questions and answers in two files, images by number."""
    year = COCO_YEARS[split]
    items, ids = [], _UniqueIds("question_id")
    questions = reader.entries("questions")
    answers = _original_answers(reader, year) if split != "test" else {}
    for entry in questions:
        key, number = ids.take(entry), entry.content.get("image_id")
        if split != "test" and key not in answers:
            raise InputError(
                f"the question {key}, {entry.where}, has no answers in '{reader.sources[1].path}'",
                f"The two files do not belong together: ids have to be written alike, here {json.dumps(key):.60}.",
                "Get both again from one release.",
            )
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise InputError(
                f'{entry.where} has no "image_id" that can be used', "It has to be a whole number, not negative."
            )
        image = reader.image(f"{year}/COCO_{year}_{number:012d}.jpg")
        items.append(VqaItem(image, entry.text("question"), answers.get(key, ()), key))
    return items


def _original_answers(reader: _Reader, year: str) -> dict[Id, tuple[str, ...]]:
    path, ids = reader.path.with_name(f"v2_mscoco_{year}_annotations.json"), _UniqueIds("question_id")
    # Of the ten people some may have typed nothing, which no answer equals.
    return {ids.take(entry): entry.texts("answers", "answer", True) for entry in reader.entries("annotations", path)}


def _answer_list(reader: _Reader) -> tuple[str, ...] | None:
    path = _in_folders(reader.folder, ANNOTATION_FOLDERS, ANSWER_LIST)
    if path is None:
        return None
    return check_answers(reader.json(path), f"'{path}' is")


def _captions(reader: _Reader) -> list[CaptionItem]:
    """The files of BLIP: all captions of an image in one entry (val, test), or one each in several entries (train)."""
    items: dict[str, CaptionItem] = {}
    ids = _UniqueIds("image_id")
    for entry in reader.entries():
        name = entry.name("image")
        named = "image_id" not in entry.content
        key = name if named else entry.id("image_id")
        captions = entry.texts("caption")
        earlier = items.get(name)
        if earlier is None:
            ids.add(key, entry)
        elif (earlier.key, earlier.named) != (key, named):
            raise InputError(
                f"{entry.where} has another id than an earlier entry of its image '{name}'",
                f"There it is {shown(earlier.key)}, here {shown(key)}.",
                "Give both the same.",
            )
        else:
            captions = earlier.captions + captions
        items[name] = CaptionItem(reader.image(name), captions, key, named)
    return list(items.values())


def _karpathy(reader: _Reader, split: str) -> list[CaptionItem]:
    """Karpathy's own file: all splits in one; what he calls restval belongs to train."""
    items, ids = [], _UniqueIds("cocoid")
    for entry in reader.entries("images"):
        belongs = entry.name("split")
        if ("train" if belongs == "restval" else belongs) == split:
            place = entry.name("filepath") if "filepath" in entry.content else FLICKR_IMAGES
            name = f"{place}/{entry.name('filename')}"
            key, named = ids.take(entry, name), "cocoid" not in entry.content
            items.append(CaptionItem(reader.image(name), entry.texts("sentences", "raw"), key, named))
    if not items:
        raise InputError(f"'{reader.path}' has no images of the split {split}", "", "Name another split.")
    return items


def _retrieval_data(items: Sequence[Item]) -> RetrievalData:
    data = RetrievalData([], [], [])
    for item in items:
        assert isinstance(item, CaptionItem)
        data.images.append(item.image)
        data.texts_of_image.append(list(range(len(data.texts), len(data.texts) + len(item.captions))))
        data.texts.extend(item.captions)
    return data


def _images(item: Item) -> tuple[Path, ...]:
    return item.images if isinstance(item, NlvrItem) else (item.image,)


def _missing_error(reader: _Reader, images: Sequence[Path], kept: int) -> InputError:
    first = ", ".join(f"'{path}'" for path in list(reader.missing)[:NAMED])
    return InputError(
        f"{len(reader.missing)} of the {len(set(images))} images that '{reader.path}' names are not there",
        f"Looked in '{reader.folder}' and '{reader.folder / IMAGE_FOLDERS[1]}' for {first}"
        + (", ..." if len(reader.missing) > NAMED else "."),
        "Put them there, or skip what needs them." if kept else "Put them there; nothing is left without them.",
    )


def _in_folders(folder: Path, places: Sequence[str], name: str) -> Path | None:
    """`folder / place / name` of the first place that has it."""
    return next((path for place in places if _exists(path := folder / place / name)), None)


def _exists(path: Path, *, folder: bool = False) -> bool:
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:  # e.g. a name that is too long
        return False
