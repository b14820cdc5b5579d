"""A part that was just built behind a runner, as `export.runtime.artifact` opens one from its manifest."""

from collections.abc import Callable
from pathlib import Path

from export.artifact.manifest import OVERFLOW, Profile
from export.build.built_artifact import BuiltPart
from export.runtime.buckets import Bucket, BucketRunner
from export.runtime.checked import CheckedRunner
from madtp.tasks.requests import Runner

OpenEngine = Callable[[str, Path], Runner]  # of the name of an artifact, and of the graph that it was made from


def open_part(part: BuiltPart, open_engine: OpenEngine) -> Runner:
    """A runner of a part, with its buckets."""
    traced = part.traced

    def opened(name: str, runnable: Path, profile: dict[str, Profile]) -> CheckedRunner:
        return CheckedRunner(open_engine(name, runnable), traced.inputs, traced.outputs, profile)

    whole = opened(part.files[0], traced.runnable, part.profile)
    if not any(output.name == OVERFLOW for output in traced.outputs):
        return whole
    buckets = [
        Bucket(built.bucket.least, built.bucket.batch, opened(built.files[0], built.runnable, built.profile))
        for built in part.buckets
    ]
    return BucketRunner(buckets, whole)
