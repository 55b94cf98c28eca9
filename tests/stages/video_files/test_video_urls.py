"""Videos of a URL list over real HTTP: whole files below the root, typed rejects for the rest, nothing half done."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clips import clip
from threat_server import credentials

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.howto100m.videos import HowTo100M
from vlpipe.stages.video.rows import VIDEOS
from vlpipe.stages.video_files.download import Download, fetch_with
from vlpipe.stages.video_files.video_urls import Asking, VideoUrls

CLIP = clip()


class Web:
    """A list, what is served, and where it goes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.served, self.videos = folder, folder / "served", folder / "videos"
        self.served.mkdir()

    def run(self, *urls: str, **more: Any) -> Out:
        (self.folder / "list.csv").write_text("url\n" + "".join(f"{url}\n" for url in urls))
        stage = VideoUrls(
            list=ListFile(path=str(self.folder / "list.csv")),
            videos=str(self.videos),
            serve={"films.test": File(path=str(self.served))},
            **more,
        )
        return run_map(stage, pa.concat_tables(stage.rows()))

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.videos)) for path in self.videos.rglob("*"))


@pytest.fixture
def web(tmp_path: Path) -> Web:
    return Web(tmp_path)


@pytest.mark.slow
def test_a_film_is_a_row_and_a_file(web: Web) -> None:
    (web.served / "a film.MP4").write_bytes(CLIP)
    url = "http://films.test/a%20film.MP4?x=1"
    out = web.run(url)
    assert out.table.schema.equals(VIDEOS)
    row = out.table.to_pylist()[0]
    assert row["video"] == f"{row['id']}.mp4"
    assert (row["url"], row["video_id"], row["cues"]) == (url, "a film", [])
    assert (row["num_bytes"], row["sha256"]) == (len(CLIP), hashlib.sha256(CLIP).hexdigest())
    assert (row["width"], row["duration_s"]) == (48, 2.0)
    assert web.files() == [row["video"]]
    assert (web.videos / row["video"]).read_bytes() == CLIP
    assert out.counts == {"kept_no_cues": 1}
    assert [(line["id"], line["attempts"]) for line in out.log] == [(row["id"], 1)]
    assert [r.why for r in web.run(url, no_cues="reject").rejects] == ["no_cues"]


@pytest.mark.slow
def test_an_opt_out_inside_the_file_is_obeyed(web: Web) -> None:
    (web.served / "yes.mp4").write_bytes(CLIP + credentials("allowed"))
    (web.served / "no.mp4").write_bytes(CLIP + credentials("notAllowed"))
    urls = ("http://films.test/yes.mp4", "http://films.test/no.mp4")
    out = web.run(*urls)
    assert out.table["url"].to_pylist() == [urls[0]]
    assert [(r.kind, r.why, r.detail) for r in out.rejects] == [
        ("filtered", "opt_out", "C2PA c2pa.ai_training: notAllowed")
    ]
    assert web.files() == out.table["video"].to_pylist()
    assert web.run(*urls, asking=Asking(opt_out=("noai",))).table.num_rows == 2


@pytest.mark.slow
def test_what_is_there_is_not_asked_for_again(web: Web) -> None:
    (web.served / "a.mp4").write_bytes(CLIP)
    before = web.run("http://films.test/a.mp4", "http://films.test/a.mp4").table
    assert len(set(before["id"].to_pylist())) == before.num_rows == 2
    (web.served / "a.mp4").unlink()
    assert web.run("http://films.test/a.mp4", "http://films.test/a.mp4").table.equals(before)


def test_each_failure_has_its_code_and_leaves_no_file(web: Web) -> None:
    (web.served / "page.mp4").write_text("<html></html>")
    (web.served / "empty.mp4").write_bytes(b"")
    (web.served / "large.mp4").write_bytes(CLIP + bytes(200_000))
    (web.folder / "blocked.txt").write_text("sha256:" + hashlib.sha256(CLIP).hexdigest() + "\n")
    (web.served / "blocked.mp4").write_bytes(CLIP)
    out = web.run(
        "http://films.test/gone.mp4",
        "http://127.0.0.1:1234/inside.mp4",
        "http://[bad/x.mp4",
        "http://films.test/page.mp4",
        "http://films.test/empty.mp4",
        "http://films.test/large.mp4",
        "http://films.test/blocked.mp4",
        asking=Asking(max_bytes=len(CLIP) + 1000, retries=0),
        blocklist=File(path=str(web.folder / "blocked.txt"), digest="b"),
    )
    assert out.table.num_rows == 0
    assert [(r.kind, r.why) for r in out.rejects] == [
        ("fault", "http_404"),
        ("fault", "forbidden_address"),
        ("fault", "bad_url"),
        ("fault", "broken_video"),
        ("fault", "empty"),
        ("fault", "too_large"),
        ("filtered", "blocked"),
    ]
    assert web.files() == []
    page = next(r for r in out.rejects if r.why == "broken_video")
    assert page.detail.startswith(f"{page.id}.mp4: ")  # the same on every run


