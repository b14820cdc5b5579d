"""A divergent node as files that Polygraphy runs again: its ONNX, its inputs and the expected outputs."""

import shlex
import sys
from pathlib import Path

import numpy as np
import onnx

from export.validate.divergent_node import DivergentNode
from madtp.errors import OutputError
from madtp.files.outputs import Kind, check_outputs, marked_kind
from madtp.files.staging import Staging, write_errors

PRODUCER = "madtp-deploy validate"  # in the ONNX file of a saved node
_NODE = marked_kind("a node that validate saved", PRODUCER)
_VALUES = Kind("values of such a node, as Polygraphy saves them", lambda content: b'"polygraphy_class"' in content)
REPRO = {"node.onnx": _NODE, "inputs.json": _VALUES, "expected.json": _VALUES}  # files of a saved node


def check_repro(folder: Path) -> None:
    """Refuse a folder that cannot take a node, or holds files of the same names that are not of an earlier one.

    Raises:
        OutputError: naming what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is not a folder", "--repro DIR names the folder to write to.", "Name a folder.")
    if folder.is_dir():
        check_outputs([(folder / name, kind) for name, kind in REPRO.items()], [])


def save_repro(node: DivergentNode, folder: Path, tolerance: float) -> str:
    """Save the node with its inputs and expected outputs; returns the command that shows the difference.

    Raises:
        OutputError: the folder cannot be written, or holds files of these names that are not an earlier node's.
    """
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json

    results = RunResults()
    results.append((node.origin, [IterationResult(dict(node.expected), runner_name=node.origin)]))
    scale = max((float(np.abs(value).max(initial=0)) for value in node.expected.values()), default=1.0)
    check_repro(folder)
    model, inputs, expected = REPRO
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with Staging(folder / model) as staging:
            node.subgraph.model.producer_name = PRODUCER
            onnx.save(node.subgraph.model, str(staging.folder / model))
            save_json([node.inputs], str(staging.folder / inputs))
            results.save(str(staging.folder / expected))
            staging.commit(REPRO)
    own = Path(sys.executable).with_name("polygraphy")  # of this environment, which need not be active
    return shlex.join(
        [
            *(str(own) if own.is_file() else "polygraphy", "run", str(folder / "node.onnx"), "--onnxrt"),
            *("--load-inputs", str(folder / "inputs.json"), "--load-outputs", str(folder / "expected.json")),
            *("--rtol", "0", "--atol", f"{tolerance * scale:.1e}"),
        ]
    )
