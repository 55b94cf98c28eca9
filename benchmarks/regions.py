"""Real photos to region records: what it costs, what it weighs, where the time goes. One thread.

    python benchmarks/regions.py            # trains the demo detector first if it is not there, some minutes
    python benchmarks/regions.py --write    # and puts the page into regions.md beside this file
    python benchmarks/regions.py --tiny     # the same path in two minutes, its figures mean nothing

Photos: flickr8k, found through VLPIPE_DATA or at ../shared/data beside the repository. Two detectors: that of
workflows/detector_demo.yaml, which knows five rendered shapes, so that what it says about photos is transfer, no detection
worth the name; and the full-size ResNet-101-C4 with 1600 classes at random weights, which says nothing and costs what the
published one costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from record import machine, machine_line, table

from vlpipe.models.detection.config import DetectorConfig
from vlpipe.models.detection.faster_rcnn import FasterRcnn
from vlpipe.models.detection.nms import surviving_confidence
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import write_shard
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.testing import run_map
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.common.detector import Detector, load, save_names
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.regions.regions import RegionFeatures

HERE = Path(__file__).parent
WORKFLOW = str(HERE.parent / "workflows" / "detector_demo.yaml")
DEMO = {"feat_dim": 512, "num_classes": 5, "min_regions": 4, "max_regions": 36}
FULL = {"feat_dim": 2048, "num_classes": 1600}
TINY = ("world.num_web=40", "heldout_world.num_web=12", "detector.steps=3", "detector.warmup_steps=1")


def find_photos() -> list[Path]:
    here = (
        Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data") / "flickr8k" / "images"
    )
    return sorted(here.glob("*.jpg"))


def demo_detector(root: Path, tiny: bool) -> tuple[str, dict[str, float]]:
    """The demo's detector and its scores on held-out made pictures; trained when it is not there yet."""
    sets = TINY if tiny else ()
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        WORKFLOW,
        "--root",
        str(root),
        "--local",
    ]
    subprocess.run([*command, *(part for one in sets for part in ("--set", one))], check=True)
    store = Store(str(root))
    steps = {one.name: one for one in plan(Workflow.load(WORKFLOW, sets=sets, root=str(root)), store)}
    scores = steps["scores"].dataset(store).table().to_pylist()
    return str(root / steps["detector"].folder / "artifacts"), {row["name"]: row["value"] for row in scores}


def random_detector(folder: Path, tiny: bool) -> str:
    """Full size, random weights. The last norm of each block is scaled down, or 33 blocks would overflow half floats."""
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        model = FasterRcnn(DetectorConfig(proposals=40) if tiny else DetectorConfig())
        for name, buffer in model.named_buffers():
            if name.endswith("bn3.weight"):
                buffer.fill_(0.1)
        model.save(folder)
        save_names(folder, [f"class {k}" for k in range(1600)], [f"attribute {k}" for k in range(400)])
    return str(folder)


def photo_rows(files: list[Path]) -> pa.Table:
    rows = [{"id": file.stem, "url": file.name, "image": file.read_bytes()} for file in files]
    return pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS]))


def measured(step: RegionFeatures, rows: pa.Table, folder: Path) -> dict[str, Any]:
    """The stage as the engine calls it, and its shard written: core-seconds, bytes, what the regions say."""
    began = time.process_time()
    out = run_map(step, rows).table
    seconds = time.process_time() - began
    schema = step.schema(rows.schema)
    columns = [f for f in schema if f.name in ("id", "regions", "region_tags", "regions_weights")]
    written = out.select([f.name for f in columns])
    shard = write_shard(
        Store(str(folder)), "regions.parquet", [written], pa.schema(columns), step.ROW_GROUP_ROWS
    )
    counts = Counter(tag for tags in out["region_tags"].to_pylist() for tag in tags)
    return {
        "photos": out.num_rows,
        "regions": sum(len(one) for one in out["regions"].to_pylist()) / out.num_rows,
        "per_core_s": out.num_rows / seconds,
        "bytes": (folder / shard.path).stat().st_size / out.num_rows,
        "group_rows": step.ROW_GROUP_ROWS,
        "tags": counts.most_common(8),
    }


