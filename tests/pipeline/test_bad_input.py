"""What a person sees when something is wrong: one clear sentence, exit code 1 (2 for usage), no traceback."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CHAIN, run


def vlpipe(*args: str, file_limit_bytes: int = 0) -> tuple[int, str]:
    """Exit code and everything printed, on one line."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))

    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *args]
    setup = limit if file_limit_bytes else None
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=setup)
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_workflow_that_is_not_there() -> None:
    code, said = vlpipe("run", "blip_capfil")
    assert code == 1
    assert "'blip_capfil' is neither a file nor a packaged workflow; did you mean 'blip_capfilt'?" in said


@pytest.mark.slow
def test_wrong_usage() -> None:
    assert vlpipe("run")[0] == 2
    assert vlpipe("run", "x.yaml", "--local", "--address", "a:1")[0] == 2


def test_an_unknown_column_is_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(
        'steps:\n  a: {use: "toys:Launches"}\n  b: {use: "toys:Payload", from: a}\n'
    )
    code, said = vlpipe("run", str(tmp_path / "w.yaml"), "--root", str(tmp_path / "root"), "--local")
    assert code == 1
    assert "line 3: b: Payload reads column 'payload', which its input does not have; there are: n" in said
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text('steps:\n  a: {use: "toys:Numbers", list: nowhere.txt}\n')
    code, said = vlpipe("run", str(tmp_path / "w.yaml"), "--root", str(tmp_path / "root"), "--local")
    assert code == 1
    assert "line 2: a.list: there is no file or folder 'nowhere.txt'" in said


def test_an_unreadable_shard(tmp_path: Path) -> None:
    run(tmp_path, CHAIN)
    (shard,) = (tmp_path / "root").glob("scale-*/000001.parquet")
    shard.write_bytes(shard.read_bytes()[:-40])
    text = CHAIN.replace('"toys:Every", from: scale', '"toys:Every", from: scale, k: 2')
    (tmp_path / "w.yaml").write_text(text)
    code, said = vlpipe("run", str(tmp_path / "w.yaml"), "--root", str(tmp_path / "root"), "--local")
    assert code == 1
    assert f"shard {shard} cannot be read" in said
    assert "`vlpipe verify` lists what is damaged" in said


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(CHAIN.replace("num_rows: 20", "num_rows: 20, payload_bytes: 10000"))
    args = ("run", str(tmp_path / "w.yaml"), "--root", str(tmp_path / "root"), "--local")
    code, said = vlpipe(*args, file_limit_bytes=20_000)
    assert code == 1
    assert "shard 0 of step 'numbers'" in said
    assert "the disk is full" in said
    assert not list((tmp_path / "root").rglob("*.part"))
    assert vlpipe(*args)[0] == 0  # with room it goes on


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(CHAIN)
    args = ("run", str(tmp_path / "w.yaml"), "--root", str(tmp_path / "root"), "--address", "127.0.0.1:1")
    code, said = vlpipe(*args)
    assert code == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in said
