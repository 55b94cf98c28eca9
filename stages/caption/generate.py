"""CapFilt's captioner: synthetic captions for web images, by nucleus sampling or beam search.

BLIP samples one caption per image with p = 0.9. Nucleus sampling beats beam search, although the filter drops more of
its captions (25 % against 19 %; Li et al., 2022, Table 2, https://arxiv.org/abs/2201.12086).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import (
    batch_size_problems,
    encode_images,
    fixed_batches,
    made_up,
    read_images,
    seed_of,
    with_texts,
    without,
)
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel

if TYPE_CHECKING:
    import torch

    from vlpipe.models.generation.steps import Steps
    from vlpipe.stages.common.model import Loaded

EMPTY = "empty"
Wanted = tuple[int, "torch.Tensor", int]  # number of the row, encoding of its image, seed


@dataclass(frozen=True, kw_only=True)
class Caption(RunsModel, MapStage):
    """Appends `num_captions` captions to `texts`; each has source `synth`, and the digest of the weights as `model`.

    min_length, max_length: number of generated tokens, without prompt and end token (BLIP's 5 and 20 include 4 tokens for
    [DEC] and "a picture of").
    top_p: 0.9 as in BLIP; top_k: number of likeliest tokens to sample from, None for all; repetition_penalty: 1 for no
    penalty, as in BLIP's paper. BLIP's code has top_k 50 and repetition_penalty 1.1.
    num_beams: of a beam search in place of sampling (1: greedy), with one caption per image; 3 in BLIP's Table 2.
    seed: the random draws of caption j of row r depend only on (seed, id of r, j), not on weights or batch.
    row_prompts: each caption goes on from the row's column `prompt` (`caption.prompt_column`), such as its alt-text; of a
    longer prompt, the last max_prompt tokens. Batches have prompts of one length, so a caption does not depend on its batch.
    compile: decoding steps go through torch.compile at the first batch, on a GPU as CUDA graphs; a caption may differ
    in a token where two were about equally likely. An empty caption is stored with kept=False, why='empty'. Rows with
    an undecodable image are rejected (fault).
    """

    NAME: ClassVar[str] = "caption.generate:Caption"
    VERSION: ClassVar[int] = 2  # 2: never generates [UNK] or [MASK]
    ADDED: ClassVar[frozenset[str]] = (
        RunsModel.ADDED | {"top_k", "compile", "num_beams"} | {"row_prompts", "max_prompt"}
    )
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    model: Weights
    prompt: str = ""
    row_prompts: bool = False
    max_prompt: int = 32
    top_p: float = 0.9
    top_k: int | None = None
    num_beams: int | None = None
    min_length: int = 1
    max_length: int = 20
    repetition_penalty: float = 1.0
    num_captions: int = 1
    seed: int = 0
    batch_size: int = 64
    compile: bool = False

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "caption.generate", id=pa.string(), texts=TEXTS, image=pa.binary())
        if self.row_prompts:
            need(inp, "caption.generate", prompt=pa.string())
        return inp

    def preflight(self) -> list[str]:
        problems = batch_size_problems(self.batch_size) + self.worker_problems()
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            problems.append(
                f"min_length must be from 0 to max_length, and max_length at least 1; got min_length: {self.min_length}, "
                f"max_length: {self.max_length}"
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k must be at least 1, got {self.top_k}")
        if self.num_beams is not None and self.num_beams < 1:
            problems.append(f"num_beams must be at least 1 (greedy), got {self.num_beams}")
        if self.row_prompts and self.prompt:
            problems.append("row_prompts: the prompt is in the rows; remove `prompt`")
        if self.row_prompts and self.compile:
            problems.append(
                "row_prompts: prompts differ in length, which `compile` does not allow; set compile: false"
            )
        if self.max_prompt < 1:
            problems.append(f"max_prompt must be at least 1, got {self.max_prompt}")
        of_sampling = {
            "top_p": self.top_p != 0.9,
            "top_k": self.top_k is not None,
            "repetition_penalty": self.repetition_penalty != 1,
            "num_captions": self.num_captions > 1,
            "compile": self.compile,
        }
        if self.num_beams is not None and (wrong := [name for name, is_set in of_sampling.items() if is_set]):
            problems.append(
                f"num_beams is a beam search: {', '.join(wrong)} would have no effect; leave it out"
            )
        if self.num_captions < 1:
            problems.append(f"num_captions must be at least 1, got {self.num_captions}")
        if self.repetition_penalty < 1:
            problems.append(
                f"repetition_penalty must be at least 1 (no penalty), got {self.repetition_penalty}"
            )
        return problems

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Generates])

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.generation.generate import check
        from vlpipe.models.generation.steps import Decoding, Steps
        from vlpipe.models.interface.capabilities import Generates
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[Generates], precision=self.precision)
        longest = [0] * self.max_prompt if self.row_prompts else model.tokenizer.ids(self.prompt)
        check(model.model, self.min_length, self.max_length, longest)
        steps = Steps(model.model, Decoding.on(model.device, self.compile))

        caption = partial(self._caption, model, steps)
        yield Working(caption, self.decode_workers, model.is_on_gpu)

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        from vlpipe.models.generation.steps import Decoding, Steps
        from vlpipe.stages.common.model import load

        model = load(self.model, precision=self.precision)

        def compute(size: int) -> None:
            steps = Steps(model.model, Decoding.on(model.device, self.compile))
            images = model.encode_images(made_up(size, model.image_size))
            full = replace(self, min_length=self.max_length)  # no caption ends early
            full._sample(model, steps, list(images), range(size))

        yield compute

    def _caption(self, model: Loaded, steps: Steps, table: pa.Table, ahead: Ahead) -> Out:
        rejects: list[Reject] = []
        ids = table["id"].to_pylist()
        texts = [list(ts or ()) for ts in table["texts"].to_pylist()]
        pixels = read_images(table, model.image_size, rejects, ahead)
        images = encode_images(pixels, model.encode_images, self.batch_size, ahead)
        prompts = self._prompts(model, table)
        self._append(model, steps, images, ids, texts, prompts)
        return Out(without(with_texts(table, texts), rejects), rejects)

    def _prompts(self, model: Loaded, table: pa.Table) -> list[list[int]] | None:
        """Returns the prompt of each row as ids; None if all have the same."""
        if not self.row_prompts:
            return None
        return [model.tokenizer.ids(one or "")[-self.max_prompt :] for one in table["prompt"].to_pylist()]

    def _append(
        self,
        model: Loaded,
        steps: Steps,
        images: Iterable[tuple[int, torch.Tensor]],
        ids: Sequence[str],
        texts: Sequence[list[dict[str, Any]]],
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Appends captions to `texts` of the rows. images: (row, its encoding) each; ids, prompts: of all rows."""
        wanted = (
            (row, tokens, seed_of(self.seed, ids[row], j))
            for row, tokens in images
            for j in range(self.num_captions)
        )
        lengths = None if prompts is None else [len(one) for one in prompts]
        for batch, num_real in _batches(wanted, self.batch_size, lengths):
            seeds = [seed for _, _, seed in batch]
            own = None if prompts is None else [prompts[row] for row, _, _ in batch]
            found = self._sample(model, steps, [tokens for _, tokens, _ in batch], seeds, own)
            for (row, _, _), caption in zip(batch[:num_real], found, strict=False):
                texts[row].append(self._entry(caption))

    def _sample(
        self,
        model: Loaded,
        steps: Steps,
        tokens: Sequence[torch.Tensor],
        seeds: Sequence[int],
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        import torch

        from vlpipe.models.generation.beam import search
        from vlpipe.models.generation.generate import sample

        images = torch.stack(list(tokens))  # (B, N, D)
        low, high = self.min_length, self.max_length
        same = prompts is None
        prompt = model.tokenizer.ids(self.prompt) if same else torch.tensor(prompts, dtype=torch.long)
        with torch.inference_mode():
            if self.num_beams is not None:
                found = search(
                    model.model,
                    images,
                    num_beams=self.num_beams,
                    min_length=low,
                    max_length=high,
                    prompt_ids=prompt,
                )
            else:
                found = sample(
                    model.model,
                    images,
                    generators=[torch.Generator().manual_seed(seed) for seed in seeds],
                    top_p=self.top_p,
                    top_k=self.top_k,
                    min_length=low,
                    max_length=high,
                    prompt_ids=prompt,
                    repetition_penalty=self.repetition_penalty,
                    steps=steps,
                )
        return [model.tokenizer.decode(ids) for ids in found]

    def _entry(self, caption: str) -> dict[str, Any]:
        fate = {} if caption else {"kept": False, "why": EMPTY}
        return text(caption, "synth", model=self.model.digest, **fate)


def _batches(
    wanted: Iterable[Wanted], size: int, lengths: Sequence[int] | None
) -> Iterator[tuple[list[Wanted], int]]:
    """Yields batches as `fixed_batches`; with `lengths`, of the rows' prompts, each has rows of one length.

    At most `size` rows of each length wait for others.
    """
    if lengths is None:
        yield from fixed_batches(wanted, size)
        return
    waiting: dict[int, list[Wanted]] = {}
    for one in wanted:
        group = waiting.setdefault(lengths[one[0]], [])
        group.append(one)
        if len(group) == size:
            yield from fixed_batches(waiting.pop(lengths[one[0]]), size)
    for group in waiting.values():
        yield from fixed_batches(group, size)
