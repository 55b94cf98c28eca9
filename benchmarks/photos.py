"""CapFilt on real photos with known wrong texts: Flickr8k over loopback HTTP, half of the captions replaced.

    python benchmarks/photos.py               # the filter of a model from scratch: about 14 minutes on 2 cores
    python benchmarks/photos.py --ablation    # BLIP's table 1 over MobileNetV2: less than an hour on 2 cores
    python benchmarks/photos.py --write       # and puts the page into photos.md or photos_ablation.md beside this file
    python benchmarks/photos.py --tiny        # the same path in a minute, its figures mean nothing

It goes on where it was stopped. The data is found through VLPIPE_DATA or at ../shared/data beside the repository
(flickr8k, alttext, and mobilenetv2 for the ablation).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from photos_page import markdown
from record import machine

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.inspect.status import status
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

HERE = Path(__file__).parent
HOST = "photos.test"
# Photos per kind of web text, then with human captions, then held out. The first four are the list that is judged;
# `other_photo` comes on top of it: texts in the style of right ones, so that style alone cannot tell them.
KINDS = {"right": 700, "cc3m": 350, "laion": 350, "other_photo": 200}
NUM_HUMAN, NUM_HELDOUT = 2400, 500
MOBILENET = "mobilenetv2/dequantised_fp16.npz"


@dataclass(frozen=True)
class Trial:
    """A workflow and what is read from it.

    scale: web photos, as multiples of KINDS. filtered: the step whose texts are judged.
    """

    name: str
    scale: float
    pretrain: tuple[str, ...]
    retrieval: tuple[str, ...]
    filtered: str


FILTER = Trial("photos", 1, ("pretrain",), ("retrieval",), "filtered")
ARMS = ("none", "f", "c", "cf")
ABLATION = Trial("photos_ablation", 1.5, ARMS, tuple(f"{arm}_retrieval" for arm in ARMS), "cf_filtered")


def find_data(trial: Trial) -> Path | None:
    """The folder that holds flickr8k, alttext and, for the ablation, mobilenetv2."""
    here = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data")
    needed = ["flickr8k/train.jsonl", "flickr8k/dev.jsonl", "alttext/cc3m_validation.tsv"]
    needed += [MOBILENET] if trial is ABLATION else []
    return here if all((here / name).exists() for name in needed) else None


def read_photos(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def alt_texts(folder: Path) -> tuple[Iterator[str], Iterator[str]]:
    """Texts of CC3M and of LAION, each in a fixed mixed order."""
    with open(folder / "cc3m_validation.tsv", encoding="utf-8") as file:
        cc3m = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    laion = [t for t in pq.read_table(folder / "laion_10000.parquet")["TEXT"].to_pylist() if t and t.strip()]
    for texts in (cc3m, laion):
        random.Random(1).shuffle(texts)
    return iter(cc3m), iter(laion)


def write_inputs(data: Path, inputs: Path, scale: float, parts: int) -> None:
    """web.parquet (url, text), truth.json (url -> kind), human.json and heldout.json; `parts`: 1 is everything."""
    inputs.mkdir(parents=True, exist_ok=True)
    photos, dev = (read_photos(data / "flickr8k" / f"{name}.jsonl") for name in ("train", "dev"))
    rng = random.Random(0)
    rng.shuffle(photos)
    kinds = [kind for kind, num in KINDS.items() for _ in range(int(scale * num / parts))]
    web, rest = photos[: len(kinds)], photos[len(kinds) :]
    texts = dict(zip(("cc3m", "laion"), alt_texts(data / "alttext"), strict=True))
    texts["other_photo"] = (rng.choice(photo["captions"]) for photo in reversed(rest))
    lines = []
    for kind, photo in zip(kinds, web, strict=True):
        text = rng.choice(photo["captions"]) if kind == "right" else next(texts[kind])
        lines.append({"url": f"http://{HOST}/{photo['file']}", "text": text, "kind": kind})
    rng.shuffle(lines)  # a shard has all kinds
    _write_if_new(inputs / "truth.json", json.dumps({line["url"]: line["kind"] for line in lines}, indent=0))
    if not (inputs / "web.parquet").exists():
        pq.write_table(
            pa.table({name: [ln[name] for ln in lines] for name in ("url", "text")}), inputs / "web.parquet"
        )
    _write_if_new(inputs / "human.json", coco(rest[: NUM_HUMAN // parts]))
    _write_if_new(inputs / "heldout.json", coco(dev[: NUM_HELDOUT // parts]))


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text)


def coco(photos: list[dict[str, Any]]) -> str:
    images = [{"id": n, "file_name": photo["file"]} for n, photo in enumerate(photos)]
    captions = [
        {"id": len(photo["captions"]) * n + k, "image_id": n, "caption": caption}
        for n, photo in enumerate(photos)
        for k, caption in enumerate(photo["captions"])
    ]
    return json.dumps({"images": images, "annotations": captions})


def settings(trial: Trial, data: Path, inputs: Path, tiny: bool) -> list[str]:
    """What `--set` says to the workflow."""
    photos = data / "flickr8k"
    backbone = 'use: "mobilenet_v2:MobileNetV2", part: backbone, into: vision.backbone'
    weights = f"[{{weights: {data / MOBILENET}, {backbone}}}]"
    training = [*trial.pretrain, "captioner", "matcher"]
    return [
        f"images.list={inputs / 'web.parquet'}",
        f"images.serve={{{HOST}: {photos}}}",
        *(f"{step}.annotations={inputs / step}.json" for step in ("human", "heldout")),
        *(f"{step}.images={photos}" for step in ("human", "heldout")),
        *(f"{step}.init_parts={weights}" for step in (trial.pretrain if trial is ABLATION else ())),
        *(f"{step}.{key}" for step in training for key in (("steps=4", "warmup_steps=1") if tiny else ())),
        *(f"{step}.torch_threads=1" for step in (trial.pretrain if tiny else ())),
        *(f"{step}.resources.cpus=1" for step in (trial.pretrain if tiny else ())),
    ]


def run(workflow: Path, root: str, sets: list[str], local: bool, walls: Path) -> list[float]:
    """`vlpipe run`; returns the wall seconds of this run and of those before it that it went on from."""
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        str(workflow),
        "--root",
        root,
    ]
    command += [arg for setting in sets for arg in ("--set", setting)] + ["--local"] * local
    began = time.monotonic()
    code = subprocess.run(command).returncode
    seconds = (json.loads(walls.read_text()) if walls.exists() else []) + [time.monotonic() - began]
    walls.write_text(json.dumps(seconds))
    if code:
        sys.exit(code)
    return seconds


def judged(filtered: PlannedStep, store: Store, kinds: dict[str, str]) -> list[dict[str, Any]]:
    """Every web and synthetic text with its kind, score and fate."""
    found = []
    for row in filtered.dataset(store).table(["url", "texts"]).to_pylist():
        for text in row["texts"]:
            kind = kinds[row["url"]] if text["source"] == "web" else text["source"]
            found.append({"kind": kind, "score": text["score"], "kept": text["kept"]})
    return found


def samples(one: PlannedStep) -> int:
    """Rows that a step worked on; of a training, the samples of all steps."""
    manifest = one.manifest
    assert manifest is not None
    params = manifest.params
    if "batch_size" in params and params.get("steps"):
        return int(params["steps"]) * int(params["batch_size"])
    return manifest.rows_in or manifest.rows_out


def results(trial: Trial, steps: list[PlannedStep], store: Store, kinds: dict[str, str]) -> dict[str, Any]:
    by_name = {one.name: one for one in steps}
    return {
        "steps": [
            {
                "step": one.name,
                "rows_in": by_name[one.name].manifest.rows_in,  # type: ignore[union-attr]  # all are done
                "rows_out": one.rows,
                "rejects": one.rejects,
                "seconds": one.seconds,
                "samples": samples(by_name[one.name]),
            }
            for one in status(steps, store)
        ],
        "texts": judged(by_name[trial.filtered], store, kinds),
        "retrieval": {name: by_name[name].dataset(store).table().to_pylist() for name in trial.retrieval},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ablation", action="store_true", help="no CapFilt, F, C and C+F over MobileNetV2")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--tiny", action="store_true", help="few photos and steps, to see that it runs")
    parser.add_argument("--local", action="store_true", help="as of `vlpipe run`: no Ray")
    parser.add_argument("--set", action="append", default=[], help="as of `vlpipe run`; repeatable")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs", help="what it leaves")
    options = parser.parse_args()
    trial = ABLATION if options.ablation else FILTER
    data = find_data(trial)
    if data is None:
        print("skipped: no flickr8k, alttext and mobilenetv2 in VLPIPE_DATA or ../shared/data")
        return
    folder = options.folder.resolve() / trial.name / ("tiny" if options.tiny else "full")
    inputs, root, at = folder / "inputs", str(folder / "steps"), machine()
    write_inputs(data, inputs, trial.scale, parts=25 if options.tiny else 1)
    sets = settings(trial, data, inputs, options.tiny) + options.set
    workflow = HERE / f"{trial.name}.yaml"
    walls = run(workflow, root, sets, options.local, folder / "walls.json")
    store = Store(root)
    steps = plan(Workflow.load(str(workflow), sets=sets, root=root), store)
    found = results(trial, steps, store, json.loads((inputs / "truth.json").read_text()))
    found |= {"ablation": options.ablation, "machine": at, "walls_s": walls, "tiny": options.tiny}
    page = markdown(found)
    print(page)
    if options.write:
        (HERE / f"{trial.name}.md").write_text(page)


if __name__ == "__main__":
    main()
