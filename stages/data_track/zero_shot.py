"""Zero-shot classification: each image gets the class whose prompts its embedding is nearest to.

Protocol of CLIP (https://arxiv.org/abs/2103.00020, section 3.1.4) and DataComp: a class is the normalised mean of the
normalised embeddings of all its prompts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ConfigDict

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import (
    Pixels,
    batch_size_problems,
    encode_images,
    fixed_batches,
    read_images,
)
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.data_track.templates import list_problems, read_templates, shipped
from vlpipe.stages.evaluate.heldout import need_heldout
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.inference.ahead import Ahead
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

TOP = (1, 5)
Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification. classes: name -> the words that say it in a caption; [] for the name itself.

    templates: `{}` stands for the name of a class. label: the column with an image's class, as its name or one of its words;
    without it, the class is the one that the image's captions say, and images with none or several are left out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    classes: dict[str, list[str]]
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    label: str = ""

    def problems(self) -> Iterator[str]:
        """Yields error texts for mistakes in the task itself."""
        if len(self.classes) < 2:
            yield f"classes: wanted at least 2, got {list(self.classes)}"
        words = [word for several in self._words for word in several]
        if twice := sorted({word for word in words if words.count(word) > 1}):
            yield f"classes: {twice[0]!r} says two classes"
        if not all(word.strip() for word in words):
            yield "classes: a word is empty"
        names = [name.lower() for name in self.classes]
        if self.label and (twice := sorted({n for n in names if names.count(n) > 1})):
            yield f"classes: {twice[0]!r} is the name of two classes"
        of = {word: k for k, several in enumerate(self._words) for word in several}
        if self.label and (other := [n for k, n in enumerate(names) if of.get(n, k) != k]):
            yield f"classes: {other[0]!r} is the name of one class and a word of another"
        if not self.templates:
            yield "templates: wanted at least one"
        yield from (f"templates: {one!r} has no {{}}" for one in self.templates if "{}" not in one)

    @cached_property
    def _words(self) -> list[list[str]]:
        return [[word.lower() for word in words or [name]] for name, words in self.classes.items()]

    @cached_property
    def _of_word(self) -> dict[str, int]:
        of = {word: k for k, words in enumerate(self._words) for word in words}
        return of | {name.lower(): k for k, name in enumerate(self.classes)} if self.label else of

    @cached_property
    def _said(self) -> re.Pattern[str]:
        longest_first = sorted(self._of_word, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def class_of_label(self, value: object) -> int | None:
        """Returns the class of a value of the column `label`; None for null. Raises VlpipeError for another value."""
        if value is None:
            return None
        if str(value).lower() not in self._of_word:
            raise VlpipeError(f"column {self.label!r} has {value!r}, which is none of the classes")
        return self._of_word[str(value).lower()]

    def class_of_captions(self, captions: Sequence[str]) -> int | None:
        """Returns the class that the captions say; None if they say none or several."""
        found = {self._of_word[word] for text in captions for word in self._said.findall(text.lower())}
        return found.pop() if len(found) == 1 else None

    def prompts(self, templates: Sequence[str] = ()) -> list[list[str]]:
        """Returns the prompts of each class. templates: instead of the task's own, if there are any."""
        used = templates or self.templates
        return [[template.replace("{}", name) for template in used] for name in self.classes]


