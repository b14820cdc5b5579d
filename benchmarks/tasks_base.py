"""Every task but NLVR (`benchmarks.nlvr_base`) at base size with generated weights: how fast the exported parts are.

    python -m benchmarks.tasks_base [--task NAME ...] [--json FILE]

1. Each part that prunes, one request: ONNX Runtime against our eager torch at temperature 0 and two others, interleaved
   round by round; latency ratios next to the GFLOPs ratio.
2. Captioning: ids per second of the decoder in ONNX Runtime, with its cache and without (the whole text again at every
   step), greedily and with three beams, interleaved.

Weights and images follow the rule of `tests/helpers/generate.py`; token counts of generated weights say nothing about
accuracy.
"""

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from export.bench.latency import Latency, interleave
from export.graph.trace import save_onnx, trace_part
from export.runtime.onnx_runner import OnnxRunner
from madtp.checkpoint.loading import MODELS
from madtp.console import command
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.scratch import scratch_folder
from madtp.models.config import CaptionConfig
from madtp.models.decoder import DecoderSession, DecoderStep, Source, TextDecoder, empty_cache
from madtp.models.parts import Part, parts_of
from madtp.ops.flops import count_call
from madtp.tasks.generation import Limits, Step, beam_search, greedy_search
from madtp.tasks.requests import Runner, TorchRunner, decoder_step
from tests.helpers import sizes
from tests.helpers.generate import generated_images, generated_state

CONFIGS: dict[str, Any] = {
    "vqa": sizes.VQA,
    "caption": sizes.CAPTION,
    "retrieval": sizes.RETRIEVAL,
    "clip": sizes.CLIP,
}
TEMPERATURES = (0.4, 1.0)
QUESTION_IDS = 12
CAPTION_IDS = 35  # retrieval pads every text to them
WRITTEN_IDS = 20  # of a caption, prompt included
PROMPT_IDS = 4
MIN_ROUNDS = 5


def generated_model(task: str) -> Any:
    """The model of a task at base size, seed 0."""
    with torch.device("meta"):
        model = MODELS[task](CONFIGS[task])
    state = generated_state(model, seed=0)
    for copy, original in TextDecoder.TIED:
        if f"text_decoder.{copy}" in state:
            state[f"text_decoder.{copy}"] = state[f"text_decoder.{original}"]
    model.load_state_dict(state, assign=True)
    return model.eval()


def part_inputs(config: Any, part: Part, image_tokens: Tensor | None) -> dict[str, Tensor]:
    """Inputs of one request for a part; `image_tokens` are the image tokens for matching."""
    inputs: dict[str, Tensor] = {}
    names = {spec.name for spec in part.inputs}
    if "image" in names:
        inputs["image"] = generated_images(1, config.image_size, seed=100)
    if "input_ids" in names:
        length = {"vqa": QUESTION_IDS, "retrieval": CAPTION_IDS}.get(
            config.task, config.context_length if config.task == "clip" else 0
        )
        words = torch.randint(1000, 30000, (1, length), generator=torch.Generator().manual_seed(0))
        if config.task == "clip":
            words[0, 0], words[0, QUESTION_IDS:] = config.sot_token_id, 0
            words[0, QUESTION_IDS] = config.eot_token_id
        else:
            words[0, 0], words[0, -1] = config.enc_token_id, config.sep_token_id
        inputs["input_ids"] = words
    if "attention_mask" in names:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "image_tokens" in names:
        assert image_tokens is not None
        inputs["image_tokens"] = image_tokens
    return inputs


def measure_part(
    config: Any, part: Part, runner: Runner, inputs: Mapping[str, Tensor], seconds: float
) -> list[dict[str, Any]]:
    """Measure latency and GFLOPs of a part at temperature zero and TEMPERATURES, in ONNX Runtime and torch."""
    eager = TorchRunner(part)
    temperatures = (0.0, *TEMPERATURES)
    candidates: dict[str, Callable[[], object]] = {}
    for tau in temperatures:
        candidates[f"torch {tau:g}"] = partial(eager.run, inputs, tau)
        candidates[f"onnxruntime {tau:g}"] = partial(runner.run, inputs, tau)
    latency = interleave(candidates, seconds=seconds, min_rounds=MIN_ROUNDS)
    rows = []
    for tau in temperatures:
        counts = {name: value for name, value in runner.run(inputs, tau).items() if name.endswith("_token_counts")}
        rows.append(
            {
                "part": f"{config.task} {part.name}",
                "temperature": tau,
                "gflops": count_call(partial(eager.run, inputs, tau)).giga,
                "tokens": {name: value[0].tolist() for name, value in counts.items()},
                "torch": asdict(latency[f"torch {tau:g}"]),
                "onnxruntime": asdict(latency[f"onnxruntime {tau:g}"]),
            }
        )
    return rows


