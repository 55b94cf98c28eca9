"""How near the forecast of `vlpipe run --sample K` comes to the full run: the main job's data steps and one training.

python benchmarks/forecast.py            # a few minutes
python benchmarks/forecast.py --write    # and puts the table into forecast.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from record import machine, machine_line, table

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.inspect.forecast import read_forecast
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

HERE = Path(__file__).parent
WORKFLOW = str(HERE.parent / "workflows/blip_capfilt.yaml")
SHARDS = 3  # of 20
SETS = [
    "world.num_web=12000",
    "images.shard_rows=600",
    "captioner.steps=300",
    "matcher.steps=300",
    "pretrain.steps=300",
]
WANTED = 0.25


def vlpipe(root: str, *more: str) -> None:
    sets = [part for one in SETS for part in ("--set", one)]
    call = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", WORKFLOW, "--local", "--root", root]
    subprocess.run([*call, *sets, *more], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    at = machine_line(machine())
    with tempfile.TemporaryDirectory() as folder:
        vlpipe(f"{folder}/sampled", "--sample", str(SHARDS))
        vlpipe(f"{folder}/full")  # nothing in it is from the sample
        name = Workflow.load(WORKFLOW).name
        found = read_forecast(Store(f"{folder}/sampled"), name)
        assert found is not None
        store = Store(f"{folder}/full")
        steps = {one.name: one for one in plan(Workflow.load(WORKFLOW, sets=SETS), store)}
        real = {step: seconds_of(store, one.folder) for step, one in steps.items()}
    rows = []
    for cost in found[1]:
        if real[cost.step] >= 1:
            off = cost.seconds / real[cost.step] - 1
            rows.append([cost.step, f"{cost.seconds:.1f}", f"{real[cost.step]:.1f}", f"{off:+.0%}"])
    text = "\n\n".join(
        [
            "# Forecast of a full run from a sample",
            f"Written by `python benchmarks/forecast.py --write`. {at}",
            "`blip_capfilt.yaml` with 20 shards of 600 images and trainings of 300 steps: forecast from "
            f"`--sample {SHARDS}`, and a full run in an empty root. Seconds of one worker; steps of a second or more.",
            table(["step", "forecast", "full run", "difference"], rows),
        ]
    )
    print(text)
    if options.write:
        (HERE / "forecast.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
