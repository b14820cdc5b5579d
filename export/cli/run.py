"""`python -m export run`: answer requests with an artifact."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from export.cli.common import PATH, errors_console, execution_options, output_console, raise_interrupts
from madtp.console.heartbeat import Heartbeat

if TYPE_CHECKING:
    from PIL import Image

    from export.engine.op_library import Provider
    from export.session.products import Answer, Caption, Judgement, Ranking, Tokens
    from export.session.session import Session

    Products = Sequence[Judgement | Answer | Caption]

TOP = 5
# How each task is asked, and the options that only some tasks have.
FORMS = {
    "nlvr": '--image LEFT --image RIGHT --text "..."',
    "vqa": '--image FILE --text "..." [--text ...]',
    "caption": "--image FILE [--image ...]",
    "retrieval": '--image FILE [--image ...] --text "..." [--text ...]',
    "clip": '--image FILE [--image ...] --text "..." [--text ...]',
}
OPTIONS = {
    "candidates": ("vqa",),
    "beams": ("vqa", "caption"),
    "max_length": ("vqa", "caption"),
    "prompt": ("caption",),
    "k_test": ("retrieval",),
    "cut": ("nlvr", "vqa", "retrieval", "clip"),
    "top": ("vqa", "retrieval", "clip"),
}


@click.command(short_help="Answer requests with an artifact.")
@click.argument("artifact", type=PATH)
@click.option("--image", "images", type=PATH, multiple=True, help="Image file, repeatable; nlvr: left, then right.")
@click.option("--text", "texts", multiple=True, help="Sentence, question or caption, repeatable.")
@click.option(
    "--candidates", type=PATH, metavar="FILE", help="vqa: answers to choose from, a JSON list or one per line."
)
@click.option("--beams", type=click.IntRange(1), help="vqa, caption: beams (default: 3).")
@click.option("--max-length", type=click.IntRange(2), help="vqa, caption: maximum length in ids (default: 10, 20).")
@click.option("--prompt", help="caption: prompt that every caption continues (default: the manifest's).")
@click.option(
    "--k-test", type=click.IntRange(1), help="retrieval: candidates matched per image and per text (default: 256)."
)
@click.option(
    "--top", type=click.IntRange(1), help=f"vqa, retrieval, clip: number of results to show (default: {TOP})."
)
@click.option("--batch", type=click.IntRange(1), help="Requests per batch (default: 1, or OPT of a packed artifact).")
@click.option("--cut", is_flag=True, default=None, help="Truncate overlong texts, as the published code does.")
@click.option("--temperature", type=float, help="Pruning temperature; 0 is dense (default: the manifest's).")
@click.option("--vocab", type=PATH, metavar="FILE", help="The checkpoint's vocab.txt (default: the artifact's own).")
@click.option("--rotate", is_flag=True, help="Rotate photos by their EXIF orientation; the published code does not.")
@execution_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    artifact: Path,
    images: Sequence[Path],
    texts: Sequence[str],
    vocab: Path | None,
    rotate: bool,
    as_json: bool,
    temperature: float | None,
    library: str | None,
    provider: "Provider",
    **given: Any,
) -> None:
    """Answer requests, which are images and texts, with ARTIFACT (out.json, out.onnx or out.plan).

    \b
    nlvr       --image LEFT --image RIGHT --text "..."
    vqa        --image FILE --text "..." [--text ...] [--candidates FILE]
    caption    --image FILE [--image ...] [--prompt "..."]
    retrieval  --image FILE [--image ...] --text "..." [--text ...]
    clip       --image FILE [--image ...] --text "..." [--text ...]

    \b
    Exit status: 0 answered, 2 invalid input or an unsuitable machine.
    """
    from export.artifact.reader import open_manifest
    from export.session.session import Session
    from madtp.data.texts import read_answers

    raise_interrupts()
    check_form(open_manifest(artifact)[1].task, len(images), len(texts), given)
    pictures = read_images(images, rotate)
    candidates = None if given["candidates"] is None else read_answers(given["candidates"])
    with (
        Heartbeat(errors_console(), "opening the artifact") as heartbeat,
        Session(artifact, vocabulary=vocab, provider=provider, library=library) as session,
    ):
        heartbeat.doing("answering")
        product = ask(session, pictures, texts, temperature, candidates, given)
        if as_json:
            request = {"images": [str(path) for path in images], "texts": list(texts)}
            tau = session.temperature if temperature is None else temperature
            click.echo(json.dumps(as_object(session, request, product, tau, given["top"] or TOP)))
        else:
            packed = session.manifest.is_packed
            show(product, [path.name for path in images], texts, given["top"] or TOP, packed)
            if session.execution is not None:
                output_console().print(f"    runs {session.execution}", highlight=False, soft_wrap=True)
            if session.overflows.overflows:
                output_console().print(f"    {session.overflows}", highlight=False, soft_wrap=True)


def check_form(task: str, images: int, texts: int, given: Mapping[str, Any]) -> None:
    """Usage error where the options do not make a request of the task."""
    for name, tasks in OPTIONS.items():
        if given[name] is not None and task not in tasks:
            option = name.replace("_", "-")
            raise click.UsageError(
                f"--{option} does not apply to {task}, only to {', '.join(tasks)}: run {FORMS[task]}"
            )
    for name in ("beams", "max_length"):
        if given["candidates"] is not None and given[name] is not None:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} does not apply with --candidates: it applies to generated answers")
    fits = {
        "nlvr": images == 2 and texts == 1,
        "vqa": images == 1 and texts >= 1,
        "caption": images >= 1 and texts == 0,
        "retrieval": images >= 1 and texts >= 1,
        "clip": images >= 1 and texts >= 1,
    }[task]
    if not fits:
        raise click.UsageError(f"{images} images and {texts} texts do not fit the task {task}: run {FORMS[task]}")


def read_images(paths: Sequence[Path], rotate: bool) -> "list[Image.Image]":
    """The images; notes on standard error those with an EXIF rotation."""
    from madtp.data.images import exif_rotated, read_image

    pictures = []
    for path in paths:
        pictures.append(read_image(path, rotate=rotate))
        if exif_rotated(pictures[-1]):
            note = f"note: the orientation in the EXIF data of '{path}' is ignored, as published; --rotate follows it"
            errors_console().print(note, markup=False, highlight=False, soft_wrap=True)
    return pictures


BATCHED = "batched: with pruning, an answer can depend on the others in its batch"


def ask(
    session: "Session",
    pictures: "list[Image.Image]",
    texts: Sequence[str],
    temperature: float | None,
    candidates: Sequence[str] | None,
    given: Mapping[str, Any],
) -> "Products | Ranking":
    """The product of the session's task."""
    beams = given["beams"] or 3
    shared = {"batch": given["batch"], "temperature": temperature}
    read = {"cut": bool(given["cut"])}
    length = {} if given["max_length"] is None else {"max_length": given["max_length"]}
    if session.task == "nlvr":
        return session.judge([(pictures[0], pictures[1])], texts, **read, **shared)
    if session.task == "vqa":
        asked = pictures * len(texts)
        return session.answer(asked, texts, candidates=candidates, beams=beams, **length, **read, **shared)
    if session.task == "caption":
        return session.caption(pictures, prompt=given["prompt"], beams=beams, **length, **shared)
    return session.rank(pictures, texts, k_test=given["k_test"], **read, **shared)


