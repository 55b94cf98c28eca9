"""Folders as img2dataset 1.47 writes them, made by hand from its documented columns; other tools' tars."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.tars.img2dataset import FromImg2dataset
from vlpipe.stages.tars.samples import IMAGES
from vlpipe.stages.tars.tar_members import samples

STRINGS = ("caption", "url", "key", "status", "error_message")
SIZES = ("width", "height", "original_width", "original_height")
COLUMNS = pa.schema(
    [(name, pa.string()) for name in STRINGS]
    + [(name, pa.int32()) for name in SIZES]
    + [("exif", pa.string()), ("sha256", pa.string()), ("jpg", pa.binary())]
)


def record(n: int, image: bytes | None, **more: Any) -> dict[str, Any]:
    ok = image is not None
    row = dict.fromkeys(COLUMNS.names)
    return row | {
        "caption": f"caption {n}",
        "url": f"http://a.test/{n}.jpg",
        "key": f"{n:09d}",
        "status": "success" if ok else "failed_to_download",
        "error_message": None if ok else "HTTP Error 404: Not Found",
        "original_width": 640 if ok else None,
        "original_height": 480 if ok else None,
        "sha256": hashlib.sha256(b"as it was").hexdigest() if ok else None,
        "jpg": image,
        **more,
    }


def write_parquet(path: Path, records: list[dict[str, Any]], *, images: bool = True, group: int = 3) -> None:
    """img2dataset flushes every 100 rows; three here, so that there are several row groups."""
    table = pa.Table.from_pylist(records, COLUMNS)
    pq.write_table(table if images else table.drop_columns("jpg"), path, row_group_size=group)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


def read(folder: Path) -> Out:
    stage = FromImg2dataset(folder=File(path=str(folder)))
    rows = pa.concat_tables(stage.rows())
    out = run_map(stage, rows)
    assert out.table.schema.equals(IMAGES)
    return out


def codes(out: Out) -> list[str]:
    return [reject.why for reject in out.rejects]


@pytest.fixture
def records(picture: Callable[..., bytes]) -> list[dict[str, Any]]:
    made = [record(n, picture(seed=n)) for n in range(8)]
    made[1] = record(1, None)
    made[4] = record(4, None, error_message="<urlopen error timed out>")
    made[5] = record(5, None, status="failed_to_resize", error_message="Image decoding error")
    made[6]["jpg"] = made[6]["jpg"][:100]
    made[7]["caption"] = None
    return made


def test_parquet(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    write_parquet(tmp_path / "00000.parquet", records[:5])
    write_parquet(tmp_path / "00001.parquet", records[5:])
    (tmp_path / "00000_stats.json").write_text("{}")
    out = read(tmp_path)
    assert out.table["url"].to_pylist() == [records[n]["url"] for n in (0, 2, 3, 7)]
    assert out.table["image"].to_pylist() == [records[n]["jpg"] for n in (0, 2, 3, 7)]
    assert [[one["text"] for one in row] for row in out.table["texts"].to_pylist()] == [
        ["caption 0"],
        ["caption 2"],
        ["caption 3"],
        [],
    ]
    assert [(reject.why, reject.detail.partition(" (")[0]) for reject in out.rejects] == [
        ("http_404", "Not Found"),
        ("timeout", "<urlopen error timed out>"),
        ("not_an_image", "Image decoding error"),
        ("truncated", out.rejects[3].detail.partition(" (")[0]),
    ]
    row = out.table.drop_columns(["image", "texts", "id"]).to_pylist()[0]
    assert row == {
        "url": "http://a.test/0.jpg",
        "original_sha256": hashlib.sha256(b"as it was").hexdigest(),
        "original_width": 640,
        "original_height": 480,
        "sha256": hashlib.sha256(records[0]["jpg"]).hexdigest(),
        "format": "JPEG",
        "width": 20,
        "height": 12,
    }


def test_webdataset_has_the_same_rows_as_parquet(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "w").mkdir()
    write_parquet(tmp_path / "p" / "00000.parquet", records)
    write_parquet(tmp_path / "w" / "00000.parquet", records, images=False)
    members = {}
    for one in reversed(records):  # the order in the tar is that of arrival
        if one["jpg"] is not None:
            members[f"{one['key']}.txt"] = (one["caption"] or "").encode()
            members[f"{one['key']}.json"] = b"{}"
            members[f"{one['key']}.jpg"] = one["jpg"]
    write_tar(tmp_path / "w" / "00000.tar", members)
    from_parquet, from_tar = read(tmp_path / "p"), read(tmp_path / "w")
    assert from_tar.table.equals(from_parquet.table)
    assert from_tar.rejects == from_parquet.rejects


def test_a_success_that_was_never_written_is_a_reject(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """img2dataset counts a row as a success although writing it raised."""
    records = [record(n, picture(seed=n)) for n in range(3)]
    write_parquet(tmp_path / "00000.parquet", records, images=False)
    write_tar(tmp_path / "00000.tar", {"000000001.jpg": records[1]["jpg"]})
    out = read(tmp_path)
    assert out.table["url"].to_pylist() == ["http://a.test/1.jpg"]
    assert codes(out) == ["missing_image", "missing_image"]
    assert (
        out.rejects[0].detail == "img2dataset lists the image with status success, but it is not in 00000.tar"
    )
    records[0]["jpg"] = None
    (tmp_path / "00000.tar").unlink()
    write_parquet(tmp_path / "00000.parquet", records)
    assert codes(read(tmp_path)) == ["missing_image"]


def test_a_caption_column_that_became_binary(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """One byte that is not UTF-8 in a csv makes the column of that shard binary: one row is bad, not all."""
    table = pa.Table.from_pylist([record(n, picture(seed=n)) for n in range(3)], COLUMNS)
    captions = pa.array([b"fine", b"caf\xe9", "caf\u00e9".encode()])
    table = table.set_column(0, "caption", captions)
    pq.write_table(table, tmp_path / "00000.parquet")
    out = read(tmp_path)
    assert [row[0]["text"] for row in out.table["texts"].to_pylist()] == ["fine", "caf\u00e9"]
    assert [(reject.why, reject.detail) for reject in out.rejects] == [
        ("bad_text", "the caption is not UTF-8: unexpected end of data at byte 4")
    ]


def test_a_tar_cut_anywhere_is_an_error_that_names_it(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    path = tmp_path / "00000.tar"
    write_tar(path, {f"{n}.jpg": picture(seed=n) for n in range(3)})
    whole = path.read_bytes()
    end = samples(path)["2"]["jpg"]
    last_block = -(-(end.start + end.size) // 512) * 512
    for length in (0, 100, 512, 700, end.start - 100, end.start + 10, end.start + end.size - 1, last_block):
        path.write_bytes(whole[:length])
        with pytest.raises(VlpipeError, match=r"00000.tar is truncated"):
            read(tmp_path)
    path.write_bytes(
        whole[: end.start - 512] + b"\xff" * 512 + whole[end.start :]
    )  # a header that is no header
    with pytest.raises(VlpipeError, match=r"00000.tar is truncated"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has neither .parquet nor .tar files"),
        ({"0.parquet": b"PAR1"}, "0.parquet is truncated, or not a Parquet file"),
        ({"0.parquet": pa.table({"url": ["u"]})}, "0.parquet has no column(s) key, status"),
        (
            {"0.parquet": pa.table({"url": ["u"], "key": ["1"], "status": ["success"]})},
            "0.parquet has no image column, and there is no 0.tar beside it",
        ),
    ],
)
def test_other_folders(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            pq.write_table(content, tmp_path / name)
    with pytest.raises(VlpipeError) as caught:
        read(tmp_path)
    assert said in str(caught.value)


def test_a_tar_with_samples_its_parquet_file_does_not_list(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    write_parquet(tmp_path / "0.parquet", [record(0, picture())], images=False)
    write_tar(tmp_path / "0.tar", {"000000000.jpg": picture(), "7.jpg": picture()})
    with pytest.raises(
        VlpipeError,
        match=r"0.tar has 1 sample\(s\) that 0.parquet does not list, such as 7, so they are of different",
    ):
        read(tmp_path)


def test_tars_whose_parquet_files_were_left_behind(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    about = {"caption": "c", "url": "http://a.test/0", "status": "success", "original_width": 640}
    about |= {"original_height": 480, "sha256": hashlib.sha256(b"as it was").hexdigest()}
    members = {
        "0.jpg": picture(),
        "0.txt": b"c",
        "0.json": json.dumps(about).encode(),
        "1.jpg": picture(seed=1),
    }
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text('{"count": 9}')  # failed rows are in no tar
    out = read(tmp_path)
    assert not out.rejects
    first, second = out.table.to_pylist()
    assert (first["url"], first["original_width"], first["original_sha256"]) == (
        "http://a.test/0",
        640,
        about["sha256"],
    )
    assert (second["url"], second["texts"]) == ("00000.tar/1", [])


@pytest.mark.parametrize("output", ["parquet", "webdataset"])
def test_rows_that_img2dataset_counts_but_did_not_write(
    tmp_path: Path, picture: Callable[..., bytes], output: str
) -> None:
    """A date in an extra column, or one byte that is not UTF-8, and 1.47 writes an empty tar and Parquet file, and
    statistics of two successes.
    """
    for part, num in (("00000", 0), ("00001", 2)):
        made = [record(n, picture(seed=n)) for n in range(num)]
        write_parquet(tmp_path / f"{part}.parquet", made, images=output == "parquet")
        if output == "webdataset":
            write_tar(tmp_path / f"{part}.tar", {f"{one['key']}.jpg": one["jpg"] for one in made})
        (tmp_path / f"{part}_stats.json").write_text(json.dumps({"count": 2, "successes": 2}))
    (tmp_path / "manifest.json").write_text("[]")  # another tool's
    out = read(tmp_path)
    assert out.table.num_rows == 2
    assert [(reject.why, reject.detail) for reject in out.rejects] == [
        ("never_written", "00000_stats.json counts 2 rows, 00000.parquet has 0")
    ] * 2
    assert len({reject.id for reject in out.rejects}) == 2


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        (
            '{"count": 1}',
            "00000_stats.json counts 1 rows, but 00000.parquet has 2, so they are of different runs; ",
        ),
        ("[]", "00000_stats.json is not a statistics file of img2dataset"),
        *(
            (
                f'{{"count": {count}}}',
                "00000_stats.json is not a statistics file of img2dataset: `count` must be a whole number",
            )
            for count in ("10000000", '"5"', "null", "1e3", "NaN", "-1", "true", "[]")
        ),
        ('{"count": ' + "[" * 100_000, "00000_stats.json is not a statistics file of img2dataset"),
        ("{", "00000_stats.json is not a statistics file of img2dataset"),
    ],
)
def test_statistics_of_something_else(
    tmp_path: Path, picture: Callable[..., bytes], stats: str, said: str
) -> None:
    write_parquet(tmp_path / "00000.parquet", [record(n, picture(seed=n)) for n in range(2)])
    (tmp_path / "00000_stats.json").write_text(stats)
    with pytest.raises(VlpipeError) as caught:
        read(tmp_path)
    assert said in str(caught.value)


@pytest.mark.slow
def test_what_img2dataset_itself_writes(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """Two dead links of six; and the loss that the tests above make by hand: one byte of Latin-1 in a csv."""
    import img2dataset

    from vlpipe.stages.common.loopback import serving

    (tmp_path / "images").mkdir()
    for n in range(4):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(picture(seed=n))

    def run(name: str, lines: bytes, output: str) -> Out:
        (tmp_path / "list.csv").write_bytes(b"url,caption\n" + lines)
        img2dataset.download(
            url_list=str(tmp_path / "list.csv"),
            input_format="csv",
            url_col="url",
            caption_col="caption",
            output_folder=str(tmp_path / name),
            output_format=output,
            processes_count=1,
            thread_count=2,
        )
        return read(tmp_path / name)

    with serving({"127.0.0.1": str(tmp_path / "images")}) as ports:
        root = f"http://127.0.0.1:{ports['127.0.0.1']}"
        six = "".join(f"{root}/{n}.jpg,text {n}\n" for n in range(6)).encode()
        found = [run("parquet", six, "parquet"), run("webdataset", six, "webdataset")]
        latin = run("latin", f"{root}/0.jpg,caf\u00e9\n{root}/1.jpg,fine\n".encode("latin-1"), "webdataset")
    for out in found:
        texts = [row[0]["text"] for row in out.table["texts"].to_pylist()]
        assert sorted(texts) == [f"text {n}" for n in range(4)]
        assert codes(out) == ["http_404", "http_404"]
    assert latin.table.num_rows == 0
    assert codes(latin) == ["never_written", "never_written"]


def test_sizes_that_pandas_made_floats(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """A column of whole numbers with a null becomes a column of floats with NaN where pandas writes the file again."""
    rows = [record(0, picture()), record(1, None, original_width=float("nan"), original_height=float("nan"))]
    kinds = {"original_width": pa.float64(), "original_height": pa.float64()}
    schema = pa.schema([pa.field(f.name, kinds.get(f.name, f.type)) for f in COLUMNS])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "00000.parquet")
    out = read(tmp_path)
    assert out.table.select(["original_width", "original_height"]).to_pylist() == [
        {"original_width": 640, "original_height": 480}
    ]
    assert [one.why for one in out.rejects] == ["http_404"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([record(0, b"x")], COLUMNS)
    pq.write_table(table.append_column("caption", pa.array(["another"])), tmp_path / "00000.parquet")
    with pytest.raises(VlpipeError, match="has the column 'caption' 2 times; wanted one"):
        read(tmp_path)
