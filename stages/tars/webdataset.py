"""Reads a folder of webdataset tars: for each key an image, and a text in KEY.txt or KEY.json.

No key is skipped silently: a key without an image, with several images, or without a text (unless `no_text: keep`) becomes
a reject.
https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.tars import tar_members
from vlpipe.stages.tars.samples import Sample, SampleFolder, caption, files_in

COMPRESSED = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True, kw_only=True)
class FromWebdataset(SampleFolder):
    """Rows of webdataset tars. folder: contains .tar files; other files in it are ignored.

    image: ending of the member to use if a key has several images (`left.jpg`). caption: key of the text in KEY.json,
    used if there is no KEY.txt; a list gives several texts. A KEY.txt that `export.webdataset` wrote with several texts
    gives these texts back, from `texts` in KEY.json. no_text: how to handle an image without text.
    key_ends: where a file name is split into key and ending; webdataset splits at the first dot, which merges
    `a.com_1.jpg` and `a.com_2.jpg` into one key. bad_tars: whether a tar that cannot be read (truncated, a name twice,
    links) stops the step or becomes one reject, `bad_tar`.
    The column `url` is that of KEY.json, else TAR/KEY. Codes: no_image, several_images, no_text, bad_text, bad_json,
    bad_tar, and those of `common.pixels`.
    """

    source: str = "webdataset"
    image: str | None = None
    caption: str = "caption"
    no_text: Literal["reject", "keep"] = "reject"
    key_ends: tar_members.KeyEnds = "first_dot"
    bad_tars: Literal["stop", "reject"] = "stop"

    NAME: ClassVar[str] = "ingest.webdataset:FromWebdataset"
    # 2: rejects damaged JPEGs, accepts ICO, names formats; several texts of KEY.txt, without BOM and
    # final line end
    VERSION: ClassVar[int] = 2

    def samples(self) -> Iterator[Sample]:
        for path in tars_in(Path(self.folder.path)):
            for sample in self._read(path):
                if not (sample.spoken or sample.why) and self.no_text == "reject":
                    yield sample._replace(why="no_text", detail=f"neither txt nor {self.caption!r} in json")
                else:
                    yield sample

    def _read(self, path: Path) -> Iterator[Sample]:
        try:
            yield from read_tar(path, image=self.image, caption_key=self.caption, key_ends=self.key_ends)
        except VlpipeError as error:  # raised before the first sample
            if self.bad_tars == "stop":
                raise
            detail = str(error).removeprefix(f"{path.parent}/")
            yield Sample(path.name, (), path.name, why="bad_tar", detail=detail)


def tars_in(folder: Path) -> list[Path]:
    """Returns the tars of a folder in order of name. Raises VlpipeError if there are none, or compressed ones."""
    files = files_in(folder)
    if packed := [path.name for path in files if path.name.endswith(COMPRESSED)]:
        raise VlpipeError(f"{folder} has compressed tars, such as {packed[0]}; decompress them to .tar first")
    found = [path for path in files if path.suffix == ".tar"]
    if not found:
        raise VlpipeError(f"the folder {folder} has no .tar files")
    return found


def read_tar(
    path: Path,
    *,
    image: str | None = None,
    caption_key: str = "caption",
    key_ends: tar_members.KeyEnds = "first_dot",
) -> Iterator[Sample]:
    """Yields all samples of a tar, in order. Raises VlpipeError, before the first one, if the tar cannot be read.

    image, caption_key, key_ends: as image, caption, key_ends of FromWebdataset.
    """
    for key, members in tar_members.samples(path, key_ends).items():
        about: Mapping[str, Any] = {}
        spoken: tuple[str, ...] = ()
        span, why = None, RowFault("")
        try:
            about = tar_members.read_json(path, members["json"]) if "json" in members else {}
            if "txt" in members:
                spoken = _texts(tar_members.read_text(path, members["txt"]), about)
            else:
                spoken = caption(about.get(caption_key))
            span = members[_image_of(members, image)]
        except RowFault as fault:
            why = fault
        yield Sample(
            _url(about, f"{path.name}/{key}"),
            spoken,
            path.name,
            span and span.start,
            span and span.size,
            why.why or None,
            why.detail or None,
            *original(about),
        )


def _texts(txt: bytes, about: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the text of KEY.txt, or those under `texts` in KEY.json if `export.webdataset` wrote KEY.txt from them."""
    entries = about.get("texts")
    if isinstance(entries, list) and len(entries) > 1:
        found = [one.get("text") for one in entries if isinstance(one, dict)]
        ours = [" ".join(one.split()) for one in found if isinstance(one, str)]
        if len(ours) == len(entries) and txt.decode("utf-8", "replace") == "\n".join(ours):
            return caption(found)
    return caption(txt)


def _image_of(members: Mapping[str, tar_members.Span], image: str | None) -> str:
    """Returns the ending of a sample's image; image: the one to use, if set. Raises RowFault: no_image, several_images."""
    if image is not None:
        if image.lower() not in members:  # endings are stored in lower case
            raise RowFault("no_image", f"the sample has no file .{image}, only {_list_text(members)}")
        return image.lower()
    found = tar_members.image_endings(members)
    if len(found) > 1:
        raise RowFault(
            "several_images", f"the sample has several images: {_list_text(found)}; choose one with `image`"
        )
    if not found:
        raise RowFault("no_image", f"the sample has no image, only {_list_text(members)}")
    return found[0]


def _list_text(endings: Iterable[str]) -> str:
    return _utf8(", ".join(ending or "a file without ending" for ending in sorted(endings)))[:300]


def _url(about: Mapping[str, Any], otherwise: str) -> str:
    url = about.get("url")
    found = url if isinstance(url, str) and url else otherwise
    return _utf8(found)


def _utf8(name: str) -> str:
    """Returns the name with bytes that are not UTF-8 escaped; names in a tar may be in any encoding."""
    return name.encode("utf-8", "backslashreplace").decode()


def original(about: Mapping[str, Any]) -> tuple[str | None, int | None, int | None]:
    """Returns the values of ORIGINAL that img2dataset writes into KEY.json; None if a value is not of that form."""
    sha256 = about.get("sha256")
    is_sha256 = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    return (
        sha256 if is_sha256 else None,
        _side(about.get("original_width")),
        _side(about.get("original_height")),
    )


def _side(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
