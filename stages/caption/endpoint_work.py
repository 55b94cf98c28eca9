"""The function of `caption.endpoint`: makes questions of rows, and captions of answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.stages.common.batches import seed_of, with_texts, without
from vlpipe.stages.common.row import text
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.endpoint.ask import Asker, Result
from vlpipe.stages.endpoint.columns import BadJson, parsed
from vlpipe.stages.endpoint.outcomes import MAX_CHARS, Identify, Rules, plain, why_not
from vlpipe.stages.endpoint.prompts import Builder, Request, Row, Template, values_of
from vlpipe.stages.web.event_loop import Loop

IMAGE_REFUSED = frozenset(
    {413, 415}
)  # HTTP says that the content is too large, or of a kind it does not read
MAY_REFUSE_IMAGE = frozenset({400, 422})  # where the message says so


@dataclass(frozen=True, kw_only=True)
class Price:
    """Price of a million tokens that go in and come out, in any currency."""

    input: Annotated[float, Field(ge=0)] = 0.0
    output: Annotated[float, Field(ge=0)] = 0.0

    def of(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked about each row, and what becomes of the answers: `caption.endpoint:CaptionEndpoint` has the parameters.

    labels: for each caption of a row, what `model` says; fields: property of structured output -> its type; columns: its
    columns.
    """

    builder: Builder
    templates: tuple[Template, ...]
    labels: tuple[str, ...]
    num_captions: int
    seed: int | None
    rules: Rules
    identify: Identify | None
    fields: Mapping[str, pa.DataType]
    columns: Mapping[str, pa.DataType]
    caption_field: str
    rejects_unanswered: bool
    price: Price | None


