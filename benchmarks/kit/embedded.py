"""What the stage `embedded` needs: the engine for C and C++, its example programs, a trained artifact, and requests."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from export import ExportOptions, Session
from export.build.pipeline import export
from export.engine.runtime_build import build_runtime
from madtp.data.default_samples import demo_samples
from madtp.demo.output import write_samples
from tests.helpers.paths import ROOT
from tests.helpers.runtime_programs import examples

FOLDER, ARTIFACT, SAMPLES, REQUESTS = "embedded", "out.onnx", "samples", "requests.json"
PROGRAMS = ("throughput", "nlvr_app")
LIBRARIES = ("libmadtp_runtime.so", "libmadtp_tasks.so")
CHECKPOINT = ROOT / "madtp" / "demo" / "nlvr-digits.pt"
COUNT = 8  # requests, of two images and a sentence: as few as an export checks


def pack_embedded(kit: Path, copy: Callable[[Path, Path], None]) -> None:
    """Libraries into lib/, beside the op library; programs, artifact and requests into a folder of their own.

    Args:
        copy: copies a library or program into a folder.

    Raises:
        MadtpError: something cannot be built or exported.
    """
    target, built = kit / FOLDER, build_runtime().parent
    target.mkdir()
    for name in LIBRARIES:
        copy(built / name, kit / "lib")
    for name in PROGRAMS:
        copy(examples() / name, target)
        shutil.copymode(examples() / name, target / name)
    samples = target / SAMPLES
    write_samples(demo_samples("nlvr", COUNT), samples, CHECKPOINT.with_name("vocab.txt"))
    export(ExportOptions(CHECKPOINT, target / ARTIFACT, samples=samples))
    requests = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
    with Session(target / ARTIFACT) as session:
        for request in requests:
            request["ids"] = session.processor.ids(request["sentence"])
    (target / REQUESTS).write_text(json.dumps(requests) + "\n", encoding="utf-8")
