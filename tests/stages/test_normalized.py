"""Unicode normalization in linear time gives what `unicodedata.normalize` gives."""

from __future__ import annotations

import random
import sys
import time
import unicodedata

import pytest

from vlpipe.stages.common.texts import LAST_MARK, normalized
from vlpipe.stages.text_dedup.forms import normal_form

BASES = "ae\u00e9\u00ea\u1e69\uac00\uac01\u1100\u1161\u11a8 \u0915\u09c7\u0b47\ufdfa\u1e9b\u1fb7\u2126\ufb01\u2460"


def marks() -> list[str]:
    """All characters that decompose into combining marks only."""
    chars = map(chr, range(sys.maxunicode + 1))
    return [one for one in chars if all(map(unicodedata.combining, unicodedata.normalize("NFKD", one)))]


def test_runs_of_marks_of_every_length() -> None:
    found, draw = marks(), random.Random(0)
    assert len(found) > 900
    assert max(found) < chr(LAST_MARK)
    for _ in range(3000):
        runs = [draw.choices(found, k=draw.choice([0, 1, 3, 29, 30, 31, 32, 60])) for _ in range(3)]
        text = "".join(draw.choice(BASES) * draw.randint(0, 2) + "".join(run) for run in runs)
        assert normalized("NFC", text) == unicodedata.normalize("NFC", text), ascii(text)
        assert normalized("NFKC", text) == unicodedata.normalize("NFKC", text), ascii(text)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "part", ["\u0301\u0327", "\u0327\u0301", "\u0344\u0316", "\uff9e\u0301", "\u1e69\u0323", "\u0345"]
)
def test_a_megabyte_of_marks(part: str) -> None:
    """80,000 in alternating order took 3 s, and a million 9 minutes."""
    began = time.process_time()
    normal_form("a" + part * (500_000 // len(part)))
    assert time.process_time() - began < 20
