"""Pictures above Pillow's own limit are opened in several threads at once, where the stage's limit allows them."""

from __future__ import annotations

import io
import sys
import threading
from collections import Counter

import pytest
from PIL import Image

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.formats.opening import opened


def test_threads_do_not_refuse_what_one_would_open(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("1", (200, 200)).save(buffer, "PNG")
    data, found = buffer.getvalue(), list[str]()

    def look(barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            with opened(data, None) as image:
                found.append(f"{image.width} wide")
        except RowFault as fault:
            found.append(f"{fault.why}: {fault.detail}")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for _ in range(200):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # each round begins as a fresh process does
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=look, args=(barrier,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.setswitchinterval(before)
    assert Counter(found) == {"200 wide": 1600}
