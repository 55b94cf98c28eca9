"""Decoding in a child that has little: what hangs, grows or dies costs one image."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from threat_server import invisible, noise, scans

from vlpipe.pipeline.errors import RowFault, StepFailed
from vlpipe.stages.common.pixels import MAX_FRAMES, MAX_PIXELS
from vlpipe.stages.images import shut_in
from vlpipe.stages.images.check import Checked, Rules, check
from vlpipe.stages.images.resize import Resize
from vlpipe.stages.images.shut_in import decoding

RULES = Rules(max_pixels=MAX_PIXELS, max_frames=MAX_FRAMES)


def outcome(how: Callable[[bytes], Checked], data: bytes) -> Any:
    try:
        return how(data)
    except RowFault as fault:
        return fault.why, fault.detail


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_same_as_in_this_process(data: Callable[[str], Path]) -> None:
    """All odd files: those that cannot be decoded with few files open and little memory would differ."""
    files = [path for path in sorted(data("odd_images").rglob("*")) if path.is_file()]
    with decoding(RULES, timeout_s=60, memory_mb=1024) as one:
        for path in files:
            assert outcome(one.check, path.read_bytes()) == outcome(
                lambda b: check(b, RULES), path.read_bytes()
            )
        together = one.check_all([path.read_bytes() for path in files])
        status = Path(f"/proc/{one._child.start().pid}/status").read_text()
    for path, got in zip(files, together, strict=True):
        alone = outcome(lambda b: check(b, RULES), path.read_bytes())
        assert alone == ((got.why, got.detail) if isinstance(got, RowFault) else got)
    assert len(files) >= 399
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kb < 512 * 1024


@pytest.mark.slow
def test_resized_bytes_come_back(picture: Callable[..., bytes]) -> None:
    rules = Rules(
        max_pixels=MAX_PIXELS, max_frames=10, resize=Resize(size=500, format="png", only_if_bigger=False)
    )
    whole = picture(size=(40, 30))
    with decoding(rules, timeout_s=60, memory_mb=512) as one:
        assert one.check(whole) == check(whole, rules)
        assert one.check(whole).width == 667
        assert outcome(one.check, invisible())[0] == "transparent"
        assert outcome(one.check, scans())[0] == "too_many_scans"


def big_png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_an_image_that_takes_too_much_memory(picture: Callable[..., bytes]) -> None:
    with decoding(RULES, timeout_s=60, memory_mb=64) as one:
        assert outcome(one.check, big_png(6000))[0] == "decode_memory"
        assert one.check(picture()).width == 20


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_child_that_stops_for_reasons_of_its_own_costs_no_image(
    picture: Callable[..., bytes], how: signal.Signals
) -> None:
    with decoding(RULES, timeout_s=30, memory_mb=512) as one:
        one.check(picture())
        os.kill(one._child.start().pid, how)
        one._timeout_s = 2.0
        found: list[Any] = one.check_all([picture()] * 3)
        assert [got.width for got in found] == [20, 20, 20]


STRANGE = """
import os, sys, time
from vlpipe.stages.images import check as checked
whole = checked.check
def check(data, rules):
    if data.startswith(b"die"):
        os.kill(os.getpid(), 9)
    if data.startswith(b"hang"):
        time.sleep(60)
    return whole(data, rules)
checked.check = check
checked.main()
"""


@pytest.mark.slow
def test_only_the_image_that_kills_or_hangs_is_lost(
    picture: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more images than go over at a time, large answers on the way back, and each fault first and last."""
    monkeypatch.setattr(shut_in, "TOGETHER_BYTES", 100_000)
    (tmp_path / "strange.py").write_text(STRANGE)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/strange.py\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    whole, large = picture(size=(300, 200)), noise() * 3
    images = [b"hang", whole, b"die", b"die", *[whole, large] * 15, b"hang", b"not one", b"die"]
    resize = Resize(size=400, format="png", only_if_bigger=False)
    rules = Rules(max_pixels=MAX_PIXELS, max_frames=10, resize=resize)
    with decoding(rules, timeout_s=1.0, memory_mb=512) as one:
        found: list[Any] = one.check_all(images)
    assert found[0].detail == "decoding the image took more than 1 s"
    assert found[2].detail == "the process that decoded the image died twice, with exit status -9"
    whys = [got.why if isinstance(got, RowFault) else got.width for got in found]
    killed = "killed_decoder"
    assert whys[:4] == ["decode_timeout", 600, killed, killed]
    assert whys[4:-3] == [600, check(large, rules).width] * 15
    assert whys[-3:] == ["decode_timeout", "not_an_image", killed]


def test_it_can_open_nothing(picture: Callable[..., bytes]) -> None:
    with decoding(RULES, timeout_s=30, memory_mb=512) as one:
        one.check(picture())
        pid = one._child.start().pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        lines = {line[:25].strip(): line[25:].split()[0] for line in limits.splitlines()}
        assert (lines["Max open files"], lines["Max file size"], lines["Max core file size"]) == (
            "3",
            "0",
            "0",
        )
        opened = {file.name: file.readlink().name for file in Path(f"/proc/{pid}/fd").iterdir()}
        assert len(opened) == 4
        assert [name for fd, name in opened.items() if int(fd) > 2] == ["memfd:images (deleted)"]


def test_a_child_that_cannot_start_is_no_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (
        decoding(RULES, timeout_s=30, memory_mb=512) as one,
        pytest.raises(StepFailed, match=r"the child process that decodes images did not start"),
    ):
        one.check(noise())


def test_it_ends_with_the_block(picture: Callable[..., bytes]) -> None:
    with decoding(RULES, timeout_s=30, memory_mb=512) as one:
        one.check(picture())
        process = one._child.start()
    assert process.poll() is not None
