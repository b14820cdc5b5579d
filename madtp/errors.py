"""Errors that a user of this project can cause. Every one says what is wrong, why, and what to do."""

from collections.abc import Iterable

LISTED = 8  # names in a message before it says "and N more"


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
