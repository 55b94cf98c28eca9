"""Prompts with fields of a row, such as `{alt_text}`."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError, VlpipeError, did_you_mean
from vlpipe.stages.common.row import TEXTS

# Fields that are no columns: the first text from the web, the last synthetic one, and all texts, one a line; without
# dropped ones.
OF_TEXTS = ("alt_text", "caption", "texts")
MAX_FIELD_CHARS = 2_000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
SIMPLE = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)


@dataclass(frozen=True)
class Template:
    """A prompt with fields in braces; `{{` and `}}` stand for braces. parts: (text, the field behind it or "") each."""

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
                f"the prompt {text[:60]!r} cannot be read: {error}; a field is a name in braces, such as {{alt_text}}"
            ) from error
        return cls(tuple(parts))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, name in self.parts if name))

    def filled(self, values: Mapping[str, str]) -> str:
        return "".join(before + (values[name] if name else "") for before, name in self.parts)


def need_fields(schema: pa.Schema, templates: Sequence[Template]) -> None:
    """Raises SchemaError if a field is neither one of OF_TEXTS nor a column of texts or numbers."""
    known = [*OF_TEXTS, *(f.name for f in schema if any(is_type(f.type) for is_type in SIMPLE))]
    for name in (name for template in templates for name in template.fields):
        if name not in known:
            raise SchemaError(
                f"the prompt has a field {{{name}}}, which the rows lack{did_you_mean(name, known)}"
            )
        if name in OF_TEXTS and ("texts" not in schema.names or schema.field("texts").type != TEXTS):
            raise SchemaError(f"the prompt has a field {{{name}}}, but the rows have no column `texts`")


def filled(
    table: pa.Table, templates: Sequence[Template], clean: Callable[[str], str] = str
) -> list[list[str]]:
    """Returns for each row its prompts, one per template. Values are cut, control characters become spaces, null is "".

    clean: applied to the values, which are the web's, and not to the templates.
    """
    fields = {name for template in templates for name in template.fields}
    columns = {name: table[name].to_pylist() for name in fields if name not in OF_TEXTS}
    values = [{name: _plain(found[row]) for name, found in columns.items()} for row in range(table.num_rows)]
    if any(name in OF_TEXTS for name in fields):
        for one, texts in zip(values, table["texts"].to_pylist(), strict=True):
            one |= _of_texts([t for t in texts or () if t["kept"] is not False and t["text"]])
    values = [{name: clean(value) for name, value in one.items()} for one in values]
    return [[template.filled(one) for template in templates] for one in values]


def _of_texts(texts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    web = [one["text"] for one in texts if one["source"] == "web"]
    synth = [one["text"] for one in texts if one["source"] == "synth"]
    return {
        "alt_text": _plain(web[0] if web else None),
        "caption": _plain(synth[-1] if synth else None),
        "texts": "\n".join(_plain(one["text"]) for one in texts)[:MAX_FIELD_CHARS],
    }


def _plain(value: object) -> str:
    return "" if value is None else CONTROL.sub(" ", str(value)[:MAX_FIELD_CHARS])
