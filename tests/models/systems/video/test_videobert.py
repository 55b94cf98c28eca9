"""VideoBERT: its sequence, its one vocabulary, and regimes that lack a stream."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_codes import MaskedCodes
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.systems.video.videobert import VideoBert
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.corruptors.mask_codes import MaskCodes
from vlpipe.stages.loading.makers.codes import Codes
from vlpipe.stages.loading.rows import Row

WORDS, CLS, SEP, MASK, CODES = 11, 2, 3, 4, 9
NEXT = WORDS  # the id of [>]


@pytest.fixture
def model() -> VideoBert:
    torch.manual_seed(0)
    return VideoBert(
        vocab_size=WORDS,
        start=CLS,
        end=SEP,
        mask=MASK,
        num_codes=CODES,
        width=16,
        layers=2,
        heads=2,
        max_text_length=8,
        max_video_length=6,
        init_std=0.3,
    ).eval()


def padded(rows: list[list[int]], target: list[list[int]] | None = None) -> Stream:
    length = max(map(len, rows))
    data = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.arange(length)[None] < torch.tensor([len(row) for row in rows])[:, None]
    ids = {} if target is None else {"ids": torch.tensor(target)}
    return Stream(data, mask, target=ids)


def outputs(model: VideoBert, **streams: Stream) -> Outputs:
    return Outputs(model, Batch(streams, same=torch.arange(len(next(iter(streams.values()))))))


def by_hand(model: VideoBert, ids: list[int], num_text: int) -> Tensor:
    """The hidden states of one sequence without padding; its first `num_text` tokens are of segment 0."""
    segment = (torch.arange(len(ids)) >= num_text).long()
    return model.encoder(torch.tensor([ids]), None, segment[None])[0]


def test_the_sequence_is_the_papers(model: VideoBert) -> None:
    text = padded([[CLS, 7, 8, 9, SEP], [CLS, 10, SEP]])
    video = padded([[0, 8], [CODES, 5, 3, 1]])  # CODES: masked
    found = outputs(model, text=text, video=video).fused
    first = by_hand(model, [CLS, 7, 8, 9, NEXT, WORDS + 1, WORDS + 9, SEP], 5)
    assert torch.allclose(found["text"][0, :4], first[:4], atol=1e-5)
    assert torch.allclose(found["video"][0, :2], first[5:7], atol=1e-5)
    second = by_hand(model, [CLS, 10, NEXT, MASK, WORDS + 6, WORDS + 4, WORDS + 2, SEP], 3)
    assert torch.allclose(found["text"][1, :2], second[:2], atol=1e-5)
    assert torch.allclose(found["video"][1], second[3:7], atol=1e-5)


def test_a_regime_may_lack_a_stream(model: VideoBert) -> None:
    text = outputs(model, text=padded([[CLS, 7, 8, SEP], [CLS, 10, SEP]])).word_hidden
    alone = by_hand(model, [CLS, 10, SEP], 3)
    assert torch.allclose(text[1, :2], alone[:2], atol=1e-5)
    video = outputs(model, video=padded([[4, 2], [1]])).code_hidden
    assert torch.allclose(video[1, :1], by_hand(model, [CLS, NEXT, WORDS + 2, SEP], 2)[2:3], atol=1e-5)
    with pytest.raises(ValueError, match="no stream 'text'"):
        outputs(model, video=padded([[4, 2], [1]])).stream("text")


def test_words_and_codes_share_one_softmax(model: VideoBert) -> None:
    hidden = torch.randn(3, 16)
    words, codes = model.predict_words(hidden), model.predict_codes(hidden)
    assert words.shape == codes.shape == (3, WORDS + 1 + CODES)
    assert torch.equal(words[:, WORDS + 1 :], codes[:, :CODES])
    assert torch.equal(words[:, : WORDS + 1], codes[:, CODES:])


def test_losses_are_cross_entropies_of_masked_places(model: VideoBert) -> None:
    text = padded([[CLS, MASK, 8, SEP]], [[IGNORE, 7, IGNORE, IGNORE]])
    video = padded([[CODES, 3]], [[6, IGNORE]])
    out = outputs(model, text=text, video=video)
    terms = MaskedLm()(out) | MaskedCodes()(out)
    hidden = by_hand(model, [CLS, MASK, 8, NEXT, MASK, WORDS + 4, SEP], 4)
    logits = model.word_head(hidden).log_softmax(1)
    assert torch.allclose(terms["mlm"].total, -logits[1, 7], atol=1e-5)
    assert torch.allclose(terms["mfm"].total, -logits[4, WORDS + 1 + 6], atol=1e-5)
    assert terms["mfm"].count == MaskedCodes().counts(out.batch)["mfm"] == 1


def test_paired_outputs_take_rows_of_each_stream(model: VideoBert) -> None:
    text, video = padded([[CLS, 7, 8, SEP], [CLS, 10, SEP]]), padded([[4, 2], [1]])
    out = outputs(model, text=text, video=video)
    pairs = out.paired({"text": torch.tensor([0, 0, 1]), "video": torch.tensor([0, 1, 1])})
    assert torch.allclose(pairs.match[[0, 2]], out.match, atol=1e-5)


def test_inputs_can_be_frozen() -> None:
    model = VideoBert(
        vocab_size=5, start=0, end=1, mask=2, num_codes=3, width=8, layers=1, heads=1, freeze_inputs=True
    )
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["encoder.embed.words.weight"]


def row(codes: list[int]) -> Row:
    kind = pa.list_(pa.struct([("start_s", pa.float32()), ("token", pa.int32())]))
    return Row("r", 0, [], {"video_tokens": pa.array([[{"start_s": 0, "token": c} for c in codes]], kind)[0]})


def test_codes_are_cut_and_strided_at_random() -> None:
    draw = np.random.default_rng(0)
    assert Codes(num_codes=9, max_length=4)(row([1, 8]), "", draw)["data"].tolist() == [1, 8]
    flat = Row("r", 0, [], {"video_tokens": pa.array([[3, 5]], pa.list_(pa.int32()))[0]})
    assert Codes(num_codes=9, max_length=4)(flat, "", draw)["data"].tolist() == [3, 5]
    cut = {tuple(Codes(num_codes=50, max_length=3)(row([*range(5)]), "", draw)["data"]) for _ in range(50)}
    assert cut == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    strided = [
        Codes(num_codes=50, max_length=50, max_stride=3)(row([*range(12)]), "", draw)["data"]
        for _ in range(80)
    ]
    assert {tuple(np.diff(one)[:1]) for one in strided} == {(1,), (2,), (3,)}
    assert {int(one[0]) for one in strided} == {0, 1, 2}
    with pytest.raises(
        VlpipeError, match="row r: video_tokens has ids from 1 to 9, wanted ids below num_codes 9"
    ):
        Codes(num_codes=9, max_length=4)(row([1, 9]), "", draw)


def test_masking_is_80_10_10() -> None:
    maker = Codes(num_codes=1000, max_length=100)
    samples = [{"video": {"data": np.arange(100) + 100}} for _ in range(200)]
    masked = MaskCodes(rate=0.15)(samples, lambda k: np.random.default_rng(k), {"video": maker})
    new, target = (np.stack([s["video"][key] for s in masked]) for key in ("data", "target/ids"))
    old = np.arange(100) + 100
    chosen = target != IGNORE
    assert (target == np.where(chosen, old, IGNORE)).all()
    assert (new == old)[~chosen].all()
    assert 0.14 < chosen.mean() < 0.16  # the standard error is 0.0025
    assert 0.77 < (new == 1000)[chosen].mean() < 0.83  # 0.007
    assert 0.08 < (new == np.broadcast_to(old, new.shape))[chosen].mean() < 0.12  # 0.0055
    few = MaskCodes(rate=0.01)(
        [{"video": {"data": np.array([5])}}], lambda k: np.random.default_rng(k), {"video": maker}
    )
    assert few[0]["video"]["target/ids"].tolist() == [5]
