"""Prediction of masked frames by contrast with all frames of the batch: UniVL's CMFM, CBT's visual loss.

Luo et al. 2020, https://arxiv.org/abs/2002.06353, equation 3; Sun et al. 2019, https://arxiv.org/abs/1906.05743.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.video_capabilities import PredictsFrames


class FrameNce(Objective):
    """`cmfm`: per masked window, -log softmax of its own features among those of all windows of the rank's batch, in nats.

    The score of a prediction and features is their dot product. Its view needs the corruptor `mask_frames`. `cmfm_accuracy`
    is a diagnostic.
    """

    LOSSES = ("cmfm",)
    NEEDS = (PredictsFrames,)
    SCOPE: Scope = "rank"

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"cmfm": batch.stream("video").target["masked"].sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        video = out.stream("video")
        masked = video.target["masked"]
        places = video.chosen("masked", masked)
        whole = out.model.true_frames(video.target["feat"])  # (M, T, D)
        with torch.autocast(whole.device.type, enabled=False):
            wanted = whole.flatten(0, 1).float()
            scores = out.frame_prediction.flatten(0, 1)[places].float() @ wanted.t()
            if video.mask is not None:
                scores = scores.masked_fill(~video.mask.flatten()[None], -1e8)
            losses = scores.logsumexp(1) - scores.gather(1, places[:, None])[:, 0]
            right = (scores.argmax(1) == places).sum().float()
        return {"cmfm": Term(losses.sum(), masked.sum()), "cmfm_accuracy": Term(right, masked.sum())}
