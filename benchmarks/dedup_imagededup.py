"""Run by `dedup.py` with a Python that has imagededup: its CNN search over given encodings."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

# A torchvision that was built for another torch registers no operators, and then cannot be imported. None is used here.
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
    for kind in ("", "_backward", "_double_backward"):
        if not hasattr(torch.ops.torchvision, f"_{name}{kind}" if kind else name):
            OPERATORS.define(f"{'_' if kind else ''}{name}{kind}(Tensor x) -> Tensor")

from imagededup.methods import CNN  # noqa: E402

folder, out = Path(sys.argv[1]), sys.argv[2]
began = time.monotonic()
vectors = np.load(folder / "vectors.npy")
encodings = {f"{row:08d}": vector for row, vector in enumerate(vectors)}
searcher = CNN.__new__(CNN)  # its constructor would download a network; the search does not use it
searcher.verbose = False
searcher.logger = logging.getLogger("imagededup")
found = searcher.find_duplicates(encoding_map=encodings, min_similarity_threshold=0.90)
pairs = {tuple(sorted((int(a), int(b)))) for a, others in found.items() for b in others}
usage = resource.getrusage(resource.RUSAGE_SELF)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
figures = {
    "system": "imagededup",
    "wall_s": time.monotonic() - began,
    "cpu_s": usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime,
    "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    "num_pairs": len(pairs),
}
np.save(f"{out}.npy", np.array(sorted(pairs), np.int64).reshape(-1, 2))
Path(f"{out}.json").write_text(json.dumps(figures))
