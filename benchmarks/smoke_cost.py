"""CPU seconds of the trainings of each system's small workflow, from a few of their steps.

    python benchmarks/smoke_cost.py              # each training for FEW and for MORE steps, on small worlds
    python benchmarks/smoke_cost.py --write      # and puts the page into smoke_cost.md beside this file
    python benchmarks/smoke_cost.py clip gpt     # these alone

A step's cost is the difference of the two runs over the difference of their steps, so that starting up and making data do
not count. It does not depend on the size of the world. A training of at most 60 s on two cores takes at most 120 CPU s.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from record import machine, machine_line, table

HERE = Path(__file__).parent
WORKFLOWS = HERE.parent / "workflows"
FEW, MORE, LIMIT = 8, 32, 120
IMAGES = ("world.num_web=16", "world.num_human=160", "world.num_eval=8")
REGIONS = ("world.num_web=160",)
FILMS = ("world.num_train=24", "world.num_eval=4")
# workflow -> parameters of its world: enough rows for a batch
WORLDS = {
    "albef": IMAGES,
    "clip": IMAGES,
    "coca": IMAGES,
    "gpt": IMAGES,
    "lxmert": REGIONS,
    "mae": IMAGES,
    "siglip": IMAGES,
    "uniter": REGIONS,
    "videobert": FILMS,
    "vilt": IMAGES,
}


def trainings(workflow: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (step, its parameters) of the trainings that are no copies with other losses or data."""
    declared = yaml.safe_load((WORKFLOWS / f"{workflow}.yaml").read_text(encoding="utf-8"))
    for name, step in declared["steps"].items():
        if step and str(step.get("use", "")).startswith("train.train:"):
            yield name, step


def copies(workflow: str, step: str) -> int:
    """Returns how many steps of the workflow train as long as this one, itself included."""
    steps = yaml.safe_load((WORKFLOWS / f"{workflow}.yaml").read_text(encoding="utf-8"))["steps"]
    same = [one for one in steps.values() if one and one.get("same_as") == step]
    return 1 + sum("steps" not in one for one in same)


def cpu_seconds(workflow: str, step: str, num: int, before: list[str], root: str) -> float:
    """Returns the CPU seconds of a run until `step`, which trains for `num` steps."""
    declared = yaml.safe_load((WORKFLOWS / f"{workflow}.yaml").read_text(encoding="utf-8"))
    profile = ["--profile", "smoke"] if "smoke" in declared.get("profiles", {}) else []
    sets = [*WORLDS[workflow], *before, f"{step}.steps={num}", f"{step}.warmup_steps=0"]
    command = [
        "run",
        str(WORKFLOWS / f"{workflow}.yaml"),
        *profile,
        "--local",
        "--root",
        root,
        "--until",
        step,
    ]
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "vlpipe.pipeline.cli.main", *command, *(f"--set={one}" for one in sets)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def measured(workflow: str) -> Iterator[tuple[object, ...]]:
    """Yields the rows of the table of one workflow."""
    before: list[str] = []
    with tempfile.TemporaryDirectory() as root:
        for step, declared in trainings(workflow):
            cpu_seconds(workflow, step, 1, before, root)  # makes the data
            few, more = (cpu_seconds(workflow, step, num, before, root) for num in (FEW, MORE))
            per_step, num = (more - few) / (MORE - FEW), declared["steps"]
            total = per_step * num
            yield (
                f"`{workflow}.yaml`: {step}",
                copies(workflow, step),
                num,
                declared["batch_size"],
                f"{1000 * per_step:.0f}",
                f"{total:.0f}",
                "yes" if total <= LIMIT else "**no**",
            )
            before += [f"{step}.steps={MORE}", f"{step}.warmup_steps=0"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="*", help="workflows")
    parser.add_argument("--write", action="store_true", help="write smoke_cost.md")
    options = parser.parse_args()
    at = machine()
    rows = []
    for workflow in options.only or WORLDS:
        for row in measured(workflow):
            print(*row, flush=True)
            rows.append(row)
    header = ("training", "such trainings", "steps", "batch", "CPU ms per step", "CPU s", f"at most {LIMIT}")
    after = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    page = "\n\n".join(
        [
            "# What the small trainings cost",
            (__doc__ or "").split("\n\n")[-1].strip(),
            f"Written by `python benchmarks/smoke_cost.py --write`. {machine_line(at)} When it ended: {after}.",
            table(header, rows),
        ]
    )
    print(page)
    if options.write:
        (HERE / "smoke_cost.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
