"""BERT against transformers' BertForPreTraining: outputs, loss and gradients to 1e-5, folders in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.text.bert import Bert

TINY: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
}


@pytest.fixture
def theirs() -> BertForPreTraining:
    torch.manual_seed(1)
    net = BertForPreTraining(BertConfig(**TINY)).eval()
    for name, p in net.named_parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=float("LayerNorm.weight" in name), std=0.2)
    return net


@pytest.fixture
def ours(theirs: BertForPreTraining, tmp_path: Path) -> Bert:
    theirs.save_pretrained(tmp_path / "theirs")
    model = folder.load(tmp_path / "theirs")
    assert isinstance(model, Bert)
    return model.eval()


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 37, (5, 11), generator=draw)
    mask = torch.arange(11)[None] < torch.tensor([11, 7, 3, 9, 5])[:, None]
    target = ids.masked_fill(~mask | (torch.rand(5, 11, generator=draw) > 0.4), IGNORE)
    segment = torch.randint(0, 2, (5, 11), generator=draw)
    text = Stream(ids, mask, {"segment": segment}, {"ids": target, "match": torch.tensor([1, 0, 0, 1, 1])})
    return Batch({"text": text}, same=torch.arange(5))


def test_outputs_loss_and_gradients_are_those_of_transformers(theirs: BertForPreTraining, ours: Bert) -> None:
    data = batch()
    text = data.stream("text")
    wanted = theirs(
        input_ids=text.data,
        attention_mask=text.mask.long(),
        token_type_ids=text.extra["segment"],
        labels=text.target["ids"],
        next_sentence_label=1 - text.target["match"],  # theirs: 0 if it is the next
        output_hidden_states=True,
    )
    out = Outputs(ours, data)
    assert close(out.word_hidden[text.mask], wanted.hidden_states[-1][text.mask])
    assert close(ours.predict_words(out.word_hidden)[text.mask], wanted.prediction_logits[text.mask])
    assert close(out.match, wanted.seq_relationship_logits.flip(1))
    terms = MaskedLm()(out) | Match()(out)
    loss = sum(terms[name].total / terms[name].count for name in ("mlm", "match"))
    assert close(loss, wanted.loss)
    loss.backward()
    wanted.loss.backward()
    layer, other = ours.encoder.blocks[0], theirs.bert.encoder.layer[0]
    assert close(layer.feed_forward.up.weight.grad, other.intermediate.dense.weight.grad)
    assert close(layer.attention.qkv.weight.grad[:24], other.attention.self.query.weight.grad)
    words = theirs.bert.embeddings.word_embeddings.weight.grad
    assert close(ours.encoder.embed.words.weight.grad, words)


def test_a_folder_goes_back_and_forth(theirs: BertForPreTraining, ours: Bert, tmp_path: Path) -> None:
    ours.export(tmp_path / "again")
    again = BertForPreTraining.from_pretrained(tmp_path / "again").state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(again[name], value), name
    folder.save(ours, tmp_path / "own")
    own = folder.load(tmp_path / "own").state_dict()
    assert all(torch.equal(own[name], value) for name, value in ours.state_dict().items())


def test_padding_changes_nothing(ours: Bert) -> None:
    data = batch().stream("text")
    short = Stream(data.data[1:2, :7], data.mask[1:2, :7], {"segment": data.extra["segment"][1:2, :7]})
    alone = Outputs(ours, Batch({"text": short}, same=torch.arange(1))).word_hidden
    assert close(alone[0], Outputs(ours, batch()).word_hidden[1, :7])


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_larger_vocabulary_keeps_the_given_rows(theirs: BertForPreTraining, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    table = folder.load(tmp_path, vocab_size=39).encoder.embed.words.weight
    assert table.shape == (39, 24)
    assert torch.equal(table[:37], theirs.bert.embeddings.word_embeddings.weight)
