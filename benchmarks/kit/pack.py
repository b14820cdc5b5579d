"""Packs the GPU kit into build/gpu-kit: `./build.sh gpu-kit` (docs/gpu-kit.md).

    python -m benchmarks.kit.pack [--python 3.12] [--without-flash-attention-3] [--onnxruntime] [--out DIR]

Sources, kernels for CUDA and for the host, recordings without what can be generated again, and the wheels that a
machine with torch lacks. Weights and images follow from a rule (tests/helpers/generate.py); what does not is packed
as it is.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.compile import source_hash
from benchmarks.kit.embedded import pack_embedded
from benchmarks.kit.files import read_json, write_json
from benchmarks.kit.wheel_parts import split_wheel
from export.engine.plugin_build import (
    KERNELS_NAME,
    ONNXRUNTIME_NAME,
    SM_VARIABLE,
    architectures,
    build_kernels,
    build_library,
)
from madtp.errors import MadtpError, OutputError
from madtp.files.scratch import scratch_folder
from madtp.models.clip import round_like_official_loader
from tests import golden
from tests.helpers import native_build
from tests.helpers.generate import generated_state
from tests.helpers.paths import CARRIED, RECORDINGS, ROOT, TASKS

ABOUT = "kit.json"
DEFAULT = ROOT / "build" / "gpu-kit"
MOST_BYTES = 60_000_000
DEFAULT_SM = (90,)  # H100 and H200; MADTP_SM names others
SOURCES = ("madtp", "calibration", "export", "tests", "benchmarks", "plugins")
LEFT_OUT = ("__pycache__", "*.pt", "results", "tokenizer", "*.egg-info")
# What no stage runs; the programs of the stage `embedded` are packed built.
UNUSED = ("plugins/runtime", "plugins/examples", "tests/export", "tests/calibration", "tests/benchmarks", "tests/madtp")
# What a machine with torch, onnx, onnxruntime, tokenizers and pytest may lack; versions are those of constraints.txt.
WHEELS = ("click", "hypothesis", "onnx-ir", "onnxscript", "safetensors", "sortedcontainers")
FLASH_3 = "fa3-fwd==0.0.3"
ONNXRUNTIME = "onnxruntime-gpu==1.31.1"  # 256 MB, for CUDA 13
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_24_x86_64", "manylinux_2_28_x86_64")


@dataclass
class Kit:
    """A kit that is being packed.

    Attributes:
        folder: the kit's folder.
        python: Python version of the target machine, e.g. "3.12".
        left_out: what could not be packed, and why.
    """

    folder: Path
    python: str
    left_out: list[str] = field(default_factory=list)


def pack_sources(kit: Kit) -> None:
    """The project's own code; checkpoints and results stay at home."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, kit.folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in UNUSED:
        shutil.rmtree(kit.folder / name)
    kit.left_out.append("tests that no stage runs, and sources of the engine for C and C++")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy2(ROOT / name, kit.folder)
    shutil.copy2(ROOT / "benchmarks" / "kit" / "run.sh", kit.folder)
    kit.left_out.append("trained demo checkpoints: one stage runs what was exported from one")


def pack_libraries(kit: Kit) -> tuple[int, ...]:
    """Kernels, and ops of ONNX Runtime, for CUDA and for the host; returns the compute capabilities of the former.

    Raises:
        PluginError: they cannot be built, or MADTP_SM is not a list of compute capabilities.
    """
    if os.environ.get(SM_VARIABLE, "").strip():
        sm, built = architectures(), build_library().path.parent
        kernels, ops = built / KERNELS_NAME, built / ONNXRUNTIME_NAME
    else:
        sm = DEFAULT_SM
        kernels = build_kernels(sm, ROOT / "build" / f"kernels-{'-'.join(map(str, sm))}")
        ops = kernels.parent / "onnxruntime" / ONNXRUNTIME_NAME
    target = kit.folder / "lib"
    target.mkdir()
    host = native_build.build(sanitize=False)
    for library in (kernels, ops, host.kernels, host.cuda_ops):
        _strip(library, target)
    return sm


