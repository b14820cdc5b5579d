"""fp16 and bf16 on the kernels: the same decisions, the same tokens, and where not, could rounding have decided?

Held to the same model in fp32. A token may differ where a score had to move by no more than torch's own scores do in
that precision (without our kernels, on the same device), or by the precision's usual error (export/validation).
"""

import copy
from typing import Any

import torch

from benchmarks.kit.stage import Stage
from benchmarks.kit.stages.models import use_kernels
from export.parity import encoder_layers
from export.validation.contestants import Answer, Layer
from export.validation.selection import Selection, score_errors
from export.validation.tolerances import TOLERANCES
from madtp import NlvrModel
from madtp.ops.kernels import without_kernels
from madtp.ops.recorder import PruningRecorder
from madtp.parts import parts_of
from tests import golden
from tests.paths import golden_folders

REHEARSED = 2  # cases of a folder
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def run(stage: Stage) -> bool:
    """Every pruned NLVR case, tiny and of base size; passes where rounding explains every difference."""
    use_kernels(stage)
    found: dict[str, Any] = {}
    for folder in golden_folders("nlvr"):
        if stage.rehearse and folder.name == "base":
            continue
        model = golden.load_model(folder).to(stage.device)
        for precision in PRECISIONS:
            found[f"{folder.parent.name}/{folder.name} {precision}"] = compare_precision(
                stage, model, folder, precision
            )
            stage.save(comparisons=found)
    return bool(found) and all(entry["passed"] for entry in found.values())


def compare_precision(stage: Stage, model: NlvrModel, folder: Any, precision: str) -> dict[str, Any]:
    """All cases of a folder in one precision."""
    selection, tolerance = Selection(), TOLERANCES[precision]
    narrow = copy.deepcopy(model).to(PRECISIONS[precision])
    decisions, equal, worst = 0, 0, 0.0
    cases = [case for case in golden.load_cases(folder, model.config.image_size) if case.temperature > 0]
    for case in cases[:REHEARSED] if stage.rehearse else cases:
        moved = case.to(stage.device)
        exact, ours = answer(model, moved), answer(narrow, moved)
        with without_kernels(stage.device):
            same = answer(narrow, moved)
        selection.add(exact, ours, score_errors(same, exact, tolerance))
        left, right = exact.outputs["logits"].float(), ours.outputs["logits"].float()
        decisions += len(left)
        equal += int((left.argmax(dim=1) == right.argmax(dim=1)).sum())
        worst = max(worst, float((left - right).abs().max()))
    content = selection.to_json()
    jaccards = [layer["jaccard_mean"] for layer in content["layers"] if layer["jaccard_mean"] is not None]
    return {
        "passed": selection.passed,
        "decisions": decisions,
        "decisions_equal": equal,
        "worst_logit_difference": worst,
        "layers_equal": selection.layers_equal,
        "layers": len(selection.layers),
        "jaccard_mean": sum(jaccards) / len(jaccards) if jaccards else None,
        "flips": content["differences"],
        "flips_explained": sum(difference.explained for difference in selection.differences),
        "listed": content["listed"],
    }


def answer(model: NlvrModel, case: golden.GoldenCase) -> Answer:
    """Outputs, and every layer with the scores that decided it."""
    temperature = torch.full((), case.temperature, device=case.inputs["image0"].device)
    with torch.no_grad(), PruningRecorder() as recorder:
        output = model(**case.inputs, temperature=temperature)
    layers = [
        Layer(encoder, index, record.tokens_out, record.source_ids, record)
        for (encoder, index), record in zip(encoder_layers(parts_of(model)), recorder.records, strict=True)
    ]
    return Answer(output._asdict(), layers)
