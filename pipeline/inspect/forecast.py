"""Forecast of a full run from a sample: `vlpipe run --sample K` ran the first K shards of each source in the same root.

A map step takes time, space and tokens in proportion to its input rows, after what its workers take to start: seconds
by which a shard is far above the others per row count once. A step that computes in equal steps, such as a
training, the time of one of them as often as the full run has them. What a step returns per input row in the sample, it is
taken to return in the full run; a gather step that does not return its input rows returns as many rows as in the sample.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from vlpipe.pipeline.engine.list_rows import TOTAL, ListRows
from vlpipe.pipeline.engine.planned import PlannedStep, is_gather
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.inspect.status import folder_bytes
from vlpipe.pipeline.stage import GatherStage, Stage
from vlpipe.pipeline.storage.checksummed_json import read_sealed, write_sealed
from vlpipe.pipeline.storage.printable import size
from vlpipe.pipeline.storage.store import Store

RECORD = "_sample.json"
PRICE = "cost"  # a figure of receipts' `run`
STARTS = 1.5  # a shard slower per row than this many times the fastest is taken to be a worker's first
TOKENS = "tokens"  # stages count what a server charges for under names that begin with this


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one step of a full run is expected to take.

    seconds: of one worker, summed over shards. cpus, gpus: of each worker. bytes: on disk. tokens: name -> number. price: of
    these tokens, by the stage's `price`; 0 without one.
    """

    step: str
    rows_in: int
    rows_out: int
    seconds: float
    cpus: float
    gpus: float
    bytes: int
    tokens: Mapping[str, int]
    price: float = 0.0


def forecast(sampled: Sequence[PlannedStep], full: Mapping[str, Stage], store: Store) -> list[Cost]:
    """Returns the expected cost of each step of a full run. sampled: the finished steps of the sample; full: step -> its
    stage in the full run."""
    rows_out: dict[str, float] = {}
    found = []
    for one in sampled:
        if one.manifest is None:
            continue
        rows_in = sum(rows_out.get(p.name, 0.0) for p in one.above)
        cost = _cost(one, rows_in, full.get(one.name, one.keyed.step.stage), store)
        rows_out[one.name] = cost.rows_out
        found.append(cost)
    return found


def _cost(one: PlannedStep, rows_in: float, full: Stage, store: Store) -> Cost:
    assert one.manifest is not None
    step, made = one.keyed.step, one.manifest
    seen = sum(p.manifest.rows_out for p in one.above if p.manifest is not None)
    times = rows_in / seen if seen else 1.0
    seconds = seconds_of(store, one.folder)
    num_bytes = made.bytes + (folder_bytes(store, f"{one.folder}/artifacts") if made.artifacts else 0)
    rows_out, longer = made.rows_out * times, times
    if isinstance(step.stage, ListRows):
        total = json.loads(store.read_bytes(f"{one.folder}/artifacts/{TOTAL}"))["rows"]
        longer = total / max(1, made.rows_out)
        rows_out = float(total)
    elif is_gather(one) and not _conserves(step.stage):
        rows_out = float(made.rows_out)
    return Cost(
        step=one.name,
        rows_in=round(rows_in),
        rows_out=round(rows_out),
        seconds=_by_steps(one, round(rows_in), full) or by_rows(one.receipts, seconds, longer),
        cpus=step.resources.cpus,
        gpus=step.resources.gpus,
        bytes=round(num_bytes * (longer if num_bytes and not _keeps_its_size(one) else 1.0)),
        tokens={name: round(num * times) for name, num in made.counts.items() if name.startswith(TOKENS)},
        price=times * sum(float(receipt.run.get(PRICE, 0.0)) for receipt in one.receipts),
    )


def by_rows(receipts: Sequence[Receipt], seconds: float, times: float) -> float:
    """Returns the seconds that a step takes for `times` as many rows as the receipts have. seconds: what these took.

    A worker's first shard takes longer, as it loads a model or imports modules.
    """
    each = [
        (float(r.run["seconds"]) / r.rows_in, r.rows_in) for r in receipts if r.rows_in and "seconds" in r.run
    ]
    if len(each) < 2 or len(each) < len(receipts):
        return seconds * times
    steady = [(rate, rows) for rate, rows in each if rate <= STARTS * min(each)[0]]
    usual = sum(rate * rows for rate, rows in steady) / sum(rows for _, rows in steady)
    start = sum((rate - usual) * rows for rate, rows in each if (rate, rows) not in steady)
    return start + (seconds - start) * times


def _conserves(stage: Stage) -> bool:
    return isinstance(stage, GatherStage) and stage.CONSERVES


