"""Human captions in the JSON of COCO, of Karpathy's splits, or of BLIP: one row per image with all its captions.

COCO: https://cocodataset.org/#format-data, {images: [{id, file_name, coco_url}], annotations: [{image_id, caption}]}.
Karpathy: https://cs.stanford.edu/people/karpathy/deepimagesent/,
{images: [{filename, filepath, split, sentences: [{raw}]}]}.
NoCaps: https://nocaps.org, COCO's form with a domain of each image.
BLIP: https://github.com/salesforce/BLIP, [{image, caption}]; `caption` is a list in the files for evaluation
(coco_karpathy_test.json), else each image is listed once per caption (coco_karpathy_train.json).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted
from vlpipe.stages.lists.json_values import id_of, load_json
from vlpipe.stages.lists.list import texts_of


@dataclass(frozen=True, kw_only=True)
class CocoCaptions(FolderSource):
    """Images with human captions. annotations: JSON in the form of COCO (captions_train2014.json), Karpathy
    (dataset_coco.json) or BLIP (coco_karpathy_train.json); images: the folder of the file names in it.

    split: of Karpathy's JSON, which has no default: BLIP trains on `[train, restval]` and is evaluated on `[test]`.
    """

    annotations: ListFile
    split: tuple[str, ...] = ()
    source: str = "coco"

    NAME: ClassVar[str] = "ingest.coco:CocoCaptions"
    VERSION: ClassVar[int] = FolderSource.VERSION + 1  # captions have no space or line end at their ends

    def preflight(self) -> list[str]:
        if self.annotations.step is None and not self.split and _has_splits(self.annotations.path):
            next(read_captions(self.annotations.path, "file_name"), None)  # raises: it names the splits
        return []

    def rows(self) -> Iterator[pa.Table]:
        images = read_captions(self.annotations.path, "file_name", self.split)
        yield from captioned_rows(images, source=self.source, text_source="human", limit=self.text_limit)


@dataclass(frozen=True, kw_only=True)
class NocapsCaptions(FolderSource):
    """NoCaps' images with their captions, and the columns `image_number`, the id in its files, and `domain`: in-domain,
    near-domain or out-domain.

    annotations: nocaps_val_4500_captions.json; or nocaps_test_image_info.json, which has no captions and no domains: rows
    without texts, whose domain is null. Agrawal et al. 2019, https://arxiv.org/abs/1812.08658.
    """

    annotations: ListFile
    source: str = "nocaps"

    NAME: ClassVar[str] = "lists.coco:NocapsCaptions"
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (
        pa.field("image_number", pa.int64()),
        pa.field("domain", pa.string()),
    )

    def rows(self) -> Iterator[pa.Table]:
        path = self.annotations.path
        content = load_json(path)
        images = wanted(content, "images", list, path)
        for number, image in enumerate(images):
            where = f"{path}: images[{number}]"
            wanted(image, "id", int, where)
            if not isinstance(image.get("domain", ""), str):
                raise VlpipeError(f"{where}: wanted a domain that is a text, got {image['domain']!r}")
        found = _coco({"annotations": [], **content}, path, "file_name")
        listed = (Captioned(name, [c.strip() for c in captions if c.strip()]) for name, captions in found)
        left = iter(images)
        for table in captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit):
            more = [next(left) for _ in range(table.num_rows)]
            for field, key in zip(self.MORE, ("id", "domain"), strict=True):
                table = table.append_column(field, pa.array([one.get(key) for one in more], field.type))
            yield table


def _has_splits(path: str) -> bool:
    """Returns whether a file begins like Karpathy's JSON, without parsing it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as handle:
        return b'"sentences"' in handle.read(1 << 16)


