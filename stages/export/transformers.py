"""Exports a trained model for other libraries: a folder that `from_pretrained` of transformers opens, or open_clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import GatherStage, Job, Stage

EXPORTED = pa.schema([("file", pa.string()), ("num_bytes", pa.int64())])


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Disables the progress bars that transformers draws for each file it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class ExportHF(GatherStage):
    """Exports `model` as a folder for `from_pretrained` of transformers, or for open_clip.

    kind: which of the classes that transformers has for this system; BLIP: `captioner` (BlipForConditionalGeneration) or
    `retrieval` (BlipForImageTextRetrieval); CLIP: `open_clip` for a folder that open_clip opens as `local-dir:`. None for
    the first or only one.

    Artifacts: the files of the exported folder. Output rows (columns: EXPORTED): one per file.
    """

    ROWS_ARE: ClassVar[str] = "the files"

    model: Weights
    kind: str | None = None

    NAME: ClassVar[str] = "train.export:ExportHF"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return EXPORTED

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.stages.common.model import model_of_step

        model = model_of_step(self.model, stages)
        try:
            if model is not None:
                model.check_export(self.kind)
        except ValueError as error:
            return [f"step {self.model.step!r} makes a {type(model).__name__}: {error}"]
        return []

    def run(self, job: Job) -> None:
        from vlpipe.models import folder
        from vlpipe.models.tokenizer import Tokenizer

        model = folder.load(self.model.path)
        tokenizer = Tokenizer.load(self.model.path) if "text" in model.STREAMS else None
        with no_progress_bar():
            model.export(job.artifacts, self.kind, tokenizer)
        files = sorted(path for path in Path(job.artifacts).rglob("*") if path.is_file())
        names = [path.relative_to(job.artifacts).as_posix() for path in files]
        job.emit(pa.table([names, [path.stat().st_size for path in files]], schema=EXPORTED))