@pytest.mark.slow
def test_a_new_blocklist_is_obeyed_by_files_that_are_there(web: Web) -> None:
    (web.served / "a.mp4").write_bytes(CLIP)
    url = "http://films.test/a.mp4"
    assert web.run(url).table.num_rows == 1
    for number, line in enumerate(
        (f"md5:{hashlib.md5(CLIP).hexdigest()}", f"url:{url}", "domain:films.test")
    ):
        (web.folder / f"{number}.txt").write_text(line + "\n")
        out = web.run(url, blocklist=File(path=str(web.folder / f"{number}.txt"), digest=str(number)))
        assert [(r.kind, r.why) for r in out.rejects] == [("filtered", "blocked")]


@pytest.mark.slow
def test_an_fsspec_root(web: Web) -> None:
    (web.served / "a.mp4").write_bytes(CLIP)
    here = web.run("http://films.test/a.mp4").table
    there = web.folder / "there"
    there.mkdir()
    web.videos = f"file://{there}"  # type: ignore[assignment]
    assert web.run("http://films.test/a.mp4").table.equals(here)
    assert [path.name for path in there.iterdir()] == here["video"].to_pylist()


SCRIPT = """
import sys, time
from pathlib import Path
source, folder, _, video_id = sys.argv[1:]
if video_id == "slow": time.sleep(60)
if video_id == "gone": sys.exit("ERROR: Video unavailable")
if video_id != "none": (Path(folder) / (video_id + ".mp4")).write_bytes(Path(source).read_bytes())
(Path(folder) / (video_id + ".en.vtt")).write_text("WEBVTT")
"""


@pytest.fixture
def download(tmp_path: Path) -> Download:
    (tmp_path / "clip").write_bytes(CLIP)
    (tmp_path / "get.py").write_text(SCRIPT)
    command = (
        sys.executable,
        str(tmp_path / "get.py"),
        str(tmp_path / "clip"),
        "{folder}",
        "--",
        "{video_id}",
    )
    return Download(command=command, timeout_s=3)


def test_a_command_gets_a_video_and_its_subtitles(tmp_path: Path, download: Download) -> None:
    videos = tmp_path / "videos"
    assert fetch_with(download, "-dash", str(videos), (".webm", ".mp4")) == "-dash.mp4"
    assert sorted(path.name for path in videos.iterdir()) == ["-dash.en.vtt", "-dash.mp4"]
    assert (videos / "-dash.mp4").read_bytes() == CLIP


@pytest.mark.slow
@pytest.mark.parametrize(
    ("video_id", "said"),
    [
        ("gone", "download_failed: gone: ERROR: Video unavailable"),
        ("none", "no_file: download.command must write none.mp4, but wrote none.en.vtt"),
        ("slow", "download_timeout: slow: the download took more than 3 s"),
    ],
)
def test_a_command_that_fails_leaves_nothing(
    tmp_path: Path, download: Download, video_id: str, said: str
) -> None:
    with pytest.raises(RowFault) as caught:
        fetch_with(download, video_id, str(tmp_path / "videos"), (".mp4",))
    assert str(caught.value) == said
    assert list((tmp_path / "videos").iterdir()) == []


def test_howto100m_downloads_only_if_told(tmp_path: Path, download: Download) -> None:
    (tmp_path / "list.csv").write_text("video_id\nok\n")
    (tmp_path / "caption.json").write_text('{"ok": {"text": ["salt"], "start": [0], "end": [1]}}')
    files = {
        "list": ListFile(path=str(tmp_path / "list.csv")),
        "captions": ListFile(path=str(tmp_path / "caption.json")),
    }
    for more, rows, whys in (({}, 0, ["no_file"]), ({"download": download}, 1, [])):
        stage = HowTo100M(videos=str(tmp_path / "videos"), **files, **more)  # type: ignore[arg-type]
        out = run_map(stage, pa.concat_tables(stage.rows()))
        assert (out.table.num_rows, [r.why for r in out.rejects]) == (rows, whys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ("get", "film"),
            "download.command must contain {video_id}, which stands for the id of the video; got ['get', 'film']",
        ),
        (
            ("get", "{video_id}"),
            'download.command: put "--" before {video_id}: an id that starts with "-" would be read as an option',
        ),
    ],
)
def test_commands_that_cannot_work(command: tuple[str, ...], said: str) -> None:
    with pytest.raises(VlpipeError) as caught:
        Download(command=command)
    assert str(caught.value) == said
