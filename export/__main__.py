"""`python -m export`: see `export/cli.py`."""

import sys

if __name__ == "__main__":
    try:
        from export.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # while the libraries are still being imported
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(2)
