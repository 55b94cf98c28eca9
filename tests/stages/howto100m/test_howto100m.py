"""HowTo100M's list and captions with every fault they are known to have: a row or a typed reject for each entry."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from clips import clip

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.howto100m.lists import read_tasks
from vlpipe.stages.howto100m.videos import HOWTO100M, HowTo100M

LINES = "video_id,category_1,category_2,rank,task_id\n"
SIMPLE = {"text": ["add the salt", "then stir"], "start": [0.0, 1.0], "end": [1.0, 1.5]}
CLIP = clip()  # 2 seconds


class World:
    """A list, captions and videos in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.videos = folder / "videos"
        self.videos.mkdir()
        self.lines: list[str] = []

    def add(self, *ids: str, line: str = "Food,Recipes,3,107", ending: str = ".mp4") -> None:
        for video_id in ids:
            self.lines.append(f"{video_id},{line}\n")
            (self.videos / f"{video_id}{ending}").write_bytes(CLIP)

    def stage(self, captions: Any, **more: Any) -> HowTo100M:
        (self.folder / "list.csv").write_text(LINES + "".join(self.lines))
        if not isinstance(captions, Path):
            path = self.folder / "raw_caption.json"
            path.write_text(captions if isinstance(captions, str) else json.dumps(captions))
            captions = path
        return HowTo100M(
            videos=str(self.videos),
            list=ListFile(path=str(self.folder / "list.csv")),
            captions=ListFile(path=str(captions)),
            **more,
        )

    def run(self, captions: Any, **more: Any) -> Out:
        stage = self.stage(captions, **more)
        return run_map(stage, pa.concat_tables(stage.rows()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def cues(out: Out, row: int = 0) -> list[tuple[float, float, str]]:
    return [(c["start_s"], c["end_s"], c["text"]) for c in out.table["cues"][row].as_py()]


def lists(*cues: tuple[Any, Any, Any]) -> dict[str, list[Any]]:
    return {name: [cue[place] for cue in cues] for place, name in enumerate(("start", "end", "text"))}


def test_a_video_with_captions_is_a_row(world: World) -> None:
    world.add("-9eq_zZ-a1k")
    (world.folder / "task_ids.csv").write_text("task_id,task\n107,Make Salt, and Pepper\n")
    out = world.run({"-9eq_zZ-a1k": SIMPLE}, tasks=ListFile(path=str(world.folder / "task_ids.csv")))
    assert out.table.schema.equals(HOWTO100M)
    row = out.table.drop_columns(["id", "cues"]).to_pylist()[0]
    assert row == {
        "url": "https://www.youtube.com/watch?v=-9eq_zZ-a1k",
        "video": "-9eq_zZ-a1k.mp4",
        "num_bytes": len(CLIP),
        "sha256": hashlib.sha256(CLIP).hexdigest(),
        "video_id": "-9eq_zZ-a1k",
        "duration_s": 2.0,
        "width": 48,
        "height": 32,
        "fps": 10.0,
        "codec": "mpeg4",
        "category_1": "Food",
        "category_2": "Recipes",
        "rank": 3,
        "task_id": "107",
        "task": "Make Salt, and Pepper",
    }
    assert cues(out) == [(0.0, 1.0, "add the salt"), (1.0, 1.5, "then stir")]
    first = out.table["cues"][0].as_py()[0]
    assert (first["words"], first["source"], first["lang"]) == (None, "unknown", "en")
    assert (out.rejects, out.counts) == ([], {})


def test_a_text_that_is_no_text(world: World) -> None:
    """(a) NaN as Python writes it, null, a number (which was said), a list."""
    world.add("a")
    found = lists(
        (0, 1, "one"), (0.1, 1, math.nan), (0.2, 1, None), (0.3, 1, 200), (0.4, 1, 1.5), (0.5, 1, ["x"])
    )
    out = world.run({"a": found})
    assert [text for _, _, text in cues(out)] == ["one", "200", "1.5"]
    assert out.counts == {"cues_no_text": 3}


def test_line_breaks_are_spaces(world: World) -> None:
    """(b)"""
    world.add("a")
    assert cues(world.run({"a": lists((0, 1, "add\nthe \r\n salt\n"))})) == [(0, 1, "add the salt")]


def test_odd_durations(world: World) -> None:
    """(c) zero is kept and counted; negative, NaN and none cannot be placed in time, and are counted."""
    world.add("a")
    found = lists(
        (1, 1, "zero"),
        (1.5, 1, "negative"),
        (math.nan, 1, "nan"),
        (0, None, "none"),
        ("0.5", "1", "in quotes"),
    )
    out = world.run({"a": found})
    assert cues(out) == [(0.5, 1.0, "in quotes"), (1.0, 1.0, "zero")]
    assert out.counts == {"cues_bad_times": 3, "cues_no_duration": 1, "cues_out_of_order": 1}


def test_beyond_the_end_of_the_video(world: World) -> None:
    """(d) the video has 2 seconds."""
    world.add("a", "b")
    late = lists((2.0, 3, "never heard"))
    out = world.run({"a": lists((1, 5, "to the end"), (2.0, 3, "never heard")), "b": late})
    assert cues(out) == [(1.0, 2.0, "to the end")]
    assert out.counts == {"cues_cut_at_end": 1, "cues_past_end": 2}
    assert [(r.why, r.detail) for r in out.rejects] == [
        ("no_cues", "b.mp4 ends at 2 s, before its first cue")
    ]


def test_out_of_order(world: World) -> None:
    """(e)"""
    world.add("a")
    out = world.run({"a": lists((1.2, 1.5, "b"), (0, 1, "a"), (1.5, 2, "c"))})
    assert [text for _, _, text in cues(out)] == ["a", "b", "c"]
    assert out.counts == {"cues_out_of_order": 1}


@pytest.mark.slow
def test_overlapping_and_repeated_words(world: World) -> None:
    """(f)"""
    world.add("a")
    rolling = lists(
        (0, 1.5, "I will take the cat"), (0.5, 1.8, "the cat sat down"), (1.2, 2, "sat down and slept")
    )
    out = world.run({"a": rolling})
    assert cues(out) == [(0, 0.5, "I will take the cat"), (0.5, 1.2, "sat down"), (1.2, 2.0, "and slept")]
    assert out.counts == {"words_carried_over": 4}
    assert len(cues(world.run({"a": rolling}, rollup="never"))[1][2].split()) == 4


@pytest.mark.slow
def test_empty_and_unequal_lists(world: World) -> None:
    """(g)"""
    world.add(*"abcd")
    unequal = {"text": ["x", "y"], "start": [0], "end": [1, 2]}
    out = world.run({"a": lists(), "b": unequal, "c": ["x"], "d": {"text": "x", "start": 0, "end": 1}})
    said = [(r.why, r.detail) for r in out.rejects]
    assert said == [
        ("no_cues", "a has no cue with text"),
        ("bad_captions", "b has 2 texts, 1 starts and 2 ends"),
        ("bad_captions", "c does not have the lists `text`, `start` and `end`"),
        ("bad_captions", "d does not have the lists `text`, `start` and `end`"),
    ]
    kept = world.run({"a": lists(), "b": unequal}, no_cues="keep")
    assert kept.table["cues"].to_pylist() == [[], [], [], []]
    assert kept.counts == {"kept_bad_captions": 1, "kept_no_captions": 2, "kept_no_cues": 1}


def test_what_only_one_side_has(world: World) -> None:
    """(h) nothing is lost: every line of the list and every entry of the captions is a row or a reject."""
    world.add("a", "b", "c", "a")
    world.lines.append("gone,Food,Recipes,1,107\n")
    names = ("x", "a", "b", "a", "gone")  # a name twice is no fault of JSON
    captions = "{" + ", ".join(f'"{name}": {json.dumps(SIMPLE)}' for name in names) + "}"
    stage = world.stage(captions)
    listed = pa.concat_tables(stage.rows())
    out = run_map(stage, listed)
    assert listed["video_id"].to_pylist() == ["x", "a", "b", "a", "gone", "c", "a"]
    assert len(set(listed["id"].to_pylist())) == 7
    assert out.table["video_id"].to_pylist() == ["a", "b"]
    assert [(r.why, r.detail) for r in out.rejects] == [
        ("not_listed", "x has captions, but is not in the list of videos"),
        ("duplicate_captions", "an earlier entry of the caption file also has captions of a"),
        ("no_file", "there is no file gone.mp4 or gone.webm or gone.mkv in the folder given by `videos`"),
        ("no_captions", ""),
        ("duplicate_video", ""),
    ]


def test_translations_tags_and_entities(world: World) -> None:
    """(i) kept: a filter may look at them; `source` says that nobody knows who wrote them."""
    world.add("a")
    out = world.run(
        {
            "a": lists(
                (0, 1, "[Music]"), (1, 1.5, "&gt;&gt; añade la sal &amp; agua"), (1.5, 2, "<i>caf\ud83d")
            )
        }
    )
    assert [text for _, _, text in cues(out)] == ["[Music]", ">> añade la sal & agua", "caf?"]


@pytest.mark.slow
def test_rows_do_not_depend_on_the_batch(world: World) -> None:
    world.add(*(f"v{n}" for n in range(6)))
    stage = world.stage({f"v{n}": SIMPLE for n in range(6)})
    listed = pa.concat_tables(stage.rows())
    whole = run_map(stage, listed).table
    parts = [run_map(stage, listed.slice(n, 2)).table for n in (0, 2, 4)]
    assert pa.concat_tables(parts).equals(whole)


def test_bad_lines_of_the_list(world: World) -> None:
    world.add("a")
    world.lines += [
        "b,Food,Recipes,many,107\n",
        ",Food,Recipes,1,107\n",
        "c,Food\n",
        f"{'x' * 99},Food,Recipes,1,1\n",
    ]
    out = world.run({"a": SIMPLE})
    assert out.table["video_id"].to_pylist() == ["a"]
    assert [(r.why, r.detail) for r in out.rejects] == [
        ("bad_line", "list.csv line 3: wanted a number as rank, got 'many'"),
        ("bad_line", "list.csv line 4 has no video id"),
        (
            "bad_line",
            "list.csv line 5 has 2 field(s), but the list has 5 columns: video_id, category_1, category_2, rank, task_id",
        ),
        ("bad_line", "the video id has 99 characters, the limit is 64"),
    ]


@pytest.mark.slow
def test_the_list_of_mil_nce_and_its_captions(world: World) -> None:
    """Paths instead of ids; one CSV of captions for each video."""
    (world.videos / "sub").mkdir()
    (world.videos / "sub" / "-abc_.x.webm").write_bytes(CLIP)
    captions = world.folder / "captions"
    captions.mkdir()
    (captions / "-abc_.csv").write_text(',start,end,text\n0,0.0,1.0,"add\nsalt"\n1,1.0,2.0,\n')
    (captions / "bad.csv").write_text("start,end\n0,1\n")
    stage = world.stage(captions)
    (world.folder / "list.csv").write_text("video_path\nsub/-abc_.x.webm\n../bad.mp4\n")
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert out.table.select(["video", "video_id", "category_1", "rank"]).to_pylist() == [
        {"video": "sub/-abc_.x.webm", "video_id": "-abc_", "category_1": None, "rank": None}
    ]
    assert cues(out) == [(0, 1, "add salt")]
    assert [(r.why, r.detail) for r in out.rejects] == [("bad_captions", "bad.csv has no column 'text'")]
    (captions / "bad.csv").write_text(
        'start,end,text\n0,1,"add\n1,2,salt\n'
    )  # the open quotation mark hides a caption
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert [r.detail for r in out.rejects] == ["bad.csv cannot be read: unexpected end of data"]
    (captions / "bad.csv").write_text("start,end,text\n0,1,x\n")
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert [(r.why, r.detail) for r in out.rejects] == [
        ("bad_path", "the path '../bad.mp4' leads out of the folder given by `videos`")
    ]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_captions_in_a_zip(world: World, kind: str) -> None:
    world.add("a")
    path = world.folder / "raw_caption.zip"
    with zipfile.ZipFile(path, "w") as archive:
        if kind == "json":
            archive.writestr("raw_caption.json", json.dumps({"a": SIMPLE}))
        else:
            archive.writestr("captions/a.csv", "start,end,text\n0.0,1.0,add the salt\n1.0,1.5,then stir\n")
    assert cues(world.run(path)) == [(0.0, 1.0, "add the salt"), (1.0, 1.5, "then stir")]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("107\tMake Salt\n108\tCook, Eat\n", {"107": "Make Salt", "108": "Cook, Eat"}),
        ("task_id,task\n107,Make Salt\n\n108,Cook, Eat\n", {"107": "Make Salt", "108": "Cook, Eat"}),
        ('\ufeff107,"Make ""Salt"", Now"\r\n', {"107": 'Make "Salt", Now'}),
        ("", {}),
    ],
)
def test_task_names(tmp_path: Path, content: str, names: dict[str, str]) -> None:
    (tmp_path / "task_ids.csv").write_text(content)
    assert read_tasks(tmp_path / "task_ids.csv") == names


