"""UniVL's five losses against a second implementation from the paper's formulas, and what each part may see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.small.univl import SYSTEM
from vlpipe.models.generation.beam import search
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.video.align import Align
from vlpipe.models.objectives.video.frame_nce import FrameNce
from vlpipe.models.objectives.video.joint_mil import JointMil
from vlpipe.models.objectives.video.reconstruct import Reconstruct
from vlpipe.models.systems.video.univl import UniVl
from vlpipe.stages.loading.corruptors.mask_frames import MaskFrames, MaskWholeText
from vlpipe.stages.loading.makers.videos.windows import LENGTHS, FrameWindows


def model_of(**more: Any) -> UniVl:
    torch.manual_seed(0)
    config = {**vars(SYSTEM.make().config), "init_std": 0.2, **more}
    return UniVl(**config).eval()


class Given:
    """A model whose outputs are given."""

    def __init__(self, clips: Tensor, texts: Tensor) -> None:
        self.clips, self.texts = clips, texts

    def clip_feat(self, out: Outputs) -> Tensor:
        return self.clips

    def narration_feat(self, out: Outputs) -> Tensor:
        return self.texts


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("per_row", [1, 3])
def test_the_joint_loss_is_mil_nce_over_the_texts_of_a_row(per_row: int, as_released: bool) -> None:
    torch.manual_seed(0)
    clips = torch.randn(4, per_row, 5, requires_grad=True)
    texts = torch.randn(4, per_row, 1, 5, requires_grad=True)
    out = Outputs(Given(clips, texts), Batch({}, same=torch.arange(4)))
    term = JointMil(as_released=as_released)(out)["joint"]
    v, t, losses = clips.flatten(0, 1), texts.flatten(0, 2), []
    for i in range(4 * per_row):
        if as_released and i % per_row != per_row // 2:
            continue
        row = [j for j in range(4 * per_row) if j // per_row == i // per_row]
        others = [j for j in range(4 * per_row) if j // per_row != i // per_row]
        good = torch.stack([v[i] @ t[j] for j in row]).exp().sum()
        bad = torch.stack([v[i] @ t[j] for j in others] + [v[j] @ t[i] for j in others]).exp().sum()
        losses.append(-(good / (good + bad)).log())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(term.total / term.count, expected)
    ours = torch.autograd.grad(term.total / term.count, [clips, texts])
    for own, other in zip(ours, torch.autograd.grad(expected, [clips, texts]), strict=True):
        torch.testing.assert_close(own, other)


def gradients_agree(model: UniVl, one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two)
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = zip(
        torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True),
        torch.autograd.grad(two, parameters, retain_graph=True, allow_unused=True),
        strict=True,
    )
    for own, other in pairs:
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_a_masked_frame_is_told_from_all_frames_of_the_batch() -> None:
    model, batch = model_of(), SYSTEM.batch(0)
    out = Outputs(model, batch)
    term = FrameNce()(out)["cmfm"]
    video = batch.stream("video")
    true = [
        model.video_norm(video.target["feat"][b, 0, t])
        for b in range(4)
        for t in range(4)
        if video.mask[b, 0, t]
    ]  # type: ignore[index]
    losses = []
    for b in range(4):
        own = model.video_norm(video.target["feat"][b, 0, 0])
        said = model.frame_head(out.fused["video"][b, 0])
        losses.append(-((said @ own).exp() / torch.stack([said @ one for one in true]).exp().sum()).log())
    assert float(term.count) == 4
    gradients_agree(model, term.total, torch.stack(losses).sum())


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_a_text_is_aligned_with_its_clip_among_all(chunk: int) -> None:
    model, batch = model_of(), SYSTEM.batch(0)
    term = Align(chunk=chunk)(Outputs(model, batch))["align"]
    losses = []
    for i in range(4):
        scores = []
        for j in range(4):
            pair = {
                "text": batch.stream("text").rows(slice(i, i + 1)),
                "video": batch.stream("video").rows(slice(j, j + 1)),
            }
            scores.append(Outputs(model, Batch(pair, same=torch.zeros(1))).pair_score[0])
        losses.append(-torch.stack(scores).log_softmax(0)[i])
    gradients_agree(model, term.total, torch.stack(losses).sum())


def test_the_whole_text_is_reconstructed_from_the_masked_one() -> None:
    model, batch = model_of(), SYSTEM.batch(0)
    out = Outputs(model, batch)
    term = Reconstruct()(out)["reconstruct"]
    text = batch.stream("text")
    true = torch.where(text.target["ids"] == IGNORE, text.data, text.target["ids"])
    logprobs = model.decoder_head(out.decoder_hidden).log_softmax(-1)
    expected = -torch.stack([logprobs[b, k, true[b, k + 1]] for b in range(4) for k in range(11)]).sum()
    assert float(term.count) == 44
    gradients_agree(model, term.total, expected)


def changed(batch: Batch, **streams: Stream) -> Batch:
    return replace(batch, streams={**batch.streams, **streams})


def test_the_decoder_sees_no_later_word_but_the_masked_context() -> None:
    """Its input may be the text before masking; then a masked word is in it from its own place on."""
    batch = SYSTEM.batch(0)
    text = batch.stream("text")
    other = text.target["ids"].clone()
    other[:, 7] = torch.where(other[:, 7] == IGNORE, IGNORE, (other[:, 7] + 1) % 40 + 5)
    assert (other != text.target["ids"]).any()
    again = changed(batch, text=replace(text, target={**text.target, "ids": other}))
    with torch.no_grad():
        for released, differs in ((False, True), (True, False)):
            model = model_of(masked_decoder_input=released)
            one, two = (Outputs(model, b).decoder_hidden for b in (batch, again))
            torch.testing.assert_close(one[:, :7], two[:, :7])
            assert (not torch.allclose(one[:, 7:], two[:, 7:])) is differs


def test_padding_changes_nothing() -> None:
    model, batch = model_of(), SYSTEM.batch(0)
    video = batch.stream("video")
    noise = torch.where(video.mask[..., None], video.data, 7.0)  # type: ignore[index]
    with torch.no_grad():
        one, two = Outputs(model, batch), Outputs(model, changed(batch, video=replace(video, data=noise)))
        torch.testing.assert_close(one.clip_feat, two.clip_feat)
        torch.testing.assert_close(one.fused["text"], two.fused["text"])
        torch.testing.assert_close(one.pair_score, two.pair_score)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others() -> None:
    """The texts of a batch are padded to the longest, and frames keep their positions."""
    model, batch = model_of(), SYSTEM.batch(0)
    text = batch.stream("text")
    mask = torch.arange(12) < torch.tensor([5, 12, 3, 7])[:, None]
    padded = changed(batch, text=Stream(text.data.masked_fill(~mask, 0), mask))
    out = Outputs(model, padded)
    for b, length in enumerate([5, 12, 3, 7]):
        row = padded.rows(slice(b, b + 1))
        alone = Outputs(model, changed(row, text=Stream(text.data[b : b + 1, :length])))
        torch.testing.assert_close(alone.pair_score[0], out.pair_score[b])
        torch.testing.assert_close(alone.frame_prediction[0], out.frame_prediction[b])
    with pytest.raises(
        ValueError, match="cross encoder: 12 words and 4 windows, but windows have positions 8 to 15"
    ):
        _ = Outputs(model_of(frames_at=8), batch).pair_score


def test_frames_are_masked_by_zeros() -> None:
    maker = FrameWindows()
    feats = [np.random.default_rng(k).normal(size=(1, 6, 3)).astype(np.float32) for k in range(200)]
    samples = [{"video": {"data": one, LENGTHS: np.array([6])}} for one in feats]
    stream = maker.collate(
        [s["video"] for s in MaskFrames()(samples, lambda k: np.random.default_rng(k), {"video": maker})]
    )
    masked = stream.target["masked"]
    assert torch.equal(stream.target["feat"], torch.from_numpy(np.stack(feats)))
    assert (stream.data[masked] == 0).all()
    assert torch.equal(stream.data[~masked], stream.target["feat"][~masked])
    assert masked.any(-1).all()
    assert 0.17 < masked.float().mean() < 0.26  # 0.15, and at least one of six: 0.15 + 0.85 ** 6 / 6 = 0.213
    assert torch.equal(stream.places["masked"], masked.flatten().nonzero()[:, 0])


def test_some_texts_are_masked_as_a_whole() -> None:
    class Tokenizer:
        mask = 9

    class Texts:
        tokenizer = Tokenizer()

    item = {
        "data": np.array([1, 9, 6, 2]),
        "words": np.array([-1, 0, 1, -1]),
        "target/ids": np.array([IGNORE, 5, IGNORE, IGNORE]),
    }
    found = MaskWholeText(rate=0.5)(
        [{"text": dict(item)} for _ in range(40)], lambda k: np.random.default_rng(k), {"text": Texts()}
    )  # type: ignore[dict-item]
    whole = [one["text"] for one in found if one["text"]["target/ids"][2] != IGNORE]
    assert 8 < len(whole) < 32
    for one in whole:
        assert one["data"].tolist() == [1, 9, 9, 2]
        assert one["target/ids"].tolist() == [IGNORE, 5, 6, IGNORE]


def caption_batch() -> tuple[UniVl, Batch]:
    """Clips of which nothing is said, with captions of unequal length."""
    model, batch = model_of(captions=True), SYSTEM.batch(0)
    ids = batch.stream("text").data
    lengths = torch.tensor([5, 12, 3, 7])
    mask = torch.arange(12) < lengths[:, None]
    silence = Stream(torch.tensor([[1, 2]] * 4), torch.ones(4, 2, dtype=torch.bool))
    caption = Stream(ids.masked_fill(~mask, 0), mask)
    return model, changed(batch, text=silence, caption=caption)


def test_captions_are_learned_from_the_clip_alone() -> None:
    model, batch = caption_batch()
    assert model.streams()["text"]["use"] == "transcript:NoTranscript"
    assert model.streams()["caption"]["use"] == "text:Text"
    term = Reconstruct(stream="caption")(Outputs(model, batch))["reconstruct"]
    caption, losses = batch.stream("caption"), []
    for b, length in enumerate([5, 12, 3, 7]):
        row = batch.rows(slice(b, b + 1))
        alone = changed(row, caption=Stream(caption.data[b : b + 1, :length], None))
        logprobs = model.decoder_head(Outputs(model, alone).decoder_hidden[0]).log_softmax(-1)
        losses += [-logprobs[k, caption.data[b, k + 1]] for k in range(length - 1)]
    assert (
        float(term.count) == len(losses) == float(Reconstruct(stream="caption").counts(batch)["reconstruct"])
    )
    gradients_agree(model, term.total, torch.stack(losses).sum())


@torch.inference_mode()
def test_writing_step_by_step_is_the_forward_pass() -> None:
    model, batch = caption_batch()
    caption = batch.stream("caption").data
    hidden = Outputs(model, batch).decoder_hidden
    context = Outputs(model, batch).clip_context
    for parts in ([12], [1] * 12, [4, 1, 7]):
        cache = model.start_text(context, 12)
        steps = [model.step_text(ids, cache) for ids in caption.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), hidden)


@torch.inference_mode()
def test_captions_do_not_depend_on_the_batch() -> None:
    """Greedy captions by the forward pass, one clip at a time, against those of all clips, and one beam of several."""
    model, batch = caption_batch()
    context = Outputs(model, batch).clip_context
    found = search(model, context, num_beams=1, max_length=6)
    for b in range(4):
        ids = [model.text_rules.first]
        while len(ids) < 7:
            row = changed(batch.rows(slice(b, b + 1)), caption=Stream(torch.tensor([ids])))
            logits = model.decoder_head(Outputs(model, row).decoder_hidden[0, -1])
            logits[[*model.text_rules.never]] = float("-inf")
            ids.append(int(logits.argmax()))
            if ids[-1] == model.text_rules.end:
                break
        assert [i for i in ids[1:] if i != model.text_rules.end] == found[b]
    several = search(model, context, num_beams=3, max_length=6)
    assert several == [search(model, context[b : b + 1], num_beams=3, max_length=6)[0] for b in range(4)]


@torch.no_grad()
def test_three_clips_of_a_row_are_read_like_three_rows() -> None:
    model, draw = model_of(), torch.Generator().manual_seed(2)
    mask = torch.arange(12) < torch.tensor([[5, 12, 3], [7, 4, 9]])[..., None]
    ids = torch.randint(5, 40, (2, 3, 12), generator=draw).masked_fill(~mask, 0)
    feats, seen = torch.randn(2, 3, 4, 10, generator=draw), torch.ones(2, 3, 4, dtype=torch.bool)
    several = Outputs(
        model, Batch({"text": Stream(ids, mask), "video": Stream(feats, seen)}, torch.arange(2))
    )
    text = Stream(ids.flatten(0, 1), mask.flatten(0, 1))
    video = Stream(feats.flatten(0, 1)[:, None], seen.flatten(0, 1)[:, None])
    single = Outputs(model, Batch({"text": text, "video": video}, torch.arange(6)))
    torch.testing.assert_close(several.clip_feat.flatten(0, 1), single.clip_feat[:, 0])
    torch.testing.assert_close(several.narration_feat.flatten(0, 1), single.narration_feat[:, 0])
    assert several.clip_feat.shape[:2] == several.narration_feat.shape[:2] == (2, 3)
    assert JointMil()(several)["joint"].count == 2
