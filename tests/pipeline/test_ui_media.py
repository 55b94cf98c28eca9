"""Videos, subtitles and regions of rows: a video is served from the folder of videos only, in parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from cli_helpers import Runs
from look_at import HOSTILE
from ui_client import Client, serving

NAMES = (
    "a.mp4",
    "sub/b.webm",
    "../secret.mp4",
    "link.mp4",
    "/etc/hostname.mp4",
    "a.txt",
    "absent.mp4",
    "sub",
    "sub/../../secret.mp4",
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("media")
    videos = folder / "videos"
    (videos / "sub").mkdir(parents=True)
    (videos / "a.mp4").write_bytes(bytes(range(256)) * 8)
    (videos / "sub" / "b.webm").write_bytes(b"webm")
    (videos / "a.txt").write_text("secret")
    (folder / "secret.mp4").write_text("secret")
    os.symlink(folder / "secret.mp4", videos / "link.mp4")
    text = (
        f'name: w\nsteps:\n  films: {{use: "look_at:Films", videos: {videos}, names: {json.dumps(NAMES)}}}\n'
    )
    runs = Runs(folder, text)
    runs("run", "--local")
    with serving(runs.root) as found:
        yield found


def test_which_videos_are_there(client: Client) -> None:
    films = client.folder("films")
    there = [client.get("row", step=films, at=n)["media"] for n in range(len(NAMES))]
    assert [name for name, is_there in zip(NAMES, there, strict=True) if is_there] == ["a.mp4", "sub/b.webm"]
    for n, name in enumerate(NAMES):
        status, _, body = client.raw(f"/{client.server.token}/api/0/media?step={films}&at={n}")
        assert status == (206 if there[n] else 404), name
        assert b"secret" not in body.replace(b"secret.mp4", b"")


def test_a_part_of_a_video(client: Client) -> None:
    target = f"/{client.server.token}/api/0/media?step={client.folder('films')}&at=0"
    status, headers, body = client.raw(target, Range="bytes=10-13")
    assert (status, body) == (206, bytes([10, 11, 12, 13]))
    assert headers["Content-Range"] == "bytes 10-13/2048"
    assert headers["Content-Type"] == "video/mp4"
    assert client.raw(target, Range="bytes=2048-")[0] == 404


def test_the_texts_of_a_clip_are_its_subtitles(client: Client) -> None:
    _, headers, body = client.raw(f"/{client.server.token}/api/0/cues?step={client.folder('films')}&at=0")
    assert headers["Content-Type"] == "text/vtt; charset=utf-8"
    assert body.decode() == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.500\n&lt;script&gt;document.title='owned'&lt;/script&gt;\n"
    )


def test_regions_are_boxes_with_their_tags(client: Client) -> None:
    boxes = client.get("row", step=client.folder("films"), at=1)["boxes"]
    assert [(one["label"], one["score"], one["box"]) for one in boxes] == [
        ("dog", 0.5, [0, 1, 5, 6]),
        (HOSTILE[1], 0.5, [0, 1, 5, 6]),
    ]
