from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models.video.s3d import S3d
from vlpipe.models.video.s3dg import S3dG
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import is_heavy, read_batches
from vlpipe.pipeline.testing import dataset, run_map
from vlpipe.stages.features.s3d import S3dFeatures, features_type
from vlpipe.stages.features.s3d_weights import MEAN_STD, VideoNet, normalised
from vlpipe.stages.features.s3d_windows import PRESETS, Windows, cut

SIZE = (48, 40)  # width and height of the made videos
SMALL = Windows(fps=10, frames=6, stride=6, side=32)


def pictures(num: int) -> list[np.ndarray]:
    """Picture k is filled with k."""
    return [np.full((2, 2, 3), k, np.uint8) for k in range(num)]


def numbers(windows: Iterable[Any]) -> list[tuple[int, int, list[int]]]:
    return [(w.first, w.num_real, w.frames[:, 0, 0, 0].tolist()) for w in windows]


def test_windows_that_touch() -> None:
    how = Windows(fps=2, frames=3, stride=3)
    assert numbers(cut(pictures(7)[1:], how)) == [(0, 3, [1, 2, 3]), (3, 3, [4, 5, 6])]
    assert numbers(cut(pictures(8)[1:], how))[2:] == [(6, 1, [7, 0, 0])]
    assert numbers(cut(pictures(8)[1:], replace(how, tail="repeat")))[2:] == [(6, 1, [7, 7, 7])]
    assert numbers(cut(pictures(8)[1:], replace(how, tail="drop")))[2:] == []
    assert numbers(cut(pictures(3)[1:], replace(how, tail="drop"))) == [(0, 2, [1, 2, 0])]
    assert numbers(cut([], how)) == []
    assert how.seconds(6, 1) == (3.0, 3.5)


def test_windows_that_overlap_end_when_every_frame_was_seen() -> None:
    how = Windows(fps=1, frames=4, stride=2)
    firsts = {num: [w[0] for w in numbers(cut(pictures(num), how))] for num in range(1, 9)}
    assert firsts == {1: [0], 2: [0], 3: [0], 4: [0], 5: [0, 2], 6: [0, 2], 7: [0, 2, 4], 8: [0, 2, 4]}
    assert numbers(cut(pictures(5), how))[1] == (2, 3, [2, 3, 4, 0])
    assert [w[:2] for w in numbers(cut(pictures(5), replace(how, tail="drop")))] == [(0, 4)]


def test_windows_with_gaps_and_frames_picked_evenly() -> None:
    how = Windows(fps=1, frames=2, stride=5)
    assert [w[2] for w in numbers(cut(pictures(12), how))] == [[0, 1], [5, 6], [10, 11]]
    assert [w[0] for w in numbers(cut(pictures(9), how))] == [0, 5]
    hero = PRESETS["hero"]
    (one,) = cut(pictures(45), hero)
    assert len(one.frames) == hero.num_seen == 32
    assert one.frames[[0, 1, 30, 31], 0, 0, 0].tolist() == [0, 1, 42, 44]


def test_presets_are_the_published_windows() -> None:
    """Frames per second, seconds of a window, seconds between windows, frames the network sees, numbers."""
    found = {
        name: (how.fps, how.frames / how.fps, how.stride / how.fps, how.num_seen, how.side, how.dim, how.l2)
        for name, how in PRESETS.items()
    }
    assert found == {
        "videobert": (20, 1.5, 1.5, 30, 224, 1024, False),
        "hero": (30, 1.5, 1.5, 32, 224, 1024, False),
        "mmpt": (30, 1.0, 1.0, 30, 224, 512, True),
        "univl": (16, 1.0, 1.0, 16, 224, 1024, False),
        "coot": (16, 2.0, 1.0, 32, 256, 512, False),
    }


def test_no_more_than_a_window_of_pictures_is_held() -> None:
    read = 0

    def frames() -> Iterable[np.ndarray]:
        nonlocal read
        for picture in pictures(100):
            read += 1
            yield picture

    for window in cut(frames(), Windows(fps=1, frames=5, stride=5)):
        assert read == window.first + 5


