"""Standard annotation files are read as they are published; broken ones are refused with the entry named."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from madtp.data.datasets import CaptionItem, NlvrItem, VqaItem, read_dataset
from madtp.errors import InputError

TEN = ["yes"] * 7 + ["no", "maybe", "two"]
NLVR = [
    {"sentence": "Two dogs.", "images": ["dev/dev-0-0-img0.png", "dev/dev-0-0-img1.png"], "label": "True"},
    {"sentence": "One cat.", "images": ["dev/dev-0-0-img1.png", "dev/dev-1-0-img0.png"], "label": "False"},
]
VQA = [
    {"question_id": 262148000, "question": "Is it?", "answer": TEN, "image": "val2014/a.jpg", "dataset": "vqa"},
    {"question_id": 262148001, "question": "What?", "answer": "a dog", "image": "vg/b.jpg", "dataset": "vg"},
]
COCO = [
    {"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["A man.", "A person."]},
    {"image": "val2014/COCO_val2014_000000060623.jpg", "caption": ["A girl.", "A child.", "A dress."]},
    {"image": "val2014/COCO_val2014_000000483108.jpg", "caption": ["A train."]},
]
COCO_TRAIN = [
    {"caption": "A woman.", "image": "val2014/COCO_val2014_000000522418.jpg", "image_id": "coco_522418"},
    {"caption": "A cake.", "image": "val2014/COCO_val2014_000000522419.jpg", "image_id": "coco_522419"},
    {"caption": "A lady.", "image": "val2014/COCO_val2014_000000522418.jpg", "image_id": "coco_522418"},
]
QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 262148, "question": "Where is he?", "question_id": 262148000},
        {"image_id": 393225, "question": "What is it?", "question_id": 393225001},
    ],
}
ANSWERS = {
    "annotations": [
        {
            "question_type": "what",
            "image_id": number // 1000,
            "question_id": number,
            "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(TEN)],
        }
        for number in (393225001, 262148000)
    ]
}
QUESTION_FILE = "v2_OpenEnded_mscoco_val2014_questions.json"
ANSWER_FILE = "v2_mscoco_val2014_annotations.json"
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012d}.jpg",
            "split": split,
            "cocoid": number,
            "sentences": [{"raw": f"A {number}.", "tokens": ["a"]}, {"raw": "Another.", "tokens": ["another"]}],
        }
        for number, split in ((7, "test"), (8, "restval"), (9, "val"), (10, "test"), (11, "train"))
    ],
}
Write = Callable[..., Path]


def names_of(content: Any) -> list[str]:
    """All image names that an annotation file of this page names."""
    if isinstance(content, dict) and "questions" in content:
        return [f"val2014/COCO_val2014_{entry['image_id']:012d}.jpg" for entry in content["questions"]]
    if isinstance(content, dict):
        entries = content.get("images", [])
        return [f"{entry.get('filepath', 'flickr30k-images')}/{entry['filename']}" for entry in entries]
    return [name for entry in content for name in (entry.get("images") or [entry["image"]])]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an annotation file, and empty files for its images: they are not decoded."""

    def write(name: str, content: Any, place: str = "", images: bool = True) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for image in names_of(content) if images else ():
            (tmp_path / place / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / image).touch()
        return path

    return write


def test_nlvr(write: Write, tmp_path: Path) -> None:
    path = write("nlvr_dev.json", NLVR)
    dataset = read_dataset("nlvr", tmp_path)
    first, second, third = (
        tmp_path / "dev" / name for name in ("dev-0-0-img0.png", "dev-0-0-img1.png", "dev-1-0-img0.png")
    )
    assert dataset.items == (
        NlvrItem((first, second), "Two dogs.", True, "0"),
        NlvrItem((second, third), "One cat.", False, "1"),
    )
    assert (dataset.task, dataset.split, dataset.annotation, len(dataset)) == ("nlvr", "val", path, 2)
    assert dataset.sources[0].sha256 == sha256(path.read_bytes()).hexdigest()
    assert (dataset.retrieval, dataset.answer_list, dataset.missing) == (None, None, ())
    assert read_dataset("nlvr", tmp_path, "dev") == read_dataset("nlvr", tmp_path, "val") == dataset


def test_the_test_split_comes_first(write: Write, tmp_path: Path) -> None:
    write("nlvr_dev.json", NLVR)
    write("nlvr_train.json", NLVR)
    unlabelled = [{key: value for key, value in entry.items() if key != "label"} for entry in NLVR]
    write("nlvr_test.json", [{**entry, "identifier": f"test-{n}"} for n, entry in enumerate(unlabelled)])
    dataset = read_dataset("nlvr", tmp_path)
    assert (dataset.split, dataset.annotation.name) == ("test", "nlvr_test.json")
    assert [(item.label, item.key) for item in dataset.items] == [(None, "test-0"), (None, "test-1")]
    assert read_dataset("nlvr", tmp_path, "train").annotation.name == "nlvr_train.json"


