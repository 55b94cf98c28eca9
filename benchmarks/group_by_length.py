"""Training of a text encoder on web alt-texts, with batches of random lengths, of similar ones, and of as many tokens.

    python benchmarks/group_by_length.py            # two minutes
    python benchmarks/group_by_length.py --write    # and puts the page into group_by_length.md beside this file

BERT of 4 layers of 128, masked words, texts of at most 64 tokens, one thread. The ways train in turn on the same texts; what
is stated is the median of the rounds. "Padding" is the share of the positions that are padding; "largest batch" counts
positions, padding included, on which memory depends. `balance_tokens` has a mean of samples per batch with which its largest
batch is no larger than that of random lengths. Batches are made before the clock starts: counting the tokens of a text,
which `balance_tokens` does in the process that reads, takes about 30 us.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from record import machine, machine_line, table

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
ROUNDS, STEPS = 3, 30
MODEL = {"use": "bert:Bert", "width": 128, "layers": 4, "heads": 4, "max_text_length": 64}


def alt_texts(folder: Path) -> list[str]:
    """The texts of LAION's sample that are not blank."""
    column = pq.read_table(folder / "laion_10000.parquet", columns=["TEXT"])["TEXT"]
    return [found for found in column.to_pylist() if found and found.strip()]


# name -> settings of the recipe
WAYS: dict[str, dict[str, Any]] = {
    "random lengths": {"batch_size": 64},
    "group_by_length": {"batch_size": 64, "group_by_length": True},
    "balance_tokens": {"batch_size": 224, "group_by_length": True, "balance_tokens": True},
}


def measured(run: Any) -> tuple[float, float, float, float]:
    """Returns samples per second, the share of padding, samples per step and the largest batch of the next STEPS steps."""
    with run.loader.batches(run.step) as batches:
        found = list(islice(batches, STEPS))
    began = time.process_time()
    for batch in found:
        train_step(run, [batch])
    seconds = time.process_time() - began
    masks = [batch.stream("text").mask for batch in found]
    real, positions = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    num = sum(len(batch) for batch in found)
    return num / seconds, 1 - real / positions, num / STEPS, max(m.numel() for m in masks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write group_by_length.md")
    options = parser.parse_args()
    folder = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data") / "alttext"
    if not folder.exists():
        sys.exit("skipped: no alttext in VLPIPE_DATA or ../shared/data")
    torch.set_num_threads(1)
    at, texts = machine(), alt_texts(folder)
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        Tokenizer.train(texts, vocab_size=8000).save(where / "vocabulary")
        rows = [{"id": str(k), "texts": [text(one, "web")]} for k, one in enumerate(texts)]
        data = dataset(
            where / "data", pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("texts", TEXTS)]))
        )
        runs = {}
        for way, settings in WAYS.items():
            recipe = Train(
                objectives=[{"use": "masked_lm:MaskedLm", "view": "masked"}],
                views={"masked": ["mask_text:MaskText"]},
                model=MODEL,
                tokenizer=File(str(where / "vocabulary")),
                steps=10_000,
                **settings,
            )
            runs[way] = prepare(recipe, [data])
        seen: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        for run in runs.values():
            measured(run)
        for _ in range(ROUNDS):
            for way, run in runs.items():
                seen[way].append(measured(run))
    middle = {way: [statistics.median(v) for v in zip(*found, strict=True)] for way, found in seen.items()}
    base = middle["random lengths"][0]
    lines = [
        (way, f"{num:.0f}", f"{largest:,.0f}", f"{padding:.0%}", f"{rate:.0f}", f"{rate / base:.2f}")
        for way, (rate, padding, num, largest) in middle.items()
    ]
    header = ("batches", "samples", "largest batch", "padding", "samples per CPU second", "ratio")
    page = f"# Batches of similar length\n\n{(__doc__ or '').strip()}\n\n{machine_line(at)}\n{len(texts):,} texts.\n\n"
    page += table(header, lines) + "\n"
    print(page)
    if options.write:
        (HERE / "group_by_length.md").write_text(page)


if __name__ == "__main__":
    main()