def _keeps_its_size(one: PlannedStep) -> bool:
    """Returns True for a training, whose model has the size that it has, and for a step without inputs."""
    return _num_steps(one.keyed.step.stage, 1) is not None or not (
        one.above or isinstance(one.keyed.step.stage, ListRows)
    )


def _num_steps(stage: Stage, num_rows: int) -> int | None:
    return stage.num_steps_for(num_rows)


def _by_steps(one: PlannedStep, rows_in: int, full: Stage) -> float | None:
    """Returns the seconds of a step that computes in equal steps: those of the full run, and what it took besides them."""
    num_full = _num_steps(full, rows_in)
    seen = sum(p.manifest.rows_out for p in one.above if p.manifest is not None)
    num = _num_steps(one.keyed.step.stage, seen)
    if num_full is None or num is None:
        return None
    run = next((receipt.run for receipt in one.receipts if "per_step" in receipt.run), None)
    if run is None:
        return None
    besides = max(0.0, float(run["seconds"]) - num * float(run["per_step"]))
    return besides + num_full * float(run["per_step"])


def write_forecast(store: Store, name: str, num_shards: int, costs: Sequence[Cost]) -> None:
    """Keeps the forecast of a workflow in the root, for `vlpipe plan`."""
    known = read_forecasts(store)
    known[name] = {"num_shards": num_shards, "costs": [asdict(one) for one in costs]}
    write_sealed(store, RECORD, known)


def read_forecasts(store: Store) -> dict[str, dict[str, object]]:
    """Returns workflow -> {num_shards, costs} of the samples in this root. Empty, with a warning, if damaged."""
    if not store.exists(RECORD):
        return {}
    try:
        return read_sealed(store, RECORD)
    except ValueError as error:
        lost = "so forecasts of earlier samples are lost; a sample writes it again"
        warnings.warn(f"{store.path(RECORD)} is damaged ({error}), {lost}", VlpipeWarning, stacklevel=2)
        return {}


def read_forecast(store: Store, name: str) -> tuple[int, list[Cost]] | None:
    """Returns (number of shards, costs) of the last sample of a workflow; None without one."""
    found = read_forecasts(store).get(name)
    if found is None:
        return None
    costs = found["costs"]
    assert isinstance(costs, list)
    return int(str(found["num_shards"])), [Cost(**one) for one in costs]


def forecast_table(costs: Sequence[Cost]) -> Table:
    """Returns a table with a line per step that takes a second or more, or writes 1 MB."""
    table = Table(box=None, pad_edge=False)
    table.add_column("full run", no_wrap=True)
    names = ("rows in", "rows out", "rows/s", "time of one worker", "GPU time", "size", "tokens", "price")
    for name in names if any(one.price for one in costs) else names[:-1]:
        table.add_column(name, justify="right", no_wrap=True)
    for one in costs:
        if one.seconds < 1 and one.bytes < 1_000_000:
            continue
        rate = f"{one.rows_in / one.seconds:,.1f}" if one.rows_in and one.seconds else ""
        tokens = ", ".join(
            f"{name.removeprefix(TOKENS).strip('_')} {num:,}" for name, num in one.tokens.items()
        )
        table.add_row(
            one.step,
            f"{one.rows_in:,}",
            f"{one.rows_out:,}",
            rate,
            duration(one.seconds),
            duration(one.seconds * one.gpus) if one.gpus else "",
            size(one.bytes),
            tokens,
            *([f"{one.price:,.2f}" if one.price else ""] if any(each.price for each in costs) else []),
        )
    return table


def totals(costs: Sequence[Cost], num_cpus: float | None = None) -> str:
    """Returns one line: time on this machine if its CPUs are all used, GPU time, disk space, tokens and their price."""
    num_cpus = num_cpus or os.cpu_count() or 1
    cpu_s = sum(one.seconds * max(one.cpus, 0.0) for one in costs)
    gpu_s = sum(one.seconds * one.gpus for one in costs)
    tokens: Counter[str] = Counter()
    for one in costs:
        tokens.update(one.tokens)
    parts = [f"about {duration(cpu_s / num_cpus)} on {num_cpus:g} CPUs"]
    parts += [f"{duration(gpu_s)} of one GPU"] if gpu_s else []
    parts.append(f"{size(sum(one.bytes for one in costs))} on disk")
    parts += [f"{name.replace('_', ' ')}: {num:,}" for name, num in sorted(tokens.items())]
    price = sum(one.price for one in costs)
    parts += [f"price: {price:,.2f}" if price >= 1 else f"price: {price:.2g}"] if price else []
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time as `12 s`, `3.4 min` or `5.6 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
