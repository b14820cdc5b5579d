"""Ids of data sets come out as they went in, type and spelling; what is no id is refused with its entry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.evaluate.items import _image_id
from madtp.data.datasets import CaptionItem, NlvrItem, VqaItem, read_dataset
from madtp.errors import InputError
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran
from tests.helpers.datasets import VAL, question, write

IDS: list[Any] = ["01827492", "1827492", "3.5", "a-7", 42, -3, 10**30, "é 犬", " 7 ", "1e3", "None"]
NO_IDS: list[Any] = [None, True, False, 3.5, 42.0, [], ["7"], {}, "", "  \t"]


def sentence(key: Any) -> dict[str, Any]:
    return {"identifier": key, "sentence": "a digit", "images": [VAL, VAL], "label": "True"}


def caption(key: Any, number: int = 42) -> dict[str, Any]:
    return {"image_id": key, "image": f"val2014/{number}.jpg", "caption": ["a digit"]}


def karpathy(key: Any, number: int = 42) -> dict[str, Any]:
    place = {"filepath": "val2014", "filename": f"{number}.jpg", "split": "test"}
    return {"cocoid": key, "sentences": [{"raw": "a digit"}]} | place


FORMS: dict[str, tuple[str, str, Callable[[list[Any]], Any]]] = {
    "vqa": ("vqa", "vqa_val.json", lambda ids: [question(key) for key in ids]),
    "nlvr": ("nlvr", "nlvr_test.json", lambda ids: [sentence(key) for key in ids]),
    "caption": ("caption", "coco_karpathy_test.json", lambda ids: [caption(key, n) for n, key in enumerate(ids)]),
    "karpathy": (
        "caption",
        "dataset_coco.json",
        lambda ids: {"images": [karpathy(key, n) for n, key in enumerate(ids)]},
    ),
}


def keys(items: Any) -> list[Any]:
    return [(type(item.key), item.key) for item in items]


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_as_they_are_written(form: str, tmp_path: Path) -> None:
    task, name, entries = FORMS[form]
    items = read_dataset(task, write(tmp_path, name, entries(IDS))).items
    assert keys(items) == [(type(key), key) for key in IDS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", NO_IDS, ids=str)
def test_what_is_no_id_is_refused(form: str, key: Any, tmp_path: Path) -> None:
    task, name, entries = FORMS[form]
    with pytest.raises(InputError, match=rf"entry 1 of '.*{name}'"):
        read_dataset(task, write(tmp_path, name, entries(["first", key])))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("twice", [("7", "7"), (7, 7), (7, "7")])
def test_an_id_is_there_once(form: str, twice: tuple[Any, Any], tmp_path: Path) -> None:
    task, name, entries = FORMS[form]
    with pytest.raises(InputError, match=r"entry 2 of .* 7 of entry 1"):
        read_dataset(task, write(tmp_path, name, entries(["other", *twice])))


@pytest.mark.parametrize("key", ["0042", 42])
def test_answers_in_another_file_are_joined_by_the_id_as_it_is_written(key: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, "unused.json", [question(1)])
    asked = {"questions": [{"question_id": key, "question": "what", "image_id": 42}]}
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(asked))
    answers = folder / "v2_mscoco_val2014_annotations.json"
    given = {"question_id": key, "answers": [{"answer": "yes"}] * 10}
    answers.write_text(json.dumps({"annotations": [given]}))
    (item,) = read_dataset("vqa", folder).items
    assert isinstance(item, VqaItem)
    assert (item.key, type(item.key), item.answers) == (key, type(key), ("yes",) * 10)
    for other in ("42", "042", 43):
        answers.write_text(json.dumps({"annotations": [given | {"question_id": other}]}))
        with pytest.raises(InputError, match=r"has no answers in .*\n.*written alike"):
            read_dataset("vqa", folder)


def test_without_an_id_the_file_names_an_image(tmp_path: Path) -> None:
    names = [VAL, "flickr30k-images/0042.jpg", "42.jpg", "coco_7.jpg", "COCO_val2014_42.jpg"]
    entries = [{"image": name, "caption": ["a digit"]} for name in names]
    items = read_dataset("caption", write(tmp_path, "coco_karpathy_test.json", entries)).items
    assert [item.key for item in items] == names
    assert [_image_id(item) for item in items if isinstance(item, CaptionItem)] == [42, *names[1:]]


def test_an_id_is_not_what_another_images_name_gives(
    run_cli: Callable[..., Ran], task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    entries = [caption("42"), {"image": VAL, "caption": ["a digit"]}]
    data = write(tmp_path / "data", "coco_karpathy_test.json", entries)
    ran = run_cli("evaluate", task_artifacts["caption"] / "out.json", "--data", data, "-o", tmp_path / "x.json")
    ran.refused("42.jpg'", VAL, "have one id, 42")


def test_an_id_that_is_given_is_no_file_name() -> None:
    assert _image_id(CaptionItem(Path(VAL), ("a",), "COCO_val2014_000000000042")) == "COCO_val2014_000000000042"
    assert _image_id(CaptionItem(Path(VAL), ("a",), "0042")) == "0042"


def test_one_image_has_one_id(tmp_path: Path) -> None:
    folder = write(tmp_path, "coco_karpathy_train.json", [caption("7", 1), caption("8", 2), caption(7, 1)])
    with pytest.raises(InputError, match=r"(?s)entry 2 .*'val2014/1\.jpg'.* '7', here 7"):
        read_dataset("caption", folder, "train")


def test_a_sentence_without_an_identifier_is_known_by_its_place(tmp_path: Path) -> None:
    entries = [{name: value for name, value in sentence(0).items() if name != "identifier"}] * 2
    items = read_dataset("nlvr", write(tmp_path, "nlvr_test.json", entries)).items
    assert [item.key for item in items if isinstance(item, NlvrItem)] == ["0", "1"]


def test_results_have_the_ids_of_the_annotation(
    run_cli: Callable[..., Ran], task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    data = write(tmp_path / "vqa", "vqa_val.json", [question(key) for key in IDS])
    (data / "answer_list.json").write_text('["one", "digit"]')
    ran = run_cli("evaluate", task_artifacts["vqa"] / "out.json", "--data", data, "-o", output)
    assert ran.status == 0, ran
    written = json.loads(output.read_text())
    assert [(type(one["question_id"]), one["question_id"]) for one in written["answers"]] == [
        (type(key), key) for key in IDS
    ]
    entries = [caption(key, number) for number, key in enumerate(IDS)]
    entries.append({"image": VAL.replace("42.", "43."), "caption": ["a digit"]})
    data = write(tmp_path / "caption", "coco_karpathy_test.json", entries)
    ran = run_cli("evaluate", task_artifacts["caption"] / "out.json", "--data", data, "-o", output)
    assert ran.status == 0, ran
    assert [one["image_id"] for one in json.loads(output.read_text())["answers"]] == [*IDS, 43]
