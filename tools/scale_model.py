"""What 100 M and 1 B pairs cost: network, storage, CPU hours and GPU hours of each step of `workflows/blip_capfilt.yaml`.

python tools/scale_model.py                          # prints the page
python tools/scale_model.py --write                  # into docs/scale.md; a test checks that it is what this makes
python tools/scale_model.py --image-kb 20 --mfu 0.5 --card "NVIDIA A100"

CPU costs per row are read from the pages of `benchmarks/`, where the command that measured each stands. FLOPs are counted by
formula. What nobody measured here is an assumption: it is named as such, and each is an option.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.models.flops import peak_flops

HERE = Path(__file__).parents[1]
PAIRS = (100_000_000, 1_000_000_000)
PATCH, WIDTH, LAYERS, MLP = 16, 768, 12, 4  # ViT-B/16 and BERT base, as in BLIP
TEXT_TOKENS, CAPTION_TOKENS = 30, 20  # workflows/blip_capfilt.yaml, profile paper; benchmarks/captioning.md
EPOCHS = 20  # of pretraining: BLIP, table 14


@dataclass(frozen=True)
class Assumptions:
    """alive: share of URLs that still give an image; unique: share that deduplication keeps; kept: by the filter.

    mfu: model FLOPs utilisation of the card. gbit_s: of one node.
    """

    image_kb: float = 47.0
    alive: float = 0.7
    unique: float = 0.9
    kept: float = 0.6
    card: str = "NVIDIA H100 80GB HBM3"
    mfu: float = 0.35
    gbit_s: float = 10.0


SOURCES = {
    "image_kb": "photos of 640 x 480 in `benchmarks/ingest.md`",
    "alive": "assumed; `vlpipe run --sample 1` on your list measures it",
    "unique": "assumed; measured by the same sample",
    "kept": "assumed; measured by the same sample",
    "card": "dense bf16 peak by its data sheet: `models/flops.py`",
    "mfu": "assumed, not measured: no GPU was at hand; `python benchmarks/gpu.py` measures it on yours",
    "gbit_s": "assumed, per node",
}


@dataclass(frozen=True)
class Rate:
    """A measured CPU cost per row in ms, and where it stands."""

    ms: float
    source: str


@dataclass(frozen=True)
class Step:
    """rows: of the pairs in the list, how many reach it. cpu_ms, kb_net, kb_disk, gflop: of each row."""

    name: str
    rows: float
    cpu_ms: float = 0.0
    kb_net: float = 0.0
    kb_disk: float = 0.0
    gflop: float = 0.0


def cell(page: str, row: str, column: str, nth: int = 0) -> float:
    """Returns a number of a table in `benchmarks/`. row, column: their full texts; nth: which table that has both."""
    header: list[str] = []
    found = []
    for line in (HERE / "benchmarks" / page).read_text(encoding="utf-8").splitlines():
        cells = [part.strip() for part in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif cells[0] == row and column in header:
            found.append(float(cells[header.index(column)].replace(",", "")))
    if len(found) <= nth:
        raise ValueError(f"benchmarks/{page} has no row {row!r} with column {column!r}")
    return found[nth]


def rates() -> dict[str, Rate]:
    """Returns the measured costs per row."""
    listed, rows = cell("scale.md", "list of 10,000,000 rows, Parquet", "now: CPU s"), 10_000_000
    filters = (HERE / "benchmarks" / "filters.json").read_text(encoding="utf-8")
    per_sample = cell("loaders.md", "vlpipe", "500 px, samples per CPU s")
    return {
        "list": Rate(1e3 * listed / rows, "scale.md, list of 10,000,000 rows"),
        "fetch": Rate(
            cell("ingest.md", "vlpipe, bytes as they came", "CPU ms per further image", 1),
            "ingest.md, 640 x 480, checked, bytes as they came",
        ),
        "filter": Rate(filter_ms(filters), "filters.json, text and shape filters on Ray, 200,000 rows"),
        "dedup": Rate(
            cell("dedup.md", "1,000,000 rows, vlpipe", "CPU us per row") / 1e3, "dedup.md, 1,000,000 x 512"
        ),
        "load": Rate(1e3 / per_sample, "loaders.md, photos of 500 px"),
    }


def filter_ms(text: str) -> float:
    """Returns the median CPU ms per row of the runs of 200,000 clean rows on Ray."""
    import json
    import statistics

    runs = [
        1e3 * run["cpu_s"] / run["num_rows"]
        for run in json.loads(text)["runs"]
        if run["system"] == "vlpipe on Ray" and run["num_rows"] == 200_000 and not run["corrupt_rate"]
    ]
    return statistics.median(runs)


def light_row_kb(num: int = 10_000) -> float:
    """Returns the size of a row without its image, in KB: id, URL, digest, size and a caption; zstd Parquet."""
    lines = (HERE / "benchmarks" / "language_texts.tsv").read_text(encoding="utf-8").splitlines()
    texts = [lines[k % len(lines)].rpartition("\t")[2] + f" {k // len(lines)}" for k in range(num)]
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    table = pa.table(
        {
            "id": ids,
            "url": [f"https://{one[:9]}.example/{one[9:40]}.jpg" for one in ids],
            "sha256": [one[::-1] for one in ids],
            "width": [int(one[:2], 16) + 256 for one in ids],
            "text": texts,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return len(sink.getvalue()) / num / 1e3


def layer_gflop(tokens: float, seen: float, *, cross: float = 0.0) -> float:
    """Returns the GFLOP of a transformer layer's forward pass over `tokens` tokens: 2 per multiplication and addition.

    seen: tokens that each attends to; cross: image tokens in its cross-attention, 0 for none. Matrix products only, as in
    Kaplan et al. 2020, table 1 (https://arxiv.org/abs/2001.08361).
    """
    own = tokens * (4 + 2 * MLP) * WIDTH**2 + 2 * tokens * seen * WIDTH
    other = (2 * tokens + 2 * cross) * WIDTH**2 + 2 * tokens * cross * WIDTH if cross else 0.0
    return 2 * (own + other) / 1e9


def image_tokens(side: int) -> int:
    return (side // PATCH) ** 2 + 1


def vit_gflop(side: int) -> float:
    tokens = image_tokens(side)
    return LAYERS * layer_gflop(tokens, tokens) + 2 * (tokens - 1) * 3 * PATCH**2 * WIDTH / 1e9


def text_gflop(tokens: float, side: int = 0) -> float:
    return LAYERS * layer_gflop(tokens, tokens, cross=image_tokens(side) if side else 0)


def pretraining_gflop(side: int = 224) -> float:
    """Returns the GFLOP of a sample in a step of BLIP's pretraining: forward and backward are 3 forward passes.

    ITC: image and text encoder, and those of the momentum model without backward; ITM: one matching and two other pairs; LM:
    one text, whose vocabulary's product counts.
    """
    contrast = 4 * (vit_gflop(side) + text_gflop(TEXT_TOKENS))
    words = 2 * TEXT_TOKENS * WIDTH * 30_522 / 1e9
    return contrast + 3 * (3 * text_gflop(TEXT_TOKENS, side) + text_gflop(TEXT_TOKENS, side) + words)


def captioning_gflop(side: int = 384) -> float:
    """Returns the GFLOP of a caption: keys and values of text and image are kept, so each token is computed once."""
    return vit_gflop(side) + text_gflop(CAPTION_TOKENS, side) + 2 * CAPTION_TOKENS * WIDTH * 30_522 / 1e9


def filtering_gflop(side: int = 384) -> float:
    """Returns the GFLOP of an image with two texts, web and synthetic, scored by ITM."""
    return vit_gflop(side) + 2 * text_gflop(TEXT_TOKENS, side)


def steps(pairs: int, given: Assumptions) -> list[Step]:
    rate, light = rates(), light_row_kb()
    images, unique = pairs * given.alive, pairs * given.alive * given.unique
    kept = unique * given.kept
    image, load = given.image_kb, rate["load"].ms
    return [
        Step("list", pairs, rate["list"].ms, 0, light),
        Step("fetch and check", pairs, rate["fetch"].ms, given.alive * image, given.alive * (image + light)),
        Step("text and shape filters", images, rate["filter"].ms, 0, light),
        Step("embed (ViT-B/16, 224 px)", images, load, image, 2.0, vit_gflop(224)),  # 512 numbers of 4 bytes
        Step("near duplicates", images, rate["dedup"].ms, 2.0, light),
        Step(f"pretrain, {EPOCHS} epochs", unique * EPOCHS, load, image, 0, pretraining_gflop()),
        Step("captions (384 px)", unique, load, image, light, captioning_gflop()),
        Step("filter, two texts each (384 px)", unique, load, image, light, filtering_gflop()),
        Step(f"pretrain again, {EPOCHS} epochs", kept * EPOCHS, load, image, 0, pretraining_gflop()),
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs(pairs: int, given: Assumptions) -> str:
    peak = peak_flops(given.card)
    if peak is None:
        raise SystemExit(f"--card: the peak of {given.card!r} is not known; see PEAKS in models/flops.py")
    rows, sums = [], [0.0] * 5
    for one in steps(pairs, given):
        values = (
            one.rows * one.kb_net / 1e9,
            one.rows * one.kb_net * 8e3 / (given.gbit_s * 1e9) / 3600,
            one.rows * one.kb_disk / 1e9,
            one.rows * one.cpu_ms / 3.6e6,
            one.rows * one.gflop * 1e9 / (peak * given.mfu) / 3600,
        )
        sums = [a + b for a, b in zip(sums, values, strict=True)]
        rows.append([one.name, f"{one.rows / 1e6:,.0f}", *(f"{x:,.1f}" for x in values)])
    rows.append(["all", "", *(f"{x:,.1f}" for x in sums)])
    header = ["step", "M rows", "network TB", "of one node, h", "storage TB", "CPU h", "GPU h"]
    return table(header, rows)


def page(given: Assumptions) -> str:
    measured = [
        [name, f"{rate.ms:.4f}", f"`benchmarks/{rate.source.replace(',', '`,', 1)}"]
        for name, rate in rates().items()
    ]
    measured.append(
        [
            "row without image, KB",
            f"{light_row_kb():.3f}",
            "measured by this command, on the texts of `benchmarks/language_texts.tsv`",
        ]
    )
    counted = [
        ["image encoder, 224 px", f"{vit_gflop(224):.1f}"],
        ["pretraining step, a sample", f"{pretraining_gflop():.1f}"],
        ["caption of 20 tokens, 384 px", f"{captioning_gflop():.1f}"],
        ["ITM of two texts, 384 px", f"{filtering_gflop():.1f}"],
    ]
    assumed = [[name, str(getattr(given, name)), why] for name, why in SOURCES.items()]
    parts = [
        "# What 100 million and a billion pairs cost",
        "Written by `python tools/scale_model.py --write`, from the figures of `benchmarks/`. A "
        "model, not a measurement: no "
        "run of this size was made. Each figure is measured, counted, or an assumption that is an "
        "option of the command. For "
        "your own list, `vlpipe run W.yaml --sample 1` measures its first shards and forecasts the rest.",
        "The steps are those of `workflows/blip_capfilt.yaml` with BLIP ViT-B/16. `of one node`: "
        "hours in which one node's "
        "network moves this; N nodes take 1/N. CPU hours are of one core of the machine in the pages (2 cores, AMD EPYC).",
    ]
    for pairs in PAIRS:
        parts += [f"## {pairs / 1e6:,.0f} M pairs", costs(pairs, given)]
    parts += [
        "## Measured",
        table(["CPU ms per row", "", "where"], measured),
        "## Counted",
        table(["GFLOP", ""], counted),
        "Matrix products, two per multiplication and addition; backward is two forward passes; in "
        "`tools/scale_model.py`.",
        "## Assumed",
        table(["option", "value", "why"], assumed),
        "## Not in it",
        "Retries of dead hosts, the price of requests to an object store, checkpoints, idle GPUs "
        "at the end of a step, the "
        "finetuning of captioner and filter on human captions, evaluation. "
        "Costs per row are taken to be the same at any size; the largest set that the search for "
        "duplicates was measured on "
        "has 1 M rows. Shards of 10,000 rows are 10,000 and 100,000; `benchmarks/scale.md` has what "
        "planning and resuming cost at that number.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in vars(Assumptions()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=SOURCES[name]
        )
    parser.add_argument("--write", action="store_true")
    given = vars(parser.parse_args())
    write = given.pop("write")
    text = page(Assumptions(**given))
    if write:
        (HERE / "docs" / "scale.md").write_text(text, encoding="utf-8")
    else:
        print(re.sub(r"\n\n$", "\n", text))


if __name__ == "__main__":
    main()
