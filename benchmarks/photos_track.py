"""The data track on real photos: Flickr8k over loopback HTTP, half of the captions replaced by web texts.

    python benchmarks/photos_track.py          # workflows/data_track_photos.yaml, all entries and seeds
    python benchmarks/photos_track.py --write  # and puts its table into photos_track.md beside this file
    python benchmarks/photos_track.py --tiny   # the same path with few photos and steps, its figures mean nothing
    python benchmarks/photos_track.py --set matrix.seed=0 --set 'matrix.entry=[all, truth]'

It goes on where it was stopped. The data is found through VLPIPE_DATA or at ../shared/data beside the repository
(flickr8k, alttext, mobilenetv2).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from photos import ABLATION, HERE, HOST, KINDS, MOBILENET, find_data, run, write_inputs
from record import machine, machine_line

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = HERE.parent / "workflows" / "data_track_photos.yaml"
SCALE = 1.5  # web photos, as multiples of KINDS
# of glibc: large arrays are kept instead of returned. Without, the system takes 0.6 of the CPU time of MobileNetV2's forward
# pass (128 photos of 96 px)
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
TINY = ("scorer.steps=3", "scorer.warmup_steps=1", "scorer.batch_size=16", "matrix.seed=[0, 1]")


def write_truth(inputs: Path) -> None:
    """truth.parquet (url, text, right), from web.parquet and truth.json."""
    kinds = json.loads((inputs / "truth.json").read_text())
    web = pq.read_table(inputs / "web.parquet")
    right = pa.array([kinds[url] == "right" for url in web["url"].to_pylist()])
    if not (inputs / "truth.parquet").exists():
        pq.write_table(web.append_column("right", right), inputs / "truth.parquet")


def settings(data: Path, inputs: Path) -> list[str]:
    """What `--set` says to the workflow."""
    photos = data / "flickr8k"
    backbone = 'use: "mobilenet_v2:MobileNetV2", part: backbone, into: vision.backbone'
    return [
        f"images.list={inputs / 'web.parquet'}",
        f"images.serve={{{HOST}: {photos}}}",
        *(f"{step}.annotations={inputs / step}.json" for step in ("human", "heldout")),
        *(f"{step}.images={photos}" for step in ("human", "heldout")),
        f"scorer.init_parts=[{{weights: {data / MOBILENET}, {backbone}}}]",
        f"judged.truth={inputs / 'truth.parquet'}",
    ]


def page(workflow: Workflow, store: Store, at: dict[str, object], walls: list[float], tiny: bool) -> str:
    """The page: how it was made, the table of the workflow, the rows of each entry."""
    done = {one.name: one for one in plan(workflow, store)}
    (table,) = Path(store.url, done["table"].folder, "artifacts").glob("table.md")
    rows = {one.name: one.manifest.rows_out for one in done.values() if one.manifest is not None}
    trained = [step for step in workflow.steps if step.name.startswith("train@")]
    entries = {step.name.removeprefix("train@").rpartition("-")[0]: step.inputs[0] for step in trained}
    right = {kind: int(SCALE * num) for kind, num in KINDS.items()}
    parts = [
        "# A data track on real photos",
        f"Written by `python benchmarks/photos_track.py --write`. {machine_line(at)} `vlpipe run` took {sum(walls):.0f} s"
        f"{f' in {len(walls)} runs' if len(walls) > 1 else ''}.",
        "**A tiny trial: the figures mean nothing.**" if tiny else "",
        f"Flickr8k photos (160 px) with one text each: {right['right']:,} with one of their own captions, {right['cc3m']:,} "
        f"with a text of CC3M, {right['laion']:,} of LAION, {right['other_photo']:,} with a caption of another photo. Each "
        "entry trains a CLIP over a frozen MobileNetV2 on as many samples: `workflows/data_track_photos.yaml`.",
        table.read_text(),
        "Rows that each entry trains on: "
        + ", ".join(f"{name} {rows[of]:,}" for name, of in entries.items())
        + ".",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--tiny", action="store_true", help="few photos and steps, to see that it runs")
    parser.add_argument("--local", action="store_true", help="as of `vlpipe run`: no Ray")
    parser.add_argument("--set", action="append", default=[], help="as of `vlpipe run`; repeatable")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs", help="what it leaves")
    options = parser.parse_args()
    data = find_data(ABLATION)
    if data is None:
        print("skipped: no flickr8k, alttext and mobilenetv2 in VLPIPE_DATA or ../shared/data")
        return
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    folder = options.folder.resolve() / "photos_track" / ("tiny" if options.tiny else "full")
    inputs, root, at = folder / "inputs", str(folder / "steps"), machine()
    write_inputs(data, inputs, SCALE, parts=25 if options.tiny else 1)
    write_truth(inputs)
    sets = settings(data, inputs) + list(TINY if options.tiny else ()) + options.set
    walls = run(WORKFLOW, root, sets, options.local, folder / "walls.json")
    found = page(Workflow.load(str(WORKFLOW), sets=sets, root=root), Store(root), at, walls, options.tiny)
    print(found)
    if options.write:
        (HERE / "photos_track.md").write_text(found)


if __name__ == "__main__":
    main()
