"""Asks a server many questions: finds those answered before, paces the others, tries again, and gives up in time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.endpoint.client import Client, NoResponse, Response
from vlpipe.stages.endpoint.pace import Pace
from vlpipe.stages.endpoint.pictures import Sent, as_it_is, encoded_anew
from vlpipe.stages.endpoint.prompts import Request, Row
from vlpipe.stages.endpoint.recall import Recall
from vlpipe.stages.endpoint.reply import SHUT, NoAnswer, answer_of, message_of

BACKOFF_S, MAX_BACKOFF_S = (
    0.5,
    20.0,
)  # between attempts at one question; doubles, times a random factor of 0.5 to 1.5
NOT_THERE = frozenset({"connect", "dns", "tls"})
TOO_MANY = 429
NUM_THREADS = 2  # that decode and encode pictures
NO_LOGPROBS = "no_logprobs"
NOT_AGAIN = "what is stored is not asked again"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """See `caption.endpoint:CaptionEndpoint`, whose parameters have the same names."""

    concurrency: int
    timeout_s: float
    row_timeout_s: float
    retries: int
    give_up_s: float
    max_wait_s: float
    max_bytes: int


Result = Answer | RowFault | NoAnswer | NoResponse


class Asker:
    """Asks one server, in the running loop. sent: how pictures are sent; secret: removed from all that the server says.

    need_server: raises an error if the server has ended, which is then not waited for. needs_logprobs: an answer without
    log-probabilities is none.
    """

    def __init__(
        self,
        client: Client,
        recall: Recall,
        limits: Limits,
        sent: Sent,
        secret: str = "",
        need_server: Callable[[], None] = lambda: None,
        *,
        needs_logprobs: bool = False,
    ) -> None:
        self._client, self.recall, self._limits, self._sent = client, recall, limits, sent
        self._secret, self._need_server, self._needs_logprobs = secret, need_server, needs_logprobs
        self._loop = asyncio.get_running_loop()
        self.pace = Pace(limits.concurrency)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="pictures")
        self._shut_since: float | None = None  # when the server was found gone or shut, with no answer since
        self._has_answered = False
        self.counts: Counter[str] = Counter()  # asked, found, retries: since they were last cleared

    async def all(self, requests: Sequence[Request]) -> list[Result]:
        """Returns, for each question, its answer, or why there is none.

        A RowFault means that the image is at fault. Raises VlpipeError if the server lets nobody in or is gone.
        """
        found = await self.recall.find([one.key for one in requests])
        self.counts["found"] += len(found)
        tasks = {
            place: self._loop.create_task(self._one(one))
            for place, one in enumerate(requests)
            if one.key not in found
        }
        try:
            for task in tasks.values():
                await task
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return [
            tasks[place].result() if place in tasks else found[one.key] for place, one in enumerate(requests)
        ]

    async def _one(self, request: Request) -> Result:
        row = request.row
        row.num_using += 1
        try:
            return await self._asked(request)
        finally:
            row.num_using -= 1
            if not row.num_using:
                row.uri = None

    async def _asked(self, request: Request) -> Result:
        row, tries, attempt, refused = request.row, 0, 0, 0
        while True:
            await self.pace.turn(attempt > 0)
            began = self._loop.time()
            if row.began_at is None:
                row.began_at = began
            attempt += 1
            try:
                body = request.body(await self._uri(row))
                self.counts["asked"] += 1
                self.counts["retries"] += attempt > 1
                response = await self._client.post(body)
            except RowFault as fault:
                self.pace.left()
                return RowFault(fault.why, fault.detail)  # without the traceback, which holds the image
            except NoResponse as failure:
                problem: NoResponse | NoAnswer = failure
                if failure.why == "too_large":
                    self.pace.left()
                    return failure
                self.pace.failed()
                self._need_server()
                self._note_failure(failure.why in NOT_THERE, failure.detail)
            except BaseException:
                self.pace.left()
                raise
            else:
                if response.status == TOO_MANY or (response.status == 503 and response.retry_after_s > 0):
                    refused += 1
                    wait_s = self.pace.refused(response.retry_after_s, refused)
                    await self._wait_outside(response, wait_s)
                    row.began_at = None  # its deadline counts from when it is let in
                    continue
                try:
                    answer = answer_of(request, response, self._secret)
                    if self._needs_logprobs and answer.status == 200 and answer.extra is None:
                        raise NoAnswer(NO_LOGPROBS, "the answer has no log-probabilities")
                except NoAnswer as failure:
                    problem = failure
                    if response.status >= 500:
                        self.pace.failed()
                    else:
                        self.pace.left()
                    if failure.why == "redirect":
                        return failure
                    self._refuse_without_logprobs(failure)
                    self._note_failure(response.status in SHUT, failure.detail, response.status)
                else:
                    self.pace.answered(self._loop.time() - began)
                    self._shut_since, self._has_answered = None, True
                    self.recall.keep(answer)
                    return answer
            if self._shut_since is None:  # else it waits for the server, however many attempts that takes
                tries += 1
                if tries > self._limits.retries or self._is_late(row):
                    return problem
            await asyncio.sleep(self._backoff_s(attempt))
            if self._shut_since is None and self._is_late(row):
                return problem

    def _refuse_without_logprobs(self, failure: NoAnswer) -> None:
        """Raises VlpipeError if a first answer lacks log-probabilities: the server has none, and no later answer will."""
        if failure.why == NO_LOGPROBS and not self._has_answered:
            raise VlpipeError(
                "the server's answers have no log-probabilities: it must know `logprobs` and `top_logprobs` of chat "
                "completions, as vLLM and SGLang do"
            ) from None

    async def _uri(self, row: Row) -> bytes:
        """Returns the row's image as it is sent; made once for all questions about it; empty if none is. Raises RowFault."""
        if row.image is None:
            return b""
        if row.uri is None:
            row.uri = self._loop.create_future()
            try:
                data = row.image()
                made = as_it_is(data, self._sent)
                if made is None:
                    made = await self._loop.run_in_executor(self._threads, encoded_anew, data, self._sent)
            except BaseException as error:
                row.uri.set_exception(error)
                row.uri.exception()  # it is raised here: asyncio shall not say that nobody looked
                row.uri = None
                raise
            row.uri.set_result(made)
            return made
        return await asyncio.shield(row.uri)

    async def _wait_outside(self, response: Response, wait_s: float) -> None:
        """Waits after a 429, in the request's slot. Raises VlpipeError if the server has let nobody in for `max_wait_s`."""
        try:
            quiet_s = self._loop.time() - self.pace.answered_at
            if quiet_s > self._limits.max_wait_s:
                raise VlpipeError(
                    f"the server has answered with {response.status} alone for {quiet_s:.0f} s: "
                    f"{message_of(response.body, self._secret)!r}; run again when it lets you in: {NOT_AGAIN}"
                )
            await asyncio.sleep(min(wait_s, self._limits.max_wait_s))
        finally:
            self.pace.left()

    def _note_failure(self, is_shut: bool, detail: str, status: int = 0) -> None:
        """Raises VlpipeError if the server has been gone, or shut for us, for `give_up_s`; at once where a status says so
        before any answer came."""
        if not is_shut:
            self._shut_since = None
            return
        now = self._loop.time()
        self._shut_since = now if self._shut_since is None else self._shut_since
        if status and not self._has_answered:
            raise VlpipeError(
                f"the server answers with {status}: {detail!r}; check base_url, model and api_key_env"
            )
        if now - self._shut_since >= self._limits.give_up_s:
            raise VlpipeError(
                f"no answer from the server for {self._limits.give_up_s:g} s ({detail}); "
                f"run again when it is up: {NOT_AGAIN}"
            )

    def _is_late(self, row: Row) -> bool:
        return row.began_at is not None and self._loop.time() - row.began_at >= self._limits.row_timeout_s

    def _backoff_s(self, attempt: int) -> float:
        most = 2.0 if self._shut_since is not None else MAX_BACKOFF_S
        return min(BACKOFF_S * 2 ** min(attempt - 1, 10), most) * random.uniform(0.5, 1.5)

    def close(self) -> None:
        self._client.close()
        self.recall.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
