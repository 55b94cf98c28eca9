"""Files from image libraries' own test suites, crashes and bombs among them: a row or a reject for each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

# VmHWM, not ru_maxrss: that one starts from what the parent held when it forked.
# Runs alone, with little memory: a decoder that takes what a header promises would die here.
WORKER = """
import json, re, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (25, 25))
import pyarrow as pa
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.lists.captions import CaptionsJsonl
from vlpipe.stages.common.pixels import decode

stage = CaptionsJsonl(captions=ListFile(path=sys.argv[1]), images=File(path=sys.argv[2]))
out = run_map(stage, pa.concat_tables(stage.rows()))
sizes = []
for row in out.table.to_pylist():
    try:
        sizes.append(decode(row["image"]).size == (row["width"], row["height"]))
    except RowFault as fault:
        sizes.append(fault.why)
print(json.dumps({
    "kept": dict(zip(out.table["url"].to_pylist(), sizes)),
    "rejects": {reject.id: [reject.why, reject.detail] for reject in out.rejects},
    "peak_mb": int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024,
}))
"""


@pytest.mark.slow
def test_every_odd_file_is_a_row_or_a_reject(data: Callable[[str], Path], tmp_path: Path) -> None:
    root = data("odd_images")
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"file": name, "captions": []}) + "\n" for name in names)
    )
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(tmp_path / "list.jsonl"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found["kept"]) + len(found["rejects"]) == len(names)
    assert found["peak_mb"] < 512
    assert set(found["kept"].values()) == {True}
    codes = Counter(why for why, _ in found["rejects"].values())
    assert set(codes) <= {
        "empty",
        "not_an_image",
        "truncated",
        "broken",
        "too_many_pixels",
        "too_many_frames",
        "transparent",
        "unsupported_format",
        "unsupported_pixels",
    }
    assert codes["not_an_image"] < codes["unsupported_format"]  # most of the files are images
    assert not [detail for _, detail in found["rejects"].values() if "0x" in detail]  # no memory addresses


def test_what_pillow_could_read_of_the_web_formats_is_kept(
    data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The manifest says what Pillow made of each file; ours may refuse more only for a reason of ours."""
    from vlpipe.pipeline.errors import RowFault
    from vlpipe.stages.common.pixels import verify
    from vlpipe.stages.formats.signatures import FORMATS

    root = data("odd_images")
    refused = Counter()
    with open(root / "manifest.jsonl", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if line["status"] == "ok" and line["format"] in FORMATS:
                try:
                    verify((root / line["file"]).read_bytes())
                except RowFault as fault:
                    refused[fault.why] += 1
    assert set(refused) <= {"too_many_pixels", "too_many_frames", "transparent", "unsupported_pixels"}
