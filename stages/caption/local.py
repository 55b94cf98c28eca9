"""Captions by a vision-language model of transformers in this process: BLIP-2, Florence-2, GIT, SmolVLM, Qwen-VL, ...

The same as `caption.endpoint` without a server. The prompt may hold fields of the row, such as the alt-text, in which are
names that no captioner can see (CapsFusion, https://arxiv.org/abs/2310.20550).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.caption.generate import EMPTY
from vlpipe.stages.common.batches import batch_size_problems, seed_of, with_texts, without
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.scores import device
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel
from vlpipe.stages.vision_language.prompts import Template, filled, need_fields

if TYPE_CHECKING:
    from vlpipe.stages.vision_language.decoding import Decoding, Written
    from vlpipe.stages.vision_language.model import VisionLanguageModel

TRUNCATED = "truncated"
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class LocalCaption(RunsModel, MapStage):
    """Appends captions to `texts`, with source `synth`; `model` is the digest of the weights, and `/NAME` of the prompt.

    model: a folder or hub id of transformers' image-text-to-text and image-to-text classes; code in it is never run.
    prompt, or several by name in `prompts`: a caption for each, in the words of the processor's chat template if it has one.
    Fields in braces are columns of the row, `{alt_text}` (its first web text), `{caption}` (its last synthetic one) or
    `{texts}`. system: the system message. num_captions: per prompt.
    temperature: 0 for the likeliest tokens, or a search with `num_beams`; above 0 for sampling among the likeliest with
    `top_p` and `top_k` (0: all). The draws of caption j depend only on (seed, row id, prompt's name, j).
    min_tokens, max_tokens: of a caption, its end included. A caption that reaches max_tokens before its end is stored with
    kept=False, why='truncated'; with `truncated: keep` it is kept. An empty one has why='empty'.
    Decoding is transformers' `generate` with its KV cache. Prompts are padded (on the left, for models whose positions
    allow that), so that a caption does not depend on its batch, except in last bits for models that read each picture in
    its own size. Rows with an undecodable image are rejected (fault). Counts: captions by fate, `tokens_out`.
    gate: `passed.json` of a `hygiene.gate:CaptionGate`, before which this step does not start.
    """

    NAME: ClassVar[str] = "caption.local:LocalCaption"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"prompts"})
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"gate"}

    model: Weights
    prompt: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    system: str = ""
    num_captions: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    num_beams: Count = 1
    min_tokens: Annotated[int, Field(ge=0)] = 0
    max_tokens: Count = 64
    repetition_penalty: Annotated[float, Field(ge=1)] = 1.0
    truncated: Literal["drop", "keep"] = "drop"
    seed: int = 0
    batch_size: int = 16
    gate: File | None = None

    @property
    def templates(self) -> dict[str, Template]:
        """The prompts by name; the only one has the name ""."""
        return {name: Template.of(one) for name, one in (self.prompts or {"": self.prompt}).items()}

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "caption.local", id=pa.string(), texts=TEXTS, image=pa.binary())
        need_fields(inp, list(self.templates.values()))
        return inp

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        if self.prompt and self.prompts:
            problems.append("give either `prompt`, or `prompts` by name")
        if "" in self.prompts:
            problems.append("prompts: a name is empty")
        try:
            assert self.templates is not None
        except VlpipeError as error:
            problems.append(str(error))
        if self.min_tokens > self.max_tokens:
            problems.append(
                f"min_tokens must be at most max_tokens; got {self.min_tokens} and {self.max_tokens}"
            )
        if self.num_captions > 1 and not self.temperature:
            problems.append("num_captions: captions with temperature 0 are all the same; set it above 0")
        if self.temperature and self.num_beams > 1:
            problems.append("num_beams is a search for the likeliest text; it needs temperature 0")
        if not self.temperature and (self.top_p != 1 or self.top_k):
            problems.append("top_p and top_k are of sampling; set temperature above 0")
        return problems

    def decoding(self) -> Decoding:
        from vlpipe.stages.vision_language.decoding import Decoding

        names = ("temperature", "top_p", "top_k", "num_beams", "min_tokens", "max_tokens")
        given = {name: getattr(self, name) for name in names}
        return Decoding(**given, repetition_penalty=self.repetition_penalty)

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.stages.vision_language.model import load

        model = load(self.model, self.precision)
        yield Working(partial(self._caption, model), self.decode_workers, device().type == "cuda")

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        from PIL import Image

        from vlpipe.stages.vision_language.batching import collated
        from vlpipe.stages.vision_language.decoding import write
        from vlpipe.stages.vision_language.model import load

        model, decoding = load(self.model, self.precision), self.decoding()
        (arrays,) = model.prepared(Image.new("RGB", (336, 336)), [model.worded(self.prompt, self.system)])

        def compute(size: int) -> None:
            write(model, collated([arrays] * size, model.side, model.pad_id), decoding, range(size))

        yield compute

    def _caption(self, model: VisionLanguageModel, table: pa.Table, ahead: Ahead) -> Out:
        from vlpipe.stages.vision_language.inputs import read_inputs

        rejects: list[Reject] = []
        ids = table["id"].to_pylist()
        names = list(self.templates)
        worded = [
            [model.worded(prompt, self.system) for prompt in prompts]
            for prompts in filled(table, list(self.templates.values()), model.plain)
        ]
        wanted = (
            ((row, at, number), arrays)
            for row, each in read_inputs(table, model, worded, rejects, ahead)
            for at, arrays in enumerate(each)
            for number in range(self.num_captions)
        )
        found = self._write(model, wanted, ids, names)
        texts = [list(ts or ()) for ts in table["texts"].to_pylist()]
        counts: Counter[str] = Counter()
        for (row, at, _), written in sorted(found.items()):
            entry = self._entry(written, names[at])
            texts[row].append(entry)
            counts.update({entry["why"] or "captions": 1, "tokens_out": written.num_tokens})
        return Out(without(with_texts(table, texts), rejects), rejects, counts=counts)

    def _write(
        self, model: VisionLanguageModel, wanted: Any, ids: Sequence[str], names: Sequence[str]
    ) -> dict[tuple[int, int, int], Written]:
        """Returns (row, number of the prompt, number of the caption) -> caption."""
        from vlpipe.stages.vision_language.batching import collated, in_groups
        from vlpipe.stages.vision_language.decoding import write

        decoding = self.decoding()
        found: dict[tuple[int, int, int], Written] = {}
        for batch, num_real in in_groups(wanted, self.batch_size, model.side):
            keys = [key for key, _ in batch]
            seeds = [seed_of(self.seed, ids[row], names[at], number) for row, at, number in keys]
            arrays = collated([each for _, each in batch], model.side, model.pad_id)
            found.update(zip(keys[:num_real], write(model, arrays, decoding, seeds), strict=False))
        return found

    def _entry(self, written: Written, prompt: str) -> dict[str, Any]:
        why = EMPTY if not written.text else TRUNCATED if written.is_cut else ""
        fate = (
            {} if not why or (why == TRUNCATED and self.truncated == "keep") else {"kept": False, "why": why}
        )
        model = f"{self.model.digest}/{prompt}" if prompt else self.model.digest
        return text(written.text, "synth", model=model, **fate)
