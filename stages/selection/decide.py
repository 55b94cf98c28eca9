"""Decides which texts to keep by the scores that judges stored: thresholds per source, one judge or several.

Changing a threshold changes this step alone; the judges' steps keep their keys and are not run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import Out, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import Rule, check_encoder, choose, place
from vlpipe.stages.common.texts import FlatTexts, Mask, to_mask
from vlpipe.stages.filter.rules import fails, text_values


@dataclass(frozen=True, kw_only=True)
class JudgeRule(Rule):
    """A rule on a text's score, for texts of `sources`; empty: of all sources that the step decides on.

    A threshold per source is a rule per source; two rules on one column need an `id` each.
    """

    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decide(MapStage):
    """Sets `kept` and `why` of texts of `sources` by rules on columns with one value per text; scores stay as they are.

    A text is kept if it passes all rules for its source, or with `min_passed: k` at least k of them (all, if fewer apply).
    `why` of a dropped text is the code of the first rule that it fails. Texts for which there is no rule, and those that
    another step dropped, stay as they are. anew: codes of earlier decisions that are taken back first, such as
    `not_matched` of `filter.itm`. Counts: `fails:CODE` and `drops:CODE` per rule, `kept`, `taken_back`.
    """

    NAME: ClassVar[str] = "selection.decide:Decide"
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"rules"})

    rules: tuple[JudgeRule, ...]
    sources: tuple[str, ...] = ("web", "synth")
    min_passed: int | None = None
    anew: tuple[str, ...] = ()
    applied: tuple[JudgeRule, ...] = field(
        init=False, default=()
    )  # the rules without their descriptions; in the key

    def __post_init__(self) -> None:
        bare = tuple(replace(rule, source="", needs="") for rule in self.rules)
        object.__setattr__(self, "applied", bare)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "selection.decide", id=pa.string(), texts=TEXTS)
        problems = []
        for rule in self.rules:
            try:
                if not place(rule, inp).judges_texts:
                    raise SchemaError(
                        f"rule {rule.code}: {rule.column!r} has one value per row; filter.rules rejects rows by it"
                    )
                check_encoder(rule, inp)
            except SchemaError as error:
                problems.append(str(error))
        if problems:
            raise SchemaError("; ".join(problems))
        return inp

    def preflight(self) -> list[str]:
        problems = [problem for rule in self.rules for problem in rule.problems()]
        if not self.rules:
            problems.append("there is no rule; set `rules`")
        try:
            choose(self.rules, ())
        except VlpipeError as error:
            problems.append(str(error))
        for rule in self.rules:
            if other := sorted(set(rule.sources) - set(self.sources)):
                problems.append(
                    f"rule {rule.code} is for texts of {', '.join(other)}, which `sources` does not name"
                )
        if self.min_passed is not None and not 1 <= self.min_passed <= len(self.rules):
            problems.append(f"min_passed must be from 1 to {len(self.rules)}, got {self.min_passed}")
        return problems

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._decide

    def _decide(self, rows: pa.Table) -> Out:
        counts: Counter[str] = Counter()
        rows = take_back(rows, self.anew, counts)
        texts = FlatTexts(rows["texts"])
        num_applied = np.zeros(len(texts.row), np.int64)
        num_passed = np.zeros(len(texts.row), np.int64)
        first = np.full(len(texts.row), -1, np.int32)
        failed: list[Mask] = []
        for number, rule in enumerate(self.rules):
            ours = texts.still_in(rule.sources or self.sources)
            bad = fails(rule, text_values(rule, place(rule, rows.schema), rows, texts), ours) & ours
            failed.append(bad)
            num_applied += ours
            num_passed += ours & ~bad
            first[bad & (first < 0)] = number
        wanted = num_applied if self.min_passed is None else np.minimum(num_applied, self.min_passed)
        dropped = (num_applied > 0) & (num_passed < wanted)
        kept = (num_applied > 0) & ~dropped
        codes = [rule.code for rule in self.rules]
        for number, code in enumerate(codes):
            counts[f"fails:{code}"] += int(failed[number].sum())
            counts[f"drops:{code}"] += int((dropped & (first == number)).sum())
        counts["kept"] += int(kept.sum())
        why = pa.array(codes, pa.string()).take(pa.array(first, mask=~dropped))
        new = {
            "kept": pc.if_else(pa.array(kept | dropped), pa.array(kept), texts.field("kept")),
            "why": pc.if_else(pa.array(dropped), why, texts.field("why")),
        }
        return Out(texts.replace(rows, **new), counts=counts)


def take_back(rows: pa.Table, codes: tuple[str, ...], counts: Counter[str]) -> pa.Table:
    """Returns `rows` with no decision for texts that were dropped for one of these reasons."""
    if not codes:
        return rows
    texts = FlatTexts(rows["texts"])
    again = to_mask(pc.is_in(texts.field("why"), pa.array(codes, pa.string())))
    counts["taken_back"] += int(again.sum())
    none = pa.array(again)
    new = {
        "kept": pc.if_else(none, pa.scalar(None, pa.bool_()), texts.field("kept")),
        "why": pc.if_else(none, pa.scalar(None, pa.string()), texts.field("why")),
    }
    return texts.replace(rows, **new)
