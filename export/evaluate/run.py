"""A whole data set through an artifact: its published score, and every answer (docs/evaluate.md)."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from export.errors import OptionError
from export.evaluate.against import Earlier
from export.evaluate.evaluation import EvaluateOptions, Report, Work, batching, mean_tokens
from export.evaluate.items import item_work
from export.evaluate.journal import Entry, Journal
from export.evaluate.ranking import ClipWork, RetrievalWork
from export.runtime.buckets import OverflowCount
from export.session.session import Session
from madtp.data.annotations import Id
from madtp.data.datasets import RETRIEVAL_TASKS, Dataset
from madtp.errors import InputError
from madtp.files.outputs import check_outputs, json_kind, write_output

SCHEMA_VERSION = 2
RESULTS = json_kind("a result of evaluate", "schema", "metrics", "unscored", "identity", "answers")


def part_path(output: Path) -> Path:
    """Where an evaluation that was cut short leaves what it has done."""
    return output.with_name(f"{output.name}.part")


def evaluate(
    session: Session,
    dataset: Dataset,
    output: Path,
    options: EvaluateOptions,
    report: Report,
    show: Callable[[Entry], None] = lambda _: None,
    earlier: Earlier | None = None,
) -> Entry:
    """Run a data set through an artifact, score it, and write `output`.

    Finished batches are kept in `part_path(output)` until then; a later run with the same arguments goes on from them.

    Args:
        report: told of the stage, what of it is done, and all of it.
        show: given what is to be written before it is, which may fail.
        earlier: results that the answers are compared with.

    Returns:
        What was written.

    Raises:
        OptionError: options that the artifact or its task cannot follow.
        InputError: data that cannot be used, or a partial file of another evaluation.
        OutputError: a file cannot be written, or would take the place of another.
    """
    check_outputs([(output, RESULTS)], [source.path for source in dataset.sources])
    whole, dataset = len(dataset), _limited(dataset, options.limit)
    temperature = session.temperature if options.temperature is None else options.temperature
    work = _work(session, dataset, options, temperature)
    execution = session.execution
    library = None if execution is None else execution.library
    identity = {
        "artifacts": session.manifest.part_hashes,
        "checkpoint_sha256": session.manifest.checkpoint.sha256,
        "vocabulary_sha256": session.processor.sha256,
        "task": dataset.task,
        "split": dataset.split,
        "data": {source.path.name: source.sha256 for source in dataset.sources},
        "items": len(dataset),
        "items_sha256": _digest([item.key for item in dataset.items]),  # other images may be missing now
        "temperature": temperature,
        "options": work.settings,
        "op_library": None if library is None else library.sha256,
    }
    if earlier is not None:
        earlier.check(identity)
    with Journal(part_path(output), identity) as journal:
        for step in range(len(journal.entries), work.steps):
            begin, before = time.perf_counter(), session.overflows
            entry = work.run(step, report)
            overflows = asdict(session.overflows - before)
            journal.append({**entry, "overflows": overflows, "seconds": round(time.perf_counter() - begin, 3)})
        scoring = work.score(journal.entries)
        results = {
            "schema": SCHEMA_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "metrics": scoring.metrics,
            "unscored": scoring.unscored,
            "precision": session.manifest.precision,
            "execution": None if execution is None else execution.to_json(),
            "items": len(dataset),
            "partial": len(dataset) < whole,
            "batching": batching(
                session.manifest, (size for name, size in work.settings.items() if name.endswith("batch"))
            ),
            "texts_cut": sum(entry["cut"] for entry in journal.entries),
            "missing_images": [str(path) for path in dataset.missing],
            "mean_tokens": mean_tokens(journal.entries),
            "overflows": _overflows(journal.entries) if session.manifest.is_sized else None,
            "seconds": round(sum(entry["seconds"] for entry in journal.entries), 3),
            "identity": identity,
            "answers": scoring.answers,
        }
        if earlier is not None:
            results["against"] = earlier.agreement(results)
        try:
            show(results)
        finally:  # a closed pipe is no reason not to write
            write_output(output, json.dumps(results, indent=1) + "\n", RESULTS)
        if not scoring.scorable:
            journal.remove()
    return results


def _work(session: Session, dataset: Dataset, options: EvaluateOptions, temperature: float) -> Work:
    """The evaluation of the session's task."""
    task = session.task
    if dataset.task != task:
        raise InputError(f"the data set was read for {dataset.task}, and the artifact is of {task}")
    for option, given, wanted in (("generate", options.generate, "vqa"), ("k-test", options.k_test, "retrieval")):
        if given and task != wanted:
            raise OptionError(
                f"--{option} does not apply to {task}", f"It is an option of {wanted}.", f"Leave --{option} out."
            )
    if task in RETRIEVAL_TASKS:
        return (ClipWork if task == "clip" else RetrievalWork)(session, dataset, options, temperature)
    return item_work(session, dataset, options, temperature)


def _overflows(entries: Sequence[Entry]) -> dict[str, int]:
    """Of all entries together."""
    return asdict(sum((OverflowCount(**entry["overflows"]) for entry in entries), OverflowCount()))


def _limited(dataset: Dataset, limit: int | None) -> Dataset:
    """The first `limit` items."""
    if limit is None or limit >= len(dataset):
        return dataset
    data = dataset.retrieval
    if data is not None:
        texts_of_image = data.texts_of_image[:limit]
        texts = data.texts[: texts_of_image[-1][-1] + 1]
        data = replace(data, images=data.images[:limit], texts=texts, texts_of_image=texts_of_image)
    return replace(dataset, items=dataset.items[:limit], retrieval=data)


def _digest(keys: Sequence[Id]) -> str:
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()