def pack_wheels(kit: Kit, flash_attention_3: bool) -> None:
    """Packages from PyPI for the machine's Python, ready to import; FlashAttention-3 as it is.

    Raises:
        OutputError: pip cannot get one.
    """
    target = _for_python(kit.python)
    site = kit.folder / "site"
    _pip("install", "--target", site, "--constraint", ROOT / "constraints.txt", *target, *WHEELS)
    for folder in (*site.rglob("__pycache__"), site / "bin"):
        shutil.rmtree(folder, ignore_errors=True)
    if flash_attention_3:
        _pip("download", "--dest", kit.folder / "wheels", *target, FLASH_3)
    else:
        kit.left_out.append("FlashAttention-3: not asked for")


def pack_onnxruntime(kit: Path, python: str) -> list[Path]:
    """onnxruntime-gpu, which is too large to be carried with the kit, in folders beside it; returns these.

    Raises:
        OutputError: pip cannot get it.
    """
    with scratch_folder(kit.parent, f".{kit.name}-") as scratch:
        _pip("download", "--dest", scratch, *_for_python(python), ONNXRUNTIME)
        return split_wheel(next(scratch.glob("*.whl")), kit)


def _for_python(version: str) -> list[str]:
    """Options of pip: wheels alone, for this Python on Linux."""
    abi = f"cp{version.replace('.', '')}"
    chosen = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", version]
    return [
        *chosen,
        *(f"--platform={platform}" for platform in PLATFORMS),
        *(f"--abi={name}" for name in (abi, "abi3", "none")),
    ]


def _pip(*arguments: Any) -> None:
    _run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        "pip could not get the packages of the GPU kit",
        "The kit is packed on a machine that reaches PyPI; look at the message above.",
    )


def _strip(source: Path, target: Path) -> None:
    """Copy a library without what only debuggers and linkers read."""
    command = [native_build.tool("strip"), "--strip-unneeded", "-o", target / source.name, source]
    _run(command, f"strip could not copy '{source}'", "It comes with the C++ compiler, in binutils.")


def _run(command: list[Any], failed: str, remedy: str) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OutputError(failed, done.stderr.strip()[-500:], remedy)


def pack_recordings(kit: Kit) -> None:
    """The recorded cases of all tasks, as far as this machine has them."""
    folders = [RECORDINGS.parent / task / size for task in TASKS for size in ("tiny", "base")]
    there = [folder for folder in folders if (folder / "cases.json").is_file()]
    if not there:
        kit.left_out.append(f"recordings: there are none at {RECORDINGS.parent}; those in tests/data are in")
    for folder in there:
        pack_folder(folder, kit.folder / "golden" / folder.parent.name / folder.name)
    if there:
        kit.left_out.append("of recordings: weights and images that the rule gives, and tensors that nothing compares")
    pack_folder(CARRIED, kit.folder / CARRIED.relative_to(ROOT), keep_others=True)


