"""Errors of the export pipeline that the user's input or machine causes; the command line exits 2 on each."""

from madtp.errors import MadtpError


class OptionError(MadtpError):
    """Options that contradict each other, the model, or what this version can do."""


class BackendError(MadtpError):
    """No runtime on this machine can build or run what was asked for, or it failed to."""


class PluginError(MadtpError):
    """The plugin library cannot be built here, or a file is no such library."""


class ManifestError(MadtpError):
    """A manifest is missing, malformed, or belongs to other files."""


class BaselineError(MadtpError):
    """A saved measurement cannot be read, or says nothing about this artifact on this machine."""


class ReportError(MadtpError):
    """A report cannot be made of what was given."""
