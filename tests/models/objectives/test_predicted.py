"""`Objective.predicted` is what the loss is of: the cross entropy of what it counts is the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.objective import Objective
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.downstream.choose import Choose
from vlpipe.models.objectives.images.classify import Classify
from vlpipe.models.objectives.pairs.polluted import Polluted
from vlpipe.models.objectives.regions.soft_class import SoftRegionClass
from vlpipe.models.objectives.texts.classify import ClassifyTexts

LABELS = torch.tensor([2, IGNORE, 0, 1])
WHOLE = torch.tensor([2, 1, 0, 1])


class Regions:
    REGION_KINDS = ("obj",)

    def predict_regions(self, hidden: Tensor, kind: str) -> Tensor:
        return hidden


def outputs(given: dict[str, Tensor], **streams: Stream) -> Outputs:
    return Outputs(Regions(), Batch(streams, same=torch.arange(4)), given=given)


CASES: list[tuple[Objective, str, dict[str, Stream], Tensor]] = [
    (Choose(), "choice_scores", {"choices": Stream(LABELS, target={"label": LABELS})}, LABELS),
    (Classify(), "logits", {"label": Stream(LABELS)}, LABELS),
    (ClassifyTexts(), "text_logits", {"label": Stream(LABELS)}, LABELS),
    (Polluted(), "polluted", {"text": Stream(WHOLE, target={"polluted": WHOLE})}, WHOLE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_of_what_is_counted_it_is_the_loss(case: Any) -> None:
    objective, name, streams, labels = case
    torch.manual_seed(0)
    out = outputs({name: torch.randn(4, 3)}, **streams)
    logits, counted = objective.predicted(out)
    term = objective(out)[objective.LOSSES[0]]
    assert int(counted.sum()) == int(term.count) == int((labels != IGNORE).sum())
    torch.testing.assert_close(
        F.cross_entropy(logits[counted], labels[counted]), term.total / int(term.count)
    )


def test_of_regions_with_probabilities_it_is_the_loss() -> None:
    torch.manual_seed(0)
    hidden, prob = torch.randn(4, 5, 6), torch.rand(4, 5, 6).softmax(-1)
    prob[1] *= 0.5  # no distribution
    masked = torch.rand(4, 5) < 0.7
    regions = Stream(hidden, extra={"prob": prob}, target={"masked": masked})
    out, objective = outputs({"region_hidden": hidden}, regions=regions), SoftRegionClass()
    logits, counted = objective.predicted(out)
    term: Any = objective(out)["region_soft"]
    assert counted.tolist() == [row != 1 for row in masked.nonzero()[:, 0].tolist()]
    wanted = F.cross_entropy(logits[counted], prob[masked][counted])
    torch.testing.assert_close(term.total / term.count, wanted)


def test_scores_have_no_distribution() -> None:
    scores = torch.tensor([0.5, float("nan"), 4.0, 1.0])
    out = outputs({"text_logits": torch.randn(4, 1)}, label=Stream(scores))
    assert ClassifyTexts().predicted(out) is None