class Captions:
    """The stage's function: an `AheadWork`, a `TimedWork` and a `CommittingWork`."""

    num_ahead = 3  # batches

    def __init__(self, plan: Plan, loop: Loop, asker: Asker) -> None:
        self._plan, self._loop, self._asker = plan, loop, asker
        self._under_way: dict[tuple[str, ...], Future[list[Result]]] = {}
        self._num_rows = self._tokens_in = self._tokens_out = 0

    def ahead(self, batch: pa.Table) -> None:
        """Starts to ask about a batch that a later call will receive."""
        self._under_way[_ids(batch)] = self._start(batch)

    def __call__(self, batch: pa.Table) -> Out:
        asked = self._under_way.pop(_ids(batch), None) or self._start(batch)
        try:
            results = asked.result()
        except BaseException:
            for other in self._under_way.values():
                other.cancel()
            self._under_way.clear()
            raise
        return self._out(batch, results)

    def committing(self) -> dict[str, float]:
        """Returns, when the shard's answers are in a Parquet file, what it cost."""
        self._loop.run(self._asker.recall.commit())
        counts, self._asker.counts = self._asker.counts, Counter()
        figures: dict[str, float] = {
            "asked": counts["asked"],
            "asked_again": counts["retries"],
            "answers_found": counts["found"],
            "tokens_in": self._tokens_in,
            "tokens_out": self._tokens_out,
        }
        if self._plan.price is not None:
            cost = self._plan.price.of(self._tokens_in, self._tokens_out)
            figures["cost"] = round(cost, 6)
            figures["cost_per_1000_rows"] = round(1000 * cost / max(self._num_rows, 1), 6)
        self._num_rows = self._tokens_in = self._tokens_out = 0
        return figures

    def _start(self, batch: pa.Table) -> Future[list[Result]]:
        return self._loop.submit(self._asker.all(self._requests(batch)))

    def _requests(self, batch: pa.Table) -> list[Request]:
        """Returns `num_texts` requests per row, those of a row one behind the other."""
        plan, builder = self._plan, self._plan.builder
        fields = tuple(dict.fromkeys(name for one in self._plan.templates for name in one.fields))
        filled = values_of(batch, fields)
        images = batch["image"]
        urls, digests = (_strings(batch, name) for name in ("url", "sha256"))
        made = []
        for number, id_ in enumerate(batch["id"].to_pylist()):
            image = images[number]
            digest = hashlib.sha256(image.as_buffer() or b"").hexdigest()
            row = Row(id_, _bytes_of(image), urls[number], digests[number] or digest)
            for template in plan.templates:
                prompt = template.filled(filled[number])
                for draw in range(plan.num_captions):
                    seed = None if plan.seed is None else seed_of(plan.seed, id_, draw) & 0x7FFFFFFF
                    hash_ = builder.hash(prompt, seed, digest, draw)
                    made.append(Request(row, hash_, *builder.around(prompt, seed)))
        return made

    def _out(self, batch: pa.Table, results: Sequence[Result]) -> Out:
        num = len(self._plan.labels)
        ids = batch["id"].to_pylist()
        texts = [list(ts or ()) for ts in batch["texts"].to_pylist()]
        rejects: list[Reject] = []
        counts: Counter[str] = Counter()
        objects: list[list[Mapping[str, Any]]] = []
        for row, id_ in enumerate(ids):
            mine = results[row * num : (row + 1) * num]
            counts.update(self._tokens(mine))
            objects.append([])
            fault = self._fault(mine)
            if fault is not None:
                rejects.append(Reject(id_, "fault", fault.why, fault.detail))
                continue
            for result, label in zip(mine, self._plan.labels, strict=True):
                entry, found = self._entry(result, label)
                texts[row].append(entry)
                objects[row].append(found)
                counts[f"captions_{entry['why'] or 'good'}"] += 1
        self._num_rows += len(ids)
        table = with_texts(batch, texts)
        columns = {
            name: pa.array([self._cell(found, name) for found in objects], dtype)
            for name, dtype in self._plan.columns.items()
        }
        table = with_columns(table, **columns) if columns else table
        return Out(without(table, rejects), rejects, counts=counts)

    def _tokens(self, results: Sequence[Result]) -> dict[str, int]:
        answers = [one for one in results if isinstance(one, Answer)]
        tokens_in, tokens_out = sum(one.tokens_in for one in answers), sum(one.tokens_out for one in answers)
        self._tokens_in += tokens_in
        self._tokens_out += tokens_out
        return {"tokens_in": tokens_in, "tokens_out": tokens_out}

    def _fault(self, results: Sequence[Result]) -> RowFault | None:
        """Returns why a row is rejected; None if it is not."""
        for one in results:
            if isinstance(one, RowFault):
                return one
            if isinstance(one, Answer) and _image_refused(one):
                return RowFault(f"http_{one.status}", one.refusal or "")
        if self._plan.rejects_unanswered:
            failures = [one for one in results if not isinstance(one, (Answer, RowFault))]
            if len(failures) == len(results):
                return RowFault(failures[0].why, failures[0].detail)
        return None

    def _entry(self, result: Result, label: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
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
        why = why_not(result, caption, self._plan.rules, self._plan.identify)
        if is_bad and why not in ("refusal", "empty"):
            why = "bad_json"
        fate = {"kept": False, "why": why} if why else {}
        return text(caption[:MAX_CHARS], "synth", model=label, **fate), values if not why else {}

    def _cell(self, found: Sequence[Mapping[str, Any]], name: str) -> Any:
        values = [one.get(name) for one in found]
        if len(self._plan.labels) == 1:
            return values[0] if values else None
        return values


def _image_refused(answer: Answer) -> bool:
    about_image = "image" in (answer.refusal or "").lower()
    return answer.status in IMAGE_REFUSED or (answer.status in MAY_REFUSE_IMAGE and about_image)


def _ids(batch: pa.Table) -> tuple[str, ...]:
    return tuple(batch["id"].to_pylist())


def _strings(batch: pa.Table, name: str) -> list[str | None]:
    """Returns a column of texts; nulls if there is none."""
    at = batch.schema.get_field_index(name)
    if at < 0 or not pa.types.is_string(batch.schema.field(at).type):
        return [None] * batch.num_rows
    found: list[str | None] = batch[name].to_pylist()
    return found


def _bytes_of(image: pa.Scalar) -> Any:
    return lambda: image.as_py() or b""
