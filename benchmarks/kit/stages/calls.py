"""One call of each op and type, compared with the reference on the CPU: a broken build fails here first."""

from benchmarks.kit.stage import StageRun


def run(stage: StageRun) -> bool:
    """Make each call separately, so that a failing one does not hide the others."""
    import torch

    from tests.helpers.kernel_calls import attention_inputs, check_attention, check_compact, compact_call
    from tests.helpers.kernels import Kernels

    kernels = Kernels(stage.library, stage.device)
    found: dict[str, str] = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        checks = {
            "aligned_attention": lambda dtype=dtype: check_attention(
                kernels, *attention_inputs(2, 130, 2, 64, dtype, seed=1)
            ),
            "token_compact": lambda dtype=dtype: check_compact(kernels, tuple(compact_call(2, 60, 3, dtype, width=64))),
        }
        for op, check in checks.items():
            name = f"{op} {str(dtype).removeprefix('torch.')}"
            try:
                check()
                found[name] = "equal within rounding"
            except Exception as error:
                found[name] = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            stage.save(calls=found)
    return not any(text.startswith("FAILED") for text in found.values())
