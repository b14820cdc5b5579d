"""fp16 and bf16 on the kernels: the same decisions, the same tokens, and where not, could rounding have decided?

The reference is the same model in fp32. A token may differ if a score had to move by no more than torch's own scores do
in that precision (without our kernels, on the same device), or by the precision's usual error (export/validate).
"""

import copy
import math
from typing import Any

import torch

from benchmarks.kit.stage import StageRun
from benchmarks.kit.stages.models import recordings, use_kernels
from export.validate.run_result import LayerTokens, RunResult
from export.validate.selection import Selection, score_errors
from export.validate.tolerances import TOLERANCES, Bounds
from madtp import NlvrModel
from madtp.models.parts import encoder_layers, parts_of
from madtp.ops.kernels import without_kernels
from madtp.ops.recorder import PruningRecorder
from tests import golden

REHEARSED = 2  # cases of a folder
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def run(stage: StageRun) -> bool:
    """Run every pruned NLVR case, tiny and of base size; passes if rounding explains every difference."""
    use_kernels(stage)
    found: dict[str, Any] = {}
    for folder in recordings(stage, "nlvr"):
        model = golden.load_model(folder).to(stage.device)
        for precision in PRECISIONS:
            found[f"{folder.parent.name}/{folder.name} {precision}"] = compare_precision(
                stage, model, folder, precision
            )
            stage.save(comparisons=found)
    return bool(found) and all(entry["passed"] for entry in found.values())


def compare_precision(stage: StageRun, model: NlvrModel, folder: Any, precision: str) -> dict[str, Any]:
    """Compare all cases of a folder in one precision."""
    selection, tolerance = Selection(), TOLERANCES[precision]
    narrow = copy.deepcopy(model).to(PRECISIONS[precision])
    errors: list[float] = []
    wrong: list[str] = []
    decisions, equal = 0, 0
    cases = [case for case in golden.load_cases(folder, model.config.image_size) if case.temperature > 0]
    for case in cases[:REHEARSED] if stage.rehearse else cases:
        moved = case.to(stage.device)
        exact, ours = answer(model, moved), answer(narrow, moved)
        with without_kernels(stage.device):
            same = answer(narrow, moved)
        flips = selection.add(exact, ours, score_errors(same, exact, tolerance))
        truth, logits, torchs = (run.outputs["logits"].double() for run in (exact, ours, same))
        error, yardstick = (float((values - truth).abs().max()) for values in (logits, torchs))
        errors.append(error)
        decisions += len(truth)
        equal += int((truth.argmax(dim=1) == logits.argmax(dim=1)).sum())
        allowed = Bounds(tolerance).allowed("logits", float(truth.abs().max()), yardstick)
        if not math.isfinite(error):
            wrong.append(f"{case.name}: logits are not finite")
        elif not flips and not error <= allowed:  # where other tokens were kept, other logits follow
            wrong.append(f"{case.name}: the same tokens, and logits off by {error:.1e} (allowed {allowed:.1e})")
    content = selection.to_json()
    jaccards = [layer["jaccard_mean"] for layer in content["layers"] if layer["jaccard_mean"] is not None]
    return {
        "passed": selection.passed and not wrong,
        "wrong": wrong,
        "decisions": decisions,
        "decisions_equal": equal,
        "worst_logit_difference": float(torch.tensor(errors).max()),  # NaN where any is
        "layers_equal": selection.layers_equal,
        "layers": len(selection.layers),
        "jaccard_mean": sum(jaccards) / len(jaccards) if jaccards else None,
        "flips": content["differences"],
        "flips_explained": sum(difference.explained for difference in selection.differences),
        "listed": content["listed"],
    }


def answer(model: NlvrModel, case: golden.GoldenCase) -> RunResult:
    """Outputs, and every layer with the scores that decided it."""
    temperature = torch.full((), case.temperature, device=case.inputs["image0"].device)
    with torch.no_grad(), PruningRecorder() as recorder:
        output = model(**case.inputs, temperature=temperature)
    layers = [
        LayerTokens(encoder, index, record.tokens_out, record.source_ids, record)
        for (encoder, index), record in zip(encoder_layers(parts_of(model)), recorder.records, strict=True)
    ]
    return RunResult(output._asdict(), layers)
