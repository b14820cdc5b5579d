"""What can be taken for a text of a user's file or list, and lists of answers."""

import ast
import json
import re
from collections.abc import Iterable
from pathlib import Path

from madtp.errors import InputError
from madtp.files.inputs import parse_json, read_text

SHOWN = 60  # characters of a text in a message
KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
PRINTED = re.compile(r"""(\[|\{|\(|array\(\[)\s*['"].*['"\]}),]$""", re.DOTALL)
QUOTES = "\"'"
LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines() also splits at U+2028 and the like


def shown(value: object) -> str:
    """The beginning of a value, for messages: a text in quotes, with escapes for what cannot be printed, or JSON."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def text_fault(value: object) -> str | None:
    """What keeps a value from being a text, to follow "it" in a message; None where nothing does."""
    if not isinstance(value, str):
        return "is missing or null" if value is None else f"is {KINDS.get(type(value), 'something else')}, not a text"
    if not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not Unicode: it holds half a surrogate pair"
    if _is_printed(value.strip()):
        return "is the printed form of a list or an object, not a text"
    return None


def check_answers(answers: object, what: str, each: str = "answer") -> tuple[str, ...]:
    """The answers, if they are a list of different texts.

    Args:
        what: that they are, in a message: "'answers.json' is", "the candidates are".

    Raises:
        InputError: no list, an empty one, or one with something that is no text, or is there twice; it is named.
    """
    if not isinstance(answers, list | tuple) or not answers:
        why = f"It is {KINDS.get(type(answers), 'something else')}." if answers != [] else "It is empty."
        raise InputError(f"{what} not a list of different answers", why, 'Give ["yes", "no", ...], one at least.')
    first: dict[str, int] = {}
    for number, answer in enumerate(answers):
        fault = _answer_fault(answer)
        if fault is None and first.setdefault(answer, number) != number:
            fault = f"is {each} {first[answer]} again"
        if fault is not None:
            raise InputError(
                f"{what} not a list of different answers",
                f"Counted from 0, {each} {number}, {shown(answer)}, {fault}.",
                "Correct it, or leave it out.",
            )
    return tuple(answers)


def read_answers(path: Path) -> tuple[str, ...]:
    """Different answers of a UTF-8 file: a JSON list of texts, or one answer a line; empty lines are left out.

    Raises:
        InputError: unreadable, begins as a JSON list and is none, has none, or see `check_answers`.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the candidates '{path}'", str(error), "Name a text file in UTF-8.") from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            answers = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the candidates '{path}' are not a JSON list",
                f"The file begins as one, but: {error}.",
                'Write ["yes", "no", ...], or one answer a line.',
            ) from error
        return check_answers(answers, f"the candidates '{path}' are", "candidate")
    lines = [(number, line.strip()) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()]
    if not lines:
        raise InputError(f"there are no candidates in '{path}'", fix="Write one answer a line, or a JSON list.")
    _check_lines(path, lines)
    return tuple(line for _, line in lines)


def _check_lines(path: Path, lines: Iterable[tuple[int, str]]) -> None:
    first: dict[str, int] = {}
    for number, line in lines:
        fault = _answer_fault(line)
        if fault is None and line[0] in QUOTES and line.rstrip(",")[1:].endswith(line[0]):
            fault = "is in quotes, which would become part of the answer"
        if fault is None and first.setdefault(line, number) != number:
            fault = f"is line {first[line]} again"
        if fault is not None:
            raise InputError(
                f"line {number} of the candidates '{path}' cannot be used",
                f"{shown(line)} {fault}.",
                'Write one answer a line, each once, or a JSON list ["yes", "no", ...].',
            )


def _answer_fault(value: object) -> str | None:
    """See `text_fault`; nor does an answer hold what only a wrong decoding of its file leaves in it."""
    fault = text_fault(value)
    if fault is None and "\ufeff" in str(value):
        fault = "holds a byte-order mark, which would become part of the answer"
    if fault is None and "\0" in str(value):
        fault = "holds a NUL, as UTF-16 read as UTF-8 does"
    return fault


def _is_printed(text: str) -> bool:
    """Whether a program printed a list, a tuple, a set or a dictionary there instead of what is in it."""
    if PRINTED.match(text):
        return True
    if (text[0], text[-1]) not in (("[", "]"), ("{", "}")):  # people write in parentheses
        return False
    for read in (json.loads, ast.literal_eval):
        try:
            return isinstance(read(text), list | dict | set)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return False
