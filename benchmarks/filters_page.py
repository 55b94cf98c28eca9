"""The figures of `filters.py` as a page."""

from __future__ import annotations

from typing import Any

from record import machine_line, table

TARGET = 0.25
PEER = "Data-Juicer 1.6.1"
ABOUT = (
    "JSON lines and JPEG files (40 to 400 px) in; kept: 3 to 64 words, 5 to 1,000 characters, at least 25 % letters "
    "and digits, sides of at least 64 px, ratio at most 3, each text and image once. All decode every image. vlpipe "
    "also writes the images to Parquet, with a receipt per shard; the others write JSON lines that point to the files."
)


def markdown(found: dict[str, Any]) -> str:
    load = ", ".join(f"{x:.2f}" for x in found["machine"]["load_average_after"])
    return (
        "\n\n".join(
            [
                "# Filters and exact dedup",
                "Written by `python benchmarks/filters.py --data-juicer PYTHON --write`. "
                f"{machine_line(found['machine'])} When it ended: {load}. "
                "The smaller size is measured three times, the systems in turn: the run with the middle CPU time is shown. "
                "All systems of one size are measured in one run; sizes may come from different ones (`--rows`).",
                ABOUT,
                _table(found["runs"]),
                _verdict(found["runs"]),
            ]
        )
        + "\n"
    )


def _table(runs: list[dict[str, Any]]) -> str:
    header = ["", "CPU s", "wall s", "rows kept", "corrupt rows named", "exit"]
    return table(header, [[_case(r) + ", " + r["system"], *_cells(r)] for r in runs])


def _case(run: dict[str, Any]) -> str:
    return f"{run['num_rows']:,} rows, " + ("1 % corrupt" if run["corrupt_rate"] else "clean")


def _cells(run: dict[str, Any]) -> list[str]:
    named = f"{run['named']:,} of {run['num_corrupt']:,}" if run["num_corrupt"] else ""
    return [f"{run['cpu_s']:.1f}", f"{run['wall_s']:.1f}", f"{run['rows']:,}", named, str(run["exit"])]


def _verdict(runs: list[dict[str, Any]]) -> str:
    lines = []
    for peer in (r for r in runs if r["system"].startswith("Data-Juicer")):
        if not peer["rows"]:
            lines.append(f"- {_case(peer)}: {peer['system']} kept no row, so its time is no measure")
            continue
        for mine in (r for r in runs if r["system"].startswith("vlpipe") and _case(r) == _case(peer)):
            ratio = mine["cpu_s"] / peer["cpu_s"]
            said = "met" if ratio <= TARGET else "not met"
            lines.append(
                f"- {_case(mine)}: {mine['system']} took {ratio:.2f} of the CPU time of {peer['system']} ({said})"
            )
    return f"Target: at most {TARGET} of {PEER}'s CPU time, every corrupt row named.\n\n" + "\n".join(lines)