def test_vqa_as_blip_has_it(write: Write, tmp_path: Path) -> None:
    write("annotation/vqa_val.json", VQA, place="images")
    write("annotation/answer_list.json", ["yes", "no", "2"], images=False)
    dataset = read_dataset("vqa", tmp_path)
    assert dataset.items == (
        VqaItem(tmp_path / "images/val2014/a.jpg", "Is it?", tuple(TEN), 262148000),
        VqaItem(tmp_path / "images/vg/b.jpg", "What?", ("a dog",), 262148001),
    )
    assert dataset.answer_list == ("yes", "no", "2")
    assert [source.path.name for source in dataset.sources] == ["vqa_val.json", "answer_list.json"]
    write("vqa_test.json", [{key: value for key, value in VQA[0].items() if key != "answer"}])
    assert [item.answers for item in read_dataset("vqa", tmp_path).items] == [()]


def test_vqa_as_its_authors_have_it(write: Write, tmp_path: Path) -> None:
    write(QUESTION_FILE, QUESTIONS)
    write(ANSWER_FILE, ANSWERS, images=False)
    dataset = read_dataset("vqa", tmp_path)
    folder = tmp_path / "val2014"
    assert dataset.items == (
        VqaItem(folder / "COCO_val2014_000000262148.jpg", "Where is he?", tuple(TEN), 262148000),
        VqaItem(folder / "COCO_val2014_000000393225.jpg", "What is it?", tuple(TEN), 393225001),
    )
    assert [source.path.name for source in dataset.sources] == [QUESTION_FILE, ANSWER_FILE]
    assert (dataset.split, dataset.answer_list) == ("val", None)
    (tmp_path / "test2015").mkdir()
    (tmp_path / "test2015/COCO_test2015_000000000001.jpg").touch()
    question = {"image_id": 1, "question": "Who?", "question_id": 1000}
    write("v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [question]})
    assert read_dataset("vqa", tmp_path, "test").items[0].answers == ()


@pytest.mark.parametrize("name", ["coco_karpathy_test.json", "flickr30k_test.json"])
@pytest.mark.parametrize("task", ["retrieval", "clip", "caption"])
def test_captions_of_coco_and_flickr(write: Write, tmp_path: Path, task: str, name: str) -> None:
    write(name, COCO)
    dataset = read_dataset(task, tmp_path)
    images = [tmp_path / entry["image"] for entry in COCO]
    captions = [tuple(entry["caption"]) for entry in COCO]
    assert dataset.items == tuple(
        CaptionItem(image, texts, entry["image"], named=True)
        for image, texts, entry in zip(images, captions, COCO, strict=True)
    )
    if task == "caption":
        assert dataset.retrieval is None
    else:
        assert dataset.retrieval is not None
        assert dataset.retrieval.images == images
        assert dataset.retrieval.texts == [text for texts in captions for text in texts]
        assert dataset.retrieval.texts_of_image == [[0, 1], [2, 3, 4], [5]]


def test_training_captions_are_gathered_by_image(write: Write, tmp_path: Path) -> None:
    write("coco_karpathy_train.json", COCO_TRAIN)
    items = read_dataset("caption", tmp_path, "train").items
    assert [(item.key, item.captions) for item in items] == [
        ("coco_522418", ("A woman.", "A lady.")),
        ("coco_522419", ("A cake.",)),
    ]
    with pytest.raises(InputError, match="no annotation file"):
        read_dataset("caption", tmp_path)


def test_karpathys_own_file(write: Write, tmp_path: Path) -> None:
    write("dataset_coco.json", KARPATHY)
    folder = tmp_path / "val2014"
    assert read_dataset("caption", tmp_path).items == (
        CaptionItem(folder / "COCO_val2014_000000000007.jpg", ("A 7.", "Another."), 7),
        CaptionItem(folder / "COCO_val2014_000000000010.jpg", ("A 10.", "Another."), 10),
    )
    for split, keys in (("val", [9]), ("train", [8, 11])):
        assert [item.key for item in read_dataset("retrieval", tmp_path, split).items] == keys


def test_karpathys_flickr_file(write: Write, tmp_path: Path) -> None:
    entry = {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "A dog."}]}
    write("dataset_flickr30k.json", {"images": [entry]})
    assert read_dataset("retrieval", tmp_path).items[0].image == tmp_path / "flickr30k-images/1.jpg"
    with pytest.raises(InputError, match="no images of the split val"):
        read_dataset("retrieval", tmp_path, "val")


