"""Prompts with fields of a row, and the requests made of them.

A request's hash covers all that determines the answer: model, prompt as filled in, sampling, seed, the digest of the stored
image and how it is resized. It covers neither the server's address nor a key, and is known before an image is decoded.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.stages.common.row import TEXTS

# Fields that are no columns: the first text from the web, the last synthetic one, and all texts, one a line; without
# dropped ones.
OF_TEXTS = ("alt_text", "caption", "texts")
MAX_FIELD_CHARS = 2_000
HASH_CHARS = 32
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FIELD_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)


@dataclass(frozen=True)
class Template:
    """A prompt with fields in braces, such as `{alt_text}`; `{{` and `}}` stand for braces.

    parts: (text before a field, the field's name or "" at the end) each.
    """

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Parses a prompt. Raises VlpipeError for anything else in braces than a name."""
        parts = []
        try:
            for before, name, spec, conversion in string.Formatter().parse(text):
                if name is not None and (spec or conversion or not name.isidentifier()):
                    raise ValueError(f"{{{name}}} is not a name")
                parts.append((before, name or ""))
        except ValueError as error:
            raise VlpipeError(
                f"the prompt {text[:60]!r} cannot be read: {error}; a field is a name in braces, such as {{alt_text}}, and "
                "{{ or }} stands for a brace"
            ) from error
        return cls(tuple(parts))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, name in self.parts if name))

    def filled(self, values: Mapping[str, str]) -> str:
        return "".join(before + (values[name] if name else "") for before, name in self.parts)


def need_fields(schema: pa.Schema, fields: Sequence[str]) -> None:
    """Raises VlpipeError if a field is neither one of OF_TEXTS nor a column of texts or numbers."""
    known = [*OF_TEXTS, *(f.name for f in schema if any(is_type(f.type) for is_type in _FIELD_TYPES))]
    for name in fields:
        if name not in known:
            raise VlpipeError(
                f"the prompt has a field {{{name}}}, which the rows lack{did_you_mean(name, known)}"
            )
        if name in OF_TEXTS and ("texts" not in schema.names or schema.field("texts").type != TEXTS):
            raise VlpipeError(f"the prompt has a field {{{name}}}, but the rows have no column `texts`")


def values_of(table: pa.Table, fields: Sequence[str]) -> list[dict[str, str]]:
    """Returns the fields' values of each row, as they enter a prompt: without control characters, cut, "" for null."""
    columns = {name: table[name].to_pylist() for name in fields if name not in OF_TEXTS}
    found = [
        {name: as_field(values[row]) for name, values in columns.items()} for row in range(table.num_rows)
    ]
    if any(name in OF_TEXTS for name in fields):
        for values, texts in zip(found, table["texts"].to_pylist(), strict=True):
            values |= _of_texts([one for one in texts or () if one["kept"] is not False and one["text"]])
    return found


def _of_texts(texts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    web = [one["text"] for one in texts if one["source"] == "web"]
    synth = [one["text"] for one in texts if one["source"] == "synth"]
    return {
        "alt_text": as_field(web[0] if web else None),
        "caption": as_field(synth[-1] if synth else None),
        "texts": "\n".join(as_field(one["text"]) for one in texts)[:MAX_FIELD_CHARS],
    }


def as_field(value: object) -> str:
    """Returns a value as it enters a prompt: without control characters, cut, "" for null."""
    if value is None:
        return ""
    return CONTROL.sub(" ", str(value)[:MAX_FIELD_CHARS])


class Row:
    """A row about which there are questions. image: returns the bytes of its image's file; None if no image is sent.

    began_at: when the first of its questions was sent, in seconds of the loop; None: none was, or the server did not let it
    in. `uri`, the image as it is sent, is held while questions of the row are under way.
    """

    __slots__ = ("began_at", "id", "image", "num_using", "sha256", "uri", "url")

    def __init__(
        self, id_: str, image: Callable[[], bytes] | None, url: str | None, sha256: str | None
    ) -> None:
        self.id, self.image, self.url, self.sha256 = id_, image, url, sha256
        self.began_at: float | None = None
        self.uri: asyncio.Future[bytes] | None = None
        self.num_using = 0


@dataclass(slots=True, eq=False)
class Request:
    """One question about a row's image. hash: see above; head, tail: the body before and after the image as a data URI."""

    row: Row
    hash: str
    head: bytes
    tail: bytes

    @property
    def key(self) -> tuple[str, str]:
        """The id of its row and its hash, by which its answer is stored."""
        return self.row.id, self.hash

    def body(self, uri: bytes) -> bytes:
        return b"".join((self.head, uri, self.tail))


def _orders(value: Any) -> list[list[str]]:
    """Returns the names of each `properties` of JSON schemas in `value` that are not sorted, in their order.

    A server writes the properties in the order of the schema, so that the answer depends on it.
    """
    if isinstance(value, Mapping):
        names = list(value["properties"]) if isinstance(value.get("properties"), Mapping) else []
        inner = [order for key in sorted(value) for order in _orders(value[key])]
        return inner if names == sorted(names) else [names, *inner]
    return [order for one in value for order in _orders(one)] if isinstance(value, list) else []


class Builder:
    """Builds requests. sampling: fields of the body that do not depend on the row, `model` included; image: settings of the
    resize, None if no image is sent; revision: of the model, which is in the hash and not in the body."""

    def __init__(
        self, sampling: Mapping[str, Any], system: str, image: Mapping[str, Any] | None, revision: str
    ) -> None:
        asked = [sampling, system, image, revision, *_orders(sampling)]
        self._static = json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
        first = f'{{"role":"system","content":{json.dumps(system)}}},' if system else ""
        picture = '[{"type":"image_url","image_url":{"url":"' if image is not None else ""
        self._between = ('"}},{"type":"text","text":', "}]") if image is not None else ("", "")
        self._head = f'{{"messages":[{first}{{"role":"user","content":{picture}'.encode()
        rest = json.dumps({**sampling}, separators=(",", ":"))[1:]
        self._rest = rest.encode()

    def hash(self, prompt: str, seed: int | None, image_sha256: str, number: int) -> str:
        """Returns the hash of a request. number: of the caption, among those of the same prompt."""
        found = hashlib.sha256(self._static)
        found.update(f"\0{image_sha256}\0{seed}\0{number}\0".encode())
        found.update(prompt.encode())
        return found.hexdigest()[:HASH_CHARS]

    def around(self, prompt: str, seed: int | None) -> tuple[bytes, bytes]:
        """Returns the body before and after the data URI."""
        text = json.dumps(prompt)
        seeded = f'"seed":{seed},' if seed is not None else ""
        before, after = self._between
        return self._head, f"{before}{text}{after}}}],{seeded}".encode() + self._rest
