"""A folder of videos with subtitles beside them or in them: a row or a typed reject for each file."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clips import clip

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.plan import plan, remember
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Listing
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import run_map
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.video import shut_in
from vlpipe.stages.video.decode import Limits
from vlpipe.stages.video.rows import VIDEOS
from vlpipe.stages.video_files.probe import prober
from vlpipe.stages.video_files.sidecars import Sidecar, VideoFile, listed
from vlpipe.stages.video_files.videos import Videos

CLIP = clip()  # 2 seconds
SRT = "1\n00:00:00,000 --> 00:00:01,000\n{}\n"


def run(folder: Path | str, **more: Any) -> Out:
    stage = Videos(videos=Listing(path=str(folder)), **more)
    return run_map(stage, pa.concat_tables(stage.rows()))


def said(out: Out) -> dict[str, str]:
    return {row["video_id"]: " ".join(c["text"] for c in row["cues"]) for row in out.table.to_pylist()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "videos"
    for name in ("plain.mp4", "-dash.name.webm", "sub/both.mkv"):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CLIP)
    (made / "plain.srt").write_text(SRT.format("no language"))
    (made / "-dash.name.de.srt").write_text(SRT.format("deutsch"))
    (made / "-dash.name.en-US.srt").write_text(SRT.format("english"))
    (made / "sub/both.en.srt").write_text(SRT.format("plain"))
    (made / "sub/both.en.json3").write_text(
        json.dumps(
            {"events": [{"tStartMs": 0, "dDurationMs": 900, "segs": [{"utf8": "timed", "acAsrConf": 1}]}]}
        )
    )
    (made / "plain.info.json").write_text("{}")
    (made / "notes.txt").write_text("not looked at")
    (made / ".hidden.mp4").write_bytes(CLIP)
    return made


def test_subtitles_beside_the_videos(folder: Path) -> None:
    out = run(folder)
    assert out.table.schema.equals(VIDEOS)
    assert said(out) == {"-dash.name": "deutsch", "plain": "no language", "both": "timed"}
    assert (
        out.table["url"].to_pylist()
        == out.table["video"].to_pylist()
        == ["-dash.name.webm", "plain.mp4", "sub/both.mkv"]
    )
    first, _, last = (row["cues"][0] for row in out.table.to_pylist())
    assert (first["lang"], first["source"], last["source"]) == ("de", "unknown", "auto")
    assert last["words"] == [{"start_s": 0.0, "end_s": 0.9, "word": "timed"}]
    assert out.rejects == []


@pytest.mark.slow
def test_languages_are_wanted_in_order(folder: Path) -> None:
    assert said(run(folder, languages=("fr", "en", "de")))["-dash.name"] == "english"
    only = run(folder, languages=("fr",), subtitle_source="manual", lang="fr")
    assert said(only) == {"plain": "no language"}  # nobody says that it is not French
    assert only.table["cues"][0].as_py()[0]["source"] == "manual"
    assert Counter(r.why for r in only.rejects) == {"no_cues": 2}
    kept = run(folder, languages=("fr",), no_cues="keep")
    assert (kept.table.num_rows, kept.counts) == (3, {"kept_no_cues": 2})


def test_which_file_is_whose() -> None:
    names = ["a.mp4", "a.b.mp4", "a.b.srt", "a.b.en.vtt", "a.c.srt", "a.zh-Hans.SRT", "b.srt"]
    found = list(listed(dict.fromkeys(names, 1), (".mp4",), ()))
    assert found == [
        VideoFile("a.b.mp4", 1, (Sidecar("a.b.en.vtt", 1, "en"), Sidecar("a.b.srt", 1, None))),
        VideoFile("a.c.srt", 1, why="no_video_file"),  # one letter is no language
        VideoFile("a.mp4", 1, (Sidecar("a.zh-Hans.SRT", 1, "zh-Hans"),)),
        VideoFile("b.srt", 1, why="no_video_file"),
    ]


@pytest.mark.slow
def test_broken_subtitles(folder: Path) -> None:
    (folder / "plain.srt").write_text("<html></html>")
    out = run(folder)
    assert (
        "bad_subtitles",
        "plain.srt is XML without subtitles: its root must be <tt>, <timedtext> or <transcript>, but is <html>",
    ) in [(r.why, r.detail) for r in out.rejects]
    kept = run(folder, no_cues="keep")
    assert (said(kept)["plain"], kept.counts) == ("", {"kept_bad_subtitles": 1, "sidecars_unread": 1})


@pytest.mark.slow
def test_a_url_of_the_folder(folder: Path) -> None:
    assert run(f"file://{folder}").table.equals(run(folder).table)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=r"there is no folder .*/none"):
        run(tmp_path / "none")


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(CLIP)
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    assert "bad_path" in {r.why for r in run(folder).rejects}


def test_names_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.mp4").write_bytes(CLIP)
    out = run(tmp_path)
    assert [(r.why, r.detail) for r in out.rejects] == [
        ("no_file", "there is no file caf\\udce9.mp4 in the folder given by `videos`")
    ]


@pytest.mark.slow
def test_an_id_stays_when_others_come(folder: Path) -> None:
    before = run(folder).table.select(["id", "url"]).to_pylist()
    (folder / "0.mp4").write_bytes(CLIP)
    after = run(folder, no_cues="keep").table.select(["id", "url"]).to_pylist()
    assert [row for row in after if row in before] == before


WORKFLOW = "name: w\nsteps:\n  videos: {{use: 'video_files.videos:Videos', videos: {}, shard_rows: 2}}\n"


def planned(folder: Path) -> dict[str, PlannedStep]:
    (folder / "w.yaml").write_text(WORKFLOW.format(folder / "videos"))
    root = str(folder / "root")
    return {one.name: one for one in plan(Workflow.load(str(folder / "w.yaml"), root=root), Store(root))}


def go(folder: Path) -> PlannedStep:
    store = Store(str(folder / "root"))
    with locked(store):
        steps = planned(folder)
        remember(list(steps.values()), store)
        new_run(list(steps.values()), store, local_executor(), Watcher()).go()
    return steps["videos"]


@pytest.mark.slow
def test_a_new_file_is_noticed_and_full_shards_are_kept(folder: Path, tmp_path: Path) -> None:
    """Four files are listed, one of them subtitles without a video; the fifth comes last."""
    (folder / "lost.srt").write_text(SRT.format("lost"))
    before = go(tmp_path)
    assert [one.reason for one in planned(tmp_path).values()] == ["", ""]
    (folder / "zzz.mp4").write_bytes(CLIP)
    (folder / "zzz.srt").write_text(SRT.format("new"))
    assert [bool(one.reason) for one in planned(tmp_path).values()] == [True, True]
    after = go(tmp_path)
    assert [r.shard.num_rows for r in after.receipts] == [1, 2, 1]
    assert [r.run for r in after.receipts[:2]] == [
        r.run for r in before.receipts
    ]  # nobody looked at them again


@pytest.mark.slow
def test_a_deadline_ends_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not answer, whatever it is busy with, costs one video."""
    monkeypatch.setattr(shut_in, "GRACE_S", 0.1)
    (tmp_path / "good.mp4").write_bytes(CLIP)
    with prober(Limits(deadline_s=0.4), 512) as probe:
        probe._videos._child.start().send_signal(signal.SIGSTOP)
        with pytest.raises(
            RowFault, match=r"^deadline: good.mp4: decoding took more than 0.4 s, and did not stop$"
        ):
            probe.look(str(tmp_path), "good.mp4")
    with prober(Limits(), 512) as probe:
        assert probe.look(str(tmp_path), "good.mp4").info.width == 48


