"""Files beside videos are chosen by what they are: metadata is passed over, a damaged file makes way for the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clips import clip

from vlpipe.pipeline.files import Listing
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.video_files.sidecars import listed
from vlpipe.stages.video_files.videos import Videos

CLIP = clip()  # 2 seconds
SRT = "1\n00:00:00,000 --> 00:00:01,000\n{}\n"
METADATA = '{"url": "https://x", "key": "00000_000", "status": "success", "yt_meta_dict": {"info": {}}}'
WHISPER = json.dumps({"segments": [{"start": 0, "end": 1, "text": "from whisper"}]})


def run(folder: Path, files: dict[str, str], **more: Any) -> Out:
    for name, content in files.items():
        (folder / name).write_bytes(CLIP if name.endswith(".mp4") else content.encode())
    stage = Videos(videos=Listing(path=str(folder)), **more)
    return run_map(stage, pa.concat_tables(stage.rows()))


def said(out: Out) -> list[str]:
    return [" ".join(cue["text"] for cue in row["cues"]) for row in out.table.to_pylist()]


@pytest.mark.slow
def test_files_of_video2dataset_and_yt_dlp(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        {
            "00000_000.mp4": "",
            "00000_000.json": METADATA,
            "00000_000.srt": SRT.format("cut the onion"),
            "00000_000.txt": "a caption",
            "00000_stats.json": "{}",
            "soup [abc].mp4": "",
            "soup [abc].en.srt": SRT.format("then fry it"),
            "soup [abc].info.json": '{"id": "abc", "subtitles": {}}',
            "soup [abc].live_chat.json": "{}",
            "soup [abc].chapters.vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\nPart 1\n",
            "soup [abc].annotations.xml": "<document/>",
            "list.tsv": "url\ttext\n",
        },
    )
    assert said(out) == ["cut the onion", "then fry it"]
    assert (out.rejects, out.counts) == ([], {"sidecars_other_content": 1})


def test_metadata_alone_is_no_subtitles(tmp_path: Path) -> None:
    files = {"a.mp4": "", "a.json": METADATA, "a.xml": "<x/>", "a.tsv": "url\ttext\n"}
    assert [(r.why, r.detail) for r in run(tmp_path, files).rejects] == [
        ("no_cues", "a.mp4 has no subtitle track")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "unread"),
    [
        ({"a.json3": '{"events": []}'}, 1),
        ({"a.json3": "{broken"}, 1),
        ({"a.vtt": "<html>not found</html>"}, 1),
        ({"a.vtt": "WEBVTT\nKind: chapters\n\n00:00.000 --> 00:01.000\nPart 1\n", "a.srv3": ""}, 2),
    ],
)
def test_a_later_file_is_tried(tmp_path: Path, first: dict[str, str], unread: int) -> None:
    out = run(tmp_path, {"a.mp4": "", **first, "a.srt": SRT.format("read")})
    assert (said(out), out.rejects, out.counts) == (["read"], [], {"sidecars_unread": unread})


@pytest.mark.slow
def test_if_none_can_be_read_the_first_says_why(tmp_path: Path) -> None:
    out = run(tmp_path, {"a.mp4": "", "a.json3": "{broken", "a.srt": "", "a.json": METADATA})
    assert [(r.why, r.detail[:25]) for r in out.rejects] == [("bad_subtitles", "a.json3 is not valid JSON")]


NAMED = {
    "a.json": (WHISPER, "from whisper"),
    "b.mp4.json": (WHISPER, "from whisper"),
    "c.mp4.srt": (SRT.format("c"), "c"),
    "d.tsv": ("start\tend\ttext\n0\t900\td", "d"),
    "e.en.dfxp": (
        '<tt xmlns="http://www.w3.org/2006/10/ttaf1"><body><p begin="0s" dur="1s">e</p></body></tt>',
        "e",
    ),
    "f.en.xml": ('<transcript><text start="0" dur="1">f</text></transcript>', "f"),
}


def test_names_and_contents_of_subtitles(tmp_path: Path) -> None:
    videos = {f"{name[0]}.mp4": "" for name in NAMED}
    out = run(tmp_path, {**videos, **{name: content for name, (content, _) in NAMED.items()}})
    assert said(out) == [expected for _, expected in NAMED.values()]


def test_the_wanted_language_comes_first_then_the_richest_format() -> None:
    names = ["a.mp4", "a.de.json3", "a.en.srt", "a.en.vtt", "a.fr.vtt", "a.srt"]
    (found,) = listed(dict.fromkeys(names, 1), (".mp4",), ("en", "de"))
    assert [one.path for one in found.sidecars] == ["a.en.vtt", "a.en.srt", "a.de.json3", "a.srt"]


EMPTY = {
    "a.json3": '{"wireMagic":"pb3","events":[]}',
    "b.srv3": '<timedtext format="3"><body></body></timedtext>',
    "c.ttml": '<tt xmlns="http://www.w3.org/ns/ttml"><body><div></div></body></tt>',
    "d.ass": "[Script Info]\n\n[Events]\n",
    "e.smi": "<SAMI><BODY></BODY></SAMI>",
    "f.srt": "",
    "g.vtt": "WEBVTT\n",
    "h.sub": "{1}{1}25\n",
}


@pytest.mark.slow
def test_an_empty_file_is_a_video_without_cues(tmp_path: Path) -> None:
    videos = {f"{name[0]}.mp4": "" for name in EMPTY}
    out = run(tmp_path, {**videos, **EMPTY}, no_cues="keep")
    assert (said(out), out.rejects) == ([""] * 8, [])
    assert out.counts == {"sidecars_unread": 8, "kept_no_cues": 8}


def test_a_video_that_is_too_long(tmp_path: Path) -> None:
    out = run(tmp_path, {"a.mp4": "", "a.srt": SRT.format("a")}, max_duration_s=1.5)
    assert [(r.why, r.detail) for r in out.rejects] == [
        ("too_long", "a.mp4 lasts 2 s, max_duration_s is 1.5")
    ]


def test_an_unknown_encoding_is_said_before_any_work(tmp_path: Path) -> None:
    assert Videos(videos=Listing(path=str(tmp_path)), encoding="klingon").preflight() == [
        "encoding: there is no encoding 'klingon'; use one such as utf-8, latin-1 or shift_jis"
    ]
