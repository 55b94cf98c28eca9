"""The function of a stage that asks a server: makes questions of rows, asks ahead, and makes rows of the answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out
from vlpipe.stages.endpoint.ask import Asker, Result
from vlpipe.stages.endpoint.managed import ManagedServer
from vlpipe.stages.endpoint.prompts import Request, Row
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


@dataclass(frozen=True)
class Line:
    """The connection to a server, in a loop of its own. server: the one that the step started; None if it started none."""

    loop: Loop
    asker: Asker
    price: Price | None
    server: ManagedServer | None


class Asking:
    """Base of functions that ask about the rows of a batch: an `AheadWork` and a `CommittingWork`."""

    num_ahead = 3  # batches

    def __init__(self, line: Line) -> None:
        self._loop, self._asker, self._price, self._server = line.loop, line.asker, line.price, line.server
        self._under_way: dict[tuple[str, ...], Future[list[Result]]] = {}
        self._num_rows = self._tokens_in = self._tokens_out = 0

    def requests(self, batch: pa.Table) -> list[Request]:
        """Returns the questions about a batch."""
        raise NotImplementedError

    def out(self, batch: pa.Table, results: Sequence[Result]) -> Out:
        """Returns the rows of a batch. results: for each question what came of it."""
        raise NotImplementedError

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
        self._num_rows += batch.num_rows
        return self.out(batch, results)

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
        if self._price is not None:
            cost = self._price.of(self._tokens_in, self._tokens_out)
            figures["cost"] = round(cost, 6)
            figures["cost_per_1000_rows"] = round(1000 * cost / max(self._num_rows, 1), 6)
        self._num_rows = self._tokens_in = self._tokens_out = 0
        return figures

    def tokens(self, results: Sequence[Result]) -> dict[str, int]:
        """Returns, and adds up for the receipt, the tokens of answers."""
        answers = [one for one in results if isinstance(one, Answer)]
        tokens_in, tokens_out = sum(one.tokens_in for one in answers), sum(one.tokens_out for one in answers)
        self._tokens_in += tokens_in
        self._tokens_out += tokens_out
        return {"tokens_in": tokens_in, "tokens_out": tokens_out}

    def _start(self, batch: pa.Table) -> Future[list[Result]]:
        if self._server is not None:
            self._server.again()
        return self._loop.submit(self._asker.all(self.requests(batch)))


def asked_rows(batch: pa.Table, *, with_image: bool = True) -> Iterator[tuple[Row, str]]:
    """Yields each row of a batch as a row about which there are questions, with the digest of its stored image.

    with_image: if not, no image is read or sent, and the digest is "".
    """
    urls, digests = (_strings(batch, name) for name in ("url", "sha256"))
    for number, id_ in enumerate(batch["id"].to_pylist()):
        if with_image:
            image = batch["image"][number]
            digest = hashlib.sha256(image.as_buffer() or b"").hexdigest()
            yield Row(id_, _bytes_of(image), urls[number], digests[number] or digest), digest
        else:
            yield Row(id_, None, urls[number], digests[number]), ""


def fault_in(results: Sequence[Result], *, rejects_unanswered: bool) -> RowFault | None:
    """Returns why a row is rejected, from the results of all questions about it; None if it is not.

    Its image is at fault, or, with `rejects_unanswered`, no question has an answer.
    """
    for one in results:
        if isinstance(one, RowFault):
            return one
        if isinstance(one, Answer) and _image_refused(one):
            return RowFault(f"http_{one.status}", one.refusal or "")
    failures = [one for one in results if not isinstance(one, (Answer, RowFault))]
    if rejects_unanswered and failures and len(failures) == len(results):
        return RowFault(failures[0].why, failures[0].detail)
    return None


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
