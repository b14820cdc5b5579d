"""What a whole model is predicted to take on an H100 or H200, to hold a measurement against.

Two times, the larger of which is the prediction: what the GPU computes and what the host has to say. Assumptions, none
of them measured here: matrix products reach half of the published dense fp16 rate (0.5 x 989 TFLOP/s, two FLOP a
multiply-add); torch takes the host 6 us to launch a kernel in eager mode; to wait for a number and start the device
anew takes 15 us.
"""

RATE = 0.5 * 989e12 / 2  # multiply-adds a second
LAUNCH_SECONDS = 6e-6
WAIT_SECONDS = 15e-6


def predict_model(gflops: float, launches: int, synchronisations: int) -> float:
    """Seconds of one eager call.

    Args:
        gflops: of the whole batch, a multiply-add counting one.
        launches: kernels that the host starts.
        synchronisations: times that the host waits for the device.
    """
    return max(gflops * 1e9 / RATE, launches * LAUNCH_SECONDS) + synchronisations * WAIT_SECONDS
