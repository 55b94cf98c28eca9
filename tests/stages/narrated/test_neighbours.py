"""Clips in a row of a video, as UniVL has them, and their texts as token ids: the same clips for both streams."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.loading.makers.videos.narration import VideoText
from vlpipe.stages.loading.makers.videos.windows import VideoFrameWindows
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.narrated.list_clips import CLIPS

WORDS = list("abcdefgh")
TOKENIZER = Tokenizer(pipeline(WORDS, lower=True), ROLES)
START, END, PAD = TOKENIZER.start, TOKENIZER.end, TOKENIZER.pad


def row(num: int) -> Row:
    """Clip k is second k, its text is the k-th word, k + 1 times, and its feature is k."""
    clips = [
        {"start_s": k, "end_s": k + 1, "text": " ".join([WORDS[k]] * (k + 1)), "candidates": []}
        for k in range(num)
    ]
    feats = [{"start_s": k, "end_s": k + 1, "feat": [k]} for k in range(num)]
    columns = {"clips": pa.array([clips], CLIPS)[0], "frame_feats": pa.array([feats], features_type(1))[0]}
    return Row("r", 0, [], columns)


@pytest.mark.parametrize(
    ("num", "wanted"),
    [
        (3, {(0, 1, 2)}),
        (7, {(0, 1, 2), (3, 4, 5), (6, 0, 1)}),  # the last group goes on from the beginning
        (2, {(0, 1, 0)}),
    ],
)
def test_clips_follow_each_other(num: int, wanted: set[tuple[int, ...]]) -> None:
    text = VideoText(tokenizer=TOKENIZER, pairs=3, neighbours=True, max_length=20)
    video = VideoFrameWindows(pairs=3, neighbours=True)
    found = set()
    for seed in range(40):
        feats = video(row(num), "", np.random.default_rng(seed))["data"][:, 0, 0]
        said = text(row(num), "", np.random.default_rng(seed))
        clips = tuple(int(k) for k in feats)
        ids = [[START, *TOKENIZER.ids(WORDS[k]) * (k + 1), END] for k in clips]
        assert [
            data[:length].tolist() for data, length in zip(said["data"], said["lengths"], strict=True)
        ] == ids
        found.add(clips)
    assert found == wanted


def test_texts_are_padded_to_the_longest_and_cut() -> None:
    maker = VideoText(tokenizer=TOKENIZER, pairs=3, neighbours=True, max_length=4)
    stream = maker.collate([maker(row(3), "", np.random.default_rng(0)) for _ in range(2)])
    a, b, c = (TOKENIZER.ids(word)[0] for word in "abc")
    cut = maker.tokenizer.encode_one("c c c", 4)[0]
    assert stream.data.tolist() == [[[START, a, END, PAD], [START, b, b, END], cut]] * 2
    assert stream.mask is not None
    assert stream.mask.tolist() == [[[True, True, True, False], [True] * 4, [True] * 4]] * 2
    assert c in cut
    short = maker.collate([maker(row(1), "", np.random.default_rng(0))])
    assert short.data.shape == (1, 3, 3)
    with pytest.raises(ValueError, match="max_length must be from 3 to 8, the positions of the model, got 9"):
        VideoText(tokenizer=TOKENIZER, max_length=9, max_positions=8)
