"""The demo models in every precision, on their whole held-out sets: the same decisions, the same tokens?

    python -m benchmarks.precisions [--demo nlvr|retrieval] [--precision NAME ...] [--json FILE]

Every precision runs in ONNX Runtime, one request at a time, with the source ids of the kept tokens as outputs, and is
compared with fp32 on the same requests:

- accuracy: of NLVR; recall@1 of retrieval, mean of both ways;
- agreement: the share of decisions that are fp32's; in retrieval, which photograph is found for a crop or a caption;
- tokens: mean over layers of what a layer keeps;
- Jaccard: |kept by both| / |kept by either|, mean over requests and layers;
- equal: the share of requests' layers that keep as many tokens as fp32's.

FP8 takes ranges, by percentile, of CALIBRATED requests like those that the demo was trained on.
"""

import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import madtp
from calibration.ranges import collect_ranges
from calibration.recipes import recipe
from calibration.smoothing import default_channels, smooth
from calibration.tokens import Source
from export.graph.fuse import fuse_products
from export.graph.precision import precision_pass
from export.graph.quantize import Quantizer
from export.graph.quantize_static import Ranges
from export.graph.trace import write_part
from export.validate.intermediates import KeptIdsRunner, PassesOf, kept_ids_runners, open_onnx_intermediates
from export.validate.selection import jaccards
from madtp import demo
from madtp.console import command
from madtp.data.preprocess import Sample
from madtp.data.samples import collate, prepare_samples
from madtp.data.tokenize import TextProcessor
from madtp.demo import retrieval
from madtp.demo.data import Scenes, held_out_samples, image_batch, load_split, scene_samples
from madtp.demo.retrieval.data import PHOTOGRAPHS, captions, held_out, picture
from madtp.demo.retrieval.evaluate import CANDIDATES
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.parts import parts_of
from madtp.models.weight_products import part_weight_names, weight_products
from madtp.tasks.ranking import rank
from madtp.tasks.requests import Outputs, RetrievalRunners, run_request

RESULT = json_kind("results of benchmarks.precisions", "precisions", "requests")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
DIGITS = 1000
CALIBRATED = 128
CALIBRATION_SEED = 7
CHECKPOINTS = {"nlvr": demo.checkpoint_path, "retrieval": retrieval.checkpoint_path}


@dataclass
class Recorder:
    """A part that keeps, of every call, its texts and the ids of the tokens that each layer kept."""

    runner: KeptIdsRunner
    calls: list[tuple[list[Any], list[Tensor]]] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = self.runner.run(inputs, temperature)
        texts = inputs["input_ids"].tolist() if "input_ids" in inputs else []
        self.calls.append((texts, self.runner.ids))
        return outputs


@dataclass(frozen=True)
class Answers:
    """What a precision made of the held-out set.

    Attributes:
        right: whether each decision is right; `decisions` are the decisions.
        calls: of every part.
    """

    right: list[bool]
    decisions: list[int]
    calls: dict[str, list[tuple[list[Any], list[Tensor]]]]
    megabytes: float


@dataclass(frozen=True)
class Row:
    """A precision next to fp32."""

    precision: str
    megabytes: float
    accuracy: float
    agreement: float
    tokens: dict[str, float]
    jaccard: float
    equal: float


def brought_to(model: Any, precision: str) -> tuple[Any, PassesOf]:
    """The model and the passes over its parts' graphs, as an export to .onnx has them; INT8 is dynamic."""
    if precision not in ("int8", "fp8"):
        return model, lambda part: [fuse_products, precision_pass(precision, runnable=True)]
    task, products = recipe(model.task, precision), weight_products(model)
    scores = {name for name, product in products.items() if product.group == "alignment"}
    chosen = frozenset(products) - task.kept(products.values()) - scores
    quantizer = (
        Quantizer("int8", "dynamic", chosen)
        if precision == "int8"
        else Quantizer("fp8", "static", chosen, percentile_ranges(model))
    )
    if task.smooth:
        model = copy.deepcopy(model)
        smooth(model, default_channels(model, model.temperature))
    return model, lambda part: [fuse_products, quantizer.graph_pass(part_weight_names(model, part), set())]


def percentile_ranges(model: Any) -> Ranges:
    """The ranges of activations over CALIBRATED requests, of what the demo was trained on."""
    rng = np.random.default_rng(CALIBRATION_SEED)
    if model.task == "nlvr":
        samples, vocabulary = scene_samples(Scenes(load_split(held_out=False), CALIBRATION_SEED), rng, CALIBRATED), demo
    else:
        samples, vocabulary = trained_photographs(rng), retrieval
    prepared = prepare_samples(samples, TextProcessor(vocabulary.vocab_path(), model.config), model.config)
    requests = (collate([request], model.config) for request in prepared)
    source = Source("", model.task, model.temperature, f"{len(prepared)} requests", None)
    table = collect_ranges(model, requests, source)
    return {name: methods["percentile"] for name, methods in table.ranges.items()}


def trained_photographs(rng: np.random.Generator) -> list[Sample]:
    """CALIBRATED crops and captions, all photographs in turn."""
    shown = [number % len(PHOTOGRAPHS) for number in range(CALIBRATED)]
    return [
        Sample(
            (Image.fromarray(picture(rng, photograph, held_out=False)),),
            str(rng.choice(captions(photograph, held_out=False))),
        )
        for photograph in shown
    ]


