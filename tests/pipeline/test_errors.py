"""What a person reads when something breaks, and the exit code that goes with it."""

from __future__ import annotations

import errno
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.cli import commands, main
from vlpipe.pipeline.errors import VlpipeError, VlpipeWarning, explain
from vlpipe.pipeline.storage.store import Store


def raised(fn: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as info:
        fn()
    return info.value


def fail(error: BaseException) -> Callable[[], object]:
    def inner() -> None:
        raise error

    return inner


class ClientError(Exception):
    __module__ = "botocore.exceptions"


assert commands.app is main.app
HERE = r" \(.*test_errors\.py line \d+\)"


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (fail(VlpipeError("a sentence")), "a sentence"),
        (lambda: Path("/no/such/file").read_text(), "No such file or directory: /no/such/file"),
        (fail(OSError(errno.EXDEV, "Cross-device", "/a", None, "/b")), "Cross-device: /a -> /b"),
        (fail(OSError(errno.EIO, "Input/output error")), "Input/output error" + HERE),
        (fail(OSError(errno.ENOSPC, "No space")), r"the disk is full \(or .* reached\)" + HERE),
        (fail(FileNotFoundError("bucket/key")), "FileNotFoundError: bucket/key" + HERE),
        (fail(MemoryError()), "out of memory" + HERE),
        (fail(ImportError("Install s3fs")), "a package is missing, or broken: Install s3fs" + HERE),
        (fail(ClientError("no such bucket")), "the object store returned an error: ClientError: no such bucket"),
        (lambda: json.loads("{"), "internal error: JSONDecodeError: Expecting .*" + HERE + "; --debug shows the traceback"),
        (lambda: {}["x"], "internal error: KeyError: 'x'" + HERE + "; --debug shows the traceback"),
        (fail(AssertionError()), "internal error: AssertionError" + HERE + "; --debug shows the traceback"),
        (fail(RuntimeError("\x1b[31m\nred")), r"internal error: RuntimeError: \\x1b\[31m red" + HERE + ".*"),
        (lambda: pa.array(["a"]).cast(pa.int8()), "internal error: ArrowInvalid: Failed to parse .*" + HERE + ".*"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_that_says_what_it_is_about(fn: Callable[[], object], wanted: str) -> None:
    said = explain(raised(fn))
    assert re.fullmatch(wanted, said), said


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    def write() -> None:
        with Store(str(tmp_path)).writing("a/b.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert (
        explain(raised(write))
        == f"the disk is full (or a limit on file sizes is reached): {tmp_path}/a/b.json"
    )


def exits(monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vlpipe", *map(str, args)])
    return main.exit_code(debug=False)


WORKFLOW = """\
steps:
  rows: {use: "progress_toys:Rows", num_rows: 5}
  broken: {use: "progress_toys:Think", from: rows, seconds: -1}
"""


def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, root = tmp_path / "w.yaml", tmp_path / "root"
    file.write_text(WORKFLOW)
    assert exits(monkeypatch, "plan", file, "--root", root) == 0
    assert exits(monkeypatch, "run", file, "--root", root, "--until", "rows", "--local") == 0
    capsys.readouterr()
    assert exits(monkeypatch, "run", file, "--root", root, "--local") == 1
    assert "error: step 'broken' failed: ValueError: sleep length" in capsys.readouterr().err
    assert exits(monkeypatch, "plan", tmp_path / "none.yaml") == 1
    assert exits(monkeypatch, "plan") == 2
    assert exits(monkeypatch, "plan", file, "--bogus") == 2
    assert exits(monkeypatch, "run", file, "--local", "--address", "a:1") == 2


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_a_root_that_can_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(WORKFLOW)
    assert exits(monkeypatch, verb, file, "--root", file) == 1
    assert f"error: the output root {file} is a file; wanted a folder" in capsys.readouterr().err
    assert exits(monkeypatch, verb, file, "--root", "nosuch://x/y") == 1
    assert (
        "error: cannot open the output root nosuch://x/y: Protocol not known: nosuch"
        in capsys.readouterr().err
    )


def test_warnings_of_ours_are_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", main.show_warning)
        warnings.warn("[a] file is\ndamaged", VlpipeWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "warning: [a] file is damaged"
    assert "test_errors.py" in said[1]
    assert "UserWarning: of a library" in said[1]
