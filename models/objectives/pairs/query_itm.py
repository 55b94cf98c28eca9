"""Image-text matching whose hard negatives are found by the best of an image's embeddings (BLIP-2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.capabilities import EmbedsImageParts, EmbedsTexts, HasTemperature, Matches
from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itm import Itm, drawn, matching
from vlpipe.models.objectives.pairs.query_itc import similarities


class QueryItm(Itm):
    """As `Itm`; the negatives are of this rank's rows, or with all_ranks of those of all ranks (as in the released code).

    Li et al. 2023 (BLIP-2), https://arxiv.org/abs/2301.12597, section 3.1.
    """

    NEEDS: ClassVar[tuple[type, ...]] = (Matches, EmbedsImageParts, EmbedsTexts, HasTemperature)

    def __init__(self, *, all_ranks: bool = False) -> None:
        super().__init__(all_ranks=all_ranks)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        same, temp = self._same(out.batch), out.model.temp
        gather = distributed.gather if self.all_ranks else torch.Tensor.detach
        images, texts = out.image_feats.detach(), out.text_feat.detach()
        negative_text, valid = drawn(similarities(images, gather(out.text_feat)) / temp, same)
        negative_image, _ = drawn(similarities(gather(out.image_feats), texts).t() / temp, same)
        rows = torch.arange(len(out), device=same.device)
        paired = self._of_all_ranks if self.all_ranks else self._of_this_rank
        return matching(paired(out, rows, negative_text, negative_image).match, valid)
