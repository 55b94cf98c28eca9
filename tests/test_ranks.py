"""Ranks of a test fail with a message: none waits for one that is gone, and none is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import run

PROGRAM = """
import os, signal, sys, time
rank, what = int(os.environ["RANK"]), sys.argv[1]
def waits_for_the_others():
    open(sys.argv[2] + str(rank), "w").write(str(os.getpid()))
    time.sleep(60)
print("began", rank, flush=True)
if rank == 1 and what == "fails":
    raise ValueError("planted")
if rank == 1 and what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what != "ends":
    waits_for_the_others()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def nobody_is_left(folder: Path) -> bool:
    pids = [path.read_text() for path in folder.glob("pid*")]
    return bool(pids) and not any(pid and Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_ranks_write_is_returned(tmp_path: Path, program: Path) -> None:
    assert run(tmp_path, 2, [program, "ends"]) == ["began 0\n", "began 1\n"]


def test_a_rank_that_fails_ends_the_others(tmp_path: Path, program: Path) -> None:
    with pytest.raises(AssertionError, match=r"rank 1 ended with exit code 1\n(.|\n)*ValueError: planted"):
        run(tmp_path, 3, [program, "fails", tmp_path / "pid"])


def test_ranks_that_wait_too_long_say_where(tmp_path: Path, program: Path) -> None:
    wanted = (
        r"ranks \[0, 1\] did not end within 2 s(.|\n)*in waits_for_the_others(.|\n)*in waits_for_the_others"
    )
    with pytest.raises(AssertionError, match=wanted):
        run(tmp_path, 2, [program, "waits", tmp_path / "pid"], wait_s=2)
    assert nobody_is_left(tmp_path)


def test_after_a_planned_kill_nobody_is_left(tmp_path: Path, program: Path) -> None:
    run(tmp_path, 2, [program, "killed", tmp_path / "pid"], killed=1)
    with pytest.raises(AssertionError, match="rank 1 was not killed, it ended with 0"):
        run(tmp_path, 2, [program, "ends"], killed=1)
