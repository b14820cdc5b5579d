"""Folders of recorded cases: the few in this repository, and the full recordings if a machine has them."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / "tests" / "data" / "nlvr"
CARRIED_TEXTS = ROOT / "tests" / "data" / "tokenizer"
RECORDINGS = Path(os.environ.get("MADTP_GOLDEN", ROOT.parent / "shared" / "golden")) / "nlvr"


TASKS = ("nlvr", "vqa", "caption", "retrieval", "clip")


def golden_folders(*tasks: str) -> list[Path]:
    """Every folder of recorded cases on this machine; of some tasks, if named."""
    full = [RECORDINGS.parent / task / name for task in tasks or TASKS for name in ("tiny", "base")]
    carried = [CARRIED] if "nlvr" in (tasks or TASKS) else []
    return [*carried, *(folder for folder in full if (folder / "cases.json").is_file())]
