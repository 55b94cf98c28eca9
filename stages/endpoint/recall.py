"""A worker's side of the record of answers: finds stored ones, and hands new ones to the driver (`endpoint.book`)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from vlpipe.pipeline.engine.records.answers import Answer, read_part
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.service import Address
from vlpipe.pipeline.services.line import connect
from vlpipe.pipeline.storage.store import Store

HELD_FILES = 2  # in memory: the rows of a shard are in one or two
SEND_S = 0.02  # answers that come within this time are sent together
Key = tuple[str, str]  # id, request


class Recall:
    """Connected to the step's service by `open`. Without a service (a notebook, a test) nothing is stored or found."""

    def __init__(self) -> None:
        self._line: Any = None
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._parts: dict[int, list[list[Any]]] = {}
        self._held: OrderedDict[int, dict[Key, Answer]] = OrderedDict()
        self._unsent: list[Answer] = []
        self._sends_soon = False
        self._reading = asyncio.Lock()
        self._error = ""
        self._is_closed = False

    @classmethod
    async def open(cls, where: Address | None) -> Recall:
        made = cls()
        if where is not None:
            made._line = await connect(where, made._heard, made._lost)
        return made

    async def find(self, keys: Sequence[Key]) -> dict[Key, Answer]:
        """Returns the stored answers to questions. Raises VlpipeError if the driver is gone or cannot read them."""
        if self._line is None or not keys:
            return {}
        self.flush()
        reply = await self._ask("find", asked=keys)
        wanted = set(keys)
        found = {(one[0], one[1]): Answer(*one) for one in reply["answers"]}
        store = Store(reply["root"])
        async with self._reading:
            for number in reply["files"]:
                part = await self._part(store, number)
                found |= {key: part[key] for key in wanted if key in part}
        return found

    async def _part(self, store: Store, number: int) -> dict[Key, Answer]:
        if number not in self._held:
            self._held[number] = await asyncio.to_thread(partial(read_part, store, number))
        self._held.move_to_end(number)
        while len(self._held) > HELD_FILES:
            self._held.popitem(last=False)
        return self._held[number]

    def keep(self, answer: Answer) -> None:
        """Stores an answer. Raises VlpipeError if earlier ones could not be stored."""
        if self._error:
            raise VlpipeError(self._error)
        if self._line is None:
            return
        self._unsent.append(answer)
        if not self._sends_soon:
            self._sends_soon = True
            self._loop.call_later(SEND_S, self.flush)

    def flush(self) -> None:
        """Sends what is not sent yet."""
        self._sends_soon = False
        if self._unsent and self._line is not None:
            self._line.send({"keep": self._unsent})
            self._unsent = []

    async def commit(self) -> None:
        """Returns when all answers kept so far are in Parquet files. Raises VlpipeError if they cannot be stored."""
        if self._line is not None:
            self.flush()
            await self._ask("commit")

    async def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        if self._error:
            raise VlpipeError(self._error)
        self._number += 1
        reply = self._replies[self._number] = self._loop.create_future()
        self._line.send({what: self._number, **more})
        return await reply

    def _heard(self, message: Any) -> None:
        if "error" in message:
            self._break(f"answers cannot be stored: {message['error']}")
            return
        number = message.get("found", message.get("committed"))
        if message.get("more"):
            self._parts.setdefault(number, []).extend(message["answers"])
            return
        if "answers" in message:
            message["answers"] = self._parts.pop(number, []) + message["answers"]
        reply = self._replies.pop(number, None)
        if reply is not None and not reply.done():
            reply.set_result(message)

    def _lost(self) -> None:
        if not self._is_closed:
            self._break("the driver, which stores answers, is gone")

    def _break(self, why: str) -> None:
        self._error = self._error or why
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(VlpipeError(self._error))
        self._replies.clear()

    def close(self) -> None:
        self._is_closed = True
        if self._line is not None:
            self.flush()
            self._line.close()
