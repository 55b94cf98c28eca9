"""img2dataset as the engine, over the loopback."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.engine.worker.guard import is_nobodys
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.inspect.opted_out import hash_of_url, read_hashes
from vlpipe.pipeline.parquet.text_sets import to_hex
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.shard import Out, heavy_names
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.fetching.earlier_opt_outs import ALONE, recalling
from vlpipe.stages.fetching.images import FETCHED, FetchImages
from vlpipe.stages.fetching.img2dataset import Img2datasetFetch, columns_out, engine
from vlpipe.stages.fetching.img2dataset_download import Options, download, missing
from vlpipe.stages.fetching.precheck import allowed
from vlpipe.stages.images.resize import Resize
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.tars.img2dataset_errors import typed
from vlpipe.stages.web.opted_out import OptedOut
from vlpipe.stages.web.politeness import HostGate

HOST = "threat.test"
needs_it = pytest.mark.skipif(sys.version_info >= (3, 13), reason=str(missing()))


def options(**more: Any) -> Options:
    values: dict[str, Any] = {
        "concurrency": 8,
        "timeout_s": 0.5,
        "retries": 0,
        "max_bytes": 1_000_000,
        "max_pixels": 50_000,
        "max_frames": 10,
        "damaged": "reject",
        "image_size": None,
        "resize_mode": "keep_ratio_largest",
        "encode_format": "jpg",
        "encode_quality": 95,
        "user_agent_token": None,
        "disallowed_header_directives": ("noai",),
    }
    return Options(**{**values, **more})


def rows_of(urls: list[str]) -> pa.Table:
    return pa.concat_tables(
        listed(iter([Pair(url, "a text") for url in urls]), source="web", text_source="web")
    )


def fetch(urls: list[str], port: int, **more: Any) -> Out:
    with engine(options(**more), {HOST: port}) as work:
        out = work(rows_of(urls))
    assert isinstance(out, Out)
    assert out.table.num_rows + len(out.rejects) == len(urls)
    return out


@pytest.mark.slow
@needs_it
def test_what_goes_wrong_has_the_codes_of_our_fetcher(threats: Any) -> None:
    wanted = {
        "/missing": ("http_404", "Not Found"),
        "/gone": ("http_410", "Gone"),
        "/busy": ("http_429", "Too Many Requests"),
        "/broken": ("http_500", "Internal Server Error"),
        "/loop": ("too_many_redirects", None),
        "/to-file": ("bad_url", None),
        "/silent": ("timeout", None),
        "/stalled": ("timeout", None),
        "/hangs-up": ("disconnected", None),
        "/html.jpg": ("not_an_image", None),
        "/truncated.jpg": ("truncated", None),
        "/empty": ("empty", "the file has 0 bytes"),
        "/bomb.png": ("too_many_pixels", None),
        "/animation.gif": ("too_many_frames", None),
        "/endless": ("too_large", "the response has more than 1000000 bytes (max_bytes)"),
        "/garbage": ("img2dataset_error", "what is http"),
    }
    urls = [f"http://{HOST}{path}" for path in wanted]
    out = fetch([*urls, f"http://{HOST}/ok.jpg"], threats.port)
    assert out.table["url"].to_pylist() == [f"http://{HOST}/ok.jpg"]
    assert [(url, reject.why) for url, reject in zip(urls, out.rejects, strict=True)] == [
        (url, why) for url, (why, _) in zip(urls, wanted.values(), strict=True)
    ]
    for reject, (_, detail) in zip(out.rejects, wanted.values(), strict=True):
        assert detail is None or reject.detail == detail


@pytest.mark.slow
@needs_it
def test_who_said_no_is_asked_by_no_later_run(threats: Any, tmp_path: Path) -> None:
    urls = [f"http://{HOST}/no-ai", f"http://{HOST}/ok.jpg"]
    for _ in range(2):
        run = Services()
        gate = run.address("x", lambda run: HostGate(ALONE, run.once(OptedOut)), Store(str(tmp_path)))
        with engine(options(), {HOST: threats.port}, gate) as work:
            out = work(rows_of(urls))
        run.close()
        assert isinstance(out, Out)
        assert [(r.kind, r.why) for r in out.rejects] == [("filtered", "opt_out")]
        assert "X-Robots-Tag" in out.rejects[0].detail
    assert threats.asked == {"/no-ai": 1, "/ok.jpg": 2}


def test_recall_without_img2dataset(tmp_path: Path) -> None:
    run = Services()
    gate = run.address("x", lambda run: HostGate(ALONE, run.once(OptedOut)), Store(str(tmp_path)))
    no, yes = "http://a.test/x#y", "http://a.test/y"
    with recalling(gate) as one, recalling(gate) as other:
        assert one.check([no, yes, "no url"]) == [None, None, None]
        one.note({no: "X-Robots-Tag: noai"})
        found = other.check([yes, no])
    run.close()
    assert found[0] is None
    assert str(found[1]) == "opt_out: X-Robots-Tag: noai"
    assert to_hex(read_hashes(Store(str(tmp_path)))).to_pylist() == [hash_of_url(no)]


@needs_it
def test_nobody_inside_is_asked(threats: Any, decoy: Any) -> None:
    here = [f"http://127.0.0.1:{decoy.port}/ok.jpg", f"http://localhost:{decoy.port}/ok.jpg"]
    odd = [
        "file:///etc/passwd",
        "data:image/gif;base64,R0lGOD",
        "ftp://threat.test/x",
        "",
        f"http://me:pw@{HOST}/",
    ]
    out = fetch([*here, "http://169.254.169.254/", "http://[::ffff:127.0.0.1]/", *odd], threats.port)
    assert [reject.why for reject in out.rejects] == ["forbidden_address"] * 4 + [
        "bad_url",
        "bad_url",
        "bad_url",
        "no_url",
        "bad_url",
    ]
    assert not decoy.asked


@needs_it
def test_a_redirect_is_followed_unchecked(threats: Any, decoy: Any) -> None:
    """What the module says is not held: choose `fetching.images` where it matters."""
    fetch([f"http://{HOST}/to-decoy"], threats.port)
    assert decoy.asked["/x"] == 1


def test_urls_are_judged_without_img2dataset() -> None:
    got = allowed([f"https://{HOST}/a b?q#f", "http://10.1.2.3/", "gopher://x/"], {HOST: 81}, 4)
    assert got[0] == "http://127.0.0.1:81/a%20b?q"
    assert [fault.why for fault in got[1:] if isinstance(fault, RowFault)] == ["forbidden_address", "bad_url"]


@pytest.fixture
def stages(tmp_path: Path, picture: Callable[..., bytes]) -> tuple[Img2datasetFetch, FetchImages]:
    (tmp_path / "images").mkdir()
    for n in range(6):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(picture(seed=n))
    (tmp_path / "images" / "cut.jpg").write_bytes(picture(seed=1)[:-300])
    names = ["0.jpg", "gone.jpg", "1.jpg", "cut.jpg", "2.jpg", "0.jpg", "3.jpg"]
    lines = "".join(f"http://demo.test/{name}\ttext {n}\n" for n, name in enumerate(names))
    (tmp_path / "list.tsv").write_text("url\ttext\n" + lines + "\tno url\n")
    more: dict[str, Any] = {
        "list": ListFile(path=str(tmp_path / "list.tsv")),
        "serve": {"demo.test": File(path=str(tmp_path / "images"))},
    }
    return Img2datasetFetch(**more), FetchImages(**more)


@pytest.mark.slow
@needs_it
def test_the_same_rows_and_rejects_as_our_own_fetcher(
    stages: tuple[Img2datasetFetch, FetchImages], capfd: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = stages
    rows = pa.concat_tables(theirs.rows())
    assert rows.equals(pa.concat_tables(ours.rows()))
    assert theirs.preflight() == []
    assert theirs.schema(theirs.row_schema()) == FETCHED
    found, wanted = run_map(theirs, rows), run_map(ours, rows)
    unknown = ["http_status", "final_url"]
    assert found.table.drop_columns(unknown).equals(wanted.table.drop_columns(unknown))
    assert found.rejects == wanted.rejects
    assert found.table["http_status"].null_count == found.table.num_rows == 5
    again = run_map(theirs, rows)
    assert again.table.equals(found.table)
    assert run_map(theirs, rows.slice(0, 0)).table.schema == FETCHED
    assert "failed" not in capfd.readouterr().out


@needs_it
@pytest.mark.parametrize("size", [None, 10])
def test_the_key_engine_is_that_stage(stages: tuple[Img2datasetFetch, FetchImages], size: int | None) -> None:
    theirs, ours = stages
    keyed = replace(ours, engine="img2dataset", resize=None if size is None else Resize(size=size))
    theirs = replace(theirs, image_size=size, resize_mode="keep_ratio")
    rows = pa.concat_tables(keyed.rows())
    assert keyed.preflight() == []
    assert keyed.schema(keyed.row_schema()) == theirs.schema(theirs.row_schema())
    found, wanted = run_map(keyed, rows), run_map(theirs, rows)
    assert found.table.equals(wanted.table)
    assert found.rejects == wanted.rejects


def test_what_the_engine_cannot_keep_to_stops_the_plan(stages: tuple[Img2datasetFetch, FetchImages]) -> None:
    asked = {"hash": "text", "robots": "obey", "host_interval_s": 1.0, "resize": Resize(only_if_bigger=False)}
    problems = replace(stages[1], engine="img2dataset", **asked).preflight()
    assert [problem.split("`")[1] for problem in problems if "does not support" in problem] == [
        "hash",
        "host_interval_s",
        "robots",
        "resize.only_if_bigger: false",
    ]
    assert "leave it out, or use engine: vlpipe" in problems[0]


@needs_it
def test_resized_images_are_upright_and_their_bits_scaled(tmp_path: Path, threats: Any) -> None:
    """img2dataset by itself drops the EXIF orientation, and clips 16 bits to white."""
    grey = np.full((40, 80), 32768, np.uint16)
    left = np.zeros((40, 80, 3), np.uint8)
    left[:, :40] = (255, 0, 0)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(grey).save(folder / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(left).save(folder / "turned.jpg", exif=exif, quality=95)
    stage = Img2datasetFetch(
        list=ListFile(), serve={"demo.test": File(path=str(folder))}, image_size=20, encode_format="png",
        encode_quality=1,
    )  # fmt: skip
    out = run_map(stage, rows_of(["http://demo.test/grey16.png", "http://demo.test/turned.jpg"]))
    assert out.table.schema == columns_out(resized=True)
    assert heavy_names(out.table.schema) == ["image"]
    row, turned = out.table.to_pylist()
    assert (row["original_width"], row["original_height"], row["width"], row["height"]) == (80, 40, 20, 10)
    assert row["original_sha256"] == hashlib.sha256((folder / "grey16.png").read_bytes()).hexdigest()
    assert np.asarray(decode(row["image"])).mean() == pytest.approx(128, abs=1)
    assert (turned["original_width"], turned["width"], turned["height"]) == (40, 10, 20)
    pixels = np.asarray(decode(turned["image"]))
    assert pixels[2, 5, 0] > 200
    assert pixels[-3, 5, 0] < 50  # what was left is now on top


@needs_it
def test_a_row_that_does_not_come_back_fails_the_shard(threats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.47 prints any error while a sample is written, and goes on without the row."""
    from img2dataset.writer import ParquetSampleWriter

    write = ParquetSampleWriter.write

    def broken(self: Any, image: Any, key: str, caption: Any, meta: Any) -> None:
        if key.endswith("1"):
            raise TypeError("no date is JSON")
        write(self, image, key, caption, meta)

    monkeypatch.setattr(ParquetSampleWriter, "write", broken)
    urls = [f"http://127.0.0.1:{threats.port}/ok.jpg"] * 3
    with pytest.raises(VlpipeError, match="received 3 rows and returned 2; 1 of them are missing") as caught:
        download(dict(enumerate(urls)), options())
    assert is_nobodys(caught.value)


