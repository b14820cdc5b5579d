"""TF32 is off wherever a model runs in float32 on a GPU: it rounds operands to 11 bits, and other tokens are kept."""

import torch


def forbid_tf32() -> None:
    """Turn TF32 off for convolutions (where torch has it on by default) and matrix products, in all of this process."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
