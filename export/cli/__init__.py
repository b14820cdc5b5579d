"""The command line of `python -m export`: a module a command, with its options and exit codes."""
