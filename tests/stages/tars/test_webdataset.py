"""Folders of webdataset tars as several tools write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.lists.text_limit import TextLimit
from vlpipe.stages.tars.samples import IMAGES
from vlpipe.stages.tars.tar_members import samples
from vlpipe.stages.tars.webdataset import FromWebdataset


def write_tar(path: Path, members: Mapping[str, bytes], **more: Any) -> None:
    with tarfile.open(path, "w", **more) as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


def read(folder: Path, **more: Any) -> Out:
    stage = FromWebdataset(folder=File(path=str(folder)), **more)
    out = run_map(stage, pa.concat_tables(stage.rows()))
    assert out.table.schema.equals(IMAGES)
    return out


def said(out: Out) -> list[list[str]]:
    return [[one["text"] for one in texts] for texts in out.table["texts"].to_pylist()]


def test_each_key_is_a_row_or_a_reject(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    members = {
        "./d.e/a.jpg": picture(seed=1),  # a dot in a folder is none of the key's
        "./d.e/a.txt": "caf\u00e9".encode(),
        "b.x.json": b"{}",
        "b.json": json.dumps({"caption": "from json", "url": "http://a.test/b"}).encode(),
        "b.PNG": picture("PNG", seed=2),
        "c.mp4": b"video",
        "d.jpg": picture(seed=3),
        "d.txt": b"\xff",
        "e.webp": picture("WEBP"),
        "f.txt": b"nothing to see",
        "g.jpg": picture(),
        "g.json": b"[1]",
        "h.jpg": picture(),
        "h.png": picture("PNG"),
        "i.jpg": picture(),
        "i.json": json.dumps({"caption": {"en": "x"}}).encode(),
        "j.jpg": picture(),
        "j.json": b'{"caption": "\\ud800", "url": 5}',
        "k.jpg": b"<html>",
        "k.txt": b"k",
        "README": b"what this is",
    }
    write_tar(tmp_path / "x.tar", members)
    out = read(tmp_path)
    assert out.table["url"].to_pylist() == ["x.tar/d.e/a", "http://a.test/b"]
    assert said(out) == [["caf\u00e9"], ["from json"]]
    assert [(reject.why, reject.detail.partition(";")[0]) for reject in out.rejects] == [
        ("no_image", "the sample has no image, only mp4"),
        ("bad_text", "the caption is not UTF-8: invalid start byte at byte 1"),
        ("no_text", "neither txt nor 'caption' in json"),
        ("no_image", "the sample has no image, only txt"),
        ("bad_json", "the .json file must contain an object, but contains a list"),
        ("several_images", "the sample has several images: jpg, png"),
        ("bad_text", "the caption must be text, but is dict"),
        ("bad_text", "the caption has an unpaired surrogate (half a character)"),
        ("not_an_image", "the file looks like HTML"),
        ("no_image", "the sample has no image, only a file without ending"),
    ]
    kept = read(tmp_path, no_text="keep")
    assert said(kept) == [["caf\u00e9"], ["from json"], []]


def test_names_that_are_not_utf8_and_sizes_that_are_none(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    odd = {"sha256": "\ud800" * 64, "original_width": True, "original_height": -(2**40)}
    members = {
        "a.\udcff": b"x",
        "b\udcff.jpg": picture(),
        "b\udcff.txt": b"b",
        "c.jpg": picture(),
        "c.json": json.dumps({"caption": "c", **odd}).encode(),
    }
    write_tar(tmp_path / "x.tar", members, encoding="utf-8", errors="surrogateescape")
    out = read(tmp_path)
    assert out.table["url"].to_pylist() == ["x.tar/b\\udcff", "x.tar/c"]
    assert [(one.why, one.detail) for one in out.rejects] == [
        ("no_image", "the sample has no image, only \\udcff")
    ]
    assert [out.table[n].null_count for n in ("original_sha256", "original_width", "original_height")] == [
        2
    ] * 3


def test_parameters(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    about = json.dumps({"captions": ["one", "", "two"]}).encode()
    write_tar(tmp_path / "x.tar", {"a.left.jpg": picture(), "a.right.jpg": picture(), "a.json": about})
    assert [reject.why for reject in read(tmp_path).rejects] == ["no_image"]
    out = read(tmp_path, image="Right.JPG", caption="captions", text_source="human")
    assert said(out) == [["one", "two"]]
    assert out.table["texts"][0][0]["source"].as_py() == "human"
    assert (
        read(tmp_path, image="up.jpg").rejects[0].detail
        == "the sample has no file .up.jpg, only json, left.jpg, right.jpg"
    )


def test_keys_with_dots(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    members: dict[str, bytes] = {}
    for n in range(2):
        members |= {f"a.com_{n}.jpg": picture(seed=n), f"a.com_{n}.txt": f"text {n}".encode()}
    write_tar(tmp_path / "x.tar", members)
    assert [reject.detail for reject in read(tmp_path).rejects] == [
        "the sample has no image, only com_0.jpg, com_0.txt, com_1.jpg, com_1.txt"
    ]
    out = read(tmp_path, key_ends="last_dot")
    assert out.table["url"].to_pylist() == ["x.tar/a.com_0", "x.tar/a.com_1"]
    assert said(out) == [["text 0"], ["text 1"]]


def test_long_names_and_order_of_tars(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    long = "k" * 200
    write_tar(tmp_path / "1.tar", {f"{long}.jpg": picture(), f"{long}.txt": b"1"}, format=tarfile.PAX_FORMAT)
    write_tar(tmp_path / "0.tar", {f"{long}.jpg": picture(), f"{long}.txt": b"0"}, format=tarfile.GNU_FORMAT)
    (tmp_path / "0.json").write_text("of some other tool")
    out = read(tmp_path)
    assert out.table["url"].to_pylist() == [f"0.tar/{long}", f"1.tar/{long}"]
    assert len(set(out.table["id"].to_pylist())) == 2


def test_what_cannot_be_read_is_named(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    with pytest.raises(VlpipeError, match=r"folder .* has no .tar files$"):
        read(tmp_path)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(
        VlpipeError, match=r"0.tar: a.jpg is a link or another special file; pack it as a plain file$"
    ):
        read(tmp_path)
    write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "./a.JPG": picture()})
    with pytest.raises(
        VlpipeError,
        match=r"0.tar: ./a.JPG is the second member with key .a. and ending .jpg.; remove or rename one$",
    ):
        read(tmp_path)
    (tmp_path / "1.tar.gz").write_bytes(b"")
    with pytest.raises(
        VlpipeError, match=r"has compressed tars, such as 1.tar.gz; decompress them to .tar first$"
    ):
        read(tmp_path)


def test_real_tars(data: Callable[[str], Path], tmp_path: Path) -> None:
    """Of clip-retrieval and NeMo (images only), webdataset (tensors, msgpack, packed text) and video2dataset."""
    real = {path.name: path for path in data("webdataset").glob("*.tar")}
    for name, path in real.items():
        (tmp_path / name).symlink_to(path)
    out = read(tmp_path, no_text="keep")
    images = [name for name in real if name.startswith(("clip_", "nemo_"))]
    assert out.table.num_rows == sum(len(samples(real[name])) for name in images) == 12
    assert {reject.why for reject in out.rejects} == {"no_image"}
    assert out.table.num_rows + len(out.rejects) == sum(len(samples(path)) for path in real.values())
    assert {reject.why for reject in read(tmp_path).rejects} == {"no_image", "no_text"}
    (tmp_path / "sample.tgz").symlink_to(data("webdataset") / "sample.tgz")
    with pytest.raises(VlpipeError, match=r"such as sample.tgz; decompress"):
        read(tmp_path)


def test_text_files_without_mark_and_line_end(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    members = {
        "a.jpg": picture(seed=1),
        "a.txt": b"\xef\xbb\xbfone\r\n",
        "b.jpg": picture(seed=2),
        "b.json": b'\xef\xbb\xbf{"caption": "two"}',
        "c.jpg": picture(seed=3),
        "c.json": b'{"caption": [NaN, "three"]}',
        "._a.jpg": b"\x00\x05\x16\x07 attributes",
        "d/._b.txt": b"\x00\x05\x16\x07 attributes",
        "e.jpg": picture(seed=4),
        "e.json": b'{"caption": "good", "caption": "WRONG"}',
    }
    write_tar(tmp_path / "x.tar", members)
    out = read(tmp_path)
    assert said(out) == [["one"], ["two"], ["three"]]
    assert [(one.why, one.detail) for one in out.rejects] == [
        ("bad_json", "the .json file is not valid JSON: an object has the key 'caption' 2 times")
    ]


def test_several_lines_are_one_text_unless_the_json_says_otherwise(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    entries = [{"text": "one"}, {"text": "two\nlines "}]
    members: dict[str, bytes] = {}
    cases = {
        "a": (b"one\ntwo lines", {"texts": entries}),
        "b": (b"one\ntwo lines", {}),
        "c": (b"one\nchanged later", {"texts": entries}),
        "d": (b"one\ntwo lines", {"texts": ["one", "two lines"]}),
    }
    for key, (txt, about) in cases.items():
        members |= {f"{key}.jpg": picture(), f"{key}.txt": txt, f"{key}.json": json.dumps(about).encode()}
    write_tar(tmp_path / "x.tar", members)
    assert said(read(tmp_path)) == [
        ["one", "two\nlines "],
        ["one\ntwo lines"],
        ["one\nchanged later"],
        ["one\ntwo lines"],
    ]


def test_a_bad_tar_is_one_reject(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", {"a.jpg": picture(seed=n), "a.txt": f"{n}".encode()})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    with tarfile.open(tmp_path / "3.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("0001.jpg"), io.BytesIO())
    with pytest.raises(VlpipeError, match=r"0.tar is truncated"):
        read(tmp_path)
    out = read(tmp_path, bad_tars="reject")
    assert said(out) == [["1"], ["2"]]
    assert [one.why for one in out.rejects] == ["bad_tar", "bad_tar"]
    assert out.rejects[0].detail.startswith("0.tar is truncated")
    assert out.rejects[1].detail.startswith("3.tar: 0001.jpg is the second member with key '0001'")


def test_a_text_has_a_maximum_length(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": picture(), "a.txt": b"0123456789"})
    entry = read(tmp_path, text_limit=TextLimit(max_chars=4)).table["texts"][0][0].as_py()
    assert (entry["text"], entry["kept"], entry["why"]) == ("0123", False, "too_long")
