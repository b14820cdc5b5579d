"""The page that `python -m export report` writes: what an artifact is, what was proved of it, what it prunes where."""
