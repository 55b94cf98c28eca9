"""Raw clips: which frames a sample has, and a step of MIL-NCE on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.video.mil_nce import MilNce
from vlpipe.models.systems.video.mil_nce import MilNceModel
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.videos.raw_clips import RawClips
from vlpipe.stages.loading.rows import Row

av = pytest.importorskip("av", reason="the extra `video` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 4 s at 10 frames per second, lossless; frame k has value 5 k, but its right half is 0."""
    path = tmp_path_factory.mktemp("videos")
    with av.open(str(path / "a.mov"), "w") as out:
        stream = out.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb24"
        for k in range(40):
            picture = np.full((32, 48, 3), 5 * k, np.uint8)
            picture[:, 24:] = 0
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
    return path


def clip(folder: Path, start_s: float, end_s: float, video: str = "a.mov") -> Row:
    size = (folder / "a.mov").stat().st_size
    return Row("r", 0, [], {"video": video, "num_bytes": size, "start_s": start_s, "end_s": end_s})


def test_frames_are_those_of_a_part_of_the_clip(folder: Path) -> None:
    maker = RawClips(videos=str(folder), frames=4, fps=10, size=32, short_side=32, flip=False)
    starts = set()
    for seed in range(6):
        item = maker(clip(folder, 1.0, 2.0), "", np.random.default_rng(seed))
        assert item["data"].shape == (4, 32, 32, 3)
        values = item["data"].reshape(4, -1).max(1)
        assert np.diff(values.astype(int)).tolist() == [5, 5, 5]
        assert 50 <= values[0] <= values[-1] < 100
        starts.add(int(values[0]))
    assert len(starts) > 1


def test_half_of_the_clips_are_mirrored_and_crops_move(folder: Path) -> None:
    maker = RawClips(videos=str(folder), frames=1, fps=10, size=24, short_side=32)
    row = clip(folder, 2.0, 2.1)
    shown = [maker(row, "", np.random.default_rng(seed))["data"][0, 0, :, 0] > 0 for seed in range(24)]
    left = sum(bool(one[0]) for one in shown)
    assert 5 < left < 20
    assert len({int(one.sum()) for one in shown}) > 3


def test_what_is_past_the_end_is_black(folder: Path) -> None:
    maker = RawClips(videos=str(folder), frames=8, fps=10, size=32, short_side=32)
    values = maker(clip(folder, 3.7, 4.0), "", np.random.default_rng(0))["data"].reshape(8, -1).max(1)
    assert (values[:3] > 0).all()
    assert (values[4:] == 0).all()
    stream = maker.on_device(maker.collate([{"data": np.full((8, 4, 4, 3), 255, np.uint8)}]))
    assert stream.data.shape == (1, 1, 3, 8, 4, 4)
    assert stream.data.max() == 1


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    maker, rng = RawClips(videos=str(folder), frames=2, size=32, short_side=32), np.random.default_rng(0)
    with pytest.raises(VlpipeError, match="row r cannot be decoded"):
        maker(clip(folder, 0, 1, "gone.mov"), "", rng)
    with pytest.raises(VlpipeError, match=r"row r cannot be decoded \(no_frames_in_window"):
        maker(clip(folder, 50, 51), "", rng)
    with pytest.raises(VlpipeError, match="set `videos`"):
        replace(maker, videos="")(clip(folder, 0, 1), "", rng)
    with pytest.raises(ValueError, match="size from 1 to short_side"):
        RawClips(size=300)


@pytest.mark.slow
def test_a_step_on_raw_clips_moves_s3dg_and_the_words(folder: Path) -> None:
    torch.manual_seed(0)
    model = MilNceModel(
        vocab_size=9, feat_dim=None, embed_dim=8, word_dim=4, text_width=8, space_to_depth=True
    )
    assert model.streams()["video"] == {"use": "raw_clips:RawClips"}
    maker = RawClips(videos=str(folder), frames=4, size=32, short_side=32)
    items = [maker(clip(folder, start, start + 1), "", np.random.default_rng(0)) for start in (0.5, 2.5)]
    text = Stream(torch.tensor([[[[1, 2]]], [[[3, 4]]]]))
    batch = Batch({"video": maker.on_device(maker.collate(items)), "text": text}, torch.arange(2))
    MilNce()(Outputs(model.train(), batch))["mil_nce"].total.backward()
    for name in ("video.conv1.conv1.weight", "video.mixed_5c.conv_b0.conv1.weight", "text.words.weight"):
        grad = model.get_parameter(name).grad
        assert grad is not None
        assert grad.abs().sum() > 0, name
