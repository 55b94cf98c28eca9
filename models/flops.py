"""FLOPs of training, counted by torch while a few samples are computed; from these, TFLOP/s and MFU.

Counted: matrix products, convolutions and attention (2 per multiplication and addition) in the forward pass of the model
and its teachers, in the losses, and in the backward pass. Not counted: operations per element, embeddings, the optimiser,
and work that is done again: micro-batches of the gradient cache, or what a fused attention recomputes in its backward pass.
Model FLOPs utilisation (MFU) is their rate as a share of the peak (Chowdhery et al. 2022, appendix B,
https://arxiv.org/abs/2204.02311).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from vlpipe.models import distributed
from vlpipe.models.interface.batch import Batch
from vlpipe.models.recompute import computed_once
from vlpipe.models.trial import FEW, losses_and_gradient, unchanged

# Dense bf16 peak in FLOP/s, by a pattern of the whole name that torch gives. The makers' data sheets, which mostly state
# the rate with 2:4 sparsity, twice the dense one: https://www.nvidia.com/en-us/data-center/ a100, h100, h200, l4, l40, l40s.
PEAKS = {
    r"NVIDIA A100.*": 312e12,
    r"NVIDIA H100 PCIe": 1513e12 / 2,
    r"NVIDIA H100 80GB HBM3": 1979e12 / 2,
    r"NVIDIA H200": 1979e12 / 2,
    r"NVIDIA L4": 242e12 / 2,
    r"NVIDIA L40": 181.05e12,
    r"NVIDIA L40S": 362.05e12,
}


def peak_flops(card: str) -> float | None:
    """Returns the dense bf16 peak in FLOP/s of a card by its name (`torch.cuda.get_device_name`); None if not known."""
    return next((peak for name, peak in PEAKS.items() if re.fullmatch(name, card)), None)


def count(work: Callable[[], object]) -> int:
    """Returns the FLOPs of `work()`. Operations inside of compiled functions are not seen."""
    aten = torch.ops.aten
    backward: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_backward: attention_backward,
        aten._scaled_dot_product_efficient_attention_backward: attention_backward,
        aten._scaled_dot_product_cudnn_attention_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        work()
    return int(counter.get_total_flops())


def attention_backward(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    """Returns twice the FLOPs of the forward pass. Arguments: shapes (B, H, L, D), as torch passes them to a formula."""
    batch, heads, queries, width = q
    keys, out = k[2], v[3]
    scores = bmm_flop((batch * heads, queries, width), (batch * heads, width, keys))
    mixed = bmm_flop((batch * heads, queries, keys), (batch * heads, keys, out))
    return int(2 * (scores + mixed))


def flops_per_sample(net: Any, batch: Batch, dtype: torch.dtype = torch.float32) -> float:
    """Returns the FLOPs of one sample in a training step.

    net: maps a batch to name -> Term of its losses; `net.losses` has the names of those that are optimised. batch: samples
    on its device; the losses of its task are counted, and padding, as it is computed. The losses and their gradient are
    computed once, in evaluation mode: weights, teachers, queues, batch statistics, gradients and random generators stay as
    they are. dtype: of the forward pass under autocast; float32 for none. On several ranks, all must call this together.
    """

    with unchanged(net), computed_once():
        return count(lambda: losses_and_gradient(net, batch, dtype)) / len(batch)


class FlopMeter:
    """Adds up the FLOPs of training steps, over all ranks. Each task is counted once, by its first batch.

    net, dtype: see `flops_per_sample`. say: is told why, if a model cannot be counted; `total` is None then. None: raises.
    """

    def __init__(
        self, net: Any, dtype: torch.dtype = torch.float32, say: Callable[[str], None] | None = None
    ) -> None:
        self.total: float | None = 0.0
        self._say = say
        self._net, self._dtype = net, dtype
        self._per_sample: dict[str, float] = {}

    def add(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Adds the FLOPs of one step, of these micro-batches on each rank."""
        for batch in batches:
            if self.total is None:
                return
            if batch.task not in self._per_sample:
                try:
                    few = batch.rows(slice(FEW)).to(device)
                    self._per_sample[batch.task] = flops_per_sample(self._net, few, self._dtype)
                except (
                    Exception
                ) as error:  # whatever a model does not allow: training does not need the figure
                    if self._say is None:
                        raise
                    reason = " ".join(str(error).split())[:200]
                    self._say(f"TFLOP/s are not counted: {type(error).__name__}: {reason}")
                    self.total = None
                    return
            spec = getattr(self._net, "adversarial", None)
            passes = 1 if spec is None else spec.passes
            self.total += self._per_sample[batch.task] * len(batch) * passes * distributed.world_size()
