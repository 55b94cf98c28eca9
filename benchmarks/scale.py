"""What the engine needs at a hundred thousand shards and ten million rows: seconds and memory, each in its own process.

python benchmarks/scale.py                       # about 40 minutes and 10 GB of disk; prints Markdown
python benchmarks/scale.py --write               # and puts it into scale.md and scale.json beside this file
python benchmarks/scale.py --only plan resume    # these cases, beside what scale.json has of the others
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import machine, machine_line, table

HERE = Path(__file__).parent
LIMIT_S = 1800.0
MAX_PLAN_S, MAX_PLAN_MB, MAX_ROW_BYTES = 10.0, 1000.0, 35.0


@dataclass(frozen=True)
class Case:
    """A line of the page for each size. layout: the case whose folder it is measured in, laid out once for all of these."""

    name: str
    text: str
    sizes: tuple[int, ...]
    layout: str = ""


CASES = (
    Case("plan", "plan, {} finished steps of 100,000 shards", (5, 27)),
    Case("status", "status, {} finished steps of 100,000 shards", (5, 27), layout="plan"),
    Case("why", "why of one row, 5 steps of {} rows", (1_000_000,)),
    Case(
        "list_plan",
        "plan before a list of {} rows has run, a step below makes an estimate",
        (1_000_000, 4_000_000),
    ),
    Case("resume", "resume of {} shards that lie there, each with a fault", (2_000, 8_000, 16_000)),
    Case(
        "singles",
        "list of {} rows from a source that gives them one by one, one shard",
        (5_000, 10_000, 20_000),
    ),
    Case("list_parquet", "list of {} rows, Parquet", (2_000_000, 10_000_000)),
    Case("list_jsonl", "list of {} rows, JSON lines", (2_000_000, 10_000_000)),
    Case("long_names", "plan and receipts of 3 finished steps of {} shards", (1_000_100,)),
)


def measured(python: str, cases: list[Case], size: int) -> list[dict[str, Any]]:
    """Cases of one layout, in a fresh folder; laid out by a process that may need more memory than those measured."""
    with tempfile.TemporaryDirectory(prefix="vlscale") as folder:
        done = _process(python, "prepare", cases[0].name, str(size), folder)
        if done:
            return [{"case": case.name, **done} for case in cases]
        return [{"case": c.name, **_process(python, "measure", c.name, str(size), folder)} for c in cases]


def _process(python: str, *args: str) -> dict[str, Any]:
    command = [python, str(HERE / "scale_cases.py"), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=_environment())
    except subprocess.TimeoutExpired:
        return {"failed": f"{args[0]}: more than {LIMIT_S:.0f} s"}
    if done.returncode:
        return {"failed": f"{args[0]}: {(done.stderr or 'killed').strip().splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if args[0] == "measure" else {}
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE)}


def measure_all(
    pythons: dict[str, str], only: list[str], known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One after the other: what else runs would count."""
    found = [one for one in known if one["case"] not in only or one["library"] not in pythons]
    for first in (case for case in CASES if not case.layout):
        cases = [c for c in CASES if first.name in (c.name, c.layout) and c.name in only]
        for size in first.sizes if cases else ():
            for library, python in pythons.items():
                for one in measured(python, cases, size):
                    found.append({"size": size, "library": library, **one})
                    print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def markdown(found: dict[str, Any]) -> str:
    parts = [
        "# What the engine needs at scale",
        f"Written by `python benchmarks/scale.py --write`. {machine_line(found['machine'])}",
        _table(found["figures"]),
        "Each figure is of a process of its own, which does nothing else: seconds of the clock, of them on the CPU, and the "
        "most memory it had, of which 90 to 130 MB are Python and the libraries. `before`: the library as it was before "
        "roots had a format number; its figures are kept from then. Empty cells were not measured. Where the load above "
        "says that other work ran beside, CPU seconds and memory count, not seconds of the clock.",
        *_verdicts([one for one in found["figures"] if one["library"] == "now"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(figures: list[dict[str, Any]]) -> str:
    libraries = [name for name in ("before", "now") if any(one["library"] == name for one in figures)]
    by_key = {(one["case"], one["size"], one["library"]): one for one in figures}
    rows = []
    for case in CASES:
        for size in case.sizes:
            cells = [_cells(by_key.get((case.name, size, name))) for name in libraries]
            rows.append([case.text.format(f"{size:,}"), *(cell for three in cells for cell in three)])
    header = [f"{name}: {what}" for name in libraries for what in ("wall s", "CPU s", "MB")]
    return table(["", *header], rows)


def _cells(one: dict[str, Any] | None) -> list[str]:
    if one is None:
        return ["", "", ""]
    if "failed" in one:
        return [one["failed"], "", ""]
    return [f"{one['wall_s']:.2f}", f"{one['cpu_s']:.2f}", f"{one['peak_mb']:,.0f}"]


def _verdicts(figures: list[dict[str, Any]]) -> list[str]:
    """The targets, as far as they were measured."""
    done = {(one["case"], one["size"]): one for one in figures if "failed" not in one}
    said = []
    if one := done.get(("plan", 27)):
        met = one["wall_s"] < MAX_PLAN_S and one["peak_mb"] < MAX_PLAN_MB
        said.append(
            f"27 steps are planned in less than {MAX_PLAN_S:.0f} s and {MAX_PLAN_MB:.0f} MB: {_met(met)}."
        )
    for case in CASES:
        sizes = [size for size in case.sizes if (case.name, size) in done]
        if case.name in ("list_parquet", "list_jsonl") and len(sizes) == 2:
            peaks = [done[case.name, size]["peak_mb"] * 2**20 for size in sizes]
            slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
            what = case.text.partition(", ")[2]
            said.append(
                f"A list in {what} takes {slope:.1f} bytes of memory per further row, "
                f"at most {MAX_ROW_BYTES:.0f} wanted: {_met(slope <= MAX_ROW_BYTES)}."
            )
        if case.name in ("resume", "singles") and len(sizes) > 1:
            each = [f"{1000 * done[case.name, size]['cpu_s'] / size:.2f} at {size:,}" for size in sizes]
            said.append(f"CPU ms each, {case.text.format('N')}: {', '.join(each)}.")
    return said


def _met(met: bool) -> str:
    return "met" if met else "not met"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    args = parser.parse_args()
    at, kept = machine(), HERE / "scale.json"
    known = json.loads(kept.read_text())["figures"] if kept.exists() else []
    figures = measure_all({"now": sys.executable}, args.only or [case.name for case in CASES], known)
    found = {"machine": at, "figures": figures}
    print(markdown(found))
    if args.write:
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (HERE / "scale.md").write_text(markdown(found))


if __name__ == "__main__":
    main()
