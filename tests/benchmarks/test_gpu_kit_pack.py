"""Packing the GPU kit: recordings slim and the same, and nothing too large."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.kit import pack
from madtp.errors import OutputError
from tests import golden
from tests.helpers.paths import CARRIED, golden_folders


def test_recordings_are_packed_without_what_the_rule_gives(tmp_path: Path) -> None:
    for folder in golden_folders():
        if folder.name == "base":
            continue
        target = tmp_path / folder.parent.name / folder.name
        pack.pack_folder(folder, target)
        assert pack.folder_bytes(target) <= pack.folder_bytes(folder)
        assert not (target / "weights.safetensors").is_file()
        wanted = golden.load_model(folder).state_dict()
        packed = golden.load_model(target).state_dict()
        assert all(torch.equal(tensor, packed[name]) for name, tensor in wanted.items())


def test_a_recording_that_would_load_to_another_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_same_case", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be packed"):
        pack.pack_folder(CARRIED, tmp_path)


@pytest.mark.parametrize("lost", ["/source", "output/", "input/input_ids"])
def test_a_tensor_that_got_lost_is_noticed(tmp_path: Path, lost: str) -> None:
    shutil.copytree(CARRIED, tmp_path / "copy")
    path = tmp_path / "copy" / "b1_prune.safetensors"
    tensors = load_file(path)
    size = json.loads((CARRIED / "config.json").read_text())["image_size"]
    assert pack._same_case(CARRIED, tmp_path / "copy", size, "b1_prune")
    name = next(name for name in tensors if lost in name)
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
    assert not pack._same_case(CARRIED, tmp_path / "copy", size, "b1_prune")


def test_a_kit_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pack_sources", "pack_embedded", "pack_wheels", "pack_recordings"):
        monkeypatch.setattr(pack, name, lambda *_: None)
    monkeypatch.setattr(pack, "pack_libraries", lambda kit: (kit.folder / "x").write_bytes(bytes(2000)) and (90,))
    monkeypatch.setattr(pack, "MOST_BYTES", 1000)
    with pytest.raises(OutputError, match="MADTP_SM=90"):
        pack.pack(tmp_path / "kit", "3.12", True, lambda _: None)
    assert not list(tmp_path.iterdir())
