"""What the command writes: a checkpoint, its vocabulary, and a folder of samples, all of it or nothing."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from madtp.data.preprocess import Sample
from madtp.demo import vocab_path
from madtp.errors import OutputError
from madtp.files.inputs import read_bytes
from madtp.files.scratch import MARK, scratch_folder

VOCABULARY, SAMPLES = "vocab.txt", "samples"


def check_folder(folder: Path, checkpoint: str, vocabulary: Path) -> None:
    """Refuse a folder in which the command would replace what is not an earlier output of the same task.

    Raises:
        OutputError: naming what is in the way.
    """
    there = [name for name in (checkpoint, VOCABULARY, SAMPLES) if os.path.lexists(folder / name)]
    with suppress(OSError, ValueError):
        earlier = read_bytes(folder / VOCABULARY) == vocabulary.read_bytes()
        if earlier and (folder / checkpoint).is_file():
            return
    if there:
        raise OutputError(
            f"'{folder / there[0]}' is there already and is not of an earlier demo of this task",
            f"The demo writes {checkpoint}, {VOCABULARY} and {SAMPLES}/, and would replace it.",
            "Name another folder with --out, or remove that first.",
        )


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`: its files move to their place there at the end of the block.

    They replace earlier ones; a block that raises leaves those as they were.

    Raises:
        OutputError: `folder` cannot be made or written to.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder, ".demo-") as stage:
            yield stage
            for path in sorted(path for path in stage.rglob("*") if path.is_file() and path.name != MARK):
                target = folder / path.relative_to(stage)
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        raise OutputError(
            f"cannot write into '{folder}'", error.strerror or str(error), "Name another folder with --out."
        ) from error
    finally:
        if created:
            with suppress(OSError):  # it stays unless it is empty
                folder.rmdir()


def write_samples(samples: Sequence[Sample], folder: Path, vocabulary: Path | None = None) -> None:
    """Write `samples` as `python -m export --samples` reads them: samples.json, PNG files and vocab.txt.

    A sample of two images is an entry of NLVR, one of a single image a caption's. `vocabulary` defaults to NLVR's.
    """
    folder.mkdir()
    entries: list[dict[str, str | list[str] | None]] = []
    for number, sample in enumerate(samples):
        pair = len(sample.images) > 1
        names = [f"{number}-left.png", f"{number}-right.png"] if pair else [f"{number}.png"]
        for name, image in zip(names, sample.images, strict=True):
            image.save(folder / name)
        if pair:
            entries.append({"sentence": sample.text, "label": str(sample.label), "images": names})
        else:
            entries.append({"caption": sample.text, "image": names[0]})
    (folder / "samples.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(vocabulary or vocab_path(), folder / VOCABULARY)
