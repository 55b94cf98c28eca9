"""Visual entailment in the JSON lines of SNLI-VE. Xie et al. 2019, https://arxiv.org/abs/1901.06706."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.downstream.labelled import Labelled, LabelledSentences, label_of, lines_of

CLASSES = ("entailment", "neutral", "contradiction")
NO_AGREEMENT = "-"
LABEL, TEXT, IMAGE = "gold_label", "sentence2", "Flickr30K_ID"


@dataclass(frozen=True, kw_only=True)
class EntailmentPairs(LabelledSentences):
    """One row per image: hypotheses as `texts`, and in `answers` the label of each, its place in CLASSES.

    examples: JSON lines {gold_label, sentence2, Flickr30K_ID}. Lines with the label "-", on which people did not agree, are
    left out. file_name: of an image below `images`. Raises VlpipeError if a hypothesis about an image has two labels.
    """

    NAME: ClassVar[str] = "downstream.entailment:EntailmentPairs"

    file_name: str = "{id}.jpg"
    source: str = "snli_ve"

    def images_with_labels(self) -> Iterable[Labelled]:
        found: dict[str, dict[str, int]] = {}
        for where, one in lines_of(self.examples.path, LABEL, TEXT, IMAGE):
            if one[LABEL] == NO_AGREEMENT:
                continue
            label = label_of(one[LABEL], CLASSES, where)
            image = self.file_name.format(id=one[IMAGE])
            if found.setdefault(image, {}).setdefault(one[TEXT], label) != label:
                raise VlpipeError(f"{where}: an earlier line gives {one[TEXT]!r} about {image} another label")
        for image, labels in found.items():
            answers = [{"question": text, "label": label, "score": 1.0} for text, label in labels.items()]
            yield Labelled(image, list(labels), answers)
