"""BEiT's loss: the codes of hidden patches. Bao et al. 2021, https://arxiv.org/abs/2106.08254."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.capabilities import FillsCodes
from vlpipe.models.interface.image_capabilities import HasImageCodes
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class MaskedImageCodes(Objective):
    """`mim` and `mim_accuracy`: cross entropy in nats, and accuracy, of the codes of hidden patches.

    target["masked"] of the stream `image` says which; its view needs the corruptor `mask_blocks`. mean: over "patches", as
    in BEiT's code; "images": over an image's hidden patches, then over images, as in iGPT's.
    """

    LOSSES = ("mim",)
    NEEDS = (FillsCodes, HasImageCodes)

    def __init__(self, *, mean: Literal["patches", "images"] = "patches") -> None:
        super().__init__()
        if mean not in ("patches", "images"):
            raise ValueError(f"MaskedImageCodes: mean must be patches or images, got {mean!r}")
        self.mean = mean

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        masked = batch.stream("image").target["masked"]
        return {"mim": masked.sum() if self.mean == "patches" else masked.any(1).sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        image = out.stream("image")
        masked = image.target["masked"]
        places = image.chosen("masked", masked)
        logits = out.model.predict_codes(out.code_hidden.flatten(0, 1)[places]).float()
        true = out.image_codes.flatten()[places]
        each = F.cross_entropy(logits, true, reduction="none")
        if self.mean == "images":
            each = each / masked.sum(1)[places // masked.shape[1]]
        right = (logits.argmax(1) == true).sum().float()
        return {
            "mim": Term(each.sum(), self.counts(out.batch)["mim"]),
            "mim_accuracy": Term(right, masked.sum()),
        }
