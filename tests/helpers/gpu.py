"""`pytestmark = gpu_only` marks a module: `./build.sh gpu-test` runs it; without a device it skips, with the reason."""

import pytest
import torch

gpu_only = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
