"""Prediction of masked codes: VideoBERT's video tokens. Sun et al. 2019, https://arxiv.org/abs/1904.01766."""

from __future__ import annotations

from torch import Tensor

from vlpipe.models.interface.capabilities import FillsCodes
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import MaskedIds


class MaskedCodes(MaskedIds):
    """`mfm` and `mfm_accuracy`: masked codes. Its view needs the corruptor `mask_codes`; see `MaskedIds`."""

    LOSSES = ("mfm",)
    NEEDS = (FillsCodes,)

    def __init__(self, *, stream: str = "video", matched_only: bool = False) -> None:
        super().__init__(stream=stream, matched_only=matched_only)

    def logits(self, out: Outputs, places: Tensor) -> Tensor:
        found: Tensor = out.model.predict_codes(out.code_hidden.flatten(0, 1)[places])
        return found