def test_what_stops_the_plan(world: World) -> None:
    stage = world.stage({})
    with pytest.raises(VlpipeError, match="lists no video"):
        list(stage.rows())
    (world.folder / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        VlpipeError, match="must have a column 'video_id' or 'video_path'; its columns are a, b"
    ):
        stage.preflight()
    (world.folder / "task_ids.csv").write_text("106,Cook\n\n107\n")
    with pytest.raises(
        VlpipeError, match="line 3: wanted a task id, a tab or comma, and the task's title; got '107'"
    ):
        world.stage({}, tasks=ListFile(path=str(world.folder / "task_ids.csv"))).preflight()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "caption.pickle",
            "must be a .json, a .zip, or a folder with one .csv per video; a pickle can run code",
        ),
        ("bad.zip", "is not a zip file: "),
        ("cut.json", "is not a complete JSON object: the value of 'a' cannot be read: "),
    ],
)
def test_captions_that_cannot_be_read(world: World, name: str, said: str) -> None:
    world.add("a")
    (world.folder / name).write_text('{"a": {"text": [')
    with pytest.raises(VlpipeError, match=said):
        list(world.stage(world.folder / name).rows())


def test_files_that_are_no_videos(world: World) -> None:
    world.add("page", "empty", "cut", "good")
    (world.videos / "page.mp4").write_text("<html>not here</html>")
    (world.videos / "empty.mp4").write_bytes(b"")
    (world.videos / "cut.mp4").write_bytes(CLIP[: len(CLIP) // 3])
    out = world.run(dict.fromkeys(("page", "empty", "cut", "good"), SIMPLE))
    assert out.table["video_id"].to_pylist() == ["good"]
    assert Counter(r.why for r in out.rejects) == {"broken_video": 2, "empty": 1}


@pytest.mark.slow
def test_an_fsspec_root(world: World) -> None:
    world.add("a")
    stage = world.stage({"a": SIMPLE})
    listed = pa.concat_tables(stage.rows())
    here = run_map(stage, listed).table
    url = HowTo100M(videos=f"file://{world.videos}", list=stage.list, captions=stage.captions)
    assert run_map(url, listed).table.equals(here)