def test_missing_images_are_counted_and_named(write: Write, tmp_path: Path) -> None:
    write("coco_karpathy_test.json", COCO)
    gone = tmp_path / COCO[0]["image"]
    gone.unlink()
    with pytest.raises(InputError, match=r"1 of the 3 images .* not there") as caught:
        read_dataset("retrieval", tmp_path)
    assert str(gone) in str(caught.value)
    dataset = read_dataset("retrieval", tmp_path, skip_missing=True)
    assert dataset.missing == (gone,)
    assert dataset.retrieval is not None
    assert dataset.retrieval.texts == ["A girl.", "A child.", "A dress.", "A train."]
    assert dataset.retrieval.texts_of_image == [[0, 1, 2], [3]]
    for entry in COCO[1:]:
        (tmp_path / entry["image"]).unlink()
    with pytest.raises(InputError, match="nothing is left"):
        read_dataset("retrieval", tmp_path, skip_missing=True)


def test_a_missing_image_takes_its_pairs_along(write: Write, tmp_path: Path) -> None:
    write("nlvr_test.json", NLVR)
    (tmp_path / NLVR[1]["images"][1]).unlink()
    dataset = read_dataset("nlvr", tmp_path, skip_missing=True)
    assert [item.key for item in dataset.items] == ["0"]
    assert dataset.missing == (tmp_path / NLVR[1]["images"][1],)
    (tmp_path / NLVR[0]["images"][1]).unlink()
    with pytest.raises(InputError, match="2 of the 3 images"):
        read_dataset("nlvr", tmp_path, skip_missing=True)


def test_names_that_no_file_can_have_are_missing_images(write: Write, tmp_path: Path) -> None:
    names = ["x" * 300, "nul\0", "..", "dev"]
    write(
        "nlvr_test.json",
        [{"sentence": "A.", "images": names[:2]}, {"sentence": "B.", "images": names[2:]}],
        images=False,
    )
    with pytest.raises(InputError, match=r"4 of the 4 images .*\n.*, \.\.\.\n"):
        read_dataset("nlvr", tmp_path)


def changed(entries: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """The entries, the second with other values; None removes a key."""
    second = {key: value for key, value in {**entries[1], **values}.items() if value is not None}
    return [entries[0], second, *entries[2:]]


@pytest.mark.parametrize("value", [{}, "text", 5, None, []])
def test_what_is_no_list_of_entries_is_refused(value: Any, write: Write, tmp_path: Path) -> None:
    for task, name in (("nlvr", "nlvr_test.json"), ("caption", "dataset_coco.json"), ("vqa", QUESTION_FILE)):
        path = write(name, value, images=False)
        with pytest.raises(InputError, match=f"'{path}' (is not a list|has no list)"):
            read_dataset(task, tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[{'a': 1}]"])
def test_what_is_no_json_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "vqa_test.json").write_bytes(data)
    with pytest.raises(InputError, match=r"cannot read '.*vqa_test\.json'"):
        read_dataset("vqa", tmp_path)


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("nlvr", "nlvr_test.json", [NLVR[0], "text"], "entry 1 of .* is not an object"),
        ("nlvr", "nlvr_test.json", changed(NLVR, images=["a"]), "entry 1 .* does not name two images"),
        ("nlvr", "nlvr_test.json", changed(NLVR, images=["a", ""]), "entry 1 .* does not name two images"),
        ("nlvr", "nlvr_test.json", changed(NLVR, images=["a", 1]), 'entry 1 .* no "images"'),
        ("nlvr", "nlvr_test.json", changed(NLVR, images=None), 'entry 1 .* no "images"'),
        ("nlvr", "nlvr_test.json", changed(NLVR, sentence=" "), 'entry 1 .* no "sentence"'),
        ("nlvr", "nlvr_test.json", changed(NLVR, sentence=3), 'entry 1 .* no "sentence"'),
        ("nlvr", "nlvr_test.json", changed(NLVR, label="perhaps"), "label of entry 1 .* 'perhaps'"),
        ("nlvr", "nlvr_test.json", changed(NLVR, label=1), "label of entry 1 .* is 1"),
        ("vqa", "vqa_val.json", changed(VQA, question_id=262148000), "entry 1 .* question_id 262148000 of entry 0"),
        ("vqa", "vqa_val.json", changed(VQA, question_id="262148000"), "entry 1 .* question_id 262148000 of entry 0"),
        ("vqa", "vqa_val.json", changed(VQA, question_id=None), 'entry 1 .* no "question_id"'),
        ("vqa", "vqa_val.json", changed(VQA, question_id=True), 'entry 1 .* no "question_id"'),
        ("vqa", "vqa_val.json", changed(VQA, question=None), 'entry 1 .* no "question"'),
        ("vqa", "vqa_val.json", changed(VQA, image=["a"]), 'entry 1 .* no "image"'),
        ("vqa", "vqa_val.json", changed(VQA, answer=[1]), 'entry 1 .* no "answer"'),
        ("vqa", "vqa_val.json", changed(VQA, answer=[]), 'entry 1 .* no "answer"'),
        ("caption", "coco_karpathy_val.json", changed(COCO, caption=[]), 'entry 1 .* no "caption"'),
        ("caption", "coco_karpathy_val.json", changed(COCO, caption={"a": 1}), 'entry 1 .* no "caption"'),
        ("clip", "flickr30k_val.json", changed(COCO, image=""), 'entry 1 .* no "image"'),
        ("clip", "dataset_coco.json", {"images": changed(KARPATHY["images"], split=None)}, 'entry 1 .* no "split"'),
        (
            "clip",
            "dataset_coco.json",
            {"images": [{**KARPATHY["images"][0], "sentences": [{"raw": "A."}, "B."]}]},
            'entry 0 .* no "sentences"',
        ),
    ],
)
def test_broken_entries_are_named(
    task: str, name: str, content: Any, message: str, write: Write, tmp_path: Path
) -> None:
    write(name, content, images=False)
    with pytest.raises(InputError, match=message):
        read_dataset(task, tmp_path)


