"""The custom ops: what they are (`spec`), what they compute (`reference`, `packed`), CUDA kernels for them (`library`
loads them, `kernels` makes them torch's), and watching them prune (`recorder`).
"""

from madtp.ops.kernels import register_kernels

__all__ = ["register_kernels"]
