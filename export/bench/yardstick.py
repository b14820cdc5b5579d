"""How fast is this machine at the moment? Work that is always the same, timed beside every call.

A shared machine's clock can drift by half within seconds, and no measurement of the artifact alone tells that from a
slower artifact. Work of the same kind drifts alike: two small transformer layers. They run in torch and not in ONNX
Runtime, so that another version of the runtime under test shows.
"""

import torch
from torch.nn import functional

SHARE = 0.2  # of the call that it stands beside; fewer repetitions are noisier, more take time from the calls
TOKENS, WIDTH, LAYERS = 64, 128, 2
SEED = 0


class Yardstick:
    """A fixed piece of work.

    Attributes:
        name: what it is; times of another version of torch, or with another number of threads, do not compare.
    """

    def __init__(self) -> None:
        threads = f"{torch.get_num_threads()} threads"  # OMP_NUM_THREADS is torch's, and not ONNX Runtime's
        self.name = f"{LAYERS} transformer layers of {TOKENS} x {WIDTH} in torch {torch.__version__}, {threads}"
        random = torch.Generator().manual_seed(SEED)

        def weights(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=random) / WIDTH**0.5

        self._states = weights(TOKENS, WIDTH)
        self._projections, self._up, self._down = (
            weights(WIDTH, 3 * WIDTH),
            weights(WIDTH, 4 * WIDTH),
            weights(4 * WIDTH, WIDTH),
        )

    @torch.inference_mode()
    def work(self, times: int) -> None:
        """Do it so many times."""
        for _ in range(times):
            states = self._states
            for _ in range(LAYERS):
                query, key, value = (functional.layer_norm(states, (WIDTH,)) @ self._projections).chunk(3, dim=1)
                states = states + torch.softmax(query @ key.T / WIDTH**0.5, dim=-1) @ value
                states = states + functional.gelu(functional.layer_norm(states, (WIDTH,)) @ self._up) @ self._down


def repetitions(call: float, once: float) -> int:
    """How often the work is done beside a call, at least once.

    Args:
        call: milliseconds of the call.
        once: milliseconds of the work.
    """
    return max(1, round(SHARE * call / once))
