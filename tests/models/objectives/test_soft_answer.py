"""Soft answers: the closed form of the loss, and its gradient."""

from __future__ import annotations

import torch

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.downstream.soft_answer import SoftAnswer

SCORES = torch.tensor([[0.3, 0.0, 1.0], [0.0, 0.0, 0.0]])


def test_it_is_the_binary_cross_entropy_of_all_answers_per_question() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -2.0]], requires_grad=True)
    batch = Batch({"answer": Stream(SCORES)}, torch.arange(2))
    found = SoftAnswer()(Outputs(None, batch, given={"answer": logits}))
    loss, score = found["answer"], found["answer_score"]
    assert isinstance(loss, Term)
    assert isinstance(score, Term)
    p = logits.detach().sigmoid()
    expected = -(SCORES * p.log() + (1 - SCORES) * (1 - p).log()).sum()
    torch.testing.assert_close(loss.total.detach(), expected)
    assert loss.count == 2
    (gradient,) = torch.autograd.grad(loss.total, logits)
    torch.testing.assert_close(gradient, p - SCORES)
    assert score.total == 1.0  # the first question's highest logit is its right answer; the second has none
