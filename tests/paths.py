"""Where recorded cases are: the few that the project carries, and the full recordings where a machine has them."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / "tests" / "data" / "nlvr"
CARRIED_TEXTS = ROOT / "tests" / "data" / "tokenizer"
RECORDINGS = Path(os.environ.get("MADTP_GOLDEN", ROOT.parent / "shared" / "golden")) / "nlvr"


def golden_folders() -> list[Path]:
    """Every folder of recorded NLVR cases on this machine."""
    full = [RECORDINGS / name for name in ("tiny", "base")]
    return [CARRIED, *(folder for folder in full if (folder / "cases.json").is_file())]
