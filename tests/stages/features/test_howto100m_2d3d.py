from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from vlpipe.models.video.resnet import ResNet
from vlpipe.models.video.resnext3d import ResNeXt3d
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import heavy_names
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.features.howto100m_2d3d import DIM, Features2d3d, clip_feature, resnet

Rows = Callable[..., pa.Table]
ONE_BLOCK = (1, 1, 1, 1)


@pytest.fixture(scope="module")
def stage(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Features2d3d:
    """One block per stage, 2048 numbers at the end as in the deep ones."""
    folder = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    torch.save(ResNet(depths=ONE_BLOCK).state_dict(), folder / "2d.pth")
    torch.save(
        {"state_dict": {f"module.{n}": v for n, v in ResNeXt3d(ONE_BLOCK).state_dict().items()}},
        folder / "3d.pth",
    )
    nets = [Weights(path=str(folder / f"{d}.pth"), digest=f"digest-{d}") for d in ("2d", "3d")]
    return Features2d3d(videos=str(videos), weights_2d=nets[0], weights_3d=nets[1])


def vectors(table: pa.Table, column: str, row: int = 0) -> np.ndarray:
    return np.array(table[column][row].as_py(), np.float32)


def pictures(path: Path, fps: float, short: int) -> np.ndarray:
    """(N, H, W, 3): at k / fps the last picture that began, the short side of 40 px scaled."""
    width, height = round(48 * short / 40), short
    with av.open(str(path)) as opened:
        shown = [
            (float(f.time), f.to_ndarray(width=width, height=height, format="rgb24"))
            for f in opened.decode(video=0)
        ]
    end_s = shown[-1][0] + 0.1
    times = np.arange(0, end_s - 1e-6, 1 / fps)
    return np.stack([next(p for at, p in reversed(shown) if at <= t + 1e-3) for t in times])


@pytest.mark.slow
@torch.inference_mode()
def test_each_second_and_each_16_frames_become_a_vector(
    stage: Features2d3d, videos: Path, video_rows: Rows
) -> None:
    out = run_map(stage, video_rows("abc"))
    assert heavy_names(stage.schema(video_rows("a").schema)) == ["feat_2d", "feat_3d"]
    assert out.table["feat_2d3d_weights"].to_pylist() == ["digest-2d+digest-3d"] * 2
    assert [(r.id, r.why) for r in out.rejects] == [("id-c", "broken_video")]
    shots = torch.from_numpy(pictures(videos / "a.mp4", 1, 224)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    net = ResNet(depths=ONE_BLOCK).eval()
    net.load_state_dict(torch.load(stage.weights_2d.path))
    wanted = F.normalize(torch.cat([net.features(((s - mean) / std)[None]) for s in shots]), dim=1)
    assert wanted.shape == (2, DIM)
    np.testing.assert_allclose(vectors(out.table, "feat_2d"), wanted, atol=1e-3)
    moving = pictures(videos / "a.mp4", 24, 112)[:, :, 11:123]
    assert moving.shape == (36, 112, 112, 3)  # 1.5 s
    moving = np.concatenate([moving, np.zeros((12, 112, 112, 3), np.uint8)])
    clips = torch.from_numpy(moving).float() - torch.tensor((110.6, 103.2, 96.3))
    net_3d = ResNeXt3d.load(stage.weights_3d.path).eval()
    clips = clips.unflatten(0, (3, 16)).permute(0, 4, 1, 2, 3)
    np.testing.assert_allclose(
        vectors(out.table, "feat_3d"), F.normalize(net_3d.pooled(clips), dim=1), atol=1e-3
    )


@pytest.mark.slow
def test_a_clip_is_pooled_as_from_its_videos_features(stage: Features2d3d, video_rows: Rows) -> None:
    whole = run_map(stage, video_rows("a")).table
    feat_2d, feat_3d = (np.array(whole[c][0].as_py(), np.float16) for c in ("feat_2d", "feat_3d"))
    spans = [(0.0, 0.5), (0.7, 1.2), (1.4, 1.5)]
    rows = video_rows("aaa", start_s=[s for s, _ in spans], end_s=[e for _, e in spans])
    rows = rows.set_column(0, "id", pa.array(["x", "y", "z"]))
    out = run_map(stage, rows).table
    assert out.schema.field("feat_2d3d").type == pa.list_(pa.float16(), 4096)
    for row, (start_s, end_s) in enumerate(spans):
        wanted = clip_feature(feat_2d, feat_3d, start_s, end_s)
        assert np.array_equal(np.array(out["feat_2d3d"][row].as_py(), np.float16), wanted)
    np.testing.assert_allclose(
        np.linalg.norm(vectors(out, "feat_2d3d", 1).reshape(2, 2048), axis=1), 1, atol=1e-3
    )


def test_pooling_by_hand() -> None:
    feat_2d, feat_3d = (np.zeros((n, 2), np.float16) for n in (4, 6))
    feat_2d[:, 0], feat_2d[:, 1] = [1, 3, 2, 9], [0, 0, 4, 0]
    feat_3d[:, 0] = [5, 0, 0, 1, 0, 7]
    found = clip_feature(feat_2d, feat_3d, 1.2, 2.9)  # seconds 1 and 2; 3D rows int(1.8) = 1 to int(4.35) = 4
    np.testing.assert_allclose(found, [0.6, 0.8, 1, 0], atol=1e-3)
    with pytest.raises(RowFault, match="no_frames_in_window"):
        clip_feature(feat_2d, feat_3d, 4.0, 5.0)


@pytest.mark.slow
def test_equal_bits_in_any_company(stage: Features2d3d, video_rows: Rows) -> None:
    together = run_map(stage, video_rows("cba")).table
    alone = run_map(stage, video_rows("a")).table
    for column in ("feat_2d", "feat_3d"):
        assert np.array_equal(vectors(together, column, 1), vectors(alone, column))


def test_a_clip_behind_the_end_is_a_fault(stage: Features2d3d, video_rows: Rows) -> None:
    out = run_map(stage, video_rows("a", start_s=[7.0], end_s=[9.0]))
    assert [(r.id, r.why) for r in out.rejects] == [("id-a", "no_frames_in_window")]


def test_weights_that_do_not_fit(stage: Features2d3d, video_rows: Rows, tmp_path: Path) -> None:
    torch.save(ResNet(depths=ONE_BLOCK, width=8).state_dict(), tmp_path / "narrow.pth")
    narrow = replace(stage, weights_2d=Weights(path=str(tmp_path / "narrow.pth")))
    with pytest.raises(
        VlpipeError, match="weights_2d: wanted weights whose features have 2048 dimensions, got 256"
    ):
        run_map(narrow, video_rows("a"))
    swapped = replace(stage, weights_2d=stage.weights_3d)
    with pytest.raises(VlpipeError, match="ResNet: the weights do not fit: "):
        run_map(swapped, video_rows("a"))
    with pytest.raises(
        ValueError, match=r"with tensors conv1\.weight and fc\.weight; the first tensors are x$"
    ):
        resnet({"x": torch.zeros(1)})
    assert replace(stage, batch_size=5).preflight() == [
        "batch_size must be 1 or a multiple of 16, got 5: otherwise results depend on a window's position in its batch"
    ]
