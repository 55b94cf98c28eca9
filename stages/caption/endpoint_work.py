"""The function of `caption.endpoint`: makes questions of rows, and captions of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.stages.common.batches import seed_of, with_texts, without
from vlpipe.stages.common.row import text
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.endpoint.ask import Result
from vlpipe.stages.endpoint.asking import Asking, Line, asked_rows, fault_in
from vlpipe.stages.endpoint.columns import BadJson, parsed
from vlpipe.stages.endpoint.outcomes import MAX_CHARS, Identify, Rules, plain, why_not
from vlpipe.stages.endpoint.prompts import Builder, Request, Template, values_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked about each row, and what becomes of the answers: `caption.endpoint:CaptionEndpoint` has the parameters.

    labels, rules: for each caption of a row, what `model` says, and what it must keep to; fields: property of structured
    output -> its type; columns: its columns.
    """

    builder: Builder
    templates: tuple[Template, ...]
    labels: tuple[str, ...]
    num_captions: int
    seed: int | None
    rules: tuple[Rules, ...]
    identify: Identify | None
    fields: Mapping[str, pa.DataType]
    columns: Mapping[str, pa.DataType]
    caption_field: str
    rejects_unanswered: bool
    with_image: bool


class Captions(Asking):
    """The stage's function."""

    def __init__(self, plan: Plan, line: Line) -> None:
        super().__init__(line)
        self._plan = plan

    def requests(self, batch: pa.Table) -> list[Request]:
        """Returns `num_texts` requests per row, those of a row one behind the other."""
        plan, builder = self._plan, self._plan.builder
        fields = tuple(dict.fromkeys(name for one in self._plan.templates for name in one.fields))
        filled = values_of(batch, fields)
        made = []
        for number, (row, digest) in enumerate(asked_rows(batch, with_image=plan.with_image)):
            for template in plan.templates:
                prompt = template.filled(filled[number])
                for draw in range(plan.num_captions):
                    seed = None if plan.seed is None else seed_of(plan.seed, row.id, draw) & 0x7FFFFFFF
                    hash_ = builder.hash(prompt, seed, digest, draw)
                    made.append(Request(row, hash_, *builder.around(prompt, seed)))
        return made

    def out(self, batch: pa.Table, results: Sequence[Result]) -> Out:
        num = len(self._plan.labels)
        ids = batch["id"].to_pylist()
        texts = [list(ts or ()) for ts in batch["texts"].to_pylist()]
        rejects: list[Reject] = []
        counts: Counter[str] = Counter()
        objects: list[list[Mapping[str, Any]]] = []
        for row, id_ in enumerate(ids):
            mine = results[row * num : (row + 1) * num]
            counts.update(self.tokens(mine))
            objects.append([])
            fault = fault_in(mine, rejects_unanswered=self._plan.rejects_unanswered)
            if fault is not None:
                rejects.append(Reject(id_, "fault", fault.why, fault.detail))
                continue
            for result, label, rules in zip(mine, self._plan.labels, self._plan.rules, strict=True):
                entry, found = self._entry(result, label, rules)
                texts[row].append(entry)
                objects[row].append(found)
                counts[f"captions_{entry['why'] or 'good'}"] += 1
        table = with_texts(batch, texts)
        columns = {
            name: pa.array([self._cell(found, name) for found in objects], dtype)
            for name, dtype in self._plan.columns.items()
        }
        table = with_columns(table, **columns) if columns else table
        return Out(without(table, rejects), rejects, counts=counts)

    def _entry(self, result: Result, label: str, rules: Rules) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Returns an entry of `texts`, and the values of structured output."""
        if not isinstance(result, Answer):
            return text("", "synth", model=label, kept=False, why=result.why), {}
        caption, values, is_bad = plain(result.text), dict[str, Any](), False
        if self._plan.fields and result.status == 200 and result.finish != "length":
            try:
                values = parsed(result.text or "", self._plan.fields)
                caption = values[self._plan.caption_field] or ""
            except BadJson:
                is_bad = True
        why = why_not(result, caption, rules, self._plan.identify)
        if is_bad and why not in ("refusal", "empty"):
            why = "bad_json"
        fate = {"kept": False, "why": why} if why else {}
        return text(caption[:MAX_CHARS], "synth", model=label, **fate), values if not why else {}

    def _cell(self, found: Sequence[Mapping[str, Any]], name: str) -> Any:
        values = [one.get(name) for one in found]
        if len(self._plan.labels) == 1:
            return values[0] if values else None
        return values
