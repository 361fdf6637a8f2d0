"""Precision of float32 matrix products in the Triton kernels: the setting of PyTorch for CUDA devices."""

import torch

__all__ = ["float32_precision"]


def float32_precision() -> str:
    """Return the `input_precision` of `triton.language.dot` for float32 operands, ``"tf32"`` or ``"ieee"``.

    PyTorch 2.9 introduced ``torch.backends.cuda.matmul.fp32_precision``; once a program assigns it, the older
    `torch.get_float32_matmul_precision` may raise an error. `torch.set_float32_matmul_precision` changes both, so the
    newer setting is read where it exists.
    """
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if setting is None:  # PyTorch 2.8
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if setting == "tf32" else "ieee"
