"""Runs img2dataset 1.47's Downloader on one batch of URLs in this process; fails unless each row comes back exactly once.

The official entry point `download()` needs the main thread, starts a logging process and continues after a failed shard;
the Downloader class does not. Its Resizer ignores EXIF orientation and clips 16 bits, so it receives upright 8-bit RGB.
https://github.com/rom1504/img2dataset
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.common.pixels import Damaged, verify_decode
from vlpipe.stages.images.check import Rules
from vlpipe.stages.tars.img2dataset_errors import UNKNOWN, typed
from vlpipe.stages.tars.samples import ORIGINAL

RELEASE = "1.47."  # Downloader, Resizer and the writers are not a public interface: other releases may differ
PIP_LINE = "pip install 'vlpipe[img2dataset]'"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a download. `Img2datasetFetch` has parameters of the same names, with defaults."""

    concurrency: int
    timeout_s: float  # for connecting, and between two bytes
    retries: int
    max_bytes: int
    max_pixels: int
    max_frames: int
    damaged: Damaged
    image_size: int | None
    resize_mode: str
    encode_format: str
    encode_quality: int
    user_agent_token: str | None
    disallowed_header_directives: tuple[str, ...]

    @property
    def rules(self) -> Rules:
        return Rules(max_pixels=self.max_pixels, max_frames=self.max_frames, damaged=self.damaged)


def missing(python: tuple[int, int] = sys.version_info[:2]) -> str | None:
    """Returns why img2dataset cannot be used here, or None if it can."""
    if python >= (3, 13):
        return (
            f"img2dataset {RELEASE}* needs Python below 3.13 (it imports imghdr), this is {python[0]}.{python[1]}; "
            "use fetching.images:FetchImages with engine: vlpipe"
        )
    try:
        version = importlib.metadata.version("img2dataset")
    except importlib.metadata.PackageNotFoundError:
        return f"img2dataset is not installed: {PIP_LINE}"
    if not version.startswith(RELEASE):
        return f"wanted img2dataset {RELEASE}*, {version} is installed: {PIP_LINE}"
    return None


@contextmanager
def loaded() -> Iterator[None]:
    """Imports img2dataset, and keeps it from redirecting stdout and stderr of this process until the context exits.

    Raises VlpipeError if img2dataset cannot be used.
    """
    if problem := missing():
        raise VlpipeError(problem)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import checks for updates online
    import img2dataset.resizer

    quiet = img2dataset.resizer.SuppressStdoutStderr
    # It redirects stdout and stderr of the whole process to /dev/null around each image, which would lose other logs.
    img2dataset.resizer.SuppressStdoutStderr = nullcontext
    try:
        yield
    finally:
        img2dataset.resizer.SuppressStdoutStderr = quiet


class Got(NamedTuple):
    """An image as returned by img2dataset. data: the encoded image, resized if `image_size` is set."""

    data: bytes
    original: dict[str, Any]  # values of ORIGINAL, if it was resized


def download(urls: Mapping[int, str], options: Options) -> dict[int, Got | RowFault]:
    """Fetches `urls` (row -> URL); returns row -> image or RowFault. Raises VlpipeError unless each row comes back once."""
    if not urls:
        return {}
    with tempfile.TemporaryDirectory(prefix="vlpipe-img2dataset-") as folder:
        table = _run(urls, options, folder)
    back = Counter(table["row"].to_pylist())
    if back != Counter(urls.keys()):
        lost = len(urls.keys() - back.keys())
        raise VlpipeError(
            f"img2dataset received {len(urls)} rows and returned {back.total()}; {lost} of them are missing "
            "(it prints the reason on stderr and continues); the whole shard is discarded"
        )
    return {row["row"]: _got(row, options) for row in table.to_pylist()}


def _run(urls: Mapping[int, str], options: Options, folder: str) -> pa.Table:
    """Runs one img2dataset shard in `folder`, from an Arrow file to a Parquet file; returns the table of the latter."""
    from img2dataset.downloader import Downloader
    from img2dataset.writer import ParquetSampleWriter

    given = pa.table({"url": list(urls.values()), "row": list(urls.keys())})
    with pa.ipc.new_file(f"{folder}/list.arrow", given.schema) as file:
        file.write_table(given)
    downloader = Downloader(
        sample_writer_class=ParquetSampleWriter,
        resizer=_resizer(options),
        thread_count=min(options.concurrency, len(urls)),
        save_caption=False,
        extract_exif=False,
        output_folder=folder,
        column_list=["url", "row"],
        timeout=options.timeout_s,
        number_sample_per_shard=len(urls),
        oom_shard_count=1,
        compute_hash="sha256" if options.image_size else None,
        verify_hash_type=None,
        encode_format=options.encode_format,
        retries=options.retries,
        user_agent_token=options.user_agent_token,
        disallowed_header_directives=list(options.disallowed_header_directives) or None,
    )
    downloader.download_shard(
        (0, f"{folder}/list.arrow")
    )  # `downloader(...)` would print an error and continue
    return pq.read_table(f"{folder}/0.parquet")


def _got(row: Mapping[str, Any], options: Options) -> Got | RowFault:
    if row["status"] == "failed_to_resize":  # set by `_resizer` below
        why, _, detail = row["error_message"].partition(": ")
        return RowFault(why, detail)
    if row["status"] != "success":
        return typed(row["error_message"])
    seen = (row.get("sha256"), row["original_width"], row["original_height"])
    return Got(row[options.encode_format], dict(zip([f.name for f in ORIGINAL], seen, strict=True)))


Sized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]


def _resizer(options: Options) -> Callable[..., Sized]:
    """Returns a replacement for img2dataset's Resizer: if `image_size` is set, it checks an image, then calls the Resizer.

    Otherwise it returns the bytes as they came, unless they exceed `max_bytes`. The Resizer ignores EXIF orientation and
    clips 16 bits, so it receives upright 8-bit RGB.
    """
    inner = _img2dataset_resizer(options) if options.image_size is not None else None

    def sized(data: bytes) -> Sized:
        if len(data) > options.max_bytes:
            raise RowFault("too_large", f"the response has more than {options.max_bytes} bytes (max_bytes)")
        if inner is None:
            return data, None, None, None, None, None
        _, image = verify_decode(
            data,
            lambda found: (found.width, found.height),
            max_pixels=options.max_pixels,
            max_frames=options.max_frames,
            damaged=options.damaged,
        )
        assert image is not None  # its size was asked for
        upright = io.BytesIO()
        image.save(upright, "BMP")
        upright.seek(0)
        done: Sized = inner(upright)
        if done[-1] is not None:
            raise RowFault(UNKNOWN, done[-1])
        return done

    def checked(stream: io.BytesIO, boxes: object = None) -> Sized:
        try:
            return sized(stream.read())
        except Exception as error:  # img2dataset would lose the row if this raised
            return None, None, None, None, None, str(row_fault(error, __name__))

    return checked


def _img2dataset_resizer(options: Options) -> Callable[[io.BytesIO], Sized]:
    from img2dataset.resizer import Resizer

    found: Callable[[io.BytesIO], Sized] = Resizer(
        image_size=options.image_size,
        resize_mode=options.resize_mode,
        resize_only_if_bigger=True,
        encode_quality=options.encode_quality,
        encode_format=options.encode_format,
    )
    return found
