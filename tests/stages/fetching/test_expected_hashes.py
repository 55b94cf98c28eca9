"""Content that is not what the list says is rejected, or kept and flagged."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
from threat_server import PLAIN, LocalImages

from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.fetching.columns import FETCHED, MATCHES


def threat(path: str) -> str:
    return f"http://threat.test{path}"


def test_expected_hashes(threats: Any, tmp_path: Path) -> None:
    body = PLAIN["/ok.jpg"][2]
    sha256, md5 = hashlib.sha256(body).hexdigest(), hashlib.md5(body).hexdigest()
    bad = "0" * 64
    hashes = [sha256, md5.upper(), bad, "", "beef", bad]
    paths = ["ok.jpg?1", "ok.jpg?2", "ok.jpg?3", "ok.jpg?4", "ok.jpg?5", "bomb.png"]
    lines = [f"{threat('/' + path)}\ttext\t{digest}\n" for path, digest in zip(paths, hashes, strict=True)]
    (tmp_path / "list.tsv").write_text("url\ttext\tdigest\n" + "".join(lines))
    stage = LocalImages(
        ports={"threat.test": threats.port}, list=ListFile(path=str(tmp_path / "list.tsv")), hash="digest"
    )
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert out.table["url"].to_pylist() == [threat("/ok.jpg?1"), threat("/ok.jpg?2")]
    assert out.table.schema.equals(FETCHED)
    assert [reject.why for reject in out.rejects] == [
        "hash_mismatch",
        "bad_hash",
        "bad_hash",
        "hash_mismatch",
    ]
    assert out.rejects[0].detail == f"the sha256 of the response is {sha256}, but the list says {bad}"
    assert out.rejects[1].detail == "'' is not an md5 (32) or sha256 (64 hexadecimal digits)"
    assert threats.asked == {"/ok.jpg": 3, "/bomb.png": 1}  # a row that cannot be checked is not asked for


def test_other_content_than_expected_may_be_flagged(threats: Any, tmp_path: Path) -> None:
    body = PLAIN["/ok.jpg"][2]
    hashes = [hashlib.sha256(body).hexdigest(), "0" * 64]
    lines = [f"{threat(f'/ok.jpg?{n}')}\ttext\t{digest}\n" for n, digest in enumerate(hashes)]
    (tmp_path / "list.tsv").write_text("url\ttext\tdigest\n" + "".join(lines))
    listed = {"list": ListFile(path=str(tmp_path / "list.tsv")), "on_hash_mismatch": "flag"}
    stage = LocalImages(ports={"threat.test": threats.port}, hash="digest", **listed)
    assert stage.schema(stage.row_schema()).equals(FETCHED.append(MATCHES))
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert out.table["hash_matches"].to_pylist() == [True, False]
    assert out.rejects == []
    assert LocalImages(ports={}, **listed).preflight() == [
        "on_hash_mismatch: flag needs `hash`, the column of expected digests"
    ]