class WithoutCache:
    """A decoder step without cache: it keeps the ids and reads the whole text again."""

    def __init__(self, step: DecoderStep, source: Source, texts: int) -> None:
        self._step, self._source, self._texts = step, source, texts
        self._ids: Tensor | None = None

    def __call__(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        if self._ids is None:
            self._ids = input_ids
        else:
            before = self._ids if rows is None else self._ids[rows]
            self._ids = torch.cat([before, input_ids], dim=1)
        ids = self._ids.unflatten(0, (-1, self._texts))
        everyone = torch.arange(ids.shape[0] * self._texts).view(-1, self._texts)
        logits, _ = self._step(ids, everyone, empty_cache(self._source, self._texts), self._source)
        return logits.flatten(0, 1)


def measure_writing(config: CaptionConfig, decoder: Runner, source: Source, seconds: float) -> list[dict[str, Any]]:
    """Measure ids per second when generating WRITTEN_IDS ids for one image, with the cache and without."""
    limits = Limits(WRITTEN_IDS, WRITTEN_IDS, config.sep_token_id, config.pad_token_id)  # none ends early
    prompt = torch.randint(1000, 30000, (1, PROMPT_IDS), generator=torch.Generator().manual_seed(1))
    step = decoder_step(decoder)

    def write(make: Callable[[int], Step], beams: int) -> Tensor:
        if beams == 1:
            return greedy_search(make(beams), prompt, limits)
        return beam_search(make(beams), prompt, limits, beams)

    cached, uncached = partial(DecoderSession, step, source), partial(WithoutCache, step, source)
    candidates: dict[str, Callable[[], Tensor]] = {
        f"{name} {beams}": partial(write, make, beams)
        for beams in (1, 3)
        for name, make in (("cached", cached), ("uncached", uncached))
    }
    for beams in (1, 3):
        assert torch.equal(candidates[f"cached {beams}"](), candidates[f"uncached {beams}"]())
    latency = interleave(candidates, seconds=seconds, min_rounds=MIN_ROUNDS)
    written = WRITTEN_IDS - PROMPT_IDS
    return [
        {
            "beams": beams,
            "source_tokens": source.cache.shape[-2],
            **{
                name: {
                    **asdict(latency[f"{name} {beams}"]),
                    "ids_per_second": written / latency[f"{name} {beams}"].p50 * 1e3,
                }
                for name in ("cached", "uncached")
            },
        }
        for beams in (1, 3)
    ]


def measure_task(task: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure all parts of a task."""
    model = generated_model(task)
    parts = parts_of(model)
    result: dict[str, Any] = {"parts": [], "writing": []}
    image_tokens, source = None, None
    for part in parts.values():
        path = folder / f"{task}.{part.name}.onnx"
        save_onnx(trace_part(part), path, external_data=True)
        runner = OnnxRunner(path)
        if part.encoders:
            inputs = part_inputs(model.config, part, image_tokens)
            result["parts"] += measure_part(model.config, part, runner, inputs, seconds)
            output = runner.run(inputs, TEMPERATURES[0])
            image_tokens, source = output.get("image_tokens", image_tokens), output.get("source_cache", source)
        elif task == "caption":
            assert source is not None
            result["writing"] = measure_writing(model.config, runner, Source(source), seconds)
        for file in folder.iterdir():
            file.unlink()  # gigabytes
    return result


def parts_table(rows: list[dict[str, Any]]) -> Table:
    """Table of latency ratios and GFLOPs ratios."""
    table = Table(title="one request, milliseconds: median (p10-p90)")
    columns = ("part", "temperature", "GFLOPs", "ratio", "torch eager", "ratio", "ONNX Runtime", "ratio", "torch / ORT")
    for column in columns:
        table.add_column(column, justify="right")
    dense = rows[0]
    for row in rows:
        dense = row if row["temperature"] == 0 else dense
        cells = [
            row["part"],
            f"{row['temperature']:g}",
            f"{row['gflops']:.1f}",
            f"{dense['gflops'] / row['gflops']:.2f}",
        ]
        for runtime in ("torch", "onnxruntime"):
            value = Latency(**row[runtime])
            cells.append(f"{value.p50:.0f} ({value.p10:.0f}-{value.p90:.0f})")
            cells.append(f"{dense[runtime]['p50'] / value.p50:.2f}")
        table.add_row(*cells, f"{row['torch']['p50'] / row['onnxruntime']['p50']:.2f}")
    return table


def writing_table(rows: list[dict[str, Any]]) -> Table:
    """Table of ids per second with the cache and without."""
    table = Table(title=f"captioning: ids a second, {WRITTEN_IDS} ids with a prompt of {PROMPT_IDS}")
    for column in ("beams", "image tokens", "with the cache", "without", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        fast, slow = row["cached"]["ids_per_second"], row["uncached"]["ids_per_second"]
        table.add_row(str(row["beams"]), str(row["source_tokens"]), f"{fast:.1f}", f"{slow:.1f}", f"{fast / slow:.2f}")
    return table


RESULTS = json_kind("a result of this benchmark", "date", "machine", "tasks")


@click.command()
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(CONFIGS)), help="All by default; repeatable.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there too.")
@click.option("--seconds", default=30.0, show_default=True, help="How long to time each part.")
def main(tasks: tuple[str, ...], target: Path | None, seconds: float) -> None:
    """Measure latency of the parts of every task at base size."""
    check_outputs([(target, RESULTS)], ())
    console = Console(width=140)
    measured = {}
    for task in tasks or tuple(CONFIGS):
        with scratch_folder() as scratch:
            measured[task] = measure_task(task, scratch, seconds)
        console.print(parts_table(measured[task]["parts"]))
        if measured[task]["writing"]:
            console.print(writing_table(measured[task]["writing"]))
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=True)} cores",
        "load_after": np.round(psutil.getloadavg(), 2).tolist(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "tasks": measured,
    }
    if target is not None:
        write_output(target, json.dumps(results, indent=1) + "\n", RESULTS)


if __name__ == "__main__":
    sys.exit(command.run(main, "interrupted; nothing was written"))
