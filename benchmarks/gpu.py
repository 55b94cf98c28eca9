"""Training step, loader, inference, deduplication and resume on one GPU. Meant for four minutes; it has not run on one yet.

    python benchmarks/gpu.py                        # on a machine with a GPU
    python benchmarks/gpu.py --write                # and puts the figures into gpu.md and gpu.json beside this file
    python benchmarks/gpu.py --out FOLDER           # and puts them there
    python benchmarks/gpu.py --only step,loader     # some of the sections
    SMALL=1 python benchmarks/gpu.py                # all of it at a tiny size on the CPU; or --small

It needs torch, transformers, pyarrow, fsspec, Pillow and pydantic; vlpipe need not be installed, and nothing is downloaded:
pictures, texts and weights are made. Rows that do not start before their section's time is over are left out, and say so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import gpu_common
import gpu_dedup
import gpu_inference
import gpu_loader
import gpu_page
import gpu_resume
import gpu_step
import torch

HERE = Path(__file__).parent
TOTAL_S, TRIAL_S = 235, 3600  # of a run; of a trial on the CPU, which leaves no row out
SECTIONS = {  # name -> (what measures it, seconds in which its rows may start)
    "step": (gpu_step.measure, 40),
    "loader": (gpu_loader.measure, 45),
    "inference": (gpu_inference.measure, 35),
    "dedup": (gpu_dedup.measure, 15),
    "resume": (gpu_resume.measure, 45),
    "compiled": (gpu_step.measure_compiled, 60),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a trial at a tiny size on the CPU")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--write", action="store_true", help="write gpu.md and gpu.json beside this file")
    parser.add_argument("--out", type=Path, help="write gpu.md and gpu.json into this folder")
    options = parser.parse_args()
    small = options.small or os.environ.get("SMALL") == "1"
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(SECTIONS)):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if not small and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --small tries all of it on the CPU")
    if small and options.write:
        parser.error("a trial at a tiny size is not written beside this file; give --out FOLDER")
    warnings.filterwarnings("ignore")
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # graph breaks of each compiled step
    began = time.monotonic()
    at = gpu_common.about(small)
    with tempfile.TemporaryDirectory() as folder:
        bench = gpu_common.Bench(small, Path(folder))
        bench.run_ends_s = began + (TRIAL_S if small else TOTAL_S)
        bench.tokenizer.save(bench.folder / "tokenizer")
        for name in names:
            measure, seconds = SECTIONS[name]
            with bench.timed_section(name, TRIAL_S if small else seconds):
                measure(bench)
    found = {"machine": at, "small": small, "seconds": time.monotonic() - began, "sections": bench.found}
    page = gpu_page.markdown(found)
    print("\n" + page)
    for target in ([HERE] if options.write else []) + ([options.out] if options.out else []):
        target.mkdir(parents=True, exist_ok=True)
        (target / "gpu.md").write_text(page)
        (target / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(row["what"] == "failed" for rows in bench.found.values() for row in rows))


if __name__ == "__main__":
    main()
