"""What is validated here runs on function bodies unless a test names an op library."""

from collections.abc import Iterator

import pytest

import export.runtime.execution


@pytest.fixture(scope="package", autouse=True)
def _no_installed_library() -> Iterator[None]:
    """Whether one was built changes nothing here: each adds a runner, and pairs to every result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.runtime.execution, "installed_library", lambda: None)
        yield
