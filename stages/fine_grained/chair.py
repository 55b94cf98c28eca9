"""Measures how often generated captions name objects that are not in the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.fine_grained.vocabulary import Vocabulary, read_synonyms
from vlpipe.stages.lists.json_values import load_json

MOST_SHOWN = 5  # objects


@dataclass(frozen=True, kw_only=True)
class Chair(GatherStage):
    """Emits RESULTS `chair_i`, `chair_s` and `object_recall`; lower is better for the first two.

    chair_i: share of mentions of objects that are not in the image; chair_s: share of captions with such a mention
    (https://arxiv.org/abs/1809.02156). object_recall: share of the images' objects that their captions name; captions that
    name nothing have no wrong mention. num_rows: mentions, captions, and objects. The objects of an image are the labels in
    its column `objects`, such as those of `lists.coco_objects` with `crowds: true`, and what its texts of source
    `references` name, as in CHAIR.

    synonyms: a line per object, its name, which is the label, and its synonyms, separated by commas; CHAIR publishes that of
    COCO. phrases: words that do not mean what they contain -> a word of `synonyms`, or "" for none; CHAIR has rules such as
    {baby bird: bird, passenger train: train, toilet seat: toilet, home plate: ""}. A plural counts as its singular.
    captions: captions.json of `evaluate.captions`; without it, the captions are the texts of `source`, dropped or not. A row
    without one is rejected (no_caption). Artifact items.parquet: chair_s of each caption, 1 or 0.
    """

    ROWS_ARE: ClassVar[str] = "figures"
    NAME: ClassVar[str] = "fine_grained.chair:Chair"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES

    synonyms: File
    phrases: dict[str, str] = field(default_factory=dict)
    captions: File | None = None
    source: str = "synth"
    references: str | None = "human"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "fine_grained.chair", id=pa.string(), texts=TEXTS, objects=OBJECTS)
        return RESULTS

    def run(self, job: Job) -> None:
        vocabulary = Vocabulary(read_synonyms(self.synonyms.path), self.phrases)
        given = None if self.captions is None else dict(_captions(self.captions.path))
        items, tally, wrong = Items(), Counter[str](), Counter[str]()
        rejects: list[Reject] = []
        for row in (row for data in job.inputs for row in _rows(data)):
            captions = self._of(row) if given is None else given.get(row["id"], [])
            if not captions:
                missing = f"no text of source {self.source}" if given is None else "it is not in `captions`"
                rejects.append(Reject(row["id"], "filtered", "no_caption", missing))
                continue
            objects = self._objects(row, vocabulary)
            named = [vocabulary.mentions(caption) for caption in captions]
            made_up = [[name for name in mentions if name not in objects] for mentions in named]
            wrong.update(name for names in made_up for name in names)
            tally["mentions"] += sum(map(len, named))
            tally["captions"] += len(captions)
            tally["captions_wrong"] += sum(map(bool, made_up))
            tally["objects"] += len(objects) * len(captions)
            tally["objects_named"] += sum(len(objects & set(mentions)) for mentions in named)
            for k, names in enumerate(made_up):
                items.add("chair_s", f"{row['id']}#{k}" if k else row["id"], row["id"], bool(names))
        job.reject(rejects)
        if not tally["captions"]:
            first = f"; the first of {len(rejects)} rejected: {rejects[0].detail}" if rejects else ""
            raise VlpipeError(f"no row with a caption{first}")
        often = ", ".join(f"{name} ({num})" for name, num in wrong.most_common(MOST_SHOWN))
        job.say(f"{tally['captions']} captions; most often named and not there: {often or 'none'}")
        items.write(job.artifacts)
        shares = {
            "chair_i": (wrong.total(), tally["mentions"]),
            "chair_s": (tally["captions_wrong"], tally["captions"]),
            "object_recall": (tally["objects_named"], tally["objects"]),
        }
        rows = [
            {"name": name, "value": part / whole if whole else None, "num_rows": whole}
            for name, (part, whole) in shares.items()
        ]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _of(self, row: Mapping[str, Any]) -> list[str]:
        return [entry["text"] for entry in row["texts"] or () if entry["source"] == self.source]

    def _objects(self, row: Mapping[str, Any], vocabulary: Vocabulary) -> set[str]:
        found = set()
        for one in row["objects"] or ():
            name = vocabulary.object_of(one["label"])
            if name is None:
                raise VlpipeError(
                    f"row {row['id']} has an object {shown(one['label'])}, which is not in {self.synonyms.path}; add a line "
                    "for it"
                )
            found.add(name)
        for entry in row["texts"] or ():
            if self.references is not None and entry["source"] == self.references:
                found.update(vocabulary.mentions(entry["text"]))
        return found


def _rows(data: Dataset) -> Iterator[dict[str, Any]]:
    for table in data.batches(["id", "texts", "objects"]):
        yield from table.to_pylist()


def _captions(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (row id, captions) of an artifact captions.json. Raises VlpipeError if it is none, or a row is twice in it."""
    content = load_json(path)
    found = content.get("captions") if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise VlpipeError(
            f"{path}: wanted captions.json of evaluate.captions, {{captions: [{{id, caption}}]}}"
        )
    known = set()
    for number, one in enumerate(found):
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("id", "caption")):
            raise VlpipeError(f"{path}: captions[{number}]: wanted an id and a caption, got {shown(one)}")
        if one["id"] in known:
            raise VlpipeError(f"{path}: captions[{number}]: an earlier one has the id {shown(one['id'])}")
        known.add(one["id"])
        yield one["id"], [one["caption"]]
