"""Real clips from files to features to filtered clip rows: what each step of workflows/howto100m.yaml takes and drops.

    python benchmarks/video_clips.py            # a few minutes on one core
    python benchmarks/video_clips.py --write    # and puts the page into video_clips.md beside this file
    python benchmarks/video_clips.py --tiny     # four clips and small windows: its figures mean nothing

The clips are found through VLPIPE_DATA or at ../shared/data beside the repository (video_clips). The S3D-G has random
weights: it costs what the real one costs, and its scores mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import machine, machine_line, table

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.inspect.status import status
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

HERE = Path(__file__).parent
WORKFLOW = str(HERE.parent / "workflows" / "howto100m.yaml")
SIGNALS = ("clip_s", "static_ratio", "motion", "num_cuts", "black_ratio", "blur_ratio")
DECODING = ("videos", "seen", "features")  # the steps that open videos


def find_data() -> Path | None:
    here = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data") / "video_clips"
    return here if (here / "captions.jsonl").exists() else None


def write_inputs(data: Path, inputs: Path, num_clips: int | None) -> None:
    """list.csv and captions/ID.csv as MIL-NCE's are, each clip's caption over its whole length; random weights."""
    import torch

    from vlpipe.models.video.s3dg import S3dG

    shutil.rmtree(inputs, ignore_errors=True)
    (inputs / "captions").mkdir(parents=True)
    about = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    about = [one for one in about if (data / one["file"]).exists()][:num_clips]
    for one in about:
        name = Path(one["file"]).name.split(".")[0]
        said = f'start,end,text\n0.0,3600.0,"{one["caption"]}"\n'
        (inputs / "captions" / f"{name}.csv").write_text(said)
    (inputs / "list.csv").write_text(
        "\n".join(["video_path", *(Path(one["file"]).name for one in about)]) + "\n"
    )
    words = sorted({word.strip(".,").lower() for one in about for word in one["caption"].split()})
    np.save(inputs / "s3d_dict.npy", np.array(words))
    torch.manual_seed(0)
    torch.save(S3dG(num_words=len(words)).state_dict(), inputs / "s3d_howto100m.pth")


def settings(data: Path, inputs: Path, tiny: bool) -> list[str]:
    """What `--set` says to the workflow."""
    files = {
        "videos.list": "list.csv",
        "videos.captions": "captions",
        "features.weights": "s3d_howto100m.pth",
        "scored.model": "s3d_howto100m.pth",
        "scored.words": "s3d_dict.npy",
    }
    sets = [f"{key}={inputs / name}" for key, name in files.items()]
    sets += ["videos.tasks=null", *(f"{step}.videos={data / 'clips'}" for step in DECODING)]
    return sets + (["features.windows.frames=4", "features.windows.side=32"] if tiny else [])


def run(root: str, sets: list[str]) -> float:
    """`vlpipe run --local`: one process, one core; wall seconds."""
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", WORKFLOW, "--root", root, "--local"]
    began = time.monotonic()
    code = subprocess.run([*command, *(arg for one in sets for arg in ("--set", one))]).returncode
    if code:
        sys.exit(code)
    return time.monotonic() - began


def page(steps: dict[str, PlannedStep], store: Store, at: dict[str, Any], wall_s: float, tiny: bool) -> str:
    video_s = sum(v for v in column(steps["videos"], store, "duration_s") if v)
    clip_s = sum(column(steps["shown"], store, "clip_s"))
    num_windows = sum(len(w) for w in heavy(steps["features"], store, "s3d"))
    seconds = {one.name: one.seconds for one in status(list(steps.values()), store)}
    num_frames = sum(column(steps["seen"], store, "frames_seen"))
    parts = [
        "# Real clips: from files to scored rows",
        f"Written by `python benchmarks/video_clips.py --write`. {machine_line(at)} "
        f"`vlpipe run --local` took {wall_s:.0f} s.",
        "**A tiny trial: the figures mean nothing.**" if tiny else "",
        f"{steps['videos'].dataset(store).num_rows} real web videos (H.264, {video_s:.0f} s in all), each with one caption "
        "over its whole length, through `workflows/howto100m.yaml`. S3D-G has random weights: it costs what the real one "
        "costs, and its scores (and so what `aligned` drops) mean nothing.",
        "## Steps",
        steps_table(steps, store),
        "Seconds are those of the workers, loading of packages and weights included.",
        "## Speed on one core",
        table(
            ["", "value"],
            [
                ["frames for the cheap signals, per second", f"{num_frames / seconds['seen']:.0f}"],
                [
                    "video-seconds per second, cheap signals",
                    f"{clip_s_of(steps['seen'], store) / seconds['seen']:.1f}",
                ],
                ["S3D-G windows, per second", f"{num_windows / seconds['features']:.2f}"],
                ["video-seconds per second, S3D-G features", f"{clip_s / seconds['features']:.2f}"],
            ],
        ),
        "## Signals",
        signals_table(steps["seen"], store),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def column(step: PlannedStep, store: Store, name: str) -> list[Any]:
    found: list[Any] = step.dataset(store).table([name])[name].to_pylist()
    return found


def clip_s_of(step: PlannedStep, store: Store) -> float:
    return float(sum(column(step, store, "clip_s")))


def heavy(step: PlannedStep, store: Store, name: str) -> list[Any]:
    return [one for rows in step.dataset(store).batches(["id"], [name]) for one in rows[name].to_pylist()]


def steps_table(steps: dict[str, PlannedStep], store: Store) -> str:
    rows = []
    for one in status(list(steps.values()), store):
        manifest = steps[one.name].manifest
        assert manifest is not None
        why = ", ".join(f"{code.partition(':')[2]} {num}" for code, num in sorted(one.rejects.items()))
        rows.append([one.name, manifest.rows_in, one.rows, why, f"{one.seconds:.1f}"])
    return table(["step", "rows in", "rows out", "rejected", "seconds"], rows)


def signals_table(step: PlannedStep, store: Store) -> str:
    rows = []
    for name in SIGNALS:
        values = np.array([v for v in column(step, store, name) if v is not None], float)
        rows.append([name, *(f"{v:.2f}" for v in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))])
    return table(["", "least", "quarter", "median", "three quarters", "most"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write video_clips.md")
    parser.add_argument(
        "--tiny", action="store_true", help="few clips and small windows, to see that it runs"
    )
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "runs" / "video_clips", help="what it leaves"
    )
    options = parser.parse_args()
    data = find_data()
    if data is None:
        print("skipped: no video_clips in VLPIPE_DATA or ../shared/data")
        return
    folder = options.folder.resolve() / ("tiny" if options.tiny else "full")
    shutil.rmtree(folder, ignore_errors=True)
    at = machine()
    write_inputs(data, folder / "inputs", 4 if options.tiny else None)
    sets, root = settings(data, folder / "inputs", options.tiny), str(folder / "steps")
    wall_s = run(root, sets)
    store = Store(root)
    steps = {one.name: one for one in plan(Workflow.load(WORKFLOW, sets=sets, root=root), store)}
    found = page(steps, store, at, wall_s, options.tiny)
    print(found)
    if options.write:
        (HERE / "video_clips.md").write_text(found)


if __name__ == "__main__":
    main()