def test_of_ten_people_one_may_have_typed_nothing(write: Write, tmp_path: Path) -> None:
    first, *others = ANSWERS["annotations"]
    write(QUESTION_FILE, QUESTIONS)
    blank = [{"answer": " "}, *first["answers"][1:]]  # type: ignore[misc]
    write(ANSWER_FILE, {"annotations": [first | {"answers": blank}, *others]}, images=False)
    assert read_dataset("vqa", tmp_path).items[1].answers == (" ", *TEN[1:])  # type: ignore[union-attr]
    printed = [{"answer": "['yes']"}, *first["answers"][1:]]  # type: ignore[misc]
    write(ANSWER_FILE, {"annotations": [first | {"answers": printed}, *others]}, images=False)
    with pytest.raises(InputError, match="printed form of a list"):
        read_dataset("vqa", tmp_path)


def test_broken_pairs_of_vqa_files_are_refused(write: Write, tmp_path: Path) -> None:
    write(QUESTION_FILE, QUESTIONS)
    with pytest.raises(InputError, match=f"cannot read '.*{ANSWER_FILE}'"):
        read_dataset("vqa", tmp_path)
    write(ANSWER_FILE, {"annotations": ANSWERS["annotations"][:1]}, images=False)
    with pytest.raises(InputError, match=f"question 262148000, entry 0 .* no answers in '.*{ANSWER_FILE}'"):
        read_dataset("vqa", tmp_path)
    write(ANSWER_FILE, {"annotations": ANSWERS["annotations"] * 2}, images=False)
    with pytest.raises(InputError, match=r"entry 2 .* 393225001 of entry 0"):
        read_dataset("vqa", tmp_path)
    write(ANSWER_FILE, ANSWERS, images=False)
    write(QUESTION_FILE, {"questions": changed(QUESTIONS["questions"], image_id="7")}, images=False)
    with pytest.raises(InputError, match=r'entry 1 .* no "image_id"'):
        read_dataset("vqa", tmp_path)


@pytest.mark.parametrize("answers", [[], {}, ["yes", "yes"], ["yes", 1]])
def test_broken_answer_lists_are_refused(answers: Any, write: Write, tmp_path: Path) -> None:
    write("vqa_val.json", VQA)
    write("answer_list.json", answers, images=False)
    with pytest.raises(InputError, match="not a list of different answers"):
        read_dataset("vqa", tmp_path)


def test_what_is_not_there_is_refused(write: Write, tmp_path: Path) -> None:
    for task, split, folder, message in (
        ("nlvr2", None, tmp_path, "there is no task 'nlvr2'"),
        ("nlvr", "nonsense", tmp_path, "there is no split 'nonsense'"),
        ("nlvr", None, tmp_path / "nowhere", "there is no folder"),
        ("nlvr", None, tmp_path / ("x" * 300), "there is no folder"),
        ("nlvr", None, tmp_path, r"Looked for nlvr_test\.json, nlvr_dev\.json\."),
        ("vqa", "train", tmp_path, r"vqa_train\.json, v2_OpenEnded_mscoco_train2014_questions\.json"),
    ):
        with pytest.raises(InputError, match=message):
            read_dataset(task, folder, split)
    write("coco_karpathy_test.json", COCO)
    write("flickr30k_test.json", COCO)
    with pytest.raises(InputError, match="holds two data sets"):
        read_dataset("retrieval", tmp_path)
