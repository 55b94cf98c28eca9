"""Measures whether a model takes absent objects for present ones, by statements about single objects."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.fine_grained.scoring import ScoresTexts
from vlpipe.stages.lists.pope import QUESTIONS

Judged = tuple[bool, float]  # whether the object is there, score of the statement
FIELDS = ("a", "object", "text")


@dataclass(frozen=True, kw_only=True)
class Pope(ScoresTexts):
    """Emits RESULTS `accuracy/KIND`, `precision/KIND`, `recall/KIND`, `f1/KIND`, `yes_ratio/KIND` and `auc/KIND`.

    The answer to a question is yes if the score of a statement is at least `threshold`. The first five are POPE's measures
    (https://arxiv.org/abs/2305.10355), yes being the positive class; one without a value, such as the precision of no
    answer yes, is null. auc does not depend on the threshold: the probability that a statement about a present object
    scores above one about an absent object, ties counting half. num_rows: the questions that a share is of; all for f1 and
    auc. KIND: kind of the absent objects.

    template: the statement, with {object}, {a} (its article, a or an) and {text} (the question). threshold: default P(match)
    0.5; for `score: similarity`, which has no default, a cosine that other data tells. Input: rows with the column
    `questions`, such as those of `lists.pope`. Artifact items.parquet: for each question, by its id, `accuracy/KIND` and
    `yes_ratio/KIND`, 1 or 0, and `recall/KIND` if the object is there.
    """

    NAME: ClassVar[str] = "fine_grained.pope:Pope"
    COLUMN: ClassVar[pa.Field] = pa.field("questions", QUESTIONS)

    template: str = "a photo of {a} {object}"
    threshold: float | None = None

    def preflight(self) -> list[str]:
        problems = super().preflight()
        used = set(re.findall(r"\{(.*?)\}", self.template))
        if not used & {"object", "text"} or used - set(FIELDS):
            problems.append(
                f"template must have {{object}} or {{text}}, and may have {{a}}, got {self.template!r}"
            )
        if self.score == "similarity" and (self.threshold is None or not -1 <= self.threshold <= 1):
            problems.append(f"threshold must be a cosine, from -1 to 1, got {self.threshold}")
        if self.score == "match" and self.threshold is not None and not 0 < self.threshold < 1:
            problems.append(f"threshold must be a probability between 0 and 1, got {self.threshold}")
        return problems

    def run(self, job: Job) -> None:
        rejects: list[Reject] = []
        judged: dict[str, list[Judged]] = {}
        items = Items()
        least = self._least()
        for asked, scores in self.scored(
            job, lambda questions: [statement(self.template, one) for one in questions], rejects
        ):
            for question, score in zip(asked.about, scores, strict=True):
                kind, name, truth = question["kind"], question["id"], question["is_there"]
                says_yes = score >= least
                judged.setdefault(kind, []).append((truth, score))
                items.add(f"accuracy/{kind}", name, asked.id, says_yes == truth)
                items.add(f"yes_ratio/{kind}", name, asked.id, says_yes)
                if truth:
                    items.add(f"recall/{kind}", name, asked.id, says_yes)
        job.reject(rejects)
        items.write(job.artifacts)
        rows = [row for kind in sorted(judged) for row in figures(kind, judged[kind], least)]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _least(self) -> float:
        """Returns the lowest score that means yes."""
        if self.score == "match":
            probability = 0.5 if self.threshold is None else self.threshold
            return math.log(probability) - math.log1p(-probability)
        assert self.threshold is not None  # preflight
        return self.threshold


def statement(template: str, question: Mapping[str, Any]) -> str:
    """Returns the text that is scored. Raises VlpipeError if the template needs an object that is not known."""
    name = question["object"]
    if not name and "{object}" in template:
        raise VlpipeError(
            f"question {question['id']} ({question['text']!r}) has no object, which template {template!r} needs; list the "
            "questions with their `form`, or use {text}"
        )
    article = "an" if (name or "")[:1].lower() in tuple("aeiou") else "a"
    values = {"{a}": article, "{object}": name, "{text}": question["text"]}
    return re.sub(r"\{(a|object|text)\}", lambda found: values[found[0]], template)


def figures(kind: str, judged: Sequence[Judged], least: float) -> Iterator[dict[str, Any]]:
    """Yields rows of RESULTS for the questions of one kind. least: the lowest score that means yes."""
    truth = np.array([is_there for is_there, _ in judged], bool)
    scores = np.array([score for _, score in judged], np.float64)
    says = scores >= least
    num, num_yes, num_there = len(judged), int(says.sum()), int(truth.sum())
    both = int((truth & says).sum())
    shares = {
        "accuracy": (int((truth == says).sum()), num),
        "precision": (both, num_yes),
        "recall": (both, num_there),
        "f1": (2 * both, num_yes + num_there),
        "yes_ratio": (num_yes, num),
    }
    for name, (part, whole) in shares.items():
        rows = num if name == "f1" else whole
        yield {"name": f"{name}/{kind}", "value": part / whole if whole else None, "num_rows": rows}
    yield {"name": f"auc/{kind}", "value": auc(scores[truth], scores[~truth]), "num_rows": num}


def auc(high: Any, low: Any) -> float | None:
    """Returns the probability that a value of `high` (P,) is above one of `low` (N,), ties counting half; null if one is
    empty. Takes O((P + N) log N)."""
    if not len(high) or not len(low):
        return None
    low = np.sort(low)
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.sum() / (2 * len(high) * len(low)))
