"""Image-text matching of pairs that the loader made wrong (BERT's next sentence, ViLT, LXMERT, UNITER)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.capabilities import Matches
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import match_labels


class Match(Objective):
    """`match`: cross entropy in nats of [no, yes] per row; `match_accuracy` is a diagnostic.

    Its view needs the corruptor `mismatch`. For hard negatives that the model chooses, see `itm:Itm`.
    """

    LOSSES = ("match",)
    NEEDS = (Matches,)

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        logits = out.match.float()
        return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        labels, logits = match_labels(out.batch), out.match.float()
        right = (logits.argmax(1) == labels).sum().float()
        return {
            "match": Term(F.cross_entropy(logits, labels, reduction="sum"), len(labels)),
            "match_accuracy": Term(right, len(labels)),
        }