def parts(detector: Detector, rows: pa.Table) -> dict[str, float]:
    """Core-seconds per photo of each part, called one after the other as `FasterRcnn.regions` does."""
    spent: Counter[str] = Counter()
    model = detector.model

    def timed(name: str, part: Callable[..., Any], *args: Any) -> Any:
        began = time.process_time()
        found = part(*args)
        spent[name] += time.process_time() - began
        return found

    decode(rows["image"][0].as_py())  # the first call imports
    with torch.inference_mode():
        for data in rows["image"]:
            image = timed("decode", decode, data.as_py())
            pixels, _ = timed("resize, normalise", detector.pixels, image)
            maps = timed("backbone (C4)", model.backbone.maps, pixels[None])
            anchors, logits, offsets = timed("proposal network", model.rpn, maps)
            size = (pixels.shape[1], pixels.shape[2])
            boxes = timed("proposals, suppression", model.rpn.propose, anchors, logits[0], offsets[0], size)
            pooled = [timed("region pooling", model.head.pooled, maps[0], part) for part in boxes.split(64)]
            features = torch.cat(
                [timed("last stage on regions", model.head.layer4, p).mean((2, 3)) for p in pooled]
            )
            prob = timed("class and box heads", lambda f: model.head.classes(f).softmax(1), features)
            timed("picking", surviving_confidence, boxes, prob[:, :-1], 0.3)
    return {name: seconds / rows.num_rows for name, seconds in spent.items()}


def markdown(found: dict[str, Any]) -> str:
    demo, full = found["demo"], found["full"]
    shares = [found["demo_parts"], found["full_parts"]]
    totals = [sum(one.values()) for one in shares]
    scores = found["scores"]
    lines = [
        "# Region features on real photos",
        f"Written by `python benchmarks/regions.py --write`. {machine_line(found['machine'])} One thread each.",
        "**A tiny trial: the figures mean nothing.**" if found["tiny"] else "",
        "Flickr8k photos (160 px copies) to region records: heavy `regions`, `region_tags`, `regions_weights`, "
        "written as the engine writes them.",
        table(
            ["", "demo detector", "ResNet-101-C4, random weights"],
            [
                ["photos", demo["photos"], full["photos"]],
                ["photos per core-second", f"{demo['per_core_s']:.2f}", f"{full['per_core_s']:.4f}"],
                ["regions per photo", f"{demo['regions']:.1f}", f"{full['regions']:.1f}"],
                ["bytes per photo", f"{demo['bytes']:,.0f}", f"{full['bytes']:,.0f}"],
                ["rows per row group", demo["group_rows"], full["group_rows"]],
            ],
        ),
        "The photo is resized to 600 (long side at most 1000) for the full-size one, to 160 for the demo detector. Random "
        "weights give flat class probabilities, so it keeps its least number of regions, 36; with 100, the most, a photo "
        f"weighs about {full['bytes'] * 100 / 36:,.0f} bytes.",
        "## Where the time goes",
        table(
            ["part", "demo, ms", "share", "full size, ms", "share"],
            [
                [name]
                + [
                    text
                    for one, total in zip(shares, totals, strict=True)
                    for text in (f"{1000 * one[name]:,.1f}", f"{one[name] / total:.1%}")
                ]
                for name in shares[0]
            ],
        ),
        "Core-milliseconds per photo. The last stage runs on all 300 proposals at 14 x 14 without striding, as the "
        "published weights want it.",
        "## What the demo detector says about photos",
        f"It was trained on rendered shapes only, where it has an AP50 of {scores['ap50']:.3f} on held-out pictures "
        f"({scores['attribute_right']:.3f} of the attributes right). On photos this is transfer from made scenes: there is "
        "no circle to find, and its tags name what looks like one. Tags with a confidence of at least 0.2, per photo: "
        + (", ".join(f"{name} {num / demo['photos']:.2f}" for name, num in demo["tags"]) or "none")
        + ".",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write regions.md")
    parser.add_argument("--tiny", action="store_true", help="few photos and steps, to see that it runs")
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "runs" / "regions", help="what it leaves"
    )
    options = parser.parse_args()
    photos = find_photos()
    if not photos:
        print("skipped: no flickr8k in VLPIPE_DATA or ../shared/data")
        return
    folder = options.folder.resolve() / ("tiny" if options.tiny else "full")
    num_demo, num_full = (4, 1) if options.tiny else (200, 3)
    at = machine()
    demo, scores = demo_detector(folder / "steps", options.tiny)
    full = random_detector(folder / "resnet101", options.tiny)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": at, "tiny": options.tiny, "scores": scores}
    for name, path, sizes, num in (("demo", demo, DEMO, num_demo), ("full", full, FULL, num_full)):
        rows = photo_rows(photos[:num])
        step = RegionFeatures(detector=Weights(path=path), **sizes)
        found[f"{name}_parts"] = parts(load(path), rows)
        found[name] = measured(step, rows, folder / name)
    page = markdown(found)
    print(page)
    if options.write:
        (HERE / "regions.md").write_text(page)


if __name__ == "__main__":
    main()