def pack_folder(source: Path, target: Path, *, keep_others: bool = False) -> None:
    """One folder of recorded cases, slim: checked to load to the same model and the same cases.

    Raises:
        OutputError: what was packed would load to something else.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".json" or (keep_others and path.suffix != ".safetensors"):
            shutil.copyfile(path, target / path.name)
    if golden.stored_weights(source):
        _pack_weights(source, target)
    size = json.loads((source / "config.json").read_text())["image_size"]
    for entry in json.loads((source / "cases.json").read_text()):
        tensors = {
            name: tensor
            for name, tensor in load_file(source / entry["file"]).items()
            if name.startswith(("input/", "output/")) or name.endswith("/source")
        }
        images = {name: tensor for name, tensor in tensors.items() if name.startswith("input/image")}
        save_file({name: tensor for name, tensor in tensors.items() if name not in images}, target / entry["file"])
        if images and not _same_case(source, target, size, entry["name"]):
            save_file(tensors, target / entry["file"])
        if not _same_case(source, target, size, entry["name"]):
            raise OutputError(
                f"the case {entry['name']} of '{source}' cannot be packed", "It would load to another one."
            )


def _pack_weights(source: Path, target: Path) -> None:
    """Only the tensors that the rule does not give."""
    model = golden.load_model(source)
    seed = json.loads((source / "config.json").read_text())["weight_seed"]
    stored, given = golden.stored_weights(source), generated_state(model, seed)
    if model.task == "clip":  # rounded whenever they are loaded
        given = round_like_official_loader(given)
    changed = {name: stored[name] for name in given if not torch.equal(stored[name], given[name])}
    if changed:
        save_file(changed, target / golden.CHANGED_WEIGHTS)
    again = golden.load_model(target).state_dict()
    if not all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items()):
        raise OutputError(f"the weights of '{source}' cannot be packed", "They would load to others.")


def _same_case(source: Path, target: Path, size: int, name: str) -> bool:
    def load(folder: Path) -> golden.GoldenCase | None:
        try:
            return next(case for case in golden.load_cases(folder, size) if case.name == name)
        except (MadtpError, KeyError, FileNotFoundError):
            return None

    left, right = load(source), load(target)
    if left is None or right is None:
        return False
    mine, theirs = (_tensors(case) for case in (left, right))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _tensors(case: golden.GoldenCase) -> dict[str, torch.Tensor]:
    """All inputs and expected outputs of a replay; other expectations for a layer are in cases.json."""
    found = {
        f"{kind} {name}": tensor
        for kind, values in (("in", case.inputs), ("out", case.recorded.outputs))
        for name, tensor in values.items()
    }
    for tower, layers in case.recorded.towers.items():
        for index, layer in enumerate(layers):
            if layer.source_ids is not None:
                found[f"{tower} {index}"] = layer.source_ids
    return found


def commit() -> str:
    """The checkout's commit, and whether there are changes on it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a new folder that then replaces `target`, which has to be an earlier kit or empty.

    Raises:
        OutputError: it is something else.
    """
    if (
        os.path.lexists(target)
        and not (target / ABOUT).is_file()
        and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise OutputError(
            f"'{target}' exists already and is not a kit",
            f"It would be replaced with all that is in it; a kit is known by its {ABOUT}.",
            "Name another folder with --out, or remove that one first.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent, f".{target.name}-") as scratch:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(fresh, target)


def pack(target: Path, python: str, flash_attention_3: bool, say: Callable[[str], None]) -> Kit:
    """Pack the kit.

    Raises:
        MadtpError: a part is unavailable, or the kit is too large.
    """
    with new_folder(target) as folder:
        kit = Kit(folder, python)
        pack_sources(kit)
        say("kernels")
        sm = pack_libraries(kit)
        say("programs in C++")
        pack_embedded(kit.folder, _strip)
        say("wheels")
        pack_wheels(kit, flash_attention_3)
        say("recordings")
        pack_recordings(kit)
        packed = datetime.now(UTC).isoformat(timespec="seconds")
        static = json.loads((ROOT / "benchmarks" / "gpu" / "static.json").read_text())
        summary = {
            "commit": commit(),
            "packed": packed,
            "sm": list(sm),
            "python": python,
            "predictions_current": static["source"] == source_hash(),
            "left_out": kit.left_out,
        }
        write_json(folder / ABOUT, summary)
        size = folder_bytes(folder)
        if size > MOST_BYTES:
            raise OutputError(
                f"the kit has {size / 1e6:.0f} MB",
                f"It may have {MOST_BYTES / 1e6:.0f}.",
                f"Leave out compute capabilities ({SM_VARIABLE}=90) or --without-flash-attention-3.",
            )
    return Kit(target, python, kit.left_out)


def folder_bytes(folder: Path) -> int:
    """Total size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT, help="Folder of the kit (build/gpu-kit).")
@click.option("--python", default="3.12", show_default=True, help="Of the machine that it will run on.")
@click.option("--without-flash-attention-3", is_flag=True, help="Save 28 MB.")
@click.option("--onnxruntime", is_flag=True, help="Pack onnxruntime-gpu too, in folders of their own (256 MB).")
def main(out: Path, python: str, without_flash_attention_3: bool, onnxruntime: bool) -> None:
    """Pack what a machine with a GPU and no network needs to show everything."""
    try:
        kit = pack(out, python, not without_flash_attention_3, lambda part: click.echo(f"packing {part}", err=True))
        beside = pack_onnxruntime(out, python) if onnxruntime else []
    except MadtpError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo(f"{kit.folder}: {folder_bytes(kit.folder) / 1e6:.1f} MB, for Python {python}")
    for text in kit.left_out:
        click.echo(f"left out: {text}")
    for folder in beside:
        click.echo(f"{folder}: {folder_bytes(folder) / 1e6:.1f} MB, to lie beside the kit")
    if read_json(kit.folder / ABOUT)["commit"].endswith(("-dirty", "unknown")):
        click.echo("warning: packed from sources that no commit holds; results could not be told from others")
    click.echo(f"there: bash {kit.folder.name}/run.sh RESULTS_DIR [--rehearse] [--minutes N]")


if __name__ == "__main__":
    main()
