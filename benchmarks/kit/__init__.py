"""The GPU kit: everything that only a GPU can show, packed to run offline with one command (docs/gpu-kit.md).

`pack` makes the folder (`./build.sh gpu-kit`), `run` is what its run.sh starts; a module of `stages` shows one thing.
"""
