"""Builds the wheel, installs it into a new virtual environment, and runs a small demo there, away from the repository.

python tools/try_wheel.py            # prints what it does and how long each part takes; exit code 1 if one fails
python tools/try_wheel.py --keep DIR # leaves wheel, environment and results in DIR; what is there already is used
python tools/try_wheel.py --ray      # runs the demo on Ray, not in one process

Versions are those of constraints.txt. The demo is the main job at a small size, by the name under which the wheel has it;
then the commands that look at it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parents[1]
EXTRAS = "cpu,eval,ui"  # what the main job needs, and SQL
TRAINED = ("pretrain", "captioner", "matcher")
SMALL = {
    "world": {"num_web": 120, "num_human": 40, "num_eval": 16},
    "images": {"shard_rows": 50},
    **{name: {"steps": 6, "warmup_steps": 2, "batch_size": 16} for name in TRAINED},
    "filtered": {"threshold": 0.2},
    "retrieval_before": {"k_test": 10},
    "retrieval_after": {"k_test": 10},
}
ROOT = "runs/blip_capfilt"


def call(about: str, command: Sequence[str | Path], cwd: Path) -> str:
    """Runs a command and says how long it took. Returns its output; ends the program if it fails."""
    began = time.monotonic()
    # Neither the environment's own variables nor this folder lead to another copy of the package.
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(one) for one in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    print(f"{time.monotonic() - began:7.1f} s  {about}", flush=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def install(folder: Path) -> None:
    """Builds the wheel and installs it into a new environment in `folder`."""
    call("wheel", [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, HERE], folder)
    (wheel,) = folder.glob("vlpipe-*.whl")
    call("new environment", [sys.executable, "-m", "venv", folder / "venv"], folder)
    named = f"vlpipe[{EXTRAS}] @ file://{wheel}"
    python = folder / "venv/bin/python"
    call("pip install", [python, "-m", "pip", "install", "-q", "-c", HERE / "constraints.txt", named], folder)


def try_demo(folder: Path, ray: bool) -> None:
    """Runs a small demo with what is installed in `folder`, in a new folder there."""
    python, vlpipe = folder / "venv/bin/python", folder / "venv/bin/vlpipe"
    work = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    where = call("import", [python, "-c", "import vlpipe.pipeline as p; print(p.__file__)"], work).strip()
    if not Path(where).is_relative_to(folder / "venv"):
        sys.exit(f"the package was imported from {where}")
    sets = [f"{step}.{key}={value}" for step, found in SMALL.items() for key, value in found.items()]
    options = [one for each in sets for one in ("--set", each)]
    call("vlpipe run", [vlpipe, "run", "blip_capfilt", *([] if ray else ["--local"]), *options], work)
    look(vlpipe, options, work)


def look(vlpipe: Path, options: Sequence[str], work: Path) -> None:
    """Looks at the demo as its docs say."""
    rows = call("vlpipe show", [vlpipe, "show", f"{ROOT}/filtered@1", "-n", "1", "--json"], work).splitlines()
    told = call("vlpipe why", [vlpipe, "why", "blip_capfilt", json.loads(rows[0])["id"], *options], work)
    sql = "SELECT count(*) AS num FROM rows"
    counted = call("vlpipe show --sql", [vlpipe, "show", f"{ROOT}/images", "--sql", sql, "--json"], work)
    call("vlpipe report", [vlpipe, "report", "blip_capfilt", *options], work)
    call("vlpipe ui --bundle", [vlpipe, "ui", ROOT, "--bundle", "page"], work)
    status = call("vlpipe status", [vlpipe, "status", "blip_capfilt", *options], work)
    done = re.search(r"(\d+) of (\d+) steps are done", status)
    page = (work / "report.html").read_text(encoding="utf-8")
    script = (work / "page/static/bundle.js").is_file()
    checks = {
        "all steps are done": done is not None and done[1] == done[2],
        "why names the filter": "by filter.itm:ItmFilter" in told,
        "SQL counts": json.loads(counted)["num"] > 100,
        "the report has results": '<section id="results">' in page,
        "the bundle is whole": script and (work / "page/data/0/run.json").is_file(),
    }
    if wrong := [name for name, holds in checks.items() if not holds]:
        sys.exit(f"not true: {'; '.join(wrong)}")
    print(f"{len(checks)} checks hold")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for all that is made")
    parser.add_argument("--ray", action="store_true", help="run the demo on Ray")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        if not (args.keep / "venv/bin/vlpipe").exists():
            install(args.keep.resolve())
        try_demo(args.keep.resolve(), args.ray)
        return
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        try_demo(Path(folder), args.ray)


if __name__ == "__main__":
    main()
