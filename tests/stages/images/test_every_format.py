"""Each accepted format goes from every reader through the exporter and back; what no reader can decode is not stored."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.pixels import decode, verify
from vlpipe.stages.export.webdataset import WriteWebdataset
from vlpipe.stages.fetching.images import FetchImages
from vlpipe.stages.formats.signatures import ENDINGS
from vlpipe.stages.images.check import Rules, check
from vlpipe.stages.images.resize import Resize
from vlpipe.stages.lists.captions import CaptionsJsonl
from vlpipe.stages.tars.tar_members import IMAGE_ENDINGS
from vlpipe.stages.tars.webdataset import FromWebdataset

Reader = Callable[..., Out]


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, body in files.items():
        (folder / name).write_bytes(body)


def fetched(folder: Path, files: dict[str, bytes], **more: Any) -> Out:
    write(folder / "images", files)
    lines = [f"http://pics.test/{name}\tpicture {name}\n" for name in files]
    (folder / "list.tsv").write_text("url\ttext\n" + "".join(lines))
    serve = {"pics.test": File(path=str(folder / "images"))}
    stage = FetchImages(list=ListFile(path=str(folder / "list.tsv")), serve=serve, **more)
    return run_map(stage, pa.concat_tables(stage.rows()))


def from_folder(folder: Path, files: dict[str, bytes], **more: Any) -> Out:
    write(folder / "images", files)
    lines = [json.dumps({"file": name, "captions": [f"picture {name}"]}) + "\n" for name in files]
    (folder / "list.jsonl").write_text("".join(lines))
    stage = CaptionsJsonl(
        captions=ListFile(path=str(folder / "list.jsonl")), images=File(path=str(folder / "images")), **more
    )
    return run_map(stage, pa.concat_tables(stage.rows()))


def from_tar(folder: Path, files: dict[str, bytes], **more: Any) -> Out:
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "0.tar", "w") as tar:
        for name, body in files.items():
            for member, data in ((name, body), (f"{name.partition('.')[0]}.txt", f"picture {name}".encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    stage = FromWebdataset(folder=File(path=str(folder / "tars")), **more)
    return run_map(stage, pa.concat_tables(stage.rows()))


READERS: list[Reader] = [fetched, from_folder, from_tar]


@pytest.mark.parametrize("read", READERS)
def test_every_accepted_format_comes_back_from_the_tars(read: Reader, tmp_path: Path) -> None:
    files = {f"{kind.lower()}.{ending}": encoded(kind) for kind, ending in ENDINGS.items()}
    out = read(tmp_path, files)
    assert out.rejects == []
    assert out.table["format"].to_pylist() == list(ENDINGS)
    got = run_gather(WriteWebdataset(), [dataset(tmp_path / "rows", out.table)], tmp_path / "export")
    assert got.rejects == []
    stage = FromWebdataset(folder=File(path=str(got.artifacts)))
    back = run_map(stage, pa.concat_tables(stage.rows()))
    assert back.rejects == []
    assert back.table["image"].to_pylist() == list(files.values())
    assert back.table["format"].to_pylist() == list(ENDINGS)


def test_readers_of_tars_know_every_ending_that_the_exporter_writes() -> None:
    assert set(ENDINGS.values()) <= IMAGE_ENDINGS
    assert {"jpeg", "mpo", "tiff"} <= IMAGE_ENDINGS


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
def test_damaged_jpegs_are_rejected_or_kept_as_asked(read: Reader, tmp_path: Path) -> None:
    whole = encoded("JPEG", size=(160, 120))
    at = whole.index(b"\xff\xda") + 2000
    files = {
        "whole.jpg": whole,
        "half.jpg": whole[:at] + b"\xff\xd9",
        "hole.jpg": whole[:at] + whole[at + 1024 :],
        "cut.jpg": whole[:at],
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    out = read(tmp_path / "a", files)
    assert out.table.num_rows == 1
    assert [one.why for one in out.rejects] == ["damaged", "damaged", "truncated"]
    assert {one.kind for one in out.rejects} == {"fault"}
    assert out.rejects[0].detail == "Corrupt JPEG data: premature end of data segment"
    kept = read(tmp_path / "b", files, damaged="keep")
    assert kept.table["image"].to_pylist() == list(files.values())[:3]
    assert [one.why for one in kept.rejects] == ["truncated"]


@pytest.mark.parametrize("read", READERS)
def test_what_cannot_be_decoded_later_is_not_stored(read: Reader, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(buffer, "TIFF")
    out = read(tmp_path, {"float.tif": buffer.getvalue(), "lab.tif": encoded("TIFF", "LAB")})
    assert out.table.num_rows == 0
    assert [one.why for one in out.rejects] == ["unsupported_pixels"] * 2


def mutants(data: bytes, num: int, rng: random.Random) -> list[bytes]:
    found = []
    for _ in range(num):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        found.append(bytes(bad[: rng.randrange(len(bad))] if rng.random() < 0.3 else bad))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDINGS)
def test_what_is_accepted_decodes_to_its_stated_size(kind: str) -> None:
    rng = random.Random(0)
    for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"):
        try:
            data = encoded(kind, mode)
        except (OSError, ValueError):  # the format has no such mode
            continue
        for bad in mutants(data, 60, rng):
            for damaged in ("reject", "keep"):
                try:
                    found = verify(bad, damaged=damaged, max_pixels=100_000)  # type: ignore[arg-type]
                except RowFault:
                    continue
                assert decode(bad).size == (found.width, found.height)


def test_a_limit_above_that_of_pillow_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for a small picture and a small limit of Pillow, which is 178,956,970 pixels otherwise."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        data = encoded(kind, size=(60, 50))
        for limit in (900, 2999):  # the same words on both sides of Pillow's limit
            with pytest.raises(
                RowFault, match=rf"^too_many_pixels: the image has 3000 pixels, the limit is {limit}$"
            ):
                verify(data, max_pixels=limit)
        assert verify(data, max_pixels=3000).width == 60
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        assert decode(data).size == (60, 50)  # stored under a higher limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)


def test_pillow_warns_of_nothing_on_the_terminal(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    (tmp_path / "odd.png").write_bytes(buffer.getvalue())
    code = (
        "import sys; from vlpipe.stages.common.pixels import decode; decode(open(sys.argv[1], 'rb').read())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "odd.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (Resize(size=256, only_if_bigger=False), (100_000, 1)),  # 25,600,000 x 256
        (Resize(size=256), (80_000, 300)),  # 68,267 x 256: more than a JPEG can be wide
        (Resize(size=256, format="webp"), (20_000, 300)),
    ],
)
def test_a_thin_image_that_resizing_makes_too_large_is_named(spec: Resize, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    with pytest.raises(
        RowFault, match=r"^too_many_pixels: the resized image would have \d+ x 256 pixels, the limits are "
    ):
        check(buffer.getvalue(), Rules(max_pixels=50_000_000, max_frames=10, resize=spec))