def as_object(
    session: "Session",
    request: Mapping[str, Any],
    product: "Products | Ranking",
    temperature: float,
    top: int,
) -> dict[str, Any]:
    """What --json prints."""
    from export.session.products import Ranking

    answer: dict[str, Any]
    if not isinstance(product, Ranking):
        answer = {"products": [asdict(entry) for entry in product]}
        for entry in answer["products"]:
            if "top" in entry:
                entry["top"] = entry["top"][:top]
    else:
        texts_of, images_of = product.top(top)
        scores = {name: getattr(product, name).tolist() for name in ("sim", "score_i2t", "score_t2i")}
        found = {"texts_of_images": texts_of, "images_of_texts": images_of}
        tokens = {encoder: counts.tolist() for encoder, counts in product.tokens.items()}
        answer = {"ranking": {**scores, **found, "tokens": tokens, "batch": asdict(product.batch)}}
    return {
        "task": session.task,
        **request,
        **answer,
        "temperature": temperature,
        "backend": {"name": session.backend.name, "version": session.backend.version},
        "execution": None if session.execution is None else session.execution.to_json(),
        "overflows": asdict(session.overflows) if session.manifest.is_sized else None,
        "files": [part.artifact for part in session.manifest.parts],
    }


def show(
    product: "Products | Ranking",
    images: Sequence[str],
    texts: Sequence[str],
    top: int,
    packed: bool,
) -> None:
    """Print a product for people."""
    from export.session.products import Answer, Judgement, Ranking

    output = output_console()
    if isinstance(product, Ranking):
        output.print(_scores(product, images, texts))
        texts_of, images_of = product.top(top)
        for title, queries, found, names in (
            ("texts of each image", images, texts_of, texts),
            ("images of each text", texts, images_of, images),
        ):
            table = Table("", "best first", title=title, show_lines=True)
            for query, best in zip(queries, found, strict=True):
                table.add_row(query, "\n".join(f"{score:8.4f}  {names[place]}" for place, score in best))
            output.print(table)
        if max(asdict(product.batch).values()) > 1 and not packed:
            output.print(BATCHED, soft_wrap=True)
        return
    subjects = texts or images  # a caption has no text
    for subject, entry in zip(subjects, product, strict=True):
        if isinstance(entry, Judgement):
            text = f"{str(entry.answer).lower()} (probability of true {entry.probability:.3f})"
        elif isinstance(entry, Answer):
            text = f"{entry.text} ({entry.how})"
        else:
            text = entry.text
        prefix = f"{subject}: " if len(product) > 1 else ""
        output.print(f"{prefix}{text}", highlight=False, soft_wrap=True)
        if isinstance(entry, Answer):
            for candidate, score in entry.top[:top]:
                output.print(f"    {score:9.4f}  {candidate}", highlight=False, soft_wrap=True)
        output.print(f"    tokens {_counts(entry.tokens)}", highlight=False, soft_wrap=True)
    if any(entry.batch > 1 for entry in product) and not packed:
        output.print(BATCHED, soft_wrap=True)


def _scores(ranking: "Ranking", images: Sequence[str], texts: Sequence[str]) -> Table:
    from madtp.tasks.ranking import NOT_MATCHED

    table = Table("", *texts, title="score of each text for each image (- is not matched)")
    for name, row in zip(images, ranking.score_i2t.tolist(), strict=True):
        table.add_row(name, *("-" if score == NOT_MATCHED else f"{score:.4f}" for score in row))
    return table


def _counts(tokens: "Tokens") -> str:
    """Token counts after each layer of each encoder."""
    return ", ".join(f"{encoder} {' '.join(map(str, counts))}" for encoder, counts in tokens.items())
