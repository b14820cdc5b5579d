"""Programs in C++ on the engine: a trained artifact in ONNX Runtime, on the provider of the stage's device.

`nlvr_app` answers requests, and Python answers them with the same file, provider and op library; `throughput` asks from
several threads, and fails where one of them gets another answer. A rehearsal runs the CPU provider.
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.kit.onnx_session import OnnxSession
from benchmarks.kit.stage import ROOT, SKIPPED, StageRun
from benchmarks.kit.stages.onnx_runtime import take_onnxruntime
from benchmarks.kit.wheel_parts import MissingPartsError
from madtp.data.preprocess import image_tensor

FOLDER = ROOT / "embedded"
TOLERANCE = 2e-3  # of a probability: it is printed with three digits, and products on a GPU have other orders
ANSWER = re.compile(r"(?:true|false) \(probability of true (\d\.\d+)\)\n    tokens (.*)\n    runs (.*)\n")
RATE = re.compile(r"batches of (\d+): (\d+\.\d) requests per second")
THREADS, BATCHES = 4, (1, 8)
NO_LIBRARY = 127  # exit status of a program whose shared libraries are not all there


def run(stage: StageRun) -> bool | str:
    """Answers equal to Python's, then speed; skipped without onnxruntime-gpu, or libraries that decode images."""
    with tempfile.TemporaryDirectory(prefix="madtp-embedded-") as scratch:
        try:
            take_onnxruntime(stage, Path(scratch))
        except MissingPartsError as error:
            stage.save(error=f"{error} (./build.sh gpu-kit --onnxruntime packs it)")
            return SKIPPED
        passed = measure_throughput(stage)
        requests = json.loads((FOLDER / "requests.json").read_text(encoding="utf-8"))
        tried = ask_program(stage, requests[0])
        if tried.returncode == NO_LIBRARY:
            stage.save(error=f"nlvr_app does not start here: {tried.stderr.strip()}")
            return SKIPPED if passed else False
        return compare_answers(stage, requests) and passed


def program(stage: StageRun, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one on the stage's device, in the ONNX Runtime that Python has imported."""
    import onnxruntime

    site = Path(torch.__file__).parents[1]
    libraries = [ROOT / "lib", *sorted((site / "nvidia").glob("*/lib"))]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    runtime = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    device = () if stage.rehearse else ("--device", "cuda")
    command = [FOLDER / name, FOLDER / "out.onnx", *arguments, "--onnxruntime", runtime, *device]
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)


def measure_throughput(stage: StageRun) -> bool:
    """Requests per second of several threads, which have to get the same answers."""
    rates: dict[str, float] = {}
    for batch in BATCHES:
        requests = 8 if stage.rehearse else 400
        done = program(stage, "throughput", "--threads", THREADS, "--requests", requests, "--batch", batch)
        found = RATE.search(done.stdout)
        if done.returncode != 0 or found is None:
            stage.save(error=f"throughput: {done.stderr.strip()[:500]}")
            return False
        rates[found[1]] = float(found[2])
    stage.save(threads=THREADS, requests_per_second=rates)
    return True


def ask_program(stage: StageRun, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return program(stage, "nlvr_app", *(FOLDER / "samples" / name for name in request["images"]), request["sentence"])


def compare_answers(stage: StageRun, requests: list[dict[str, Any]]) -> bool:
    """Every request, in the program and in Python."""
    library = ROOT / "lib" / "libmadtp_onnxruntime.so"
    session = OnnxSession(FOLDER / "out.onnx", library, stage.device)
    manifest = json.loads((FOLDER / "out.json").read_text(encoding="utf-8"))
    found = []
    for request in requests:
        ids = torch.tensor([request["ids"]])
        images = [Image.open(FOLDER / "samples" / name) for name in request["images"]]
        pixels = [image_tensor(image, manifest["preprocessing"]["image"]["size"])[None] for image in images]
        inputs = {"image0": pixels[0], "image1": pixels[1], "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        outputs = session.run(inputs, manifest["temperature"])
        tokens = ", ".join(
            f"{encoder} {' '.join(str(int(count)) for count in outputs[f'{encoder}_token_counts'][0])}"
            for encoder in ("vision", "text")
        )
        expected = float(outputs["logits"].float().softmax(dim=1)[0, 1])
        done = ask_program(stage, request)
        answer = ANSWER.fullmatch(done.stdout)
        if answer is None:
            stage.save(error=f"nlvr_app: {done.stderr.strip()[:500]}")
            return False
        stage.save(runs=answer[3])
        equal = abs(float(answer[1]) - expected) <= TOLERANCE and answer[2] == tokens
        found.append({"program": float(answer[1]), "python": expected, "tokens": answer[2], "equal": equal})
    stage.save(answers=found)
    return all(entry["equal"] for entry in found)
