"""The figures of `engine.py` as a page."""

from __future__ import annotations

import statistics
from typing import Any

from record import machine_line, table

TARGET = 1.2
BESIDE_TARGET = 1.15
OURS = "vlpipe on Ray"
TASK_ACTOR = "64 shards of 0.25 s in tasks, each then 0.25 s in one actor"
TASK_GATHER = "64 shards of 0.25 s in tasks, beside a gather step of 8 s that is ready from the start"


def markdown(found: dict[str, Any]) -> str:
    load = ", ".join(f"{x:.2f}" for x in found["machine"]["load_average_after"])
    parts = [
        "# What the engine costs",
        f"Written by `python benchmarks/engine.py --write`. {machine_line(found['machine'])} When it ended: {load}.",
        "## Two overlapped stages of 50 ms per shard, on a cluster of 2 CPUs",
        _overlap_table(found["overlapped"], found["seconds"]),
        found["skipped"] or "",
        _overlap_text(found),
        "## Steps of different kinds at the same time, on 2 CPUs",
        beside_table(found["beside"], found["beside_before"]),
        _beside_text(found["beside"]),
        "## Rows",
        _rows_text(found["light_rows"]),
        "## A second run",
        _second_text(found["second_run"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def ideal_s(num_shards: int, seconds: float) -> float:
    """Two stages in step: the second is always one shard behind."""
    return (num_shards + 1) * seconds


def _overlap_table(times: list[dict[str, Any]], seconds: float) -> str:
    rows: list[list[str]] = []
    for num_shards in dict.fromkeys(t["num_shards"] for t in times):
        ideal = ideal_s(num_shards, seconds)
        rows.append([f"{num_shards} shards, ideal", f"{ideal:.2f}", "", "1.00", "", "0.0"])
        for system in dict.fromkeys(t["system"] for t in times):
            mine = [t for t in times if (t["system"], t["num_shards"]) == (system, num_shards)]
            if mine:
                rows.append([f"{num_shards} shards, {system}", *_cells(mine, ideal, num_shards)])
    return table(
        [
            "",
            "wall s (median)",
            "all",
            "times the ideal",
            "of it before the first and after the last shard, s",
            "ms per shard over the ideal",
        ],
        rows,
    )


def beside_table(times: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """`before`: measured when a pool or a gather step had to wait until no task was left."""
    rows = []
    for label, found in (("", times), ("before: ", before)):
        for case in dict.fromkeys(t["case"] for t in found):
            walls = [t["wall_s"] for t in found if t["case"] == case]
            ideal, wall = _ideal(found, case), statistics.median(walls)
            each = " ".join(f"{w:.2f}" for w in sorted(walls))
            rows.append([label + case, f"{ideal:.2f}", f"{wall:.2f}", each, f"{wall / ideal:.2f}"])
    return table(["", "ideal s", "wall s (median)", "all", "times the ideal"], rows)


def _ideal(times: list[dict[str, Any]], case: str) -> float:
    return float(next(t["ideal_s"] for t in times if t["case"] == case))


def _beside_text(times: list[dict[str, Any]]) -> str:
    said = []
    for case in dict.fromkeys(t["case"] for t in times):
        ratio = statistics.median(t["wall_s"] for t in times if t["case"] == case) / _ideal(times, case)
        said.append(f"{ratio:.2f} ({'met' if ratio <= BESIDE_TARGET else 'not met'})")
    return (
        f"Target: at most {BESIDE_TARGET} times the ideal: {', '.join(said)}. The actor starts within the time. "
        "The ideal of the first is one shard more than the actor's work, of the second all work shared by two CPUs."
    )


def _cells(times: list[dict[str, Any]], ideal: float, num_shards: int) -> list[str]:
    walls = [t["wall_s"] for t in times]
    wall = statistics.median(walls)
    return [
        f"{wall:.2f}",
        " ".join(f"{w:.2f}" for w in sorted(walls)),
        f"{wall / ideal:.2f}",
        f"{statistics.median(t['idle_s'] for t in times):.2f}",
        f"{1000 * (wall - ideal) / num_shards:.1f}",
    ]


def _overlap_text(found: dict[str, Any]) -> str:
    said = []
    for num_shards in dict.fromkeys(t["num_shards"] for t in found["overlapped"]):
        walls = [
            t["wall_s"] for t in found["overlapped"] if (t["system"], t["num_shards"]) == (OURS, num_shards)
        ]
        ratio = statistics.median(walls) / ideal_s(num_shards, found["seconds"])
        said.append(f"{num_shards} shards {ratio:.2f} ({'met' if ratio <= TARGET else 'not met'})")
    return (
        f"Target for {OURS}, at most {TARGET} times the ideal: {', '.join(said)}. Shards have 20 rows; the ideal is "
        "(shards + 1) x 50 ms. Ray and the processes of the plain loop are up before the clock starts; actors start "
        "within it. All systems read and write a Parquet file per shard and stage; only vlpipe also hashes, syncs and "
        "receipts it, so that a killed run goes on. The systems take turns."
    )


def _rows_text(light: dict[str, Any]) -> str:
    rate = light["num_rows"] / light["wall_s"]
    return (
        f"A stage that does nothing, {light['num_rows']:,} rows of an id and a number in {light['num_shards']} shards, "
        f"on 2 CPUs: {light['wall_s']:.2f} s, {rate:,.0f} rows/s, {1e6 * light['wall_s'] / light['num_rows']:.1f} us "
        f"per row. A shard of 20 rows through such a stage, one after the other in one process (`--local`): "
        f"{1000 * light['local_shard_s']:.1f} ms."
    )


def _second_text(runs: dict[str, Any]) -> str:
    first, second, lost = (runs[name] for name in ("first", "second", "without_manifests"))
    return (
        f"64 shards through a filter that keeps 25 % and a stage below it. Rows the two stages were called with: "
        f"{first['rows']:,} in the first run, {second['rows']:,} in a second ({second['wall_s']:.2f} s), "
        f"{lost['rows']:,} in one after both steps lost their manifest, as if killed just before the last write "
        f"({lost['wall_s']:.2f} s)."
    )
