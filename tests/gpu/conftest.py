"""The built library of kernels, and the skip without a CUDA device.

`pytestmark = gpu_only` marks a module: `./build.sh gpu-test` runs it, and it skips, with the reason, without a device.
"""

import ctypes

import pytest
import torch

from madtp.ops.library import KernelError, load_library

gpu_only = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The CUDA kernels; a failure, not a skip, where they were not built: with a GPU at hand they have to be."""
    try:
        return load_library()
    except KernelError as error:
        pytest.fail(str(error))
