"""Full float32 on GPUs.

On a GPU torch runs float32 convolutions in TF32 unless it is told otherwise: both operands lose 13 of 23 bits of their
mantissas. The patch embedding is such a convolution, and what it is off by decides about tokens (docs/semantics.md).
"""

from typing import Any

import torch


def forbid_tf32() -> None:
    """From now on float32 means float32 in this process, in matrix products and convolutions, whatever was set before.

    Call it wherever models may run on a GPU. torch has an old and a new set of switches, refuses to read the old where
    both disagree, and lets neither overrule the other in all cases: so both are set, the new ones last.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    backends: Any = torch.backends  # stubs lack the new switches
    for operations in (backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv):
        operations.fp32_precision = "ieee"
