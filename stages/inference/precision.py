"""The number format that a model computes in for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the type of the weights. `auto`, which only a stage outside a run has, is bf16 on a GPU, else fp32."""
    import torch

    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def placed(model: Any, precision: Precision, device: torch.device) -> Any:
    """Returns a module in eval mode on the device, its weights cast once. For fp32, products on a GPU get no TF32."""
    import torch

    dtype = dtype_of(precision, device)
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return model.eval().to(device=device, dtype=dtype)
