"""Question answering: the loss counts the rows that have an answer and match. See also `test_lxmert`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.answer import Answer

LABELS = torch.tensor([3, 0, IGNORE, 4, 2])


def out_of(logits: torch.Tensor, match: list[int] | None) -> Outputs:
    target = {} if match is None else {"match": torch.tensor(match)}
    text = Stream(torch.zeros(5, 3).long(), target=target)
    batch = Batch({"answer": Stream(LABELS), "text": text}, same=torch.arange(5))
    return Outputs(object(), batch, given={"answer": logits})


def test_the_mean_is_over_rows_with_an_answer() -> None:
    logits = torch.randn(5, 6)
    out = out_of(logits, None)
    term = Answer()(out)["answer"]
    assert int(term.count) == 4 == int(Answer().counts(out.batch)["answer"])
    wanted = torch.nn.CrossEntropyLoss()(logits, LABELS)
    torch.testing.assert_close(term.total / term.count, wanted)


def test_wrong_pairs_have_no_answer() -> None:
    logits = torch.randn(5, 6)
    logits[3] = torch.eye(6)[4] * 9
    out = out_of(logits, [1, 0, 1, 1, 0])
    found: Any = Answer()(out)
    assert int(found["answer"].count) == 2 == int(Answer().counts(out.batch)["answer"])
    wanted = F.cross_entropy(logits[[0, 3]], LABELS[[0, 3]], reduction="sum")
    torch.testing.assert_close(found["answer"].total, wanted)
    right = int(logits[0].argmax() == 3) + 1
    assert (int(found["answer_accuracy"].total), int(found["answer_accuracy"].count)) == (right, 2)


def test_a_batch_without_answers_is_zero() -> None:
    logits = torch.randn(5, 6, requires_grad=True)
    batch = Batch({"answer": Stream(torch.full((5,), IGNORE))}, same=torch.arange(5))
    term = Answer()(Outputs(object(), batch, given={"answer": logits}))["answer"]
    term.total.backward()
    assert (float(term.total.detach()), int(term.count)) == (0, 0)
    assert logits.grad is not None
    assert not logits.grad.any()
