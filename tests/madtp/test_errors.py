"""What every error says."""

from madtp.errors import MadtpError


def test_every_error_type_says_what_why_and_what_to_do() -> None:
    types = [MadtpError, *MadtpError.__subclasses__()]
    assert {t.__name__ for t in types} >= {"CheckpointError", "ConfigError", "InputError", "OptionError", "OutputError"}
    for error in (kind("what", "why", "fix") for kind in types):
        assert (error.what, error.why, error.fix, str(error)) == ("what", "why", "fix", "what\nwhy\nfix")
