"""(c) Captioning and filtering: encoder and decoder apart, against transformers; the stages from stored JPEGs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from gpu_common import Bench, median_s, new_model, pictures, rows_of, stored_model, synchronise

from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.pipeline.files import Weights
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.filter.itm import ItmFilter

NUM_TOKENS = 20  # of each text: no less, no more
DTYPES = (torch.bfloat16, torch.float32)
PRECISION = "precision"  # the stages' parameter, where they have one


def measure(bench: Bench) -> None:
    ours = new_model(bench, image_size=32 if bench.small else 384)
    weights = stored_model(bench, ours, "captioner")
    theirs = transformers_model(bench, ours)
    sizes = (4,) if bench.small else (64, 128, 256, 512, 1024)
    for dtype in DTYPES:
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        for size in sizes if dtype is DTYPES[0] else sizes[:1]:
            what = f"batch {size}, {str(dtype).removeprefix('torch.')}"
            if not bench.has_time(what):
                continue
            try:
                generate(bench, what, ours, theirs, size)
            except torch.OutOfMemoryError:
                bench.add(what, error="out of memory")
    del ours, theirs
    stages(bench, weights)


def transformers_model(bench: Bench, ours: Blip) -> Any:
    """The same weights in transformers' model."""
    from transformers import BlipForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    ours.export(bench.folder / "transformers", kind="captioner", tokenizer=bench.tokenizer)
    return BlipForConditionalGeneration.from_pretrained(bench.folder / "transformers").eval().to(bench.device)


@torch.inference_mode()
def generate(bench: Bench, what: str, ours: Any, theirs: Any, size: int) -> None:
    """Greedy texts of NUM_TOKENS tokens, by both; ours by nucleus sampling, too."""
    side, dtype = ours.config.image_size, next(ours.parameters()).dtype
    pixels = torch.randn(size, 3, side, side, device=bench.device, dtype=dtype)
    tokens = ours.encode_image(pixels)
    length = {"min_length": NUM_TOKENS, "max_length": NUM_TOKENS}
    rows = [torch.Generator().manual_seed(k) for k in range(size)]
    start = torch.full((size, 1), ours.config.dec, device=bench.device)
    never = [*ours.config.never, ours.config.sep]

    def transformers_generate() -> Any:
        return theirs.text_decoder.generate(
            input_ids=start,
            encoder_hidden_states=tokens,
            do_sample=False,
            num_beams=1,
            min_new_tokens=NUM_TOKENS,
            max_new_tokens=NUM_TOKENS,
            suppress_tokens=never,
            eos_token_id=ours.config.sep,
            pad_token_id=ours.config.pad,
        )

    works: dict[str, Callable[[], Any]] = {
        "ms_encode": lambda: ours.encode_image(pixels),
        "ms_greedy": lambda: sample(ours, tokens, **length),
        "ms_nucleus": lambda: sample(ours, tokens, generators=rows, top_p=0.9, **length),
        "ms_transformers_encode": lambda: theirs.vision_model(pixels),
        "ms_transformers_greedy": transformers_generate,
    }
    new = (transformers_generate().shape[1] - 1, len(sample(ours, tokens, **length)[0]))
    if new != (NUM_TOKENS, NUM_TOKENS):
        raise RuntimeError(f"wanted {NUM_TOKENS} new tokens of both, got {new}")
    ms = {name: 1e3 * median_s(bench, work, warm=1, num=3) for name, work in works.items()}
    both = {
        "images_per_s": 1e3 * size / (ms["ms_encode"] + ms["ms_nucleus"]),
        "greedy_times_faster": ms["ms_transformers_greedy"] / ms["ms_greedy"],
        "encode_times_faster": ms["ms_transformers_encode"] / ms["ms_encode"],
    }
    bench.add(what, **ms, **both)


def stages(bench: Bench, weights: Weights) -> None:
    """Whole stages on one table, from JPEGs as wide as the model's input."""
    images = pictures(48 if bench.small else 512, 8 if bench.small else 64)  # 512 x 384
    num, size = (32, 16) if bench.small else (1024, 256)
    table = rows_of(bench, images, num, texts=2)
    for precision in _precisions(Caption):
        what = f"caption stage, {num} images, batch {size}, precision {precision or 'of the stage'}"
        stage = Caption(
            model=weights, max_length=NUM_TOKENS, min_length=NUM_TOKENS, batch_size=size, **_given(precision)
        )
        if bench.has_time(what):
            bench.add(what, images_per_s=_rate(bench, stage, table, size))
    for precision in _precisions(ItmFilter):
        what = f"filter stage, {2 * num} pairs, batch {size}, precision {precision or 'of the stage'}"
        if bench.has_time(what):
            filters = ItmFilter(model=weights, batch_size=size, **_given(precision))
            bench.add(what, pairs_per_s=2 * _rate(bench, filters, table, size))


def _precisions(stage: type) -> tuple[str, ...]:
    """Those that a stage can be given; "" for one that has no such parameter yet."""
    return ("bf16", "fp32") if PRECISION in {f.name for f in fields(stage)} else ("",)


def _given(precision: str) -> dict[str, Any]:
    return {PRECISION: precision} if precision else {}


def _rate(bench: Bench, stage: Any, table: Any, warm_rows: int) -> float:
    """Rows per second, after one batch; loading the model does not count."""
    with stage.open() as work:
        work(table.slice(0, warm_rows))
        synchronise(bench)
        began = time.perf_counter()
        work(table)
        synchronise(bench)
        return table.num_rows / (time.perf_counter() - began)
