"""Read a folder of webdataset tars: an image, and a text beside it in KEY.txt or KEY.json, for each key.

Nothing is left out in silence: a key without image or text, or with several images, is a reject that says what it has.
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
    """folder: of .tar files; other files in it are not looked at.

    image: the member that is the image, where a key has several (`left.jpg`). caption: key of the text in KEY.json,
    read where there is no KEY.txt; a list gives several texts. no_text: what becomes of an image without.
    key_ends: where a file's name is parted into key and ending; webdataset parts it at the first dot, which joins
    `a.com_1.jpg` and `a.com_2.jpg`.
    url: that in KEY.json, else TAR/KEY. Codes: no_image, several_images, no_text, bad_text, bad_json, and those of
    `stages.pixels`.
    """

    source: str = "webdataset"
    image: str | None = None
    caption: str = "caption"
    no_text: Literal["reject", "keep"] = "reject"
    key_ends: tar_members.KeyEnds = "first_dot"

    NAME: ClassVar[str] = "ingest.webdataset:FromWebdataset"

    def samples(self) -> Iterator[Sample]:
        for path in tars_in(Path(self.folder.path)):
            for sample in read_tar(path, image=self.image, caption_key=self.caption, key_ends=self.key_ends):
                if not (sample.spoken or sample.why) and self.no_text == "reject":
                    yield sample._replace(why="no_text", detail=f"neither txt nor {self.caption!r} in json")
                else:
                    yield sample


def tars_in(folder: Path) -> list[Path]:
    """The tars of a folder, in order of name."""
    files = files_in(folder)
    if packed := [path.name for path in files if path.name.endswith(COMPRESSED)]:
        raise VlpipeError(f"{folder} has compressed tars, such as {packed[0]}; unpack them to .tar first")
    found = [path for path in files if path.suffix == ".tar"]
    if not found:
        raise VlpipeError(f"folder {folder} has no .tar files")
    return found


def read_tar(
    path: Path,
    *,
    image: str | None = None,
    caption_key: str = "caption",
    key_ends: tar_members.KeyEnds = "first_dot",
) -> Iterator[Sample]:
    """All samples of a tar."""
    for key, members in tar_members.samples(path, key_ends).items():
        about: Mapping[str, Any] = {}
        spoken: tuple[str, ...] = ()
        span, why = None, RowFault("")
        try:
            about = tar_members.read_json(path, members["json"]) if "json" in members else {}
            said = tar_members.read_span(path, members["txt"]) if "txt" in members else about.get(caption_key)
            spoken = caption(said)
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
            *_original(about),
        )


def _image_of(members: Mapping[str, tar_members.Span], image: str | None) -> str:
    """The ending of the image. RowFault: no_image, several_images."""
    if image is not None:
        if image.lower() not in members:  # endings are read in lower case
            raise RowFault("no_image", f"no {image}, only {_named(members)}")
        return image.lower()
    found = tar_members.image_endings(members)
    if len(found) > 1:
        raise RowFault("several_images", f"{_named(found)}; `image` says which one is meant")
    if not found:
        raise RowFault("no_image", f"only {_named(members)}")
    return found[0]


def _named(endings: Iterable[str]) -> str:
    return _utf8(", ".join(ending or "a file without ending" for ending in sorted(endings)))[:300]


def _url(about: Mapping[str, Any], otherwise: str) -> str:
    url = about.get("url")
    found = url if isinstance(url, str) and url else otherwise
    return _utf8(found)


def _utf8(name: str) -> str:
    """Names in a tar may be bytes of any encoding."""
    return name.encode("utf-8", "backslashreplace").decode()


def _original(about: Mapping[str, Any]) -> tuple[str | None, int | None, int | None]:
    """What img2dataset writes into KEY.json; null where another tool means something else by these names."""
    sha256 = about.get("sha256")
    is_sha256 = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    return (
        sha256 if is_sha256 else None,
        _side(about.get("original_width")),
        _side(about.get("original_height")),
    )


def _side(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
