"""Captions by any server that speaks OpenAI's chat completions: vLLM, SGLang, or a service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.service import Address, Service, ServiceContext, address
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.caption.endpoint_work import Captions, Plan, Price
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.endpoint.ask import Asker, Limits
from vlpipe.stages.endpoint.book import Book, Keeper
from vlpipe.stages.endpoint.client import Client
from vlpipe.stages.endpoint.columns import fields_of, response_format
from vlpipe.stages.endpoint.outcomes import Identify, Rules
from vlpipe.stages.endpoint.pictures import Sent
from vlpipe.stages.endpoint.prompts import Builder, Template, need_fields
from vlpipe.stages.endpoint.recall import Recall
from vlpipe.stages.web.event_loop import running_loop

IMAGE_REFUSED = frozenset(
    {413, 415}
)  # HTTP says that the content is too large, or of a kind it does not read
MAY_REFUSE_IMAGE = frozenset({400, 422})  # where the message says so
OURS = frozenset(
    {"model", "messages", "seed", "response_format", "stream", "n"}
)  # fields that `more` cannot set

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class CaptionEndpoint(MapStage):
    """Appends captions to `texts` that a server writes; each has source `synth`, and the model's name as `model`.

    base_url: up to `/v1`; the only address that is contacted, on localhost or elsewhere, and redirects are not followed.
    Pictures leave this machine if the server is another one. api_key_env: name of the environment variable with the key,
    which is sent as `Authorization: Bearer`, and is in no key, log or file.
    model, revision: the name that the server knows, and what else tells its weights apart; both are in the key.
    prompt: with fields of the row in braces: columns, `{alt_text}`, `{caption}` and `{texts}` (`endpoint.prompts`).
    prompts: several, by name; the names are added to `model` of their captions. num_captions: for each prompt, with a seed
    of its own: caption j of row r depends on (seed, id of r, j), as far as the server's sampling is reproducible. seed: None
    sends none. temperature, top_p, max_tokens: of the sampling; more: further fields of the request's body.
    json_schema: structured output; its properties become columns, lists with one element per caption if there are several
    captions per row; caption_field: the property that is the caption. sent: how pictures are sent (`endpoint.pictures`).

    Each answer is recorded under the row's id and the request (`engine.records.answers`), and never asked again: not after a
    kill, nor when a parameter changes that only decides about answers (max_words, refusals, languages, repeats).
    A caption is stored with kept=False and why: refusal, truncated, empty, too_long (more than max_words), repetition (an
    n-gram `repeats` times in a row), wrong_language, bad_json; http_<status>, redirect, bad_answer, too_large, timeout,
    disconnected or bad_response if there is no answer after `retries` attempts more, or row_timeout_s. unanswered: `reject`
    rejects rows without any answer instead (fault), so that `vlpipe retry` asks again.
    Rows are rejected (fault) if their image cannot be decoded, or if the server refuses it (http_400, 413, 415, 422).

    concurrency: maximum number of requests under way per worker; how many there are follows from the server's answers
    (`endpoint.pace`). timeout_s: of a request. A 429 is waited for, up to max_wait_s without any answer; then, and after
    give_up_s without a connection, the step stops, and another run continues. max_bytes: of a response.
    price: of a million tokens; the receipts then have the cost. gate: `passed.json` of a `hygiene.gate:CaptionGate`, before
    which this step does not start.
    """

    NAME: ClassVar[str] = "caption.endpoint:CaptionEndpoint"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"json_schema", "more", "prompts"})
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = (
        True  # what is learned about the server, and connections, last from shard to shard
    )
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "timeout_s", "row_timeout_s", "retries", "give_up_s"}
        | {"max_wait_s", "max_bytes", "price", "gate"}
    )

    base_url: str
    model: str
    revision: str = ""
    api_key_env: str = ""
    prompt: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    system: str = ""
    num_captions: Count = 1
    seed: int | None = 0
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 256
    more: dict[str, Any] = field(default_factory=dict)
    json_schema: dict[str, Any] = field(default_factory=dict)
    caption_field: str = "caption"
    sent: Sent = field(default_factory=Sent)
    max_words: Count | None = None
    refusals: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    repeats: Annotated[int, Field(ge=2)] = 4
    unanswered: Literal["keep", "reject"] = "keep"
    concurrency: Count = 64
    timeout_s: Positive = 120.0
    row_timeout_s: Positive = 600.0
    retries: Annotated[int, Field(ge=0)] = 5
    give_up_s: Positive = 120.0
    max_wait_s: Positive = 3600.0
    max_bytes: Count = 1 << 20
    price: Price | None = None
    gate: File | None = None

    @property
    def rules(self) -> Rules:
        return Rules(
            max_words=self.max_words,
            refusals=tuple(one.lower() for one in self.refusals),
            languages=self.languages,
            repeats=self.repeats,
        )

    @property
    def templates(self) -> dict[str, Template]:
        """The prompts by name; the only one has the name ""."""
        given = self.prompts or {"": self.prompt}
        return {name: Template.of(prompt) for name, prompt in given.items()}

    @property
    def num_texts(self) -> int:
        """Captions per row."""
        return self.num_captions * max(1, len(self.prompts))

    def columns(self) -> dict[str, pa.DataType]:
        """Returns the columns of structured output: scalars for one caption per row, else lists."""
        fields = fields_of(self.json_schema) if self.json_schema else {}
        return {name: t if self.num_texts == 1 else pa.list_(t) for name, t in fields.items()}

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "caption.endpoint", id=pa.string(), texts=TEXTS, image=pa.binary())
        for template in self.templates.values():
            need_fields(inp, template.fields)
        for name, dtype in self.columns().items():
            if name in inp.names:
                raise SchemaError(
                    f"json_schema has a property {name!r}, which is a column of the rows already; name it otherwise"
                )
            inp = inp.append(pa.field(name, dtype))
        return inp

    def preflight(self) -> list[str]:
        problems = _url_problems(self.base_url)
        if bool(self.prompt) == bool(self.prompts):
            problems.append("give either `prompt`, or `prompts` by name")
        try:
            asked = self.templates
            fields = fields_of(self.json_schema) if self.json_schema else {self.caption_field: pa.string()}
        except VlpipeError as error:
            return [*problems, str(error)]
        if fields.get(self.caption_field) != pa.string():
            problems.append(
                f"caption_field: json_schema has no property {self.caption_field!r} of type string"
            )
        if not all(asked):
            problems += ["prompts: a name is empty"] if self.prompts else []
        if taken := sorted(OURS & set(self.more)):
            problems.append(f"more: {', '.join(taken)} cannot be set there")
        if self.num_captions > 1 and not self.temperature:
            problems.append(
                "num_captions: captions with temperature 0 are all the same; set temperature above 0"
            )
        if self.timeout_s > self.row_timeout_s:
            problems.append(
                f"timeout_s ({self.timeout_s:g}) is of one request, and row_timeout_s ({self.row_timeout_s:g}) of all "
                "attempts at a row's requests; it must not be smaller"
            )
        return problems + self._language_problems()

    def _language_problems(self) -> list[str]:
        if not self.languages:
            return []
        try:
            self._identify()
        except VlpipeError as error:
            return [str(error)]
        return []

    def _identify(self) -> Identify | None:
        if not self.languages:
            return None
        from vlpipe.stages.filter.language import WEB_LANGUAGES, WEB_PRIOR, py3langid

        return py3langid(tuple(dict.fromkeys([*WEB_LANGUAGES, *self.languages])), WEB_PRIOR)

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

    def _builder(self) -> Builder:
        sampling: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            **self.more,
        }
        if self.json_schema:
            sampling["response_format"] = response_format(self.json_schema)
        image = {name: getattr(self.sent, name) for name in ("max_side", "format", "quality")}
        return Builder(sampling, self.system, image, self.revision)

    def _plan(self) -> Plan:
        name = f"{self.model}@{self.revision}" if self.revision else self.model
        labels = [f"{name}/{prompt}" if prompt else name for prompt in self.templates]
        return Plan(
            builder=self._builder(),
            templates=tuple(self.templates.values()),
            labels=tuple(label for label in labels for _ in range(self.num_captions)),
            num_captions=self.num_captions,
            seed=self.seed,
            rules=self.rules,
            identify=self._identify(),
            fields=fields_of(self.json_schema) if self.json_schema else {},
            columns=self.columns(),
            caption_field=self.caption_field,
            rejects_unanswered=self.unanswered == "reject",
            price=self.price,
        )

    @contextmanager
    def open(self) -> Iterator[Work]:
        secret = self._secret()
        with running_loop() as loop:
            asker = loop.run(self._asker(address(), secret))
            try:
                yield Captions(self._plan(), loop, asker)
            finally:
                loop.run(_close(asker))

    async def _asker(self, where: Address | None, secret: str) -> Asker:
        limits = Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})
        headers = ["Content-Type: application/json", "Accept: application/json"]
        headers += [f"Authorization: Bearer {secret}"] if secret else []
        client = Client(
            f"{self.base_url.rstrip('/')}/chat/completions",
            headers,
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            max_bytes=self.max_bytes,
        )
        return Asker(client, await Recall.open(where), limits, self.sent, secret)


async def _close(asker: Asker) -> None:
    asker.close()


def _url_problems(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return [f"base_url: {url[:80]!r} is no URL"]
    if not is_good:
        return [f"base_url: wanted http://HOST:PORT/v1 or https://..., got {url[:80]!r}"]
    if parts.username or parts.password or parts.query or parts.fragment:
        return [
            "base_url must have no user, password, query or fragment: it is written into files; give a key by api_key_env"
        ]
    return []
