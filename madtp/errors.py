"""Errors that a user of this project can cause. Every one says what is wrong, why, and what to do."""


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
