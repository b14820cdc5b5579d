"""Errors that a user of this project can cause. Every one says what is wrong, why, and what to do."""

import re
from collections.abc import Iterable

LISTED = 8  # names in a message before it says "and N more"
# Control characters but the line feed, line separators, directions of writing, halves of surrogate pairs, what is none.
_HIDDEN = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class MadtpError(Exception):
    """Base of every error that the user's input or machine causes; a command line exits 2 on it.

    Args:
        what: what is wrong, naming the file, key or option.
        why: the reason, as far as it is known.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(part for part in (what, why, fix) if part))


class CheckpointError(MadtpError):
    """The checkpoint cannot be read, or does not hold the model that it should."""


class ConfigError(MadtpError):
    """The configuration is unreadable, or disagrees with itself or the checkpoint."""


class InputError(MadtpError):
    """An image, text, sample folder or batch that the model cannot take."""


class OutputError(MadtpError):
    """The output cannot be written."""


class TokensError(MadtpError):
    """A token statistics file cannot be read, or belongs to another checkpoint."""


class RangesError(MadtpError):
    """Activations have no ranges, or a file of ranges cannot be read or belongs to another checkpoint."""


class KeepError(MadtpError):
    """A file of products to keep cannot be read, or belongs to another checkpoint."""


class CapacityError(MadtpError):
    """A file of capacities cannot be read, or belongs to another checkpoint, temperature or engine."""


class TemperatureError(MadtpError):
    """No temperature meets a budget, or a file of measured temperatures cannot be read."""


def listing(names: Iterable[str], room: int = 400) -> str:
    """The first names, at most LISTED and about `room` characters of them, and how many there are besides."""
    shown = list[str]()
    names = list(names)
    for name in map(shorten, names[:LISTED]):
        if shown and sum(len(earlier) + 2 for earlier in shown) + len(name) > room:
            break
        shown.append(name)
    text = ", ".join(shown)
    return text if len(shown) == len(names) else f"{text} and {len(names) - len(shown)} more"


def shorten(name: str, most: int = 120) -> str:
    """`name` for a message; its middle is left out where it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}...{name[-most // 2 + 3 :]}"


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, rather than show, as an escape: "\\x1b" and the like.

    Line feeds stay: messages have several lines.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same of what has to be one line: line feeds are escaped too."""
    return printable(text).replace("\n", "\\n")
