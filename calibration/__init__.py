"""What is learned from data before an export: how many tokens each layer keeps.

One module a room: `tokens.py` (token statistics). Each has a function that collects, a dataclass that is written and
read as JSON, and a command in `__main__.py`. Calibration knows `madtp`; `export` reads its files.
"""
