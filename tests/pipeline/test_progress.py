"""What a person sees of a run that takes long: times that are the step's own, rows inside a shard, a clean terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_helpers import Runs

from vlpipe.pipeline.cli import progress
from vlpipe.pipeline.engine.records import progress_notes

ROWS = '  rows: {{use: "progress_toys:Rows", num_rows: {num}, seconds: {seconds}, shard_rows: {size}}}\n'


def case(folder: Path, steps: str, num: int = 1200, size: int = 1200, seconds: float = 0) -> Runs:
    return Runs(folder, f"steps:\n{ROWS.format(num=num, size=size, seconds=seconds)}{steps}")


def line_of(said: list[str], step: str) -> str:
    (line,) = [line for line in said if line.startswith(f"{step}: ")]
    return line


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if seconds were tenths."""
    for name in ("LOOK_S", "NOTES_S", "SLOW_S"):
        monkeypatch.setattr(progress, name, 0.1)
    monkeypatch.setattr(progress, "SPEAK_S", 0.3)
    monkeypatch.setattr(progress_notes, "FIRST_S", 0.1)
    monkeypatch.setattr(progress_notes, "EVERY_S", 0.1)


@pytest.mark.usefixtures("soon")
def test_a_slow_shard_says_how_far_it_is(tmp_path: Path) -> None:
    runs = case(tmp_path, '  slow: {use: "progress_toys:Slow", from: rows, seconds: 0.5}\n')
    said = [line for line in runs("run", "--local") if line.startswith("  slow: ")]
    assert len(said) >= 2
    assert re.fullmatch(r"  slow: 0 of 1 shard\(s\), shard 0 under way \(for \d s\), \d s so far", said[0])
    far = [re.search(r"([\d,]+) of 1,200 rows of shard 0 under way", line) for line in said]
    assert {m[1] for m in far if m} <= {"512", "1,024"}
    assert any(far)
    assert not list(runs.root.glob("slow-*/work"))


@pytest.mark.usefixtures("soon")
def test_a_gather_step_says_that_it_is_at_work(tmp_path: Path) -> None:
    runs = case(tmp_path, '  think: {use: "progress_toys:Think", from: rows, seconds: 1}\n')
    said = [line for line in runs("run", "--local") if line.startswith("  think: ")]
    assert said[0] == "  think: thinking \\x1b[31m"  # at once, and without an escape sequence
    assert any(re.fullmatch(r"  think: \d s so far", line) for line in said[1:])


def test_what_is_fast_says_one_line(tmp_path: Path) -> None:
    said = case(tmp_path, '  slow: {use: "progress_toys:Slow", from: rows}\n')("run", "--local")
    assert len([line for line in said if "slow" in line]) == 1


@pytest.mark.slow
def test_a_steps_time_is_its_own(tmp_path: Path) -> None:
    """Not that of what it waits for: its input is open all the time."""
    slow_above = (
        '  fast: {use: "progress_toys:Slow", from: rows}\n  then: {use: "progress_toys:Slow", from: fast}\n'
    )
    said = case(tmp_path, slow_above, size=300, seconds=0.4)("run", "--local")
    assert float(re.search(r", (\d+\.\d) s of work", line_of(said, "fast"))[1]) < 0.5  # type: ignore[index]
    assert float(re.search(r", (\d+\.\d) s", line_of(said, "rows"))[1]) >= 1.6  # type: ignore[index]


def test_a_steps_time_begins_with_its_first_shard(tmp_path: Path) -> None:
    said = case(tmp_path, '  fast: {use: "progress_toys:Slow", from: rows}\n', seconds=0.4)("run", "--local")
    assert float(re.search(r", (\d+\.\d) s", line_of(said, "fast"))[1]) < 0.5  # type: ignore[index]


@pytest.mark.parametrize(
    ("step", "num", "wanted"),
    [
        ("Keep", 1200, "kept 100 % of its 1,200 rows: it is a filter, and every row passed"),
        ("Keep", 900, ""),  # too few to wonder
        ("Keep, least: 1", 1200, ""),
        ("Keep, count: true", 1200, ""),  # it dropped texts of rows
        ("Judge", 1200, ""),  # drops nothing by its nature
        ("Keep, least: 5000", 1200, "kept 0 % of its 1,200 rows"),
    ],
)
def test_a_filter_that_keeps_everything_or_nothing_warns(
    tmp_path: Path, step: str, num: int, wanted: str
) -> None:
    name, _, rest = step.partition(",")
    runs = case(tmp_path, f'  kept: {{use: "progress_toys:{name}", from: rows,{rest}}}\n', num=num)
    said = [line for line in runs("run", "--local") if line.startswith("  warning: ")]
    assert said == ([f"  warning: kept {wanted}"] if wanted else [])


@contextmanager
def started(runs: Runs) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        runs.file,
        "--root",
        runs.root,
        "--local",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def state(runs: Runs, step: str) -> str:
    (line,) = [line for line in runs("status") if line.split()[:1] == [step]]
    return line


@pytest.mark.slow
def test_status_says_which_steps_a_live_run_works_on(tmp_path: Path) -> None:
    steps = '  slow: {use: "progress_toys:Slow", from: rows, seconds: 5}\n  last: {use: "progress_toys:Think", from: slow}\n'
    runs = case(tmp_path, steps, num=3, size=1)
    with started(runs) as process:
        deadline = time.monotonic() + 60
        while "running" not in state(runs, "slow"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        assert state(runs, "slow").startswith("slow       running, 0 of 3 shards")
        assert "not run" in state(runs, "last")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "running" not in state(runs, "slow")  # its note is there still, its run is not


@pytest.mark.slow
def test_nothing_is_written_over_the_bars(tmp_path: Path) -> None:
    """On a terminal: what C code and children print comes out whole, once, above the bars."""
    runs = case(tmp_path, '  noisy: {use: "progress_toys:Noisy", from: rows}\n')
    outer, inner = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        runs.file,
        "--root",
        runs.root,
        "--local",
    ]
    process = subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, env={**os.environ, "TERM": "xterm"}
    )
    os.close(inner)
    seen = b""
    try:
        while block := os.read(outer, 1 << 16):
            seen += block
    except OSError:  # how Linux says that a terminal has no process left
        pass
    assert process.wait() == 0
    os.close(outer)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\x00", seen.decode())
    lines = [line.replace("\x00", "") for line in re.split(r"[\r\n]", plain)]
    for text in ("all of it", "libfoo: \\x1b[31mold file", "a child speaks"):
        assert lines.count(text) == 1, (text, lines)
        assert sum(text in line for line in lines) == 1
    assert "... and 12 more lines of output" in lines  # the shard has 3 row groups
    assert not any("5 %" in line for line in lines)


@pytest.mark.slow
def test_elsewhere_the_streams_are_left_alone(tmp_path: Path) -> None:
    runs = case(tmp_path, '  noisy: {use: "progress_toys:Noisy", from: rows}\n', num=5)
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        runs.file,
        "--root",
        runs.root,
        "--local",
    ]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.count(b"5 %\r50 %\rall of it\n") == 1
    assert done.stderr.count(b"old file") == 3


@pytest.mark.slow
def test_on_ray_too(tmp_path: Path, two_cpus: str) -> None:
    steps = '  slow: {use: "progress_toys:Slow", from: rows, seconds: 6}\n'
    said = case(tmp_path, steps, num=1000)("run", "--address", two_cpus)
    assert any("512 of 1,000 rows of shard 0 under way" in line for line in said)