@needs_it
def test_it_leaves_nothing_and_silences_nobody(
    threats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import img2dataset.resizer

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = img2dataset.resizer.SuppressStdoutStderr
    threads, files = threading.enumerate(), len(os.listdir("/proc/self/fd"))
    stop = threading.Event()
    said = 0

    def talk() -> None:
        nonlocal said
        while not stop.wait(0.0005):
            os.write(1, b".")
            said += 1

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        out = fetch([f"http://{HOST}/ok.jpg?{n}" for n in range(40)], threats.port, image_size=8)
    finally:
        stop.set()
        talker.join()
    assert out.table.num_rows == 40
    assert capfd.readouterr().out.count(".") == said > 0
    assert img2dataset.resizer.SuppressStdoutStderr is before
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t not in threads]
    assert len(os.listdir("/proc/self/fd")) <= files + 2


@needs_it
def test_off_the_main_thread(stages: tuple[Img2datasetFetch, FetchImages]) -> None:
    """Where a Ray actor with several threads runs its methods; img2dataset's own `download()` refuses that."""
    found: list[Out] = []
    theirs, _ = stages
    rows = pa.concat_tables(theirs.rows())
    thread = threading.Thread(target=lambda: found.append(run_map(theirs, rows)))
    thread.start()
    thread.join()
    assert found[0].table.num_rows == 5


