"""A first workflow, with comments, from a few answers: where the images come from and what is to be made of them."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError, one_line, shown

SOURCES = {
    "list": "a list of image URLs with texts (parquet, tsv, csv, jsonl)",
    "webdataset": "a folder of webdataset tars",
    "img2dataset": "a folder that img2dataset wrote",
}
GOALS = {
    "clean": "clean, filter and deduplicate the pairs, and write them as webdataset tars; needs no model",
    "score": "also keep the pairs that CLIP finds similar",
    "caption": "caption the images and keep the texts, web or synthetic, that match them (CapFilt with pretrained models)",
}
URLS, TEXTS = ("url", "image_url", "URL", "link"), ("text", "caption", "TEXT", "alt", "alt_text", "title")

HEAD = """\
# {goal}.
#
# Written by `vlpipe init`; every line is yours to change.
#
#   vlpipe plan {file}                  checks it and shows what would run
#   vlpipe run {file}                   runs what is not done; a second run does no work
#   vlpipe report {file}                a page with funnel, images and reasons
#   vlpipe why {file} ROW_OR_URL        the history of one row
#
# Parameters of a stage: `vlpipe stages USE`. Help while you write: `vlpipe schema > vlpipe.schema.json`; the next line
# names it for editors with the YAML language server.
# yaml-language-server: $schema=vlpipe.schema.json
name: {name}
root: {root} # folder or URL of all outputs

steps:
"""
FETCH = """\
  # Downloads each image once and checks that it decodes. What fails becomes a reject with its reason.
  images:
    use: "fetching.images:FetchImages"
    list: {path}
    url: {url} # column of the list
    text: {text} # column of the list
    max_reject_rate: 0.9 # share of failing rows above which the step stops; old lists lose many
    # resize: {{size: 384}} # stores smaller images
"""
TARS = """\
  # Reads the images and texts of the tars; nothing is downloaded.
  images: {{use: "tars.{kind}:{stage}", folder: {path}}}
"""
CLEAN = """\
  # Normalises the texts, then applies published rules on text and image. Dropped rows keep their reason.
  cleaned: {use: "filter.clean:CleanTexts", from: images}
  judged: {use: "filter.rules:Rules", from: cleaned, preset: alt_text, drop_textless: true}
  # Duplicates: equal bytes, or a similar perceptual hash. The kept row of a group gets the texts of the others.
  twins: {use: "dedup.exact:ExactDuplicates", from: judged, phash: true, max_distance: 4}
  unique:
    use: "dedup.apply:DropDuplicates"
    from: judged
    decisions: {from: twins, path: decisions.parquet}
    merge_texts: true
"""
SCORE = """\
  # Cosine of image and text. The threshold belongs to the model: another model needs another one.
  scored: {use: "filter.clip:ClipScore", from: unique, model: openai/clip-vit-base-patch32, resources: {gpus: 0}}
  similar:
    use: "filter.rules:Rules"
    from: scored
    rules: [{id: similar, column: clip_score, op: ">=", value: 0.28, encoder: openai/clip-vit-base-patch32, source: LAION}]
    drop_textless: true
"""
CAPTION = """\
  # One synthetic caption per image, by nucleus sampling.
  captions:
    use: "caption.generate:Caption"
    from: unique
    model: Salesforce/blip-image-captioning-base # a folder, or the id of a model on the Hugging Face Hub
    prompt: "a picture of "
    max_length: 16
    resources: {gpus: 0}
  # P(match) of every text, web and synthetic; texts below the threshold are dropped, rows without a text become rejects.
  filtered:
    use: "filter.itm:ItmFilter"
    from: captions
    model: Salesforce/blip-itm-base-coco
    threshold: 0.5
    resources: {gpus: 0}
  kept: {use: "filter.keep_matched:KeepMatched", from: filtered}
"""
WRITE = """\
  # For training elsewhere. To train here, see `vlpipe stages train.train:Train` and blip_capfilt.yaml.
  tars: {{use: "export.webdataset:WriteWebdataset", from: {last}, texts: all}}
"""
LAST = {"clean": "unique", "score": "similar", "caption": "kept"}


def starter(file: str, source: str, path: str, goal: str, url: str = "url", text: str = "text") -> str:
    """Returns the text of a workflow.

    file: its own file name; source: a key of SOURCES; path: the list or folder; goal: a key of GOALS; url, text: columns of
    the list. Raises VlpipeError for other sources or goals.
    """
    if source not in SOURCES or goal not in GOALS:
        raise VlpipeError(f"wanted a source of {', '.join(SOURCES)} and a goal of {', '.join(GOALS)}")
    name = Path(file).stem
    parts = [
        HEAD.format(
            goal=GOALS[goal].capitalize(), file=shown_path(file), name=_yaml(name), root=_yaml(f"runs/{name}")
        )
    ]
    if source == "list":
        parts.append(FETCH.format(path=_yaml(path), url=_yaml(url), text=_yaml(text)))
    else:
        stage = "FromWebdataset" if source == "webdataset" else "FromImg2dataset"
        parts.append(TARS.format(kind=source, stage=stage, path=_yaml(path)))
    parts += [CLEAN, *({"clean": [], "score": [SCORE], "caption": [CAPTION]}[goal])]
    return "".join([*parts, WRITE.format(last=LAST[goal])])


def shown_path(path: str) -> str:
    """Returns a path as a word of a shell command on one line of a comment."""
    return shlex.quote(one_line(path, 400))


def _yaml(text: str) -> str:
    """Returns a text as a YAML scalar: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)


def guess_source(path: str) -> str:
    """Returns which key of SOURCES a path is. Raises VlpipeError if it is none."""
    if not os.path.exists(path):
        raise VlpipeError(f"there is no file or folder {shown(path, 400)}")
    if os.path.isfile(path):
        return "list"
    names = [entry.name for entry in itertools.islice(os.scandir(path), 10_000)]
    if any(name.endswith("_stats.json") for name in names):
        return "img2dataset"
    if any(name.endswith(".tar") for name in names):
        return "webdataset"
    if any(Path(name).suffix in (".parquet", ".tsv", ".csv", ".jsonl") for name in names):
        return "list"
    raise VlpipeError(f"{shown(path, 400)} has neither tars nor lists (parquet, tsv, csv, jsonl) in it")


def guess_columns(path: str) -> tuple[str, str]:
    """Returns the columns of a list with the URL and the text. Raises VlpipeError if none has a name that says so."""
    columns = columns_of(path)
    found = [
        next((c for name in names for c in columns if c.lower() == name.lower()), None)
        for names in (URLS, TEXTS)
    ]
    if found[0] is None or found[1] is None:
        what = "URL" if found[0] is None else "text"
        raise VlpipeError(
            f"no column of {shown(path, 400)} looks like the {what}: it has {', '.join(map(shown, columns))}"
        )
    return found[0], found[1]


def columns_of(path: str) -> Sequence[str]:
    """Returns the column names of a list, of its first file if it is a folder."""
    if os.path.isdir(path):
        inside = sorted(p for p in Path(path).iterdir() if p.suffix in (".parquet", ".tsv", ".csv", ".jsonl"))
        path = str(inside[0])
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return list(pq.read_schema(path).names)
    with open(path, encoding="utf-8", newline="") as file:
        first = file.readline(1_000_000)
    if suffix in (".jsonl", ".json"):
        try:
            row = json.loads(first)
        except ValueError as error:
            raise VlpipeError(f"the first line of {shown(path, 400)} is not JSON: {error}") from error
        return list(row) if isinstance(row, dict) else []
    return next(csv.reader([first], delimiter="\t" if suffix == ".tsv" else ","), [])
