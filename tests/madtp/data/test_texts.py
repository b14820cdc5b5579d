"""Texts of files and lists: what says nothing or was printed by a program is refused, and named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import Session
from madtp.data.datasets import read_dataset
from madtp.data.samples import read_sample
from madtp.data.texts import check_answers, read_answers, shown, text_fault
from madtp.errors import InputError
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran
from tests.helpers.datasets import VAL, question, write
from tests.helpers.samples import IMAGES

PRINTED = [
    "['blue']",
    '["blue"]',
    " ['blue', 'red'] ",
    "['blue' 'red']",
    "['blue', nan]",
    "{'answer': 'blue'}",
    '{"answer": null}',
    "[{'answer': 'blue'}]",
    "('blue',)",
    "('blue', 'red')",
    "array(['blue'], dtype=object)",
    "[2]",
    "[]",
    "{}",
]
NO_TEXTS: list[Any] = [None, 2, 2.5, True, [], ["blue"], {"answer": "blue"}, "", " \t\n", "\ud800", *PRINTED]
TEXTS = [
    "blue",
    "'blue'",
    '"stop"',
    "(blue)",
    "(1, 2)",
    "a [sic] b",
    "[blue",
    "none",
    "None",
    "[?]",
    "{",
    "x = {}",
    "3.5",
]
EIGHT = ["yes", "no", "red", "blue", "dog", "two", "grass", "a table"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_people_write_is_a_text(text: str) -> None:
    assert text_fault(text) is None


@pytest.mark.parametrize("value", NO_TEXTS, ids=str)
def test_what_is_no_answer_is_refused(value: Any, tmp_path: Path) -> None:
    assert text_fault(value) is not None
    entries = [question(6), question("07", answer=["blue", value, *["blue"] * 8])]
    message = r"entry 1 of '.*vqa_val\.json' \(question_id '07'\) has no \"answer\" .*\n.*number 1 of it is"
    with pytest.raises(InputError, match=message):
        read_dataset("vqa", write(tmp_path, "vqa_val.json", entries))
    asked = {"questions": [{"question_id": 7, "question": "what", "image_id": 42}]}
    given = {"question_id": 7, "answers": [{"answer": "yes"}, {"answer": value}, {"answer": "no"}]}
    (tmp_path / "vqa_val.json").unlink()
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(asked))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": [given]}))
    if isinstance(value, str) and not value.strip():  # of ten people one may have typed nothing
        assert read_dataset("vqa", tmp_path).items[0].answers == ("yes", value, "no")  # type: ignore[union-attr]
        return
    with pytest.raises(InputError, match=r"(?s)entry 0 .*\(question_id 7\).*\"answers\".*number 1"):
        read_dataset("vqa", tmp_path)


@pytest.mark.parametrize("answer", ["['blue', 'red']", "", "  ", None, 2, {}, [["blue"]], [{"answer": "blue"}]])
def test_answers_that_are_no_list_of_texts_are_refused(answer: Any, tmp_path: Path) -> None:
    data = write(tmp_path, "vqa_val.json", [question(7, answer=answer)])
    with pytest.raises(InputError, match=r"entry 0 .*\(question_id 7\) has no \"answer\""):
        read_dataset("vqa", data)


@pytest.mark.parametrize("text", ["", "  ", None, 3, "['a digit']", "\ud800"])
@pytest.mark.parametrize(
    ("task", "name", "entry", "field"),
    [
        ("nlvr", "nlvr_test.json", lambda text: {"images": [VAL, VAL], "sentence": text, "label": "True"}, "sentence"),
        ("vqa", "vqa_val.json", lambda text: question(7, question=text), "question"),
        ("caption", "coco_karpathy_test.json", lambda text: {"image": VAL, "caption": ["a", text]}, "caption"),
        ("retrieval", "coco_karpathy_test.json", lambda text: {"image": VAL, "caption": ["a", text]}, "caption"),
        ("clip", "flickr30k_test.json", lambda text: {"image": VAL, "caption": text}, "caption"),
        (
            "retrieval",
            "dataset_coco.json",
            lambda text: {
                "images": [{"filepath": "a", "filename": "b.jpg", "split": "test", "sentences": [{"raw": text}]}]
            },
            "sentences",
        ),
    ],
)
def test_texts_that_say_nothing_are_refused(
    task: str, name: str, entry: Callable[[Any], Any], field: str, text: Any, tmp_path: Path
) -> None:
    content = entry(text)
    data = write(tmp_path, name, content if "images" in content and task != "nlvr" else [content])
    with pytest.raises(InputError, match=rf"entry 0 of '.*{name}'.* has no \"{field}\" that can be used"):
        read_dataset(task, data)


def test_a_byte_order_mark_is_no_part_of_a_data_set(tmp_path: Path) -> None:
    data = write(tmp_path, "vqa_val.json", [question("07")])
    for name, content in (("vqa_val.json", [question("07")]), ("answer_list.json", EIGHT)):
        (data / name).write_bytes(json.dumps(content, indent=1).replace("\n", "\r\n").encode("utf-8-sig"))
    dataset = read_dataset("vqa", data)
    assert (dataset.items[0].key, dataset.answer_list) == ("07", tuple(EIGHT))


@pytest.mark.parametrize("answers", [["yes", ""], ["yes", "['no']"], ["yes", None], ["yes", "no", "yes"], {"yes": 1}])
def test_an_answer_list_names_what_is_wrong(answers: Any, tmp_path: Path) -> None:
    data = write(tmp_path, "vqa_val.json", [question("07")])
    (data / "answer_list.json").write_text(json.dumps(answers))
    named = "" if isinstance(answers, dict) else f"\n.*answer {len(answers) - 1}, "
    with pytest.raises(InputError, match=rf"answer_list\.json' is not a list of different answers{named}"):
        read_dataset("vqa", data)


@pytest.mark.parametrize("text", ["", " ", None, 3, "['a digit']"])
def test_samples_that_say_nothing_are_refused(text: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"entry 5 of '.*samples\.json' has no question that can be used"):
        read_sample(tmp_path, 5, {"question": text, "image": "a.png"}, "vqa")


@pytest.mark.parametrize(
    ("task", "name", "entries", "message"),
    [
        (
            "retrieval",
            "coco_karpathy_test.json",
            [{"image": VAL, "caption": ["a digit", "..."]}],
            f"caption 1 of '.*', of the image '{VAL}': nothing is left of '...'",
        ),
        (
            "clip",
            "flickr30k_test.json",
            [{"image": VAL, "caption": ["a", "b", '"!"']}],
            "caption 2 of .* nothing is left",
        ),
        (
            "vqa",
            "vqa_val.json",
            [question(6), question("07", question="(!)")],
            "the question '07' of .* nothing is left",
        ),
    ],
)
def test_texts_of_dropped_signs_alone_are_refused(
    task: str,
    name: str,
    entries: Any,
    message: str,
    task_artifacts: TaskArtifacts,
    run_cli: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    data = write(tmp_path / "data", name, entries)
    (data / "answer_list.json").write_text('["one", "digit"]')
    output = tmp_path / "results.json"
    ran = run_cli("evaluate", task_artifacts[task] / "out.json", "--data", data, "-o", output)
    ran.refused("nothing is left of")
    assert re.search(message, ran.err), ran.err
    assert not output.exists()


FILES: dict[str, bytes] = {
    "lines": "\n".join(EIGHT).encode(),
    "lines with blank ones": ("\n\n".join(f"  {answer}\t" for answer in EIGHT) + "\n \n").encode(),
    "lines of Windows": "\r\n".join(EIGHT).encode(),
    "lines with a mark": "\n".join(EIGHT).encode("utf-8-sig"),
    "lines of old Macs": "\r".join(EIGHT).encode(),
    "a list": json.dumps(EIGHT).encode(),
    "an indented list": json.dumps(EIGHT, indent=1).encode(),
    "an indented list of Windows with a mark": json.dumps(EIGHT, indent=4).replace("\n", "\r\n").encode("utf-8-sig"),
    "a list after an empty line": b"\n  " + json.dumps(EIGHT, indent=2).encode() + b"\n",
}


@pytest.mark.parametrize("form", FILES)
def test_candidates_are_read_in_any_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_bytes(FILES[form])
    assert list(read_answers(path)) == EIGHT


def test_a_line_separator_is_part_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_text("a\u2028b\nc\x0bd\n")
    assert read_answers(path) == ("a\u2028b", "c\x0bd")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", "there are no candidates"),
        (b"\xef\xbb\xbf\n \n", "there are no candidates"),
        (b'[\n "yes",\n "no"\n', "not a JSON list\n.*line 4"),
        (b"[\nyes\nno\n]", "not a JSON list"),
        (b"['yes', 'no']", "not a JSON list"),
        (b'{"yes": 0}', "not a list of different answers"),
        (b"[]", "not a list of different answers"),
        (b'["yes", 2]', "candidate 1, 2, is a number"),
        (b'["yes", ""]', "candidate 1, '', is empty"),
        (b'["yes", null]', "candidate 1, null, is missing or null"),
        (b'["yes", ["no"]]', 'candidate 1, \\["no"\\], is a list'),
        (b'["yes", "no", "yes"]', "candidate 2, 'yes', is candidate 0 again"),
        (b'["yes", "[\'no\']"]', "candidate 1, .* printed"),
        (b"yes\n\nno\nyes\n", "line 4 of .*\n'yes' is line 1 again"),
        (b'"yes",\n"no"\n', "line 1 of .*\n.* quotes"),
        (b"yes\n['no']\n", "line 2 of .*\n.* printed"),
        ("yes\n".encode("utf-16"), "cannot read the candidates"),
    ],
)
def test_candidates_that_cannot_be_used_are_named(content: bytes, parts: str, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_bytes(content)
    with pytest.raises(InputError, match=parts):
        read_answers(path)


def test_the_command_chooses_from_a_list_in_any_form(
    run_cli: Callable[..., Ran], task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    IMAGES[0].save(tmp_path / "x.png")
    seen = []
    for form in ("lines", "an indented list", "an indented list of Windows with a mark", "lines with a mark"):
        (tmp_path / "answers").write_bytes(FILES[form])
        given = ("--image", tmp_path / "x.png", "--text", "one", "--candidates", tmp_path / "answers", "--top", 8)
        ran = run_cli("run", task_artifacts["vqa"] / "out.json", *given, "--json")
        assert ran.status == 0, ran
        seen.append(json.loads(ran.out)["products"][0])
    assert sorted(text for text, _ in seen[0]["top"]) == sorted(EIGHT)
    assert seen == [seen[0]] * len(seen)


def test_the_command_cuts_a_text_where_that_is_asked_for(
    run_cli: Callable[..., Ran], task_artifacts: TaskArtifacts, tmp_path: Path
) -> None:
    IMAGES[0].save(tmp_path / "x.png")
    given = ("run", task_artifacts["vqa"] / "out.json", "--image", tmp_path / "x.png", "--json")
    texts = ("--text", "one", "--text", "one digit " * 30)
    run_cli(*given, *texts).refused("question 1: the text 'one digit", "has 60 words; the limit is 50", "run --cut")
    ran = run_cli(*given, *texts, "--cut")
    assert ran.status == 0, ran
    shorter = run_cli(*given, "--text", "one", "--text", "one digit " * 16 + "one")  # 35 ids with both ends
    assert json.loads(ran.out)["products"] == json.loads(shorter.out)["products"]


@pytest.mark.parametrize(
    ("task", "ask", "message"),
    [
        (
            "vqa",
            lambda s: s.answer(IMAGES[:3], ["a", "b", "a " * 60]),
            r"question 2: the text 'a a .*\.\.\. has 60 words",
        ),
        ("vqa", lambda s: s.answer(IMAGES[:2], ["a", 5]), "questions are not a list of texts\n.*number 1 is 5.* int"),
        ("vqa", lambda s: s.answer(IMAGES[:1], None), "questions are not a list of texts"),
        (
            "vqa",
            lambda s: s.answer(IMAGES[:1], ["a"], candidates=["a", "b", "a"]),
            "candidate 2, 'a', is candidate 0 again",
        ),
        ("vqa", lambda s: s.answer(IMAGES[:1], ["a"], candidates=["a", " "]), "candidate 1, ' ', is empty"),
        ("vqa", lambda s: s.answer(IMAGES[:1], ["a"], candidates=["a", "\u200b"]), "candidate 1, .* has no words"),
        (
            "vqa",
            lambda s: s.answer(IMAGES[:1], ["a"], candidates=["a", "one " * 20, "b"]),
            "22 ids of a text were asked for, by candidate 1, 'one one .*\n.* 1 to 17.\n.*--max-length 22",
        ),
        ("clip", lambda s: s.rank(IMAGES[:1], ["a", "b", "a " * 60]), "text 2: the text 'a a .* has 60 words"),
        ("retrieval", lambda s: s.rank(IMAGES[:1], ["a", "\ud800"]), "text 1: the text .* is not Unicode"),
    ],
)
def test_the_text_at_fault_is_named(task: str, ask: Any, message: str, task_artifacts: TaskArtifacts) -> None:
    with Session(task_artifacts[task] / "out.json") as session, pytest.raises(InputError, match=message):
        ask(session)


def test_lists_of_answers_are_of_different_texts() -> None:
    assert check_answers(["yes", "no"], "they are") == ("yes", "no")
    for wrong, why in (("yes", "something else"), (None, "something else"), ({"yes": 1}, "an object"), ([], "empty")):
        with pytest.raises(InputError, match=f"they are not a list of different answers\nIt is {why}"):
            check_answers(wrong, "they are")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("left\n\ufeffright\n".encode(), "line 2 .*\n.*byte-order mark"),  # two files in one
        ("\ufeff\ufeffleft\n".encode(), "line 1 .*\n.*byte-order mark"),
        ('["left", "\ufeffright"]'.encode(), "not a list of different answers\n.*candidate 1.*byte-order mark"),
        ("left\nright\n".encode("utf-16-le"), "line 1 .*\n.*holds a NUL"),
        (b'["left", "a\\u0000b"]', "candidate 1.*holds a NUL"),
        (b"'left'\n'right'\n", "line 1 .*\n.*in quotes"),
    ],
)
def test_what_a_wrong_decoding_leaves_is_no_answer(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "answers").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_answers(tmp_path / "answers")


def test_an_apostrophe_is_no_quotation_mark(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("'tis\ndogs'\nrock 'n' roll\n")
    assert read_answers(tmp_path / "answers") == ("'tis", "dogs'", "rock 'n' roll")


def test_what_is_shown_is_short_and_can_be_printed() -> None:
    assert shown("a") == "'a'"
    assert shown({"a": [1, None]}) == '{"a": [1, null]}'
    assert len(shown("x" * 1000)) == len(shown(["x"] * 1000)) == 60
    assert shown("\ud800\n\x1b[31m") == r"'\ud800\n\x1b[31m'"
