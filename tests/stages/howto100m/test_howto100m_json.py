"""One huge JSON object, entry by entry: the same as `json.loads`, whatever the window cuts."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.howto100m.captions_json import entries

CONTENT: dict[str, Any] = {
    "-9eq_zZ-a1k": {"text": ["so é \U0001f373", "b\nc"], "start": [0.5, 12], "end": [1, 13.25]},
    "": {"text": [], "start": [], "end": []},
    "number": -12.5e3,
    "word": None,
    'quo"te\\': [{}, [], "{", "}", '"', "\\"],
}


def read(content: bytes, chunk_bytes: int = 1 << 16) -> list[tuple[str, Any]]:
    return list(entries(io.BytesIO(content), "a.json", chunk_bytes))


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 1 << 20])
def test_as_json_reads_it(chunk_bytes: int, indent: int | None, ascii_only: bool) -> None:
    content = json.dumps(CONTENT, indent=indent, ensure_ascii=ascii_only).encode()
    assert dict(read(content, chunk_bytes)) == CONTENT
    assert dict(read(b"\xef\xbb\xbf \n" + content + b"\n", chunk_bytes)) == CONTENT


def test_not_a_number_is_read() -> None:
    ((_, value),) = read(json.dumps({"a": {"text": [math.nan, math.inf]}}).encode())
    assert math.isnan(value["text"][0])
    assert value["text"][1] == math.inf


def test_repeated_keys_all_come() -> None:
    assert read(b'{"a": 1, "b": 2, "a": 3}') == [("a", 1), ("b", 2), ("a", 3)]
    assert read(b"{}") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it ends where '{' is wanted (character 0)"),
        (b"[1]", "wanted '{', got '[1]' (character 0)"),
        (b'{"a": [1, 2', "the value of 'a' cannot be read: Expecting ',' delimiter (character 11)"),
        (b'{"a": 1, ', "the key after 'a' cannot be read: Expecting value (character 9)"),
        (b'{"a": 1, b: 2}', "the key after 'a' cannot be read: Expecting value (character 9)"),
        (b"{b: 2}", "the first key cannot be read: Expecting value (character 1)"),
        (b'{"a": ' + b"1" * 5000 + b"}", "the value of 'a' cannot be read: Exceeds the limit"),
        (b'{"a": 1', "it ends where ',' is wanted (character 7)"),
        (b'{"a": 1 "b": 2}', "wanted ',', got '\"b\": 2}' (character 8)"),
        (b'{"a" 1}', "wanted ':', got '1}' (character 5)"),
        (b"{1: 2}", "the first key must be a string, but is 1 (character 2)"),
        (b'{"a": 1, null: 2}', "the key after 'a' must be a string, but is null (character 13)"),
        (b"{} x", "the object is followed by 'x' (character 3)"),
        (b'{"a": 1} x', "the object is followed by 'x' (character 9)"),
        (b'{"a": "\xff"}', "it is not UTF-8: invalid start byte (character 0)"),
        (b'{"a": ' + b"[" * 100_000, "the value of 'a' is nested too deeply (character 6)"),
    ],
)
def test_what_is_broken_is_named(content: bytes, said: str) -> None:
    with pytest.raises(VlpipeError) as caught:
        read(content)
    assert str(caught.value).startswith(f"a.json is not a complete JSON object: {said}")


@pytest.mark.parametrize("chunk_bytes", [1, 2, 5, 64])
def test_the_position_of_a_mistake_is_that_in_the_file(chunk_bytes: int) -> None:
    with pytest.raises(VlpipeError, match=r"the value of 'b' cannot be read: Expecting .* \(character 17\)$"):
        read(b'{"a": 1, "b": [2 3]}', chunk_bytes)


WORKER = """
import re, sys
from pathlib import Path
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.howto100m.videos import HowTo100M
from vlpipe.stages.howto100m.captions_json import entries

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def read():
    with open("raw_caption.json", "rb") as handle:
        return sum(len(value["text"]) for _, value in entries(handle, "a"))

def rows():
    stage = HowTo100M(videos=".", list=ListFile(path="list.csv"), captions=ListFile(path="raw_caption.json"))
    return sum(len(texts) for table in stage.rows() for texts in table["texts"])

before = peak_mb()
print({"read": read, "rows": rows}[sys.argv[1]](), peak_mb() - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """number of videos -> a folder with their captions: 5.9 kB each."""
    one = json.dumps({"text": ["now add the salt"] * 200, "start": [1.5] * 200, "end": [2.5] * 200})
    made = {}
    for num in (2000, 8000):
        folder = made[num] = tmp_path_factory.mktemp("howto100m")
        captions = ",".join(f'"video{n}": {one}' for n in range(num))
        (folder / "raw_caption.json").write_text("{" + captions + "}")
        (folder / "list.csv").write_text("video_id\n" + "".join(f"video{n}\n" for n in range(num)))
    return made


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["read", "rows"])
def test_memory_does_not_grow_with_the_file(folders: dict[int, Path], what: str) -> None:
    """35 MB more of a file, less than 12 MB more of memory. (`benchmarks/howto100m_stream.py` does it with 2 GB.)"""
    grown_mb = []
    for num, folder in folders.items():
        command = [sys.executable, "-c", WORKER, what]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        num_cues, grown = done.stdout.split()
        assert int(num_cues) == 200 * num
        grown_mb.append(float(grown))
    sizes_mb = [(folder / "raw_caption.json").stat().st_size >> 20 for folder in folders.values()]
    assert sizes_mb[1] - sizes_mb[0] > 32
    assert grown_mb[1] - grown_mb[0] < 12
