"""The parameters that all stages have that ask a server about images, and the connection to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.service import Address, Service, ServiceContext, address
from vlpipe.stages.endpoint.ask import Asker, Limits
from vlpipe.stages.endpoint.asking import Line, Price
from vlpipe.stages.endpoint.book import Book, Keeper
from vlpipe.stages.endpoint.client import Client
from vlpipe.stages.endpoint.managed import Managed, ManagedServer, started
from vlpipe.stages.endpoint.pictures import Sent
from vlpipe.stages.endpoint.recall import Recall
from vlpipe.stages.web.event_loop import running_loop

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class AsksServer:
    """Base of stages that ask a server with OpenAI's chat completions, before MapStage.

    base_url: up to `/v1`; the only address that is contacted, on localhost or elsewhere, and redirects are not followed.
    Pictures leave this machine if the server is another one. server: in place of base_url, how each worker of the step
    starts a server for itself (`endpoint.managed`), which is stopped with the step and killed with the run.
    api_key_env: name of the environment variable with the key, which is sent as `Authorization: Bearer`, and is in no key,
    log or file. model, revision: the name that the server knows, and what else tells its weights apart; both are in the key.
    sent: how pictures are sent (`endpoint.pictures`). unanswered: `reject` rejects rows without any answer (fault), so that
    `vlpipe retry` asks again.
    concurrency: maximum number of requests under way per worker; how many there are follows from the server's answers
    (`endpoint.pace`). timeout_s: of a request. retries: attempts after the first; row_timeout_s: of all attempts at a row's
    requests. A 429 is waited for, up to max_wait_s without any answer; then, and after give_up_s without a connection, the
    step stops, and another run continues. max_bytes: of a response.
    price: of a million tokens; the receipts then have the cost.
    """

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "server", "api_key_env", "concurrency", "timeout_s", "row_timeout_s", "retries"}
        | {"give_up_s", "max_wait_s", "max_bytes", "price"}
    )

    base_url: str = ""
    server: Managed | None = None
    model: str
    revision: str = ""
    api_key_env: str = ""
    sent: Sent = field(default_factory=Sent)
    unanswered: Literal["keep", "reject"] = "keep"
    concurrency: Count = 64
    timeout_s: Positive = 120.0
    row_timeout_s: Positive = 600.0
    retries: Annotated[int, Field(ge=0)] = 5
    give_up_s: Positive = 120.0
    max_wait_s: Positive = 3600.0
    max_bytes: Count = 1 << 20
    price: Price | None = None

    @property
    def full_model(self) -> str:
        """The model's name, with its revision behind an `@` if one is given."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    def server_problems(self) -> list[str]:
        """Returns error texts for `preflight`; empty if the server's parameters are possible."""
        if self.server is not None:
            problems = self.server.problems()
            if self.base_url:
                problems.append("give either `base_url`, or `server` with a command that starts one")
        elif not self.base_url:
            problems = ["give `base_url`, or `server` with a command that starts one"]
        else:
            problems = _url_problems(self.base_url)
        if self.timeout_s > self.row_timeout_s:
            problems.append(
                f"timeout_s ({self.timeout_s:g}) is of one request, and row_timeout_s ({self.row_timeout_s:g}) of all "
                "attempts at a row's requests; it must not be smaller"
            )
        return problems

    def service(self, context: ServiceContext) -> Service:
        """Returns the keeper of the root's recorded answers. Raises VlpipeError if there is no key: not while planning,
        because commands that only read a root need none."""
        self._secret()
        book = context.once(Book)
        book.load()
        return Keeper(book)

    def _secret(self) -> str:
        """Returns the key, "" if none is wanted. Raises VlpipeError if its variable is not set on this machine."""
        if not self.api_key_env:
            return ""
        value = os.environ.get(self.api_key_env, "")
        if not value or not (value.isprintable() and value.isascii()):
            what = "holds no value of an HTTP header" if value else "is not set"
            raise VlpipeError(
                f"api_key_env: the environment variable {self.api_key_env} {what} on {os.uname().nodename}"
            )
        return value

    @contextmanager
    def line(self, *, needs_logprobs: bool = False) -> Iterator[Line]:
        """Yields the connection to the server, which is started first if the step has one of its own.

        needs_logprobs: an answer without log-probabilities is none.
        """
        secret, server = self._secret(), None
        with ExitStack() as stack:
            if self.server is not None:
                server = stack.enter_context(started(self.server, self.model, secret))
            loop = stack.enter_context(running_loop())
            asker = loop.run(self._asker(address(), secret, server, needs_logprobs))
            try:
                yield Line(loop, asker, self.price, server)
            finally:
                loop.run(_close(asker))

    async def _asker(
        self, where: Address | None, secret: str, server: ManagedServer | None, needs_logprobs: bool
    ) -> Asker:
        limits = Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})
        headers = ["Content-Type: application/json", "Accept: application/json"]
        headers += [f"Authorization: Bearer {secret}"] if secret else []
        base_url = self.base_url if server is None else server.url
        client = Client(
            f"{base_url.rstrip('/')}/chat/completions",
            headers,
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            max_bytes=self.max_bytes,
        )
        need_server = (lambda: None) if server is None else server.need
        recall = await Recall.open(where)
        return Asker(client, recall, limits, self.sent, secret, need_server, needs_logprobs=needs_logprobs)


async def _close(asker: Asker) -> None:
    asker.close()


def _url_problems(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return [f"base_url: {url[:80]!r} is not a URL"]
    if not is_good:
        return [f"base_url: wanted http://HOST:PORT/v1 or https://..., got {url[:80]!r}"]
    if parts.username or parts.password or parts.query or parts.fragment:
        return [
            "base_url must have no user, password, query or fragment: it is written into files; give a key by api_key_env"
        ]
    return []