def test_every_normalisation_by_hand() -> None:
    frames = torch.arange(2 * 3 * 2 * 2 * 3).reshape(2, 3, 2, 2, 3).to(torch.uint8)
    x = frames.permute(0, 4, 1, 2, 3).double()
    torch.testing.assert_close(normalised(frames, "unit"), (x / 255).float())
    torch.testing.assert_close(normalised(frames, "signed"), (2 * x / 255 - 1).float(), atol=1e-6, rtol=0)
    mean, std = (np.array(v)[None, :, None, None, None] for v in MEAN_STD["kinetics"])
    wanted = ((x.numpy() / 255) - mean) / std
    np.testing.assert_allclose(normalised(frames, "kinetics").numpy(), wanted, atol=1e-6)


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Random S3D and S3D-G as their authors store them."""
    folder = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    torch.save({f"module.{n}": v for n, v in S3dG(num_words=0).state_dict().items()}, folder / "mil_nce.pth")
    torch.save(S3d(num_classes=3).state_dict(), folder / "torchvision.pth")
    names = ("mil_nce", "torchvision")
    return {name: Weights(path=str(folder / f"{name}.pth"), digest=f"digest-{name}") for name in names}


def vectors(table: pa.Table, row: int = 0) -> np.ndarray:
    return np.array([w["feat"] for w in table["s3d"][row].as_py()], np.float32)


def times(table: pa.Table, row: int = 0) -> list[tuple[float, float]]:
    return [(round(w["start_s"], 4), round(w["end_s"], 4)) for w in table["s3d"][row].as_py()]


Nets = dict[str, Weights]
Rows = Callable[..., pa.Table]


def test_windows_of_a_video_are_features_with_their_times(videos: Path, nets: Nets, video_rows: Rows) -> None:
    stage = S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows=SMALL)
    out = run_map(stage, video_rows("abc"))
    assert out.table["id"].to_pylist() == ["id-a", "id-b"]
    assert times(out.table, 0) == [(0.0, 0.6), (0.6, 1.2), (1.2, 1.5)]
    assert times(out.table, 1) == [(0.0, 0.6), (0.6, 0.7)]
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("id-c", "fault", "broken_video")]
    assert out.table["s3d_weights"].to_pylist() == ["digest-mil_nce:unit"] * 2
    assert out.table.schema.field("s3d").type == features_type(1024)
    pictures = decoded(videos / "a.mp4")
    black = np.zeros((3, 32, 32, 3), np.uint8)
    cuts = (pictures[:6], pictures[6:12], np.concatenate([pictures[12:], black]))
    net = S3dG.load(nets["mil_nce"].path).eval()
    with torch.inference_mode():
        wanted = [net.pooled(torch.from_numpy(c).permute(3, 0, 1, 2)[None] / 255) for c in cuts]
    np.testing.assert_allclose(vectors(out.table), torch.cat(wanted).numpy(), rtol=2e-3, atol=1e-6)


def decoded(path: Path) -> np.ndarray:
    """All pictures, the short side scaled to 32, the middle cut out."""
    wide = round(SIZE[0] * 32 / SIZE[1])
    with av.open(str(path)) as opened:
        frames = [f.to_ndarray(width=wide, height=32, format="rgb24") for f in opened.decode(video=0)]
    left = (wide - 32) // 2
    return np.ascontiguousarray(np.stack(frames)[:, :, left : left + 32])


def test_clips_are_cut_at_their_own_times(videos: Path, nets: Nets, video_rows: Rows) -> None:
    rows = video_rows(["a1", "a2", "a3", "a4"], start_s=[0.6, 1.2, 1.2, 9.0], end_s=[1.2, 5.0, 1.2, 9.9])
    stage = S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows=SMALL)
    out = run_map(stage, rows)
    assert [times(out.table, k) for k in range(2)] == [[(0.6, 1.2)], [(1.2, 1.5)]]
    assert [(r.id, r.why) for r in out.rejects] == [
        ("id-a3", "no_frames_in_window"),
        ("id-a4", "no_frames_in_window"),
    ]
    whole = run_map(stage, video_rows("a")).table
    assert np.array_equal(vectors(out.table, 0), vectors(whole)[1:2])
    assert np.array_equal(vectors(out.table, 1), vectors(whole)[2:3])


@pytest.mark.slow
def test_equal_bits_in_any_company(videos: Path, nets: Nets, video_rows: Rows) -> None:
    names = ["a", "b", "a2", "c", "b2"]
    for batch_size in (1, 16):
        stage = S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows=SMALL, batch_size=batch_size)
        together = run_map(stage, video_rows(names)).table
        for name in ("b", "a2"):
            alone = run_map(stage, video_rows([name])).table
            place = together["id"].to_pylist().index(f"id-{name}")
            assert np.array_equal(vectors(alone), vectors(together, place))


def test_embedding_and_length_one(videos: Path, nets: Nets, video_rows: Rows) -> None:
    how = replace(SMALL, vector="embedding")
    stage = S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows=how)
    plain = vectors(run_map(stage, video_rows("b")).table)
    assert plain.shape == (2, 512)
    unit = vectors(run_map(replace(stage, windows=replace(how, l2=True)), video_rows("b")).table)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, plain / lengths, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=2e-3)


@pytest.mark.slow
def test_bf16_is_close_to_fp32(videos: Path, nets: Nets, video_rows: Rows) -> None:
    stage = S3dFeatures(
        videos=str(videos), weights=nets["torchvision"], windows=replace(SMALL, frames=14, stride=14)
    )
    full = vectors(run_map(stage, video_rows("a")).table)
    half = vectors(run_map(replace(stage, precision="bf16"), video_rows("a")).table)
    assert 0 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.05


def test_a_changed_video_and_a_feature_too_large(
    videos: Path, nets: Nets, tmp_path: Path, video_rows: Rows
) -> None:
    rows = video_rows("ab")
    rows = rows.set_column(2, "num_bytes", pa.array([rows["num_bytes"][0].as_py(), 5]))
    stage = S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows=SMALL)
    assert [(r.id, r.why) for r in run_map(stage, rows).rejects] == [("id-b", "video_changed")]
    state = {n: v * 1e9 if n == "fc.bias" else v for n, v in S3dG(num_words=0).state_dict().items()}
    torch.save(state, tmp_path / "large.pth")
    how = replace(SMALL, vector="embedding")
    stage = S3dFeatures(videos=str(videos), weights=Weights(path=str(tmp_path / "large.pth")), windows=how)
    out = run_map(stage, video_rows("ab"))
    assert out.table.num_rows == 0
    assert [(r.id, r.why) for r in out.rejects] == [("id-a", "not_finite"), ("id-b", "not_finite")]


def test_the_window_that_is_not_finite_is_named(
    videos: Path, nets: Nets, video_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors, vectors_of = (
        iter([1.0, np.inf, np.inf]),
        VideoNet.vectors,
    )  # the windows start at 0, 0.6 and 1.2 s
    monkeypatch.setattr(VideoNet, "vectors", lambda *args: vectors_of(*args) * next(factors))
    out = run_map(S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows=SMALL), video_rows("a"))
    assert [r.detail for r in out.rejects] == ["the feature of the window at 0.60 s is not finite in float16"]


def test_the_shard_says_how_it_was_made(videos: Path, nets: Nets, tmp_path: Path, video_rows: Rows) -> None:
    stage = S3dFeatures(videos=str(videos), weights=nets["mil_nce"], windows="univl")
    schema = stage.schema(video_rows("a").schema)
    assert is_heavy(schema.field("s3d"))
    table = pa.table([["x"], ["a.mp4"], [1], [[]], ["w"]], schema=schema)
    data = dataset(tmp_path, table)
    (read,) = read_batches(data.store, data.shards[0], want_heavy=["s3d"])
    told = json.loads(read.schema.field("s3d").metadata[b"windows"])
    assert (told["fps"], told["frames"], told["stride"], told["side"]) == (16, 16, 16, 224)


def problems(weights: Weights, windows: str | Windows, **more: Any) -> list[str]:
    return S3dFeatures(videos="v", weights=weights, windows=windows, **more).preflight()


def test_the_plan_says_what_cannot_work(nets: Nets, videos: Path, video_rows: Rows) -> None:
    mil_nce, kinetics = nets["mil_nce"], nets["torchvision"]
    assert problems(mil_nce, "univl", normalisation="unit") == []
    assert problems(kinetics, "videobert", normalisation="kinetics") == []
    assert problems(kinetics, "videobert", normalisation="signed") == [
        "the step sets normalisation: signed, but these are torchvision's weights, which need normalisation: kinetics"
    ]
    assert problems(kinetics, "mmpt") == [
        "vector: embedding needs weights of MIL-NCE's S3D-G, but these are of Kinetics S3D; set vector: pooled"
    ]
    assert problems(kinetics, SMALL) == ["S3D needs at least 14 frames in a window, got 6"]
    assert problems(mil_nce, replace(SMALL, frames=5)) == [
        "S3D-G with space-to-depth needs an even number of frames and an even side, got 5 and 32"
    ]
    assert problems(mil_nce, SMALL, batch_size=3) == [
        "batch_size must be 1 or a multiple of 16, got 3: otherwise results depend on a window's position in its batch"
    ]
    with pytest.raises(SchemaError, match=r"has no preset of windows 'unvl'; did you mean 'univl'\?"):
        S3dFeatures(videos="v", weights=mil_nce, windows="unvl").how()
    with pytest.raises(VlpipeError, match="the step sets normalisation: unit, but"):
        run_map(
            S3dFeatures(videos="v", weights=kinetics, windows="videobert", normalisation="unit"),
            video_rows("a"),
        )


def test_weights_that_are_none_are_named(tmp_path: Path, videos: Path, video_rows: Rows) -> None:
    torch.save({"conv_2c.conv1.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    stage = S3dFeatures(videos=str(videos), weights=Weights(path=str(tmp_path / "odd.pth")), windows=SMALL)
    with pytest.raises(VlpipeError, match=r"odd\.pth: S3D-G: the weights do not fit: 455 missing: "):
        run_map(stage, video_rows("a"))


def real(name: str) -> Path:
    root = Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"real data not found: {root / name} (set VLPIPE_DATA)")
    return root / name


@pytest.mark.slow
def test_real_clips_have_a_feature_per_second(nets: Nets) -> None:
    clips = real("video_clips") / "clips"
    name = sorted(p.name for p in clips.glob("*.mp4"))[0]
    with av.open(str(clips / name)) as opened:
        length_s = opened.streams.video[0].duration * opened.streams.video[0].time_base
    rows = pa.table({"id": ["x"], "video": [name], "num_bytes": [os.path.getsize(clips / name)]})
    how = replace(PRESETS["univl"], side=64)
    found = times(run_map(S3dFeatures(videos=str(clips), weights=nets["mil_nce"], windows=how), rows).table)
    assert [start for start, _ in found] == list(range(len(found)))
    assert abs(found[-1][1] - float(length_s)) < 0.1


@pytest.mark.slow
def test_odd_videos_give_features_or_a_reject(nets: Nets) -> None:
    root = real("odd_videos")
    said = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    names = [one["file"] for one in said] + ["SOURCE.txt"]
    rows = pa.table({"id": names, "video": names, "num_bytes": [os.path.getsize(root / n) for n in names]})
    how = Windows(fps=1, frames=2, stride=4, side=32)
    out = run_map(S3dFeatures(videos=str(root), weights=nets["mil_nce"], windows=how), rows)
    assert [(r.id, r.why) for r in out.rejects] == [("SOURCE.txt", "broken_video")]
    for row in range(out.table.num_rows):
        found = vectors(out.table, row)
        assert len(found) >= 1
        assert np.isfinite(found).all()


def freeze(path: Path) -> Path:
    """Three frames, the last of them after 99 hours."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(
                np.full((SIZE[1], SIZE[0], 3), k * 80, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = 40 * k, Fraction(1, 1000)
            packets += stream.encode(frame)
        for packet, ms in zip([*packets, *stream.encode(None)], (0, 40, 99 * 3600 * 1000), strict=True):
            packet.pts = packet.dts = ms
            out.mux(packet)
    return path


@pytest.mark.parametrize("span", [{}, {"start_s": [0.0], "end_s": [356_000.0]}])
def test_a_small_file_of_99_hours_is_not_a_day_of_work(
    nets: Nets, tmp_path: Path, span: dict[str, Any]
) -> None:
    path = freeze(tmp_path / "freeze.mkv")
    assert path.stat().st_size < 2000
    rows = pa.table({"id": ["a"], "video": [path.name], "num_bytes": [path.stat().st_size], **span})
    out = run_map(S3dFeatures(videos=str(tmp_path), weights=nets["mil_nce"], windows="mmpt"), rows)
    assert [(r.why, r.detail) for r in out.rejects] == [
        (
            "too_many_windows",
            "freeze.mkv: the row needs more than 20000 windows, the limit that `max_windows` sets",
        )
    ]


def test_windows_are_counted_where_no_duration_is_stated(nets: Nets) -> None:
    root, name = real("odd_videos"), "moviepy/no_duration.webm"
    rows = pa.table({"id": ["a"], "video": [name], "num_bytes": [os.path.getsize(root / name)]})
    how = Windows(fps=2, frames=2, stride=2, side=32)
    out = run_map(S3dFeatures(videos=str(root), weights=nets["mil_nce"], windows=how, max_windows=2), rows)
    assert [r.why for r in out.rejects] == ["too_many_windows"]
