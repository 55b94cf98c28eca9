"""Subtitles: srt/, data/, and the hostile and empty files of security/fuzz."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.read import read_subtitles
from vlpipe.stages.subtitles.track import Track

Case = Callable[[str], Path]
STEPS = ["step a", "step b", "step c", "step d"]
SOUP = ["stir the soup", "add the salt", "serve it"]


def read(path: Path) -> Track:
    return read_subtitles(path.read_bytes(), path.name)


def texts(path: Path) -> list[str]:
    return [cue.text for cue in read(path).cues]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("srt/crcrlf.srt", STEPS),
        ("srt/crcrlf.vtt", STEPS),
        ("srt/spaced_times.srt", SOUP),
        ("srt/short_arrow.srt", SOUP),
        ("srt/repeated.srt", ["stir", "stir", "stir", "and stop"]),
    ],
)
def test_nothing_is_lost_or_glued(case: Case, name: str, wanted: list[str]) -> None:
    found = read(case(name))
    assert [cue.text for cue in found.cues] == wanted
    assert found.counts == {}


def test_the_files_that_the_script_makes(case: Case, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(case("srt/make.py"))], cwd=tmp_path, check=True, timeout=60)
    found = {path.name: texts(path) for path in tmp_path.iterdir()}
    assert found.pop("index_gap.srt") == STEPS
    assert found.pop("first_bad.srt") == [SOUP[0], SOUP[2]]
    assert found == {path.name: texts(path) for path in case("srt").iterdir() if path.suffix != ".py"}


def test_a_line_of_times_that_cannot_be_read_is_counted(case: Case) -> None:
    found = read(case("data/invalid_timeframe.sbv"))
    assert [cue.text for cue in found.cues] == [f"Caption text #{n}" for n in (1, 2, 4)]
    assert found.counts == {"cues_bad_times": 2}


def test_metadata_is_no_speech(case: Case) -> None:
    with pytest.raises(RowFault, match=r"^no_cues: .*; 1 cues_not_speech"):
        read(case("data/metadata.vtt"))


def test_dfxp(case: Case) -> None:
    assert texts(case("data/test.dfxp"))[1] == "observing what makes people luckier than others"


@pytest.mark.slow
def test_hostile_shapes_end(case: Case) -> None:
    """Each took more than 25 s, or quadratic time, at 300 KB."""
    spec = importlib.util.spec_from_file_location("subs_slow", case("security/fuzz/subs_slow.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.C) > 50
    for name, made in module.C.items():
        data = made(300_000)
        begin = time.process_time()
        with contextlib.suppress(RowFault):
            read_subtitles(data, name, fps=25.0)
        assert time.process_time() - begin < 10, name


def printed(script: Path) -> str:
    """What a script prints; it says `!!!` where something is raised that is not typed."""
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "!!!" not in done.stdout
    return done.stdout


def test_empty_files(case: Case) -> None:
    assert len(printed(case("security/fuzz/empty_subs.py")).splitlines()) == 12


def test_xml_in_the_encoding_that_it_declares(case: Case) -> None:
    *read_ones, last = printed(case("security/fuzz/xml_enc.py")).splitlines()
    assert [line.partition(" ")[2] for line in read_ones] == ["['caf\u00e9']"] * 4
    assert last.startswith("shift_jis bad_subtitles")  # the bytes are not of that encoding