@pytest.mark.slow
def test_a_child_that_dies_costs_one_video(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(CLIP)
    with prober(Limits(), 512) as probe:
        probe._videos._child.start().kill()
        assert probe.look(str(tmp_path), "good.mp4").info.height == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["auto_editor/mov_text.mp4", "auto_editor/webvtt.mkv", "torchcodec/nasa_13013.mp4"]
)
def test_text_tracks(data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    (tmp_path / Path(name).name).write_bytes(data(f"odd_videos/{name}").read_bytes())
    out = run(tmp_path)
    cues = out.table["cues"][0].as_py()
    first = {"nasa_13013.mp4": "NAR: This is the optical and science segment of the Webb"}
    assert cues[0]["text"] == first.get(Path(name).name, "oop")
    assert cues[0]["lang"] == ("eng" if "nasa" in name else None)
    assert [r.why for r in run(tmp_path, embedded=False).rejects] == ["no_cues"]


def test_every_odd_file_is_a_row_or_a_reject(data: Callable[[str], Path]) -> None:
    folder = data("odd_videos")
    videos = [json.loads(line)["file"] for line in (folder / "manifest.jsonl").read_text().splitlines()]
    out = run(folder, no_cues="keep", endings=(*Videos.endings, ".jsonl", ".txt"), probe_timeout_s=20)
    there = [name for name in videos if (folder / name).exists()]
    assert there == sorted(there) or set(there) <= set(out.table["url"].to_pylist())
    assert {r.why for r in out.rejects} == {"broken_video"}  # manifest.jsonl, SOURCE.txt
    assert len(out.rejects) == 2
    shown = {row["url"]: (row["width"], row["height"]) for row in out.table.to_pylist()}
    assert shown["decord/video_90.mov"] == (320, 568)
    assert shown["torchcodec/nasa_13013.mp4"] == (480, 270)
    durations = dict(zip(out.table["url"].to_pylist(), out.table["duration_s"].to_pylist(), strict=True))
    assert durations["moviepy/no_duration.webm"] is None
