"""The commands of `python -m export`, a module each; `export/cli.py` loads the one that is asked for."""
