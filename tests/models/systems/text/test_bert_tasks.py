"""BERT's heads for finetuning against transformers' classes: logits, loss and gradients to 1e-5; their losses by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.capabilities import missing
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.text_capabilities import ClassifiesTexts, FindsSpans
from vlpipe.models.layouts.table import to_ours
from vlpipe.models.layouts.text.bert import encoder
from vlpipe.models.objectives.texts.classify import ClassifyTexts
from vlpipe.models.objectives.texts.spans import Span
from vlpipe.models.systems.text.bert import Bert

TINY: dict[str, Any] = {
    "vocab_size": 37,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "mlp_width": 40,
    "max_text_length": 16,
}


def theirs_of(cls: Any, **more: Any) -> Any:
    sizes = {"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    more = {"intermediate_size": 40, "max_position_embeddings": 16, "initializer_range": 0.2, **more}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    net = cls(BertConfig(**sizes, **more, **rates)).eval()
    for name, p in net.named_parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=float("LayerNorm.weight" in name), std=0.2)
    return net


def ours_of(theirs: Any, head: str, their_head: str, **changes: Any) -> Bert:
    """Our model with their encoder, pooler and head."""
    model = Bert(dropout=0.0, **TINY, **changes)
    state = dict(theirs.state_dict())
    found = to_ours(list(encoder("encoder", "bert", 2)), state, r".")
    for ours, name in ((head, their_head), ("pooler.dense", "bert.pooler.dense")):
        for part in ("weight", "bias"):
            if f"{name}.{part}" in state:
                found[f"{ours}.{part}"] = state[f"{name}.{part}"]
    model.load_state_dict({**model.state_dict(), **found})
    return model.eval()


def batch_of(label: Tensor | None = None, span: Tensor | None = None) -> Batch:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 37, (5, 11), generator=draw)
    mask = torch.arange(11)[None] < torch.tensor([11, 7, 3, 9, 5])[:, None]
    segment = torch.randint(0, 2, (5, 11), generator=draw)
    target = {} if span is None else {"span": span}
    streams = {"text": Stream(ids, mask, {"segment": segment}, target)}
    return Batch(streams | ({} if label is None else {"label": Stream(label)}), same=torch.arange(5))


def inputs(batch: Batch) -> dict[str, Any]:
    text = batch.streams["text"]
    assert text.mask is not None
    return {
        "input_ids": text.data,
        "attention_mask": text.mask.long(),
        "token_type_ids": text.extra["segment"],
    }


def same_gradients(model: Bert, theirs: Any) -> None:
    """Of word embeddings and of one matrix of a layer."""
    for ours, name in (
        (model.encoder.embed.words.weight, "bert.embeddings.word_embeddings.weight"),
        (model.encoder.blocks[0].feed_forward.up.weight, "bert.encoder.layer.0.intermediate.dense.weight"),
    ):
        wanted = dict(theirs.named_parameters())[name].grad
        # word 0 is their padding, which gets no gradient there
        torch.testing.assert_close(ours.grad[1:], wanted[1:], rtol=1e-5, atol=1e-5)


def test_classes_are_those_of_transformers() -> None:
    theirs = theirs_of(BertForSequenceClassification, num_labels=3)
    model = ours_of(theirs, "class_head", "classifier", num_classes=3)
    label = torch.tensor([2, 0, 1, 1, 0])
    batch = batch_of(label)
    said = theirs(**inputs(batch), labels=label)
    out = Outputs(model, batch)
    torch.testing.assert_close(out.text_logits, said.logits, rtol=1e-5, atol=1e-5)
    term = ClassifyTexts()(out)["classify"]
    torch.testing.assert_close(term.total / term.count, said.loss, rtol=1e-5, atol=1e-5)
    (term.total / term.count).backward()
    said.loss.backward()
    same_gradients(model, theirs)
    torch.testing.assert_close(
        model.class_head.weight.grad, theirs.classifier.weight.grad, rtol=1e-5, atol=1e-5
    )


def test_scores_are_those_of_transformers() -> None:
    theirs = theirs_of(BertForSequenceClassification, num_labels=1, problem_type="regression")
    model = ours_of(theirs, "class_head", "classifier", num_classes=1)
    score = torch.tensor([2.5, 0.0, 5.0, 1.0, 3.2])
    batch = batch_of(score)
    said = theirs(**inputs(batch), labels=score)
    term = ClassifyTexts()(Outputs(model, batch))["classify"]
    torch.testing.assert_close(term.total / term.count, said.loss, rtol=1e-5, atol=1e-5)


def test_spans_are_those_of_transformers() -> None:
    """Theirs gives padding a probability; so rows without padding are compared, and padding by itself below."""
    theirs = theirs_of(BertForQuestionAnswering)
    model = ours_of(theirs, "span_head", "qa_outputs", finds_spans=True)
    span = torch.tensor([[3, 5], [0, 0], [2, 2], [1, 8], [4, 4]])
    batch = batch_of(span=span)
    text = batch.streams["text"]
    full = Batch(
        {"text": Stream(text.data, torch.ones_like(text.mask), text.extra, text.target)}, same=batch.same
    )
    said = theirs(**inputs(full), start_positions=span[:, 0], end_positions=span[:, 1])
    out = Outputs(model, full)
    torch.testing.assert_close(
        out.span_logits, torch.stack([said.start_logits, said.end_logits], 2), rtol=1e-5, atol=1e-5
    )
    term = Span()(out)["span"]
    torch.testing.assert_close(term.total / term.count, said.loss, rtol=1e-5, atol=1e-5)
    (term.total / term.count).backward()
    said.loss.backward()
    same_gradients(model, theirs)
    torch.testing.assert_close(
        model.span_head.weight.grad, theirs.qa_outputs.weight.grad, rtol=1e-5, atol=1e-5
    )


class Fixed:
    """A model whose outputs are given."""

    def __init__(self, **values: Tensor) -> None:
        self.values = values

    def span_logits(self, out: Outputs) -> Tensor:
        return self.values["span"]

    def text_logits(self, out: Outputs) -> Tensor:
        return self.values["text"]


def test_padding_has_no_probability() -> None:
    """All scores are 0: the first and the last of n real tokens have 1 / n each."""
    span = torch.zeros(5, 2, dtype=torch.long)
    batch = batch_of(span=span)
    found = Span()(Outputs(Fixed(span=torch.zeros(5, 11, 2)), batch))
    lengths = [11, 7, 3, 9, 5]
    assert found["span"].total.item() == pytest.approx(sum(math.log(n) for n in lengths))
    assert found["span"].count == 5
    assert found["span_accuracy"].total == 5


def test_rows_without_a_label_or_a_score_do_not_count() -> None:
    label = torch.tensor([IGNORE, 0, 1, IGNORE, 0])
    logits = torch.tensor([[0.0, 0.0]] * 5)
    batch = batch_of(label)
    found = ClassifyTexts()(Outputs(Fixed(text=logits), batch))
    assert found["classify"].total.item() == pytest.approx(3 * math.log(2))
    assert found["classify"].count == found["classify_accuracy"].count == 3
    assert found["classify_accuracy"].total == 2
    assert ClassifyTexts().counts(batch) == {"classify": 3}
    scores = torch.tensor([math.nan, 1.0, 3.0, math.nan, 0.0])
    logits = torch.tensor([[9.0], [2.0], [3.0], [9.0], [2.0]], requires_grad=True)
    found = ClassifyTexts()(Outputs(Fixed(text=logits), batch_of(scores)))
    assert (found["classify"].total.item(), int(found["classify"].count)) == (5.0, 3)
    found["classify"].total.backward()
    assert logits.grad.flatten().tolist() == [0, 2, 0, 0, 4]


def test_a_pretrained_model_gets_a_head_and_keeps_the_rest(tmp_path: Path) -> None:
    """And what has no head says so; a head that was saved is read."""
    before = Bert(dropout=0.0, **TINY).eval()
    assert missing(before, [ClassifiesTexts, FindsSpans]) == [ClassifiesTexts, FindsSpans]
    folder.save(before, tmp_path / "pretrained")
    torch.manual_seed(1)
    after = folder.load(tmp_path / "pretrained", num_classes=2).eval()
    assert missing(after, [ClassifiesTexts, FindsSpans]) == [FindsSpans]
    assert sorted(after.streams()) == ["label", "text"]
    out, old = Outputs(after, batch_of()), Outputs(before, batch_of())
    assert torch.equal(out.word_hidden, old.word_hidden)
    folder.save(after, tmp_path / "finetuned")
    again = folder.load(tmp_path / "finetuned").eval()
    assert torch.equal(Outputs(again, batch_of()).text_logits, out.text_logits)
