"""Every stored input is read or refused, all of them within a fixed CPU time; `fuzz.py` finds more of them."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from kind import Kind, Shape

HERE = Path(__file__).parent


def test_what_is_stored_is_read_or_refused_in_time() -> None:
    command = [sys.executable, str(HERE / "fuzz.py"), "--replay"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[
        -3000:
    ]  # its last lines name the input; a negative code: the time is over


def kind_that(read: object) -> Kind:
    return Kind(name="toy", read=read, seeds=(b"abc",), pieces=(b"x", b"y"), frames=((b"", b""),))  # type: ignore[arg-type]


def test_an_error_that_is_not_typed_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "STORED", tmp_path)

    def read(data: bytes) -> None:
        if b"x" in data:
            raise KeyError("x")

    found = fuzz.Search(kind_that(read), random.Random(0), tmp_path / "current")
    found.mutants(0.2)
    found.shapes(0.2)
    (file,) = (tmp_path / "toy").iterdir()
    stored = file.read_bytes()
    assert b"x" in (fuzz.loaded(stored.decode()).of(9) if file.name.endswith(fuzz.SHAPE) else stored)


@pytest.mark.parametrize(("power", "steep"), [(1.0, False), (1.5, False), (1.7, True), (2.0, True)])
def test_what_is_steeper_than_allowed(monkeypatch: pytest.MonkeyPatch, power: float, steep: bool) -> None:
    monkeypatch.setattr(fuzz, "cpu_s", lambda kind, data: 1e-6 * len(data) ** power)
    found = fuzz.slope(kind_that(len), Shape(b"", b"x", b"", b"", b""))
    assert found
    assert (found[0] > fuzz.MAX_RATIO) == steep


def test_no_timer_is_left_that_would_end_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was left ended whichever test ran 20 CPU seconds later."""
    monkeypatch.setattr(fuzz, "STORED", tmp_path)

    def read(data: bytes) -> None:
        raise KeyError("x")

    search = fuzz.Search(kind_that(read), random.Random(0), tmp_path / "current")
    search.mutants(0.05)
    with pytest.raises(KeyError):
        fuzz.cpu_s(search.kind, b"abc")
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
