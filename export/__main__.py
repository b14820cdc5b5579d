"""`python -m export`: see `export/cli.py`."""

import os
import sys

if __name__ == "__main__":
    try:
        from export.cli import main

        status = main()
    except KeyboardInterrupt:  # while the libraries are still being imported
        sys.stderr.write("interrupted: nothing was written\n")
        status = 2
    if status == 2:
        # CPython ends by SIGINT instead of with our status if a KeyboardInterrupt, though caught, has passed through an
        # exec() of a string, which imports and tracing are full of. Nothing is left to be closed but these two.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
