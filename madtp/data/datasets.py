"""Readers of the standard annotation files of every task (docs/data.md). Nothing here decodes an image."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from madtp.data.annotations import (
    IMAGE_FOLDERS,
    LABELS,
    AnnotationReader,
    Id,
    SourceFile,
    UniqueIds,
    in_folders,
    is_there,
)
from madtp.data.texts import check_answers, shown
from madtp.errors import InputError

TASKS = ("nlvr", "vqa", "caption", "retrieval", "clip")
RETRIEVAL_TASKS = ("retrieval", "clip")
SPLITS = ("test", "val", "train")  # by default the first of test and val whose file is there
ANNOTATION_FOLDERS = ("", "annotation", "annotations")
ANSWER_LIST = "answer_list.json"
COCO_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015"}
FLICKR_IMAGES = "flickr30k-images"
NAMED = 3  # missing images that a message names


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
class Dataset:
    """A split of a data set, read for a task.

    Attributes:
        sources: the files that it was read from, the annotation file first.
        items: one for each question, sentence, or (caption, retrieval, clip) image.
        retrieval: the same for the tasks that rank; None for the others.
        answer_list: the answers that vqa ranks, where the file is there.
        missing: image files that are not there; items that need them were left out.
    """

    task: str
    split: str
    sources: tuple[SourceFile, ...]
    items: tuple[Item, ...]
    retrieval: RetrievalData | None
    answer_list: tuple[str, ...] | None
    missing: tuple[Path, ...]

    @property
    def annotation(self) -> Path:
        """The annotation file."""
        return self.sources[0].path

    def __len__(self) -> int:
        return len(self.items)


def read_dataset(
    task: str, folder: Path, split: str | None = None, *, skip_missing: bool = False, allow_outside: bool = False
) -> Dataset:
    """What the standard annotation file in `folder` says for a task.

    Args:
        folder: holds the annotation file (or has it in `annotation/`), and the images at the paths that the file names
            (or in `images/`).
        split: "test", "val" ("dev" is the same) or "train"; None takes test if it is there, else val.
        skip_missing: leave out what needs an image that is not there, instead of refusing the folder.

    Raises:
        InputError: no such folder, file or split, an entry that cannot be used, images that are not there.
    """
    if task not in TASKS:
        raise InputError(f"there is no task '{task}'", "", f"The tasks are {', '.join(TASKS)}.")
    if split not in (None, "dev", *SPLITS):
        raise InputError(f"there is no split '{split}'", "", f"The splits are {', '.join(SPLITS)}.")
    if not is_there(folder, folder=True):
        raise InputError(
            f"there is no folder '{folder}'",
            "It should hold a data set.",
            "Name one with an annotation file and images.",
        )
    path, split = _find_annotation(task, folder, "val" if split == "dev" else split)
    reader = AnnotationReader(folder, path, allow_outside)
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
            there = [path for name in names if (path := in_folders(folder, ANNOTATION_FOLDERS, name)) is not None]
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


def _nlvr(reader: AnnotationReader) -> list[NlvrItem]:
    items, ids = [], UniqueIds("identifier")
    for entry in reader.entries():
        names = entry.names("images")
        if len(names) != 2 or not all(name.strip() for name in names):
            raise InputError(f"{entry.place} does not name two images", 'It has to have "images": [left, right].')
        label = entry.content.get("label")
        if label is not None and str(label).lower() not in LABELS:
            raise InputError(f"the label of {entry.place} is {label!r:.60}", 'It has to be "True" or "False".')
        items.append(
            NlvrItem(
                (reader.image(names[0]), reader.image(names[1])),
                entry.text("sentence"),
                None if label is None else LABELS[str(label).lower()],
                ids.take(entry, str(entry.number)),
            )
        )
    return items


def _vqa(reader: AnnotationReader) -> list[VqaItem]:
    """The files of BLIP; a question of Visual Genome has one answer, a string."""
    items, ids = [], UniqueIds("question_id")
    for entry in reader.entries():
        answers = entry.texts("answer") if "answer" in entry.content else ()
        items.append(VqaItem(reader.image(entry.name("image")), entry.text("question"), answers, ids.take(entry)))
    return items


def _original_vqa(reader: AnnotationReader, split: str) -> list[VqaItem]:
    """VQAv2 as its authors publish it: questions and answers in two files, images by number."""
    year = COCO_YEARS[split]
    items, ids = [], UniqueIds("question_id")
    questions = reader.entries("questions")
    answers = _original_answers(reader, year) if split != "test" else {}
    for entry in questions:
        key, number = ids.take(entry), entry.content.get("image_id")
        if split != "test" and key not in answers:
            raise InputError(
                f"the question {key}, {entry.place}, has no answers in '{reader.sources[1].path}'",
                f"The two files do not belong together: ids have to be written alike, here {json.dumps(key):.60}.",
                "Get both again from one release.",
            )
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise InputError(
                f'{entry.place} has no "image_id" that can be used', "It has to be a whole number, not negative."
            )
        image = reader.image(f"{year}/COCO_{year}_{number:012d}.jpg")
        items.append(VqaItem(image, entry.text("question"), answers.get(key, ()), key))
    return items


def _original_answers(reader: AnnotationReader, year: str) -> dict[Id, tuple[str, ...]]:
    path, ids = reader.path.with_name(f"v2_mscoco_{year}_annotations.json"), UniqueIds("question_id")
    # Of the ten people some may have typed nothing, which no answer equals.
    return {ids.take(entry): entry.texts("answers", "answer", True) for entry in reader.entries("annotations", path)}


def _answer_list(reader: AnnotationReader) -> tuple[str, ...] | None:
    path = in_folders(reader.folder, ANNOTATION_FOLDERS, ANSWER_LIST)
    if path is None:
        return None
    return check_answers(reader.json(path), f"'{path}' is")


def _captions(reader: AnnotationReader) -> list[CaptionItem]:
    """The files of BLIP: all captions of an image in one entry (val, test), or one each in several entries (train)."""
    items: dict[str, CaptionItem] = {}
    ids = UniqueIds("image_id")
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
                f"{entry.place} has another id than an earlier entry of its image '{name}'",
                f"There it is {shown(earlier.key)}, here {shown(key)}.",
                "Give both the same.",
            )
        else:
            captions = earlier.captions + captions
        items[name] = CaptionItem(reader.image(name), captions, key, named)
    return list(items.values())


def _karpathy(reader: AnnotationReader, split: str) -> list[CaptionItem]:
    """Karpathy's own file: all splits in one; what he calls restval belongs to train."""
    items, ids = [], UniqueIds("cocoid")
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


def _missing_error(reader: AnnotationReader, images: Sequence[Path], kept: int) -> InputError:
    first = ", ".join(f"'{path}'" for path in list(reader.missing)[:NAMED])
    return InputError(
        f"{len(reader.missing)} of the {len(set(images))} images that '{reader.path}' names are not there",
        f"Looked in '{reader.folder}' and '{reader.folder / IMAGE_FOLDERS[1]}' for {first}"
        + (", ..." if len(reader.missing) > NAMED else "."),
        "Put them there, or skip what needs them." if kept else "Put them there; nothing is left without them.",
    )
