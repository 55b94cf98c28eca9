"""The films show what the truth says, the subtitles say what was said, and equal seeds give equal bytes."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.film import FPS, MOTIONS, Segment, draw_film
from vlpipe.stages.demo.scenes import COLOURS, SIZE_PX, Scene, Thing
from vlpipe.stages.demo.speech import ABOUT, MOTION_WORDS, draw_speech
from vlpipe.stages.demo.video_world import TABLES, VideoWorld
from vlpipe.stages.video.decode import Exact, open_video, probe

SMALL = {"num_train": 7, "num_eval": 2, "corrupt": 0.15}
WAYS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
Row = dict[str, Any]


def make(folder: Path, **more: float) -> Path:
    return run_gather(VideoWorld(**{**SMALL, **more}), [], folder, say=lambda _: None).artifacts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("world"))


def table(world: Path, name: str, **where: Any) -> list[Row]:
    rows = pq.read_table(world / f"{name}.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def good(world: Path) -> list[Row]:
    return table(world, "videos", fault=None)


@pytest.mark.slow
def test_same_seed_same_bytes_and_a_film_depends_on_its_own_number_only(world: Path, tmp_path: Path) -> None:
    found = digests(make(tmp_path / "again", num_train=2, num_eval=1, corrupt=0.5))
    films = {name: digest for name, digest in found.items() if name.startswith("train/")}
    assert films.items() <= digests(world).items()
    other = digests(make(tmp_path / "other", num_train=1, num_eval=1, seed=1))
    assert not set(other.values()) & set(digests(world).values())


def test_the_tables_and_files(world: Path) -> None:
    for name, schema in TABLES.items():
        assert pq.read_schema(world / f"{name}.parquet").equals(schema)
    videos = table(world, "videos")
    assert [row["split"] for row in videos] == ["train"] * 7 + ["eval"] * 2
    assert {row["subtitles"] for row in videos} >= {"rolling", "overlapping", "track"}
    for row in videos:
        path = world / row["split"] / row["video"]
        beside = sorted(p.suffix for p in path.parent.iterdir() if p.name.startswith(path.stem + ".en."))
        assert beside == {"rolling": [".vtt"], "overlapping": [".srt"]}.get(row["subtitles"], [])
        assert len(path.stem) == 11


def test_every_fault_is_real(world: Path) -> None:
    bad = [row for row in table(world, "videos") if row["fault"]]
    assert [row["fault"] for row in bad] == ["truncated"]
    for row in bad:
        with pytest.raises(RowFault, match="broken_video"):
            probe(str(world / row["split"]), row["video"])


def test_the_films_show_what_was_seen(world: Path) -> None:
    """In the middle of each segment the colour is where the motion has brought it; so it is in turned and in cut files."""
    for row in good(world):
        with open_video(str(world / row["split"]), row["video"]) as video:
            assert (video.info.width, video.info.height) == (SIZE_PX, SIZE_PX)
            assert video.info.duration_s == pytest.approx(row["duration_s"], abs=0.11)
            seen = table(world, "seen", split=row["split"], video=row["video"])
            times = [round((one["start_s"] + one["end_s"]) / 2, 1) for one in seen]
            pictures = [picture for _, picture in video.frames(times, Exact(SIZE_PX, SIZE_PX))]
        for one, time_s, picture in zip(seen, times, pictures, strict=True):
            thing = scene_at(one, time_s).things[0]
            if thing.shape != "ring":
                x, y = ((at + size / 2) * SIZE_PX for at, size in ((thing.x, thing.w), (thing.y, thing.h)))
                patch = picture[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].mean(axis=(0, 1))
                assert np.abs(patch - COLOURS[thing.colour]).max() < 60, (row, one)


def scene_at(row: Row, time_s: float) -> Scene:
    things = [
        Thing(o["shape"], o["colour"], o["size"], (o["row"], o["column"]), *(o[name] for name in "xywh"))
        for o in row["objects"]
    ]
    return Segment(row["start_s"], row["end_s"], Scene(tuple(things), row["ground"]), row["motion"]).at(
        time_s
    )


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_is_what_it_is_called(motion: str) -> None:
    thing = Thing("circle", "red", "small", ("top", "left"), 0.4, 0.4, 0.2, 0.2)
    segment = Segment(1.0, 3.0, Scene((thing,), "grey"), motion)
    first, last = segment.at(1.0).things[0], segment.at(3.0).things[0]
    way = (
        np.sign(round(last.x + last.w / 2 - first.x - first.w / 2, 6)),
        np.sign(round(last.y + last.h / 2 - first.y - first.h / 2, 6)),
    )
    assert way == WAYS.get(motion, (0, 0))
    assert np.sign(last.w - first.w) == {"grows": 1, "shrinks": -1}.get(motion, 0)


def test_rolling_captions_hold_every_word_and_its_time(world: Path) -> None:
    rows = [row for row in table(world, "videos") if row["subtitles"] == "rolling"]
    assert rows
    for row in rows:
        text = (world / row["split"] / row["video"]).with_suffix(".en.vtt").read_text()
        said = table(world, "said", split=row["split"], video=row["video"])
        assert words_of(text) == [(w["word"], w["start_s"]) for one in said for w in one["words"]]
        shown = re.sub(r"<[^>]*>", "", text)
        assert any(shown.count(f"\n{one}\n") == 3 for one in shown.splitlines() if " " in one[1:])


def words_of(vtt: str) -> list[tuple[str, float]]:
    """Words and times of the lower lines: the first word of one begins with its cue."""
    found = []
    for block in vtt.split("\n\n")[1:]:
        times, _, new = block.splitlines()
        if new.strip():
            first, *rest = re.split(r"<(\d\d:\d\d:\d\d\.\d\d\d)>", new)
            words = [re.sub(r"</?c>| ", "", word) for word in rest[1::2]]
            found.append((first, seconds(times[:12])))
            found += zip(words, map(seconds, rest[::2]), strict=True)
    return found


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return round(3600 * int(hours) + 60 * int(minutes) + float(rest), 3)


def test_other_subtitles(world: Path) -> None:
    for row in good(world):
        said = table(world, "said", split=row["split"], video=row["video"])
        path = world / row["split"] / row["video"]
        if row["subtitles"] == "track":
            with open_video(str(path.parent), path.name) as video:
                cues = video.subtitles()
            assert [(c.start_s, round(c.end_s, 3), c.text) for c in cues] == [
                (o["start_s"], o["end_s"], o["text"]) for o in said
            ]
            assert {cue.lang for cue in cues} <= {"eng"}
        if row["subtitles"] == "overlapping":
            text = path.with_suffix(".en.srt").read_text()
            assert [line for line in text.splitlines() if line.endswith(".")] == [
                f"{o['text'].capitalize()}." for o in said
            ]


def test_what_is_said_lags_and_some_of_it_is_about_something_else() -> None:
    said, on_time = [], []
    for index in range(40):
        rng = np.random.default_rng(index)
        segments = draw_film(rng, 6, 0.3)
        speech = draw_speech(segments, rng, lag_s=1.5, about_other=0.25, silent=0.1)
        assert all(one.end_ms < two.start_ms for one, two in pairwise(speech))
        assert speech[-1].start_ms < 1000 * segments[-1].end_s
        said += speech
        for one in speech:
            assert (one.segment is None) == (one.about != "seen")
            if one.segment is not None:
                segment = segments[one.segment]
                assert any(one.text.endswith(words) for words in MOTION_WORDS[segment.motion])
                on_time.append(abs(one.start_ms / 1000 - segment.start_s - 1.5) <= 0.301)
    shares = {about: [one.about for one in said].count(about) / len(said) for about in ABOUT}
    assert shares == pytest.approx({"seen": 0.75, "other": 0.125, "chatter": 0.125}, abs=0.06)
    assert 0.85 < len(said) / 240 < 0.95
    assert np.mean(on_time) > 0.9  # the rest waited for the end of the one before


def test_captions_and_questions(world: Path) -> None:
    seen = {(row["split"], row["video"], row["start_s"]): row for row in table(world, "seen")}
    captions = table(world, "captions")
    assert len(captions) == len(seen)
    for row in captions:
        motion = seen[row["split"], row["video"], row["start_s"]]["motion"]
        assert len(row["captions"]) == 2
        assert all(any(words in text for words in MOTION_WORDS[motion]) for text in row["captions"])
    asked = table(world, "questions")
    assert {row["kind"] for row in asked} == {"colour", "shape", "motion", "count", "ground", "order"}
    for row in asked:
        truth = seen[row["split"], row["video"], row["start_s"]]
        if row["kind"] == "count":
            assert row["answer"] == ("one", "two")[len(truth["objects"]) - 1]
        if row["kind"] in ("colour", "shape"):
            assert row["answer"] == truth["objects"][0][row["kind"]]


def test_time_is_in_frames(world: Path) -> None:
    for row in table(world, "seen"):
        assert round(row["start_s"] * FPS, 6) == round(row["start_s"] * FPS)
