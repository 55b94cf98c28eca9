"""Classification of what was drawn for an image: the order of its tiles, the place of a patch.

Noroozi & Favaro 2016, https://arxiv.org/abs/1603.09246; Doersch et al. 2015, https://arxiv.org/abs/1505.05192.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.image_capabilities import Classifies
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class DrawnClass(Objective):
    """`drawn`: cross entropy in nats of the class that a corruptor drew; `drawn_accuracy` is a diagnostic.

    The stream `image` has target["drawn"] (B,).
    """

    LOSSES = ("drawn",)
    NEEDS = (Classifies,)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        logits, drawn = out.logits.float(), out.stream("image").target["drawn"]
        total = F.cross_entropy(logits, drawn, reduction="sum")
        right = (logits.argmax(1) == drawn).sum().float()
        return {"drawn": Term(total, len(out)), "drawn_accuracy": Term(right, len(out))}
