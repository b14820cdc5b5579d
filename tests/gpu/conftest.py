"""The built library of kernels."""

import ctypes

import pytest

from madtp.ops.library import KernelError, load_library


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The CUDA kernels; a failure, not a skip, where they were not built: with a GPU at hand they have to be."""
    try:
        return load_library()
    except KernelError as error:
        pytest.fail(str(error))
