"""The figures of `dedup.py` as a page."""

from __future__ import annotations

from typing import Any

from dedup_data import MOVES
from record import machine_line, table

TARGET, TARGET_GB = 0.999, 8


def markdown(found: dict[str, Any]) -> str:
    figures = found["figures"]
    parts = [
        "# Searching for near duplicates",
        f"Written by `python benchmarks/dedup.py --write`. {machine_line(found['machine'])}",
        "Made embeddings of 512 numbers (`dedup_data.py`: topics of unequal size, a common mean, a falling spectrum); "
        "2 % of the rows are copies at cosine 0.90, moved in three ways. Each system runs in a process of its own, with "
        f"{_threads(figures)} (imagededup chooses its own), and looks for all pairs at cosine 0.90 or more. vlpipe's "
        "figures are of the whole step: Parquet in, decisions and edges on disk out. All systems but vlpipe hold "
        "everything in memory and write nothing. The defaults of vlpipe's search were chosen on the set of 200,000.",
        "## Time and memory",
        _times(figures),
        "## Recall",
        _recalls(figures),
        _text(figures),
    ]
    if found["tiny"]:
        parts.insert(1, "**A tiny run: these figures mean nothing.**")
    return "\n\n".join(parts) + "\n"


def _threads(figures: list[dict[str, Any]]) -> str:
    num = max(f.get("threads", 0) for f in figures)
    return f"{num} threads" if num > 1 else "one thread"


def _times(figures: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{f['num_rows']:,} rows, {f['system']}",
            f"{f['wall_s']:.1f}",
            f"{f['cpu_s']:.1f}",
            f"{f['peak_gb']:.2f}",
            f"{1e6 * f['cpu_s'] / f['num_rows']:.0f}",
            f"{f['decide_s']:.1f}" if "decide_s" in f else "",
        ]
        for f in figures
    ]
    header = ["", "wall s", "CPU s", "peak GB", "CPU us per row", "another decision from the edges, s"]
    return table(header, rows)


def _recalls(figures: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{f['num_rows']:,} rows, {f['system']}",
            *(f"{f[kind]:.4f}" for kind in MOVES),
            f"{f['planted']:.4f}",
            f"{f['exact']:.4f} of {f['num_exact']:,}",
            f"{f['num_pairs']:,}",
        ]
        for f in figures
    ]
    moves = [f"planted, moved: {kind}" for kind in MOVES]
    return table(["", *moves, "all planted", "exact pairs of the queries", "pairs found"], rows)


def _text(figures: list[dict[str, Any]]) -> str:
    ours = [f for f in figures if f["system"] == "vlpipe"]
    least, most = min(f["planted"] for f in ours), max(f["peak_gb"] for f in ours)
    return (
        f"Targets: at least {TARGET} of the planted pairs ({_met(least >= TARGET)}: the least is {least:.4f}); "
        f"1,000,000 rows within {TARGET_GB} GB ({_met(most <= TARGET_GB)}: {most:.2f}, resident pages of mapped files "
        "counted). The queries are all rows at the smallest size and 20,000 drawn ones above; "
        "their exact pairs come from a product with all rows."
    )


def _met(yes: bool) -> str:
    return "met" if yes else "not met"
