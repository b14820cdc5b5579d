"""The HTML page of `python -m export report`."""
