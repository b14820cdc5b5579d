"""The exported NLVR in ONNX Runtime, its ops on our kernels: what everybody runs who has the .onnx and a GPU.

onnxruntime-gpu comes in parts beside the kit. A rehearsal takes the machine's own onnxruntime, whose CPU provider
drives the ops of the CUDA provider on kernels for the host. Weights are generated and traced on the machine.
"""

import copy
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kit.onnx_session import CPU, CUDA, OnnxSession
from benchmarks.kit.stage import ROOT, SKIPPED, StageRun
from benchmarks.kit.stages.model import Call, find_temperature, forward, giga, take_turns
from benchmarks.kit.stages.models import Requests, nlvr_requests, recordings, synchronizer, use_kernels
from benchmarks.kit.stages.packed_onnx import export_base, measure_packed
from benchmarks.kit.trace import profile_call
from benchmarks.kit.wheel_parts import MissingPartsError, join_wheel
from export.graph.trace import write_part
from madtp import NlvrModel
from madtp.models.parts import parts_of
from tests import golden
from tests.helpers.golden_runtimes import OnnxRuntime

LEAST_DISK = 7_000_000_000  # bytes: the wheel, unpacked too, and the graphs with their weights
OPS = ("AlignedAttention", "TokenCompact")
BATCHES, REHEARSED = (32, 1, 8), (2,)
REHEARSED_CASES = 3
SHARES = (0.5, 0.2)  # of the dense model's GFLOPs
STEPS = 6
TOLERANCE = 1e-3  # of logits of base size in float32, where the same tokens stay: sums of other orders add up
DENSE_SECONDS = 45.0  # less left than this, and the dense model is not traced
DENSE, DENSE_ONNX = "torch, dense, SDPA, eager", "ONNX Runtime, dense"


def run(stage: StageRun) -> bool | str:
    """Parity of recorded cases, then of base size, then times, then packed; skipped without onnxruntime-gpu."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if not stage.rehearse and free < LEAST_DISK:
        stage.save(
            error=f"'{tempfile.gettempdir()}' has {free / 1e9:.1f} GB left, and this takes {LEAST_DISK / 1e9:.0f}"
        )
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="madtp-onnxruntime-") as name:
        scratch = Path(name)
        try:
            take_onnxruntime(stage, scratch)
        except MissingPartsError as error:
            stage.save(error=f"{error} (./build.sh gpu-kit --onnxruntime packs it)")
            return SKIPPED
        passed = replay_recordings(stage, scratch)
        requests = nlvr_requests(stage, max(REHEARSED if stage.rehearse else BATCHES), torch.float32)
        sessions = open_base(stage, requests, scratch)
        passed = all(entry["equal"] for entry in stage.found["base"]) and passed
        model = requests.model if stage.rehearse else requests.model.half()
        compare_base(stage, replace(requests, model=model), sessions)
        return measure_packed(stage, model, op_library(stage), scratch, sessions.get("dense")) and passed


def take_onnxruntime(stage: StageRun, scratch: Path) -> None:
    """Make onnxruntime importable, and the CUDA libraries that it needs known: those that torch brought."""
    if not stage.rehearse:
        wheel = join_wheel(ROOT, scratch)
        with zipfile.ZipFile(wheel) as file:
            file.extractall(scratch / "site")
        wheel.unlink()
        sys.path.insert(0, str(scratch / "site"))
    import onnxruntime

    if not stage.rehearse:
        libraries = Path(torch.__file__).parents[1] / "nvidia" / "cu13" / "lib"
        onnxruntime.preload_dlls(directory=str(libraries) if libraries.is_dir() else None)
    stage.save(onnxruntime=onnxruntime.__version__, provider=CPU if stage.rehearse else CUDA)


def op_library(stage: StageRun) -> Path:
    """The library of ops for the stage's device."""
    return ROOT / "lib" / ("libmadtp_onnxruntime_host.so" if stage.rehearse else "libmadtp_onnxruntime.so")


class RecordedRuntime(OnnxRuntime):
    """The exported graphs on the stage's device; `sessions` are those of the parts."""

    name = "onnxruntime"

    def __init__(self, stage: StageRun, model: Any, folder: Path) -> None:
        self._stage, self._folder = stage, folder
        self.sessions: list[OnnxSession] = []
        parts = parts_of(model)
        files = {name: folder / f"{name}.onnx" for name in parts}
        for name, part in parts.items():
            write_part(part, files[name])
        super().__init__(parts, files)

    def _open(self, graph: Any, ids: list[str]) -> OnnxSession:
        from export.graph.expose_outputs import expose_outputs

        content, profile = expose_outputs(graph.model, ids), self._folder / "profile"
        session = OnnxSession(content, op_library(self._stage), self._stage.device, graph.folder, profile)
        self.sessions.append(session)
        return session


def replay_recordings(stage: StageRun, scratch: Path) -> bool:
    """Every recorded case of small NLVR models, in float32, as `parity` does in torch."""
    found: list[dict[str, Any]] = []
    provider, on = stage.found["provider"], {}
    for folder in (folder for folder in recordings(stage, "nlvr") if folder.name != "base"):
        model = golden.load_model(folder)
        place = scratch / f"{folder.parent.name}-{folder.name}"
        place.mkdir()
        runtime = RecordedRuntime(stage, model, place)
        cases = [*golden.load_cases(folder, model.config.image_size)]
        for case in cases[:REHEARSED_CASES] if stage.rehearse else cases:
            verdict = golden.compare(case, golden.replay(model.config, runtime, case))
            name = f"{folder.parent.name}/{folder.name}"
            found.append({"folder": name, "case": case.name, "runtime": runtime.name, "worst": verdict.worst})
            found[-1]["mismatches"] = verdict.mismatches[:5]
            stage.save(cases=found)
        for session in runtime.sessions:
            on |= session.op_providers(OPS)
        stage.save(ran=on)
    expected = {f"{op} on {provider}" for op in OPS}
    return bool(found) and set(on) == expected and not any(entry["mismatches"] for entry in found)


