"""Training of a text encoder on web alt-texts, with batches of random and of similar lengths (`group_by_length`).

    python benchmarks/group_by_length.py            # two minutes
    python benchmarks/group_by_length.py --write    # and puts the page into group_by_length.md beside this file

BERT of 4 layers of 128, masked words, batch 64, texts of at most 64 tokens, one thread. The two ways train in turn on the
same texts; what is stated is the median of the rounds. "Padding" is the share of the positions that are padding.
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


def measured(run: Any) -> tuple[float, float]:
    """Returns samples per second and the share of padding of the next STEPS steps."""
    with run.loader.batches(run.step) as batches:
        found = list(islice(batches, STEPS))
    began = time.process_time()
    for batch in found:
        train_step(run, [batch])
    seconds = time.process_time() - began
    masks = [batch.stream("text").mask for batch in found]
    real, positions = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    return STEPS * run.recipe.batch_size / seconds, 1 - real / positions


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
        for grouped in (False, True):
            recipe = Train(
                objectives=[{"use": "masked_lm:MaskedLm", "view": "masked"}],
                views={"masked": ["mask_text:MaskText"]},
                model=MODEL,
                tokenizer=File(str(where / "vocabulary")),
                steps=10_000,
                batch_size=64,
                group_by_length=grouped,
            )
            runs[grouped] = prepare(recipe, [data])
        seen: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for run in runs.values():
            measured(run)
        for _ in range(ROUNDS):
            for grouped, run in runs.items():
                seen[grouped].append(measured(run))
    middle = {key: [statistics.median(v) for v in zip(*found, strict=True)] for key, found in seen.items()}
    lines = [
        (name, f"{middle[key][1]:.0%}", f"{middle[key][0]:.0f}", f"{middle[key][0] / middle[False][0]:.2f}")
        for key, name in ((False, "random"), (True, "group_by_length"))
    ]
    header = ("batches", "padding", "samples per CPU second", "ratio")
    page = f"# Batches of similar length\n\n{(__doc__ or '').strip()}\n\n{machine_line(at)}\n{len(texts):,} texts.\n\n"
    page += table(header, lines) + "\n"
    print(page)
    if options.write:
        (HERE / "group_by_length.md").write_text(page)


if __name__ == "__main__":
    main()
