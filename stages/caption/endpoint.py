"""Captions by any server that speaks OpenAI's chat completions: vLLM, SGLang, or a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError, did_you_mean
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.caption.endpoint_work import Captions, Plan
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.endpoint.columns import fields_of, response_format
from vlpipe.stages.endpoint.outcomes import Identify, Rules
from vlpipe.stages.endpoint.prompts import Builder, Template, need_fields
from vlpipe.stages.endpoint.stage import AsksServer

OURS = frozenset(
    {"model", "messages", "seed", "response_format", "stream", "n"}
)  # fields that `more` cannot set

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class CaptionEndpoint(AsksServer, MapStage):
    """Appends captions to `texts` that a server writes; each has source `synth`, and the model's name as `model`.

    The server, what is sent, and when it is given up: `endpoint.stage:AsksServer`.
    prompt: with fields of the row in braces: columns, `{alt_text}`, `{caption}` and `{texts}` (`endpoint.prompts`).
    prompts: several, by name; the names are added to `model` of their captions. num_captions: for each prompt, with a seed
    of its own: caption j of row r depends on (seed, id of r, j), as far as the server's sampling is reproducible. seed: None
    sends none. temperature, top_p, max_tokens: of the sampling; more: further fields of the request's body.
    json_schema: structured output; its properties become columns, lists with one element per caption if there are several
    captions per row; caption_field: the property that is the caption.
    languages: those that captions may have, as ISO 639-1 codes, empty for all; or, by the name of their prompt, such as
    `{english: [en], german: [de]}`.

    Each answer is recorded under the row's id and the request (`engine.records.answers`), and never asked again: not after a
    kill, nor when a parameter changes that only decides about answers (max_words, refusals, languages, repeats).
    A caption is stored with kept=False and why: refusal, truncated, empty, too_long (more than max_words), repetition (an
    n-gram `repeats` times in a row), wrong_language, bad_json; http_<status>, redirect, bad_answer, too_large, timeout,
    disconnected or bad_response if there is no answer after `retries` attempts more, or row_timeout_s.
    Rows are rejected (fault) if their image cannot be decoded, or if the server refuses it (http_400, 413, 415, 422).
    gate: `passed.json` of a `hygiene.gate:CaptionGate`, before which this step does not start.
    """

    NAME: ClassVar[str] = "caption.endpoint:CaptionEndpoint"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"json_schema", "more", "prompts"})
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    SENDS_IMAGE: ClassVar[bool] = True
    LOADS_WEIGHTS: ClassVar[bool] = (
        True  # what is learned about the server, and connections, last from shard to shard
    )
    NOT_IN_KEY: ClassVar[frozenset[str]] = AsksServer.NOT_IN_KEY | {"gate"}

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
    max_words: Count | None = None
    refusals: tuple[str, ...] = ()
    languages: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    repeats: Annotated[int, Field(ge=2)] = 4
    gate: File | None = None

    @property
    def rules(self) -> dict[str, Rules]:
        """The rules for captions of each prompt, by its name."""
        refusals = tuple(one.lower() for one in self.refusals)
        shared = Rules(max_words=self.max_words, refusals=refusals, repeats=self.repeats)
        return {name: replace(shared, languages=self._languages_of(name)) for name in self.templates}

    def _languages_of(self, prompt: str) -> tuple[str, ...]:
        return self.languages.get(prompt, ()) if isinstance(self.languages, dict) else self.languages

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
        need(inp, "caption.endpoint", id=pa.string(), texts=TEXTS)
        if self.SENDS_IMAGE:
            need(inp, "caption.endpoint", image=pa.binary())
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
        problems = self.server_problems()
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
        return problems + self._language_problems()

    def _language_problems(self) -> list[str]:
        if isinstance(self.languages, dict) and (unknown := sorted(set(self.languages) - set(self.prompts))):
            return [
                f"languages: {unknown[0]!r} is not the name of a prompt{did_you_mean(unknown[0], self.prompts)}"
            ]
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

        named = [one for name in self.templates for one in self._languages_of(name)]
        return py3langid(tuple(dict.fromkeys([*WEB_LANGUAGES, *named])), WEB_PRIOR)

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
        return Builder(sampling, self.system, image if self.SENDS_IMAGE else None, self.revision)

    def _plan(self) -> Plan:
        name = self.full_model
        labels = [f"{name}/{prompt}" if prompt else name for prompt in self.templates]
        return Plan(
            builder=self._builder(),
            templates=tuple(self.templates.values()),
            labels=tuple(label for label in labels for _ in range(self.num_captions)),
            num_captions=self.num_captions,
            seed=self.seed,
            rules=tuple(one for one in self.rules.values() for _ in range(self.num_captions)),
            identify=self._identify(),
            fields=fields_of(self.json_schema) if self.json_schema else {},
            columns=self.columns(),
            caption_field=self.caption_field,
            rejects_unanswered=self.unanswered == "reject",
            with_image=self.SENDS_IMAGE,
        )

    @contextmanager
    def open(self) -> Iterator[Work]:
        with self.line() as line:
            yield Captions(self._plan(), line)
