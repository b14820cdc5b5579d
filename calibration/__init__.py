"""What is learned from data before an export: tokens that layers keep, ranges of activations, and what to keep precise.

Commands in `__main__.py`: `tokens.py` (token statistics), `ranges.py` (range table), `sensitivity.py` (keep file,
`keep.py`). In modules of their own: `capacity_command.py` (`capacities.py`, from `counts.py` by `overflow.py`) and
`temperature_command.py` (`temperature_search.py` over `runs.py`). Each has a dataclass that is written and read as
JSON. `recipes.py` and `smoothing.py` are for exports that were given no such file. Calibration knows `madtp`; `export`
reads its files.
"""
