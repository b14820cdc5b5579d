"""The snippets of docs/ci.md: they are YAML, and the command in each runs as it stands there."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import junitparser
import pytest
import yaml

from tests.helpers.command_line import Ran
from tests.helpers.paths import ROOT

SNIPPETS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(), re.S)]
PREFIX = [".venv/bin/python", "-m", "export"]
QUICK = (
    "--seconds",
    "0.1",
    "--threads",
    "1",
    "--max-regression",
    "1000000%",
    "--no-profile",
)  # the last of each counts


def commands(value: Any) -> Iterator[list[str]]:
    """Every command of the tool in a snippet."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from commands(entry)
    elif isinstance(value, str) and "-m export bench" in value:
        yield shlex.split(value)


def test_there_is_a_snippet_for_each_system() -> None:
    github, gitlab = SNIPPETS
    assert "jobs" in github
    assert gitlab["latency"]["allow_failure"] == {"exit_codes": 3}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["github", "gitlab"])
def test_the_command_of_a_snippet_runs(
    snippet: dict[str, Any],
    run_cli: Callable[..., Ran],
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("new", "main"):
        shutil.copytree(tiny_artifact, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (command,) = commands(snippet)
    assert command[: len(PREFIX)] == PREFIX
    ran = run_cli(*command[len(PREFIX) :], *QUICK)
    assert ran.status == 0, ran.err
    assert Path("bench.md").read_text().startswith("**Latency of `out.onnx`**")
    assert sum(len(list(suite)) for suite in junitparser.JUnitXml.fromfile("bench.xml")) == 2
