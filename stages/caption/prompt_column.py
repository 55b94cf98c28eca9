"""What a captioner is told about each image, as a column: the alt-text, for example.

KALE (Awadalla et al., 2024, https://arxiv.org/abs/2411.07461) trains a small captioner on captions of large models that were
told the alt-text, to caption the rest of the images. The small one may be told, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.endpoint.prompts import Template, need_fields, values_of

COLUMN = "prompt"


@dataclass(frozen=True, kw_only=True)
class PromptColumn(MapStage):
    """Adds the column `prompt`: a prompt with the row's fields filled in, as `caption.endpoint` fills it.

    prompt: with fields in braces: columns, `{alt_text}`, `{caption}` and `{texts}`, of texts that are not dropped (yet): let
    this step come before one that drops the web's texts. `caption.generate` reads the column with `row_prompts: true`,
    training with `streams: {text: {use: "prompted:Prompted"}}`.
    """

    NAME: ClassVar[str] = "caption.prompt_column:PromptColumn"

    prompt: str

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "caption.prompt_column", id=pa.string())
        need_fields(inp, Template.of(self.prompt).fields)
        if COLUMN in inp.names:
            raise SchemaError(f"caption.prompt_column: the rows have a column {COLUMN!r} already")
        return inp.append(pa.field(COLUMN, pa.string()))

    def preflight(self) -> list[str]:
        try:
            return [] if Template.of(self.prompt).fields else ["prompt has no field such as {alt_text}"]
        except VlpipeError as error:
            return [str(error)]

    @contextmanager
    def open(self) -> Iterator[Work]:
        template = Template.of(self.prompt)

        def work(rows: pa.Table) -> pa.Table:
            prompts = [template.filled(values) for values in values_of(rows, template.fields)]
            return with_columns(rows, **{COLUMN: pa.array(prompts, pa.string())})

        yield work
