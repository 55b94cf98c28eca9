"""Reads evaluation sets in their published JSON formats: COCO's captions, Karpathy's splits, VQA's questions.

https://cocodataset.org/#format-data, https://cs.stanford.edu/people/karpathy/deepimagesent/ (dataset_coco.json and those of
Flickr8k and Flickr30k), https://visualqa.org/download.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.stages.lists.coco import karpathy_path
from vlpipe.stages.lists.folder import wanted

HELD_OUT = (
    "test",
    "val",
)  # the evaluation splits of Karpathy's JSON; `restval` and `train` are used for training


class Published(NamedTuple):
    """The content of an evaluation set. texts: (location in the file, text). images: file names as in the set, or None."""

    texts: Iterator[tuple[str, Any]]
    images: list[str] | None


def published(content: Any, file: str, split: Sequence[str] | None) -> Published:
    """Returns the content of parsed JSON, in any of the formats. Raises VlpipeError for an unknown format or split.

    split: use only these splits; None: HELD_OUT. Raises VlpipeError if it is given for a format without splits.
    """
    if isinstance(content, dict) and "images" in content and "annotations" not in content:
        return _karpathy(content, file, HELD_OUT if split is None else split)
    if split is not None:
        raise VlpipeError(
            f"{file} has no splits: only Karpathy's JSON has a split for each image; remove `split`"
        )
    if isinstance(content, list):
        return Published(((f"{file}[{n}]", text) for n, text in enumerate(content)), None)
    if isinstance(content, dict) and "questions" in content:
        return _vqa(content, file)
    return _coco(content, file)


def _karpathy(content: dict[str, Any], file: str, split: Sequence[str]) -> Published:
    images = []
    for n, image in enumerate(wanted(content, "images", list, file)):
        where = f"{file} images[{n}]"
        for key, kind in (("filename", str), ("split", str), ("sentences", list)):
            wanted(image, key, kind, where)
        images.append((where, image))
    splits = list(dict.fromkeys(image["split"] for _, image in images))
    for name in split:
        if name not in splits:
            raise VlpipeError(f"{file} has no split {name!r}{did_you_mean(name, splits)}")
    ours = [(where, image) for where, image in images if image["split"] in split]

    def texts() -> Iterator[tuple[str, Any]]:
        for where, image in ours:
            for n, sentence in enumerate(image["sentences"]):
                here = f"{where} ({image['filename']}) sentences[{n}]"
                yield here, wanted(sentence, "raw", str, here)

    return Published(texts(), [karpathy_path(image) for _, image in ours])


def _coco(content: Any, file: str) -> Published:
    annotations = wanted(content, "annotations", list, file)

    def texts() -> Iterator[tuple[str, Any]]:
        for n, annotation in enumerate(annotations):
            where = f"{file} annotations[{n}]"
            yield where, wanted(annotation, "caption", str, where)

    listed = content.get("images") or []
    images = [wanted(image, "file_name", str, f"{file} images[{n}]") for n, image in enumerate(listed)]
    return Published(texts(), images or None)


def _vqa(content: dict[str, Any], file: str) -> Published:
    """Returns the questions and, if the set declares COCO as its source, image names as COCO_val2014_000000262148.jpg."""
    questions = wanted(content, "questions", list, file)

    def texts() -> Iterator[tuple[str, Any]]:
        for n, question in enumerate(questions):
            where = f"{file} questions[{n}]"
            text = wanted(question, "question", str, where)
            yield f"{where} (question {question.get('question_id')})", text

    subtype = content.get("data_subtype")
    if content.get("data_type") != "mscoco" or not isinstance(subtype, str):
        return Published(texts(), None)
    ids = dict.fromkeys(wanted(q, "image_id", int, f"{file} questions[{n}]") for n, q in enumerate(questions))
    # the images of test-dev are a subset of those of test
    folder = subtype.replace("test-dev", "test")
    return Published(texts(), [f"{folder}/COCO_{folder}_{id_:012d}.jpg" for id_ in ids])