@contextmanager
def recorders(model: Any, precision: str) -> Iterator[tuple[dict[str, Recorder], float]]:
    """The model's parts in ONNX Runtime, and the size of their files in MB."""
    model, passes = brought_to(model, precision)
    with scratch_folder() as folder:
        files = {}
        for name, part in parts_of(model).items():
            files[name] = folder / f"{name}.onnx"
            write_part(part, files[name], external_data=False, passes=passes(part))
        runners = kept_ids_runners(files, open_onnx_intermediates(files))
        size = sum(path.stat().st_size for path in files.values()) / 1e6
        yield {name: Recorder(runner) for name, runner in runners.items()}, size


def digits(model: Any, precision: str, requests: int) -> Answers:
    """Held-out statements about digits."""
    samples = held_out_samples(requests)
    prepared = prepare_samples(samples, TextProcessor(demo.vocab_path(), model.config), model.config)
    with recorders(model, precision) as (parts, size):
        decisions = [
            int(
                run_request(model.config, parts, collate([request], model.config), model.temperature)["logits"].argmax()
            )
            for request in prepared
        ]
        right = [found == request.label for found, request in zip(decisions, prepared, strict=True)]
        return Answers(right, decisions, {name: part.calls for name, part in parts.items()}, size)


def photographs(model: Any, precision: str, crops: int) -> Answers:
    """Every held-out crop against every held-out caption, both ways, as the demo is evaluated."""
    kept = held_out(crops)
    shown, described = torch.from_numpy(kept.shown), torch.from_numpy(kept.described)
    words = TextProcessor(retrieval.vocab_path(), model.config).batch(kept.captions)
    with recorders(model, precision) as (parts, size):
        ranking = rank(
            RetrievalRunners(model.config, parts, model.temperature),
            image_batch(kept.pictures).split(1),
            *words,
            k_test=CANDIDATES,
            text_batch=1,
        )
        found = torch.cat([described[ranking.score_i2t.argmax(dim=1)], shown[ranking.score_t2i.argmax(dim=1)]])
        right = found == torch.cat([shown, described])
        calls = {name: part.calls for name, part in parts.items()}
        calls["match"] = calls["match"][: len(shown)]  # of a crop's best captions; those of a caption name no crops
        return Answers(right.tolist(), found.tolist(), calls, size)


def compare(precision: str, answers: Answers, exact: Answers) -> Row:
    """A precision's answers next to fp32's."""
    found, equal = [], []
    for part, calls in answers.calls.items():
        for (texts, ids), (same_texts, right) in zip(calls, exact.calls[part], strict=True):
            if texts == same_texts:
                found += [value for layers in zip(ids, right, strict=True) for value in jaccards(*layers)]
                equal += [left.shape == other.shape for left, other in zip(ids, right, strict=True)]
    return Row(
        precision,
        answers.megabytes,
        _mean(answers.right),
        _mean([left == right for left, right in zip(answers.decisions, exact.decisions, strict=True)]),
        {part: _mean([layer.shape[1] for _, ids in calls for layer in ids]) for part, calls in answers.calls.items()},
        _mean(found),
        _mean(equal),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(rows: Sequence[Row], title: str) -> Table:
    """A row for each precision."""
    shown = Table(title=title)
    for heading in ("", "MB", "accuracy", "agreement", "tokens", "Jaccard", "equal counts"):
        shown.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        tokens = ", ".join(f"{part} {count:.2f}" for part, count in row.tokens.items())
        shares = (f"{row.accuracy:.2%}", f"{row.agreement:.2%}", tokens, f"{row.jaccard:.4f}", f"{row.equal:.1%}")
        shown.add_row(row.precision, f"{row.megabytes:.2f}", *shares)
    return shown


@click.command()
@click.option("--demo", "which", type=click.Choice(tuple(CHECKPOINTS)), default="nlvr", show_default=True)
@click.option("--precision", "wanted", multiple=True, type=click.Choice(PRECISIONS), help="Default: all.")
@click.option("--requests", type=click.IntRange(min=1), help="Digits, or crops of each photograph (default: all).")
@click.option("--json", "json_file", type=command.PATH, help="Write the result as JSON.")
def cli(which: str, wanted: Sequence[str], requests: int | None, json_file: Path | None) -> None:
    """Compare precisions of a demo model with fp32 on its held-out set."""
    if json_file is not None:
        check_outputs([(json_file, RESULT)], ())
    model = madtp.load(CHECKPOINTS[which]())
    answer, count = (digits, DIGITS) if which == "nlvr" else (photographs, retrieval.EVALUATED)
    answers = {
        name: answer(model, name, requests or count) for name in dict.fromkeys(("fp32", *(wanted or PRECISIONS)))
    }
    rows = [compare(name, found, answers["fp32"]) for name, found in answers.items()]
    title = f"{which}: {len(rows and answers['fp32'].right)} held-out decisions, temperature {model.temperature:g}"
    Console(width=120).print(table(rows, f"{title}, onnxruntime {onnxruntime.__version__}"))
    if json_file is not None:
        content = {"demo": which, "requests": len(answers["fp32"].right), "precisions": [asdict(row) for row in rows]}
        write_output(json_file, json.dumps(content, indent=1) + "\n", RESULT)


if __name__ == "__main__":
    sys.exit(command.run(cli, "interrupted; nothing was written"))
