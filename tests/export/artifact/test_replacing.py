"""What outputs may take the place of: earlier ones of their own kind, and nothing else, under whatever name."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration import __main__ as calibration
from export.artifact.manifest import SCHEMA_VERSION
from export.artifact.outputs import check_export, owned_files, stale_files
from export.artifact.reader import read_manifest
from export.build.options import ExportOptions
from export.build.prepare import prepare
from madtp.demo import vocab_path
from madtp.demo.output import check_folder
from madtp.errors import OutputError
from madtp.files.outputs import Kind, check_outputs, json_kind, marked_kind, write_output
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.command_line import Ran
from tests.helpers.datasets import nlvr_data
from tests.helpers.outputs import largest_file
from tests.helpers.samples import write_samples, write_vocabulary

Run = Callable[..., Ran]
NOTES = {"learning_rate": 1e-05, "notes": "mine, not an export's"}
KIND = json_kind("a result", "schema", "answers")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Exports.


@pytest.mark.parametrize("command", [(), ("check",)], ids=["export", "check"])
@pytest.mark.parametrize(
    ("name", "content", "engine", "words"),
    [
        ("blip.json", json.dumps(NOTES), "blip.onnx", "not the manifest of"),
        ("blip.json", "[1]", "blip.onnx", "not the manifest of"),
        ("blip.json", "{", "blip.plan", "not the manifest of"),
        (
            "blip.json",
            json.dumps({"schema": "1", "artifact": "blip.onnx", "parts": []}),
            "blip.onnx",
            "not the",
        ),
        (
            "blip.json",
            json.dumps({"schema": 3, "artifact": "blip.onnx"}),
            "blip.plan",
            "not the manifest of",
        ),
        ("blip.onnx", "mine", "blip.onnx", "is not of an earlier export to 'blip.onnx'"),
        ("blip.plan", "mine", "blip.plan", "is not of an earlier export to 'blip.plan'"),
        ("blip.vocab.txt", "mine", "blip.onnx", "is not of an earlier export"),
        ("blip.plugins.so", "mine", "blip.plan", "is not of an earlier export"),
        ("blip.timing", "mine", "blip.plan", "is not of an earlier export"),
    ],
)
def test_an_export_replaces_no_file_of_others(
    name: str,
    content: str,
    engine: str,
    words: str,
    command: tuple[str, ...],
    run_cli: Run,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_vocabulary(tmp_path / "vocab.txt")  # beside the checkpoint: it is shipped
    (folder / name).write_text(content)
    before = contents(folder)
    ran = run_cli(*command, "--ckpt", tiny_checkpoint(), "--engine", folder / engine)
    ran.refused(f"'{folder / name}'", words, "remove")
    assert "tracing" not in ran.err
    assert contents(folder) == before


def test_two_artifacts_of_one_stem_do_not_share_a_manifest(
    run_cli: Run, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    artifact, checkpoint = exported
    before = contents(artifact.parent)
    check_export(artifact.with_name("other.plan"), [], [])
    ran = run_cli("--ckpt", checkpoint, "--engine", artifact.with_suffix(".plan"))
    ran.refused("is the manifest of 'out.onnx'", "another stem or folder")
    with pytest.raises(OutputError, match="is the manifest of"):
        prepare(ExportOptions(checkpoint=checkpoint, engine=artifact.with_suffix(".plan")))
    assert contents(artifact.parent) == before


@pytest.mark.parametrize("schema", [1, SCHEMA_VERSION, 99])
def test_an_earlier_export_is_replaced_whole(
    schema: int, run_cli: Run, exported: tuple[Path, Path], quick: pytest.MonkeyPatch
) -> None:
    """Of whatever schema; what it had and the new one has not is deleted, so that nothing is in the way later."""
    artifact, checkpoint = exported
    folder = artifact.parent
    write_vocabulary(folder / "vocab.txt")
    for expected in (True, False, True):
        manifest = json.loads((folder / "out.json").read_text())
        (folder / "out.json").write_text(json.dumps(manifest | {"schema": schema}))
        (folder / ("vocab.txt" if expected else "none")).touch()
        ran = run_cli("--ckpt", checkpoint, "--engine", artifact)
        assert ran.status == 0, ran
        assert read_manifest(folder / "out.json").artifact == "out.onnx"
        assert (folder / "out.vocab.txt").exists() == expected
        if expected:
            (folder / "vocab.txt").rename(folder / "kept.txt")
        else:
            (folder / "kept.txt").rename(folder / "vocab.txt")


def test_only_files_of_the_stem_are_replaced_whatever_a_manifest_says(tmp_path: Path) -> None:
    names = ["out.onnx", "../out.x", "notes.txt", "out./../x", "out.vocab.txt"]
    parts = [{"artifact": name} for name in names]
    (tmp_path / "out.json").write_text(json.dumps({"schema": 3, "artifact": "out.onnx", "parts": parts}))
    assert owned_files(tmp_path / "out.onnx") == {"out.onnx", "out.vocab.txt"}


def test_empty_files_may_be_replaced(tmp_path: Path) -> None:
    """As mktemp makes them."""
    for name in ("out.json", "out.onnx", "out.vocab.txt"):
        (tmp_path / name).touch()
    check_export(tmp_path / "out.onnx", ["out.vocab.txt"], [])


def test_what_an_export_reads_is_not_stale(exported: tuple[Path, Path]) -> None:
    """The library of the earlier plan, say, which --plugins names and --embed-plugins puts into the new one."""
    artifact, _ = exported
    manifest = json.loads((artifact.parent / "out.json").read_text())
    library = artifact.with_name("out.plugins.so")
    manifest["plugins"]["library"] = {"file": library.name}
    (artifact.parent / "out.json").write_text(json.dumps(manifest))
    library.touch()
    (artifact.parent / "link.so").symlink_to(library)
    assert stale_files(artifact, [artifact.name], [None]) == {library.name}
    for path in (library, artifact.parent / "link.so"):
        assert stale_files(artifact, [artifact.name], [None, path]) == set()


def test_a_part_of_another_artifact_is_not_replaced(task_artifacts: TaskArtifacts) -> None:
    folder = task_artifacts["vqa"]
    with pytest.raises(OutputError, match=r"is not of an earlier export to 'out\.encoder\.onnx'"):
        check_export(folder / "out.encoder.onnx", [], [])
    check_export(folder / "out.onnx", ["out.encoder.onnx", "out.decoder.onnx", "out.vocab.txt"], [])


@pytest.mark.parametrize("link", [os.link, os.symlink, None], ids=["hard link", "symbolic link", "relative"])
@pytest.mark.parametrize("given", ["--config", "--tokens", "--plugins", "vocabulary", "samples"])
def test_an_export_writes_over_no_input(
    given: str, link: Any, run_cli: Run, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    checkpoint, samples = tiny_checkpoint(), write_samples(tmp_path / "samples")
    engine, manifest = tmp_path / "out.plan", {"schema": 3, "artifact": "out.plan", "parts": [{"artifact": "out.plan"}]}
    manifest["plugins"] = {"library": {"file": "out.plugins.so"}}
    manifest["preprocessing"] = {"text": {"vocabulary": {"file": "out.vocab.txt"}}}
    (tmp_path / "out.json").write_text(json.dumps(manifest))
    (tmp_path / "out.plugins.so").write_text("library")
    write_vocabulary(tmp_path / "out.vocab.txt")
    taken = {"--plugins": "out.plugins.so", "vocabulary": "out.vocab.txt"}.get(given, "out.json")
    source = {"vocabulary": samples / "vocab.txt", "samples": samples / "samples.json"}.get(given, tmp_path / "input")
    if link is None:
        monkeypatch.chdir(tmp_path / "samples")
        source = Path("..") / taken
    else:
        source.unlink(missing_ok=True)
        link(tmp_path / taken, source)
    if link is None and not given.startswith("--"):
        return
    before = contents(tmp_path)
    arguments = (given, source) if given.startswith("--") else ()
    ran = run_cli("--ckpt", checkpoint, "--engine", engine, "--samples", samples, *arguments)
    assert ran.status == 2
    if given != "samples" or "would overwrite" in ran.err:
        ran.refused(f"'{tmp_path / taken}' would overwrite", "This run reads it")
    assert contents(tmp_path) == before


# Results.


def test_kinds_are_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    good = '{"schema": 1, "answers": []}'
    for text in (good, "", f"\ufeff{good}"):
        path.write_text(text)
        check_outputs([(path, KIND)], [])
    for text in ("[]", "{}", "{", '{"schema": 1}', "answers", f"[{good}]", "NaN", "[" * 99999):
        path.write_text(text)
        with pytest.raises(OutputError, match="is there already and is not a result"):
            check_outputs([(path, KIND)], [])
        with pytest.raises(OutputError, match="is there already"):
            write_output(path, "new", KIND)
        assert path.read_text() == text
    path.write_text(f"{'x' * 5000}mark")
    with pytest.raises(OutputError):
        check_outputs([(path, marked_kind("a page", "mark"))], [])
    path.write_text(f"{'x' * 500}mark")
    check_outputs([(path, marked_kind("a page", "mark"))], [])


def test_outputs_that_are_one_file(tmp_path: Path) -> None:
    real, other = tmp_path / "real.json", tmp_path / "other.json"
    real.write_text('{"schema": 1, "answers": []}')
    os.link(real, tmp_path / "hard.json")
    (tmp_path / "soft.json").symlink_to("real.json")
    (tmp_path / "soon.json").symlink_to("other.json")
    (tmp_path / "folder").symlink_to(".")
    for name in ("real.json", "hard.json", "soft.json", "folder/real.json", "folder/folder/real.json"):
        with pytest.raises(OutputError, match="is named twice"):
            check_outputs([(real, KIND), (tmp_path / name, KIND)], [])
        with pytest.raises(OutputError, match="would overwrite"):
            check_outputs([(tmp_path / name, KIND)], [real])
    for name in ("soon.json", "other.json", "folder/other.json", "OTHER.json"):  # none is there yet
        with pytest.raises(OutputError, match="is named twice"):
            check_outputs([(other, KIND), (tmp_path / name, KIND)], [])


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/dev/full", "/proc/self/fd/1"])
def test_devices_and_pipes_are_refused(place: str) -> None:
    if not Path(place).exists():
        pytest.skip("not on this system")
    with pytest.raises(OutputError, match="cannot write"):
        write_output(Path(place), "text", KIND)


@pytest.mark.parametrize(
    ("linked", "refused"),
    [
        (["out.json"], True),
        (["out.onnx"], True),
        (["out.json", "out.onnx"], False),
        ([], False),
        (["gone.onnx"], False),
    ],
)
def test_links_into_another_artifact_do_not_halve_it(
    linked: list[str], refused: bool, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    other, folder = exported[0].parent, tmp_path / "here"
    folder.mkdir()
    for name in ("out.json", "out.onnx"):
        if name in linked:
            (folder / name).symlink_to(other / name)
        else:
            shutil.copyfile(other / name, folder / name)
    if "gone.onnx" in linked:  # into a folder of weights alone
        (tmp_path / "store").mkdir()
        (folder / "out.onnx").rename(tmp_path / "store" / "out.onnx")
        (folder / "out.onnx").symlink_to(tmp_path / "store" / "out.onnx")
    if refused:
        with pytest.raises(OutputError, match="lead to different places"):
            check_export(folder / "out.onnx", ["out.onnx"], [])
    else:
        check_export(folder / "out.onnx", ["out.onnx"], [])


@pytest.mark.parametrize("name", ["out.onnx", "out.json"])
def test_files_that_may_not_be_written_to_stay(name: str, exported: tuple[Path, Path], run_cli: Run) -> None:
    """Whoever protects a file so means it, also where root could replace it."""
    artifact, checkpoint = exported
    artifact.with_name(name).chmod(0o444)
    before = contents(artifact.parent)
    ran = run_cli("--ckpt", checkpoint, "--engine", artifact)
    ran.refused(f"cannot write '{artifact.with_name(name)}'", "It may not be written to", "chmod u+w")
    assert contents(artifact.parent) == before
    anything = Kind("anything", lambda _: True)
    with pytest.raises(OutputError, match="It may not be written to"):
        check_outputs([(artifact.with_name(name), anything)], [])
    artifact.with_suffix(".json").chmod(0o644)
    artifact.with_suffix(".json").write_text("[]")
    artifact.with_suffix(".json").chmod(0o444)
    with pytest.raises(OutputError, match="not the manifest of"):  # to allow writing would not help
        check_export(artifact, [], [])


BENCH = ("bench", "{folder}/out.json", "--seconds", 0.1, "--no-profile")
VALIDATE = ("validate", "--engine", "{folder}/out.onnx", "--ckpt", "{folder}/tiny.pt")
COMMANDS = {
    **{f"bench {option}": (*BENCH, option, "{output}") for option in ("--save", "--json", "--markdown", "--junit")},
    **{f"validate {option}": (*VALIDATE, option, "{output}") for option in ("--json", "--junit")},
    "report": ("report", "{folder}/out.json", "-o", "{output}", "--synthetic"),
    "evaluate": ("evaluate", "{folder}/out.json", "--data", "{data}", "--vocab", "{vocab}", "-o", "{output}"),
}
SHOWN = {"bench": "milliseconds per call", "report": "p50 ms", "validate": "torch/onnx", "evaluate": "accuracy"}


@pytest.fixture
def command(
    exported: tuple[Path, Path], samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Path], list[str]]:
    """The arguments of a command that writes an output, quick to run."""
    monkeypatch.setattr("export.report.measurements.LATENCY_SECONDS", 0.0)
    monkeypatch.setattr("export.bench.run.FIRST_LOOK", 2)
    data = nlvr_data(tmp_path / "data")
    places = {"folder": exported[0].parent, "data": data, "vocab": samples_folder / "vocab.txt"}
    return lambda name, output: [str(part).format(**places, output=output) for part in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_results_replace_their_own_kind_alone(
    name: str, command: Callable[[str, Path], list[str]], run_cli: Run, tmp_path: Path
) -> None:
    foreign = tmp_path / "mine"
    for content in (json.dumps(NOTES), json.dumps([NOTES]), "<html></html>", "<testsuites/>", "# Notes", "\0\1"):
        foreign.write_text(content)
        run_cli(*command(name, foreign)).refused(f"'{foreign}' is there already and is not", "Name another file")
        assert foreign.read_text() == content
    output = tmp_path / "result"
    output.touch()
    for _ in range(2):
        ran = run_cli(*command(name, output))
        assert ran.status == 0, ran
        assert f"wrote {output}" in ran.out
        assert output.stat().st_size > 100


def fail_to_replace(path: Path, patch: pytest.MonkeyPatch) -> None:
    """No room for this file, when all of its content is there."""
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise OSError(28, "No space left on device")
        replace(source, target)

    patch.setattr(os, "replace", fail)


@pytest.mark.parametrize("name", COMMANDS)
def test_results_that_cannot_be_saved_were_shown(
    name: str,
    command: Callable[[str, Path], list[str]],
    run_cli: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    if name == "evaluate":  # its journal needs room before
        fail_to_replace(folder / "result", monkeypatch)
    with largest_file(10**9 if name == "evaluate" else 200):
        ran = run_cli(*command(name, folder / "result"))
    ran.refused("the disk is full", f"'{folder / 'result'}'")
    assert SHOWN[name.split()[0]] in ran.out
    assert [path.name for path in folder.iterdir() if path.suffix != ".part"] == []


def test_one_output_that_cannot_be_written_costs_no_other(
    command: Callable[[str, Path], list[str]], run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full.json"
    fail_to_replace(full, monkeypatch)
    ran = run_cli(*command("bench --save", full), "--markdown", tmp_path / "table.md")
    ran.refused("the disk is full")
    assert f"wrote {tmp_path / 'table.md'}" in ran.out
    assert (tmp_path / "table.md").is_file()


def test_no_room_for_the_profile_costs_no_latencies(
    exported: tuple[Path, Path], run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.bench.run.FIRST_LOOK", 2)
    monkeypatch.setattr("export.bench.run.profile", fail)
    ran = run_cli("bench", exported[0], "--seconds", 0.1, "--save", tmp_path / "base.json")
    assert ran.status == 0, ran
    assert "note: operators were not profiled: [Errno 28] No space left on device" in ran.out
    assert "milliseconds per call" in ran.out
    assert (tmp_path / "base.json").is_file()


def test_what_cannot_be_printed_is_saved(
    command: Callable[[str, Path], list[str]], run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bench --save", "validate --json"):
        monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115 - replaced when the test ends
        output = tmp_path / name.replace(" ", "")
        run_cli(*command(name, output)).refused("the result could not be printed")
        assert output.stat().st_size > 100


def test_a_bench_result_is_not_written_over_what_it_is_compared_with(
    command: Callable[[str, Path], list[str]], run_cli: Run, tmp_path: Path
) -> None:
    base = tmp_path / "base.json"
    assert run_cli(*command("bench --save", base)).status == 0
    before = base.read_bytes()
    os.link(base, tmp_path / "same.json")
    for path in (base, tmp_path / "same.json"):
        run_cli(*command("bench --save", path), "--against", base).refused("would overwrite", "This run reads it")
    run_cli(*command("report", base), "--bench", base).refused("would overwrite")
    run_cli(*command("report", base)).refused("is not a page of report")
    assert base.read_bytes() == before


def test_the_node_at_fault_replaces_no_file_of_others(
    command: Callable[[str, Path], list[str]], exported: tuple[Path, Path], run_cli: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "repro"
    folder.mkdir()
    shutil.copyfile(exported[0], folder / "node.onnx")
    for name in ("inputs.json", "expected.json"):
        (folder / name).write_text("[1]")
    before = contents(folder)
    for name in ("node.onnx", "inputs.json", "expected.json"):
        ran = run_cli(*command("validate --json", tmp_path / "v.json"), "--repro", folder)
        ran.refused(f"{name}' is there already and is not", "Name another file, or remove that one")
        assert contents(folder) == before
        (folder / name).unlink()
        before.pop(name)


@pytest.mark.parametrize("content", ["mine", '{"schema": 1}', "[1]\n", "{\n"])
def test_an_unfinished_evaluation_is_no_file_of_others(
    content: str, command: Callable[[str, Path], list[str]], run_cli: Run, tmp_path: Path
) -> None:
    part = tmp_path / "result.part"
    part.write_text(content)
    run_cli(*command("evaluate", tmp_path / "result")).refused("result.part' is broken", "Delete the file")
    assert part.read_text() == content
    os.remove(part)
    os.mkfifo(part)
    run_cli(*command("evaluate", tmp_path / "result")).refused("not a regular file")


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["calibration", "tokens", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            status = calibration.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ran(status, *capsys.readouterr())

    return call


def test_token_statistics_replace_their_own_kind_alone(
    calibrate: Run, tiny_checkpoint: Callable[..., Path], samples_folder: Path, tmp_path: Path
) -> None:
    samples = shutil.copytree(samples_folder, tmp_path / "samples")
    checkpoint, output = tiny_checkpoint(), tmp_path / "tokens.json"
    given = ("--ckpt", checkpoint, "--data", samples)
    for path in (checkpoint, samples / "samples.json", samples / "vocab.txt", samples / "0-left.png"):
        before = path.read_bytes()
        calibrate(*given, "-o", path).refused(f"'{path}'", "Name another file")
        assert path.read_bytes() == before
    output.write_text(json.dumps(NOTES))
    calibrate(*given, "-o", output).refused("is not a file of token statistics")
    output.unlink()
    with largest_file(300):
        ran = calibrate(*given, "-o", output)
    ran.refused("the disk is full")
    assert "kept tokens per request" in ran.out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".tokens", "tokens"))]
    for _ in range(2):
        assert calibrate(*given, "-o", output).status == 0


def test_the_demo_replaces_its_own_outputs_alone(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", "nlvr-digits.pt", vocab_path())
    check_folder(tmp_path, "nlvr-digits.pt", vocab_path())
    (tmp_path / "vocab.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"vocab\.txt.* not of an earlier demo"):
        check_folder(tmp_path, "nlvr-digits.pt", vocab_path())
    shutil.copyfile(vocab_path(), tmp_path / "vocab.txt")
    (tmp_path / "samples").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        check_folder(tmp_path, "nlvr-digits.pt", vocab_path())
    (tmp_path / "nlvr-digits.pt").touch()
    check_folder(tmp_path, "nlvr-digits.pt", vocab_path())
    with pytest.raises(OutputError, match="is there already"):
        check_folder(tmp_path, "other.pt", tmp_path / "samples")