def read_captions(path: str, key: str, split: Sequence[str] = ()) -> Iterator[Captioned]:
    """Yields each image with its captions, in the order in which the images first occur.

    key: field with the image's URL or file name in COCO's form, `coco_url` or `file_name`. split: the splits to read of
    Karpathy's JSON, which needs at least one; the other forms have none. Captions are stripped; empty ones are left out.
    Raises VlpipeError with the position in the file if it is invalid.
    """
    content = load_json(path)
    if (
        isinstance(content, dict)
        and "images" in content
        and "annotations" not in content
        and _is_karpathy(content)
    ):
        found = _karpathy(content, path, split)
    elif split:
        raise VlpipeError(f"{path} has no splits, only Karpathy's JSON has; remove `split`")
    elif isinstance(content, list) and content:
        found = _blip(content, path)
    else:
        found = _coco(content, path, key)
    for url, captions in found:
        yield Captioned(url, [caption.strip() for caption in captions if caption.strip()])


def _coco(content: Any, path: str, key: str) -> Iterator[Captioned]:
    captions: dict[str, list[str]] = {}
    for number, image in enumerate(wanted(content, "images", list, path)):
        where = f"{path}: images[{number}]"
        wanted(image, key, str, where)
        if image.get("id") is None or id_of(image["id"]) in captions:
            raise VlpipeError(
                f"{where}: each image needs an id that no other image has, got {image.get('id')!r}"
            )
        captions[id_of(image["id"])] = []
    for number, annotation in enumerate(wanted(content, "annotations", list, path)):
        where = f"{path}: annotations[{number}]"
        caption = wanted(annotation, "caption", str, where)
        if id_of(annotation.get("image_id")) not in captions:
            raise VlpipeError(
                f"{where}: image_id is {annotation.get('image_id')!r}, but no entry of `images` has this id"
            )
        captions[id_of(annotation["image_id"])].append(caption)
    for image in content["images"]:
        yield Captioned(image[key], captions[id_of(image["id"])])


def _is_karpathy(content: dict[str, Any]) -> bool:
    images = content["images"]
    return isinstance(images, list) and any(isinstance(one, dict) and "sentences" in one for one in images)


def _karpathy(content: dict[str, Any], path: str, split: Sequence[str]) -> Iterator[Captioned]:
    for number, image in enumerate(content["images"]):
        for key, kind in (("filename", str), ("split", str), ("sentences", list)):
            wanted(image, key, kind, f"{path}: images[{number}]")
    splits = list(dict.fromkeys(image["split"] for image in content["images"]))
    if not split:
        raise VlpipeError(
            f"{path} has the splits {', '.join(splits)}; set `split` to those to read, such as [train, restval] for training"
        ).with_settings(("split", "[train, restval]" if "restval" in splits else "[train]"))
    for name in split:
        if name not in splits:
            raise VlpipeError(f"{path} has no split {name!r}{did_you_mean(name, splits)}")
    for number, image in enumerate(content["images"]):
        if image["split"] in split:
            where = f"{path}: images[{number}]"
            raw = [
                wanted(sentence, "raw", str, f"{where}: sentences[{n}]")
                for n, sentence in enumerate(image["sentences"])
            ]
            yield Captioned(karpathy_path(image), raw)


def karpathy_path(image: dict[str, Any]) -> str:
    """Returns the path of an image of Karpathy's JSON: `filepath/filename`, or `filename` (Flickr30k has no `filepath`)."""
    folder = image.get("filepath")
    return str(PurePosixPath(folder, image["filename"])) if isinstance(folder, str) else image["filename"]


def _blip(content: list[Any], path: str) -> Iterator[Captioned]:
    captions: dict[str, list[str]] = {}
    for number, one in enumerate(content):
        where = f"{path}: [{number}]"
        name = wanted(one, "image", str, where)
        if "caption" not in one:
            raise VlpipeError(
                f"{where}: each entry needs the keys 'image' and 'caption'; this one has the keys {str(sorted(one))[:80]}"
            )
        captions.setdefault(name, []).extend(texts_of(one["caption"], where))
    for name, texts in captions.items():
        yield Captioned(name, texts)
