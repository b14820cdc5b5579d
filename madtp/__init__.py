"""MADTP vision-language models in PyTorch: encoders with dynamic token pruning, checkpoints, training, FLOPs."""

from madtp.checkpoint import load
from madtp.config import NlvrConfig
from madtp.errors import CheckpointError, ConfigError, InputError, MadtpError
from madtp.nlvr import NlvrModel, NlvrOutput

__all__ = [
    "CheckpointError",
    "ConfigError",
    "InputError",
    "MadtpError",
    "NlvrConfig",
    "NlvrModel",
    "NlvrOutput",
    "load",
]