class DenseNlvr(nn.Module):
    """The model without pruning, as somebody who does not know of it would export it."""

    def __init__(self, model: NlvrModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image0: Tensor, image1: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        logits: Tensor = self.model(image0, image1, input_ids, attention_mask, 0.0).logits
        return (logits,)


def open_base(stage: StageRun, requests: Requests, scratch: Path) -> dict[str, OnnxSession]:
    """NLVR of base size: float32 compared with torch on our kernels; sessions of fp16, dense while there is time.

    The model is on the stage's device then.
    """
    part = parts_of(requests.model.cpu())["model"]
    files = export_base(part, scratch, "pruned", ("fp32", "fp16"))
    requests.model.to(stage.device)
    use_kernels(stage)
    exact = OnnxSession(files["fp32"], op_library(stage), stage.device)
    stage.save(base=[compare_outputs(stage, requests, exact, temperature) for temperature in (0.0, 0.4)])
    del exact
    sessions = {"ours": OnnxSession(files["fp16"], op_library(stage), stage.device)}
    if stage.seconds_left > DENSE_SECONDS:
        module = DenseNlvr(copy.deepcopy(requests.model).cpu()).eval()
        dense = replace(part, module=module, inputs=part.inputs[:-1], outputs=("logits",), encoders={})
        file = export_base(dense, scratch, "dense", ("fp16",))["fp16"]
        sessions["dense"] = OnnxSession(file, op_library(stage), stage.device)
    return sessions


def compare_base(stage: StageRun, requests: Requests, sessions: Mapping[str, OnnxSession]) -> None:
    """Latency of fp16 beside torch's."""
    stage.save(batches={})
    for batch in REHEARSED if stage.rehearse else BATCHES:
        entry = measure_batch(stage, requests, sessions, batch)
        stage.save(batches={**stage.found["batches"], str(batch): entry})


def compare_outputs(stage: StageRun, requests: Requests, session: OnnxSession, temperature: float) -> dict[str, Any]:
    """One batch in both: logits of the requests whose tokens all stayed alike, and how many did."""
    inputs = requests.inputs(2)
    with torch.inference_mode():
        model = requests.model(**inputs, temperature=torch.full((), temperature, device=stage.device))
    expected = {name: value.cpu() for name, value in model._asdict().items()}
    got = session.run(inputs, temperature)
    counts = all(torch.equal(got[name], expected[name]) for name in expected if name.endswith("counts"))
    worst = float((got["logits"] - expected["logits"]).abs().max())
    return {"temperature": temperature, "same_counts": counts, "worst": worst, "equal": counts and worst <= TOLERANCE}


def measure_batch(
    stage: StageRun, requests: Requests, sessions: Mapping[str, OnnxSession], batch: int
) -> dict[str, Any]:
    """Latency of torch and ONNX Runtime, dense and pruned, in turns; and what the fp16 graph answers."""
    inputs = requests.inputs(batch)
    dense = partial(forward, requests.model, inputs, 0.0)
    calls: dict[str, Call] = {DENSE: dense}
    if "dense" in sessions:
        calls[DENSE_ONNX] = sessions["dense"].bound(inputs, 0.0)
    total, steps = giga(dense), 2 if stage.rehearse else STEPS
    found: dict[str, Any] = {"temperatures": {}}
    for share in SHARES:
        tau = find_temperature(requests.model, inputs, share * total, steps)
        found["temperatures"][f"{share:.0%}"] = tau
        calls[f"torch, ours, {share:.0%} of the GFLOPs"] = partial(
            forward, requests.model, inputs, torch.full((), tau, device=stage.device)
        )
        calls[f"ONNX Runtime, ours, {share:.0%} of the GFLOPs"] = sessions["ours"].bound(inputs, tau)
    found["latency_us"] = take_turns(calls, 0.0 if stage.rehearse else 0.12 * stage.seconds_left, synchronizer(stage))
    last = list(calls)[-1]
    profile = profile_call(calls[last], stage.device)
    found["profile"] = {"candidate": last, **profile}
    found["answers"] = agreement(requests, sessions["ours"], inputs, found["temperatures"], stage)
    return found


def agreement(
    requests: Requests,
    session: OnnxSession,
    inputs: Mapping[str, Tensor],
    temperatures: Mapping[str, float],
    stage: StageRun,
) -> dict[str, Any]:
    """Answers of the fp16 graph next to those of dense torch in the same precision, and of torch on our kernels."""
    found = {}
    with torch.inference_mode():
        dense = requests.model(**inputs, temperature=0.0).logits.float().cpu()
        for name, tau in {"dense": 0.0, **temperatures}.items():
            ours = session.run(inputs, tau)["logits"].float()
            torchs = requests.model(**inputs, temperature=torch.full((), tau, device=stage.device)).logits.float().cpu()
            found[name] = {
                "requests": len(ours),
                "as_dense_torch": int((ours.argmax(1) == dense.argmax(1)).sum()),
                "as_torch_on_our_kernels": int((ours.argmax(1) == torchs.argmax(1)).sum()),
                "worst_logit_difference": float((ours - torchs).abs().max()),
            }
    return found