@dataclass(frozen=True, kw_only=True)
class ZeroShot(RunsModel, GatherStage):
    """Emits RESULTS `top1/TASK`, `top5/TASK` (of more than 5 classes) and `mean_per_class/TASK`, fractions from 0 to 1;
    `top1` and `mean_per_class` are the means of all tasks.

    mean_per_class: mean of the accuracies (top 1) of the classes that have an image. Ties are ranked by the order of the
    classes. Artifact items.parquet: 1 or 0 for each image, by its id, for `top1/TASK` and `top5/TASK`.

    tasks: by name. template_list: name of a shipped list, of `templates.yaml`, or template_file: a text with a template
    per line; of all tasks, instead of their own templates. source: `source` of the captions that say a class. Images
    without a class in any task are rejected (filtered, `no_class`).
    """

    NAME: ClassVar[str] = "evaluate.zero_shot:ZeroShot"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"tasks"})
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ADDED: ClassVar[frozenset[str]] = RunsModel.ADDED | {"template_list", "template_file"}

    model: Weights
    tasks: dict[str, Task]
    source: str = "human"
    batch_size: int = 64
    max_text_length: int = 30  # tokens, including those of start and end
    template_list: str = ""
    template_file: File | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "data_track.zero_shot")
        for name, task in self.tasks.items():
            if task.label and task.label not in inp.names:
                raise SchemaError(f"tasks.{name}: there is no column {task.label!r}")
        return RESULTS

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        problems += [] if self.tasks else ["tasks: wanted at least one"]
        problems += list_problems(self.template_list)
        if self.template_list and self.template_file is not None:
            problems.append("set template_list or template_file, not both")
        return problems + [
            f"tasks.{name}: {text}" for name, task in self.tasks.items() for text in task.problems()
        ]

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages, EmbedsTexts])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.stages.common.model import load

        templates = shipped().get(self.template_list, ())
        if self.template_file is not None:
            templates = tuple(read_templates(self.template_file.path))
        model = load(self.model, self.max_text_length, [EmbedsImages, EmbedsTexts], self.precision)
        classes = {
            name: np.stack([class_vector(self._text_feats(of, model)) for of in task.prompts(templates)])
            for name, task in self.tasks.items()
        }
        rejects: list[Reject] = []
        judged: dict[str, list[tuple[str, int, int]]] = {name: [] for name in self.tasks}  # id, class, place
        with Ahead(self.decode_workers, model.is_on_gpu) as ahead:
            images = self._labelled(job, model.image_size, rejects, ahead)
            for (id_, labels), feat in encode_images(images, model.embed_images, self.batch_size, ahead):
                vector = feat.double().cpu().numpy()
                for name, label in labels.items():
                    judged[name].append((id_, label, place(classes[name] @ vector, label)))
        job.reject(rejects)
        for name, found in judged.items():
            if not found:
                raise VlpipeError(
                    f"tasks.{name}: no readable image has one of the classes {', '.join(self.tasks[name].classes)}"
                )
            absent = set(range(len(classes[name]))) - {label for _, label, _ in found}
            if absent:
                job.say(
                    f"{name}: no image of {', '.join(list(self.tasks[name].classes)[k] for k in sorted(absent))}"
                )
        self._write(job, judged)

    def _write(self, job: Job, judged: Mapping[str, list[tuple[str, int, int]]]) -> None:
        """Writes items.parquet, and emits the figures. judged: task -> (row id, class, place of the class) of each image."""
        items, means = Items(), dict[str, float]()
        for name, found in judged.items():
            for k in [k for k in TOP if k == 1 or k < len(self.tasks[name].classes)]:
                for id_, _, at in found:
                    items.add(f"top{k}/{name}", id_, id_, at < k)
            means[f"mean_per_class/{name}"] = mean_per_class((label, at == 0) for _, label, at in found)
        items.write(job.artifacts)
        results = items.results()
        results += [
            {"name": metric, "value": value, "num_rows": len(judged[metric.partition("/")[2]])}
            for metric, value in means.items()
        ]
        for metric in ("mean_per_class", "top1"):
            of = [one for one in results if one["name"].startswith(f"{metric}/")]
            mean, num = fmean(one["value"] for one in of), sum(one["num_rows"] for one in of)
            results.append({"name": metric, "value": mean, "num_rows": num})
        job.emit(pa.Table.from_pylist(sorted(results, key=lambda one: one["name"]), RESULTS))

    def _labelled(
        self, job: Job, image_size: int, rejects: list[Reject], ahead: Ahead
    ) -> Iterator[tuple[tuple[str, dict[str, int]], Pixels]]:
        """Yields ((row id, task -> class), pixels (3, S, S)) of images that have a class in a task."""
        columns = {task.label for task in self.tasks.values() if task.label}
        for data in job.inputs:
            for table in data.batches(["id", "texts", *sorted(columns)], ["image"]):
                light = table.drop_columns(["image"]).to_pylist()
                for at, pixels in read_images(table, image_size, rejects, ahead):
                    labels = self._labels(light[at])
                    if labels:
                        yield (light[at]["id"], labels), pixels
                    else:
                        rejects.append(Reject(light[at]["id"], "filtered", "no_class"))

    def _labels(self, row: Mapping[str, Any]) -> dict[str, int]:
        captions = [t["text"] for t in row["texts"] or () if t["source"] == self.source]
        found = {
            name: task.class_of_label(row[task.label]) if task.label else task.class_of_captions(captions)
            for name, task in self.tasks.items()
        }
        return {name: label for name, label in found.items() if label is not None}

    def _text_feats(self, texts: list[str], model: Loaded) -> Vectors:
        feats = []
        for batch, num_real in fixed_batches(texts, self.batch_size):
            ids, mask = model.tokenizer.encode(batch, self.max_text_length)
            feats.append(model.embed_texts(ids, mask)[:num_real].double().cpu().numpy())
        return np.concatenate(feats)


def class_vector(prompts: Vectors) -> Vectors:
    """Returns the vector (E,) of a class, unit norm. prompts: (P, E), the embeddings of its prompts, of any norm."""
    mean: Vectors = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(0)
    return mean / np.linalg.norm(mean)


def place(scores: Vectors, label: int) -> int:
    """Returns the place of the right class by scores (C,), 0 for the best; equal ones are ranked by the order of classes.

    Raises VlpipeError for a score that is not finite.
    """
    if not np.isfinite(scores).all():
        raise VlpipeError("zero_shot: the model gives an embedding that is not finite")
    right = scores[label]
    return int((scores > right).sum() + (scores[:label] == right).sum())


def mean_per_class(found: Iterable[tuple[int, bool]]) -> float:
    """Returns the mean over classes of the share of hits among their images. found: (class, whether it is a hit) each."""
    hits: dict[int, list[bool]] = defaultdict(list)
    for label, is_hit in found:
        hits[label].append(is_hit)
    return fmean(map(fmean, hits.values()))
