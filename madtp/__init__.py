"""MADTP vision-language models in PyTorch: encoders with dynamic token pruning, checkpoints, training, FLOPs."""

from madtp.checkpoint.loading import load
from madtp.errors import CheckpointError, ConfigError, InputError, MadtpError
from madtp.models.config import NlvrConfig
from madtp.models.nlvr import NlvrModel, NlvrOutput

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