def test_without_it_the_plan_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (tmp_path / "list.tsv").write_text("url\ttext\n")
    stage = Img2datasetFetch(list=ListFile(path=str(tmp_path / "list.tsv")))
    if sys.version_info < (3, 13):
        assert stage.preflight() == ["img2dataset is not installed: pip install 'vlpipe[img2dataset]'"]
    with pytest.raises(VlpipeError, match=r"img2dataset"), stage.open():
        pass


def test_newer_pythons_are_told_so() -> None:
    assert missing((3, 13)) == (
        "img2dataset 1.47.* needs Python below 3.13 (it imports imghdr), this is 3.13; "
        "use fetching.images:FetchImages with engine: vlpipe"
    )


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("HTTP Error 403: Forbidden", "http_403"),
        ("<urlopen error timed out>", "timeout"),
        ("<urlopen error _ssl.c:983: The handshake operation timed out>", "timeout"),
        ("HTTP Error 504: Gateway Timeout", "http_504"),
        ("HTTP Error 408: Request Timeout", "http_408"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)>", "tls"),
        ("HTTP Error 526: Invalid SSL certificate", "http_526"),
        ("<urlopen error [Errno 111] Connection refused>", "connect"),
        ("IncompleteRead(100 bytes read, 900 more expected)", "disconnected"),
        ("hash mismatch", "hash_mismatch"),
        ("image area too large", "too_many_pixels"),
        ("something new", "img2dataset_error"),
        (None, "img2dataset_error"),
    ],
)
def test_error_texts(message: str | None, why: str) -> None:
    assert typed(message).why == why
