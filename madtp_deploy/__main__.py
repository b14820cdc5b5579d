"""`python -m madtp_deploy`: the same as `python -m export` and `madtp-export`, wherever it is started."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line and end the process with its status."""
    # `python -m` looks for modules where the user stands first, and a file torch.py there would be imported.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]

    from export.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
