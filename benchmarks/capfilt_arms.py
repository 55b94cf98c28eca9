"""The arms of `workflows/capfilt_ablation.yaml` on one page: means over seeds, intervals, differences to C+F, the filters.

vlpipe run workflows/capfilt_ablation.yaml
python benchmarks/capfilt_arms.py runs/capfilt_ablation            # prints the page
python benchmarks/capfilt_arms.py runs/capfilt_ablation --write    # and puts it into capfilt_arms.md beside this file
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from record import machine, machine_line, table

from vlpipe.pipeline.engine.records.receipts import read_receipts
from vlpipe.pipeline.inspect.on_disk import step_folders
from vlpipe.pipeline.storage.store import Store

HERE = Path(__file__).parent
METRICS = ("tr@1", "ir@1", "itc_tr@1", "itc_ir@1")
BASELINE = "cf"
ARMS = {
    "none": "none: web texts as they are",
    "c": "C: captioner alone",
    "f": "F: filter alone",
    "cf": "C+F",
    "random": "C+F, random decisions at the filter's keep rate",
    "shuffled": "C+F, its synthetic texts on other images",
    "true_filter": "C+F, filter that knows the truth",
    "true_captions": "C+F, captioner that knows the truth",
    "replicated": "web texts twice (table 12)",
    "continued": "C+F, the old model trained further (table 13)",
    "beam": "C+F, beam search (table 2)",
    "shared": "C+F, one model as captioner and filter (table 4)",
}
DECODING = {"nucleus": "nucleus sampling", "beam": "beam search", "shared": "one model, nucleus sampling"}
Figures = Mapping[str, float | None]


def figures_of(store: Store, step: str) -> tuple[dict[str, float | None], int]:
    """Returns (name -> value, number of seeds) of the RESULTS of a finished `evaluate.compare` step."""
    (folder,) = [name for name in step_folders(store) if name.rpartition("-")[0] == step]
    files = [receipt.shard.path for receipt in read_receipts(store, folder)]
    rows = [row for file in files for row in pq.read_table(store.path(file)).to_pylist()]
    return {row["name"]: row["value"] for row in rows}, max(row["num_rows"] for row in rows)


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _mean(found: Figures, what: str) -> str:
    mean, sd, low, high = (found.get(f"{what} {part}") for part in ("mean", "sd", "low", "high"))
    value = _value(mean) if sd is None else f"{_value(mean)} ± {sd:.3f}"
    return value if low is None or high is None else f"{value} [{low:.3f}, {high:.3f}]"


def _in_sds(found: Figures, arm: str, metric: str) -> str:
    """Returns the difference to C+F in pooled standard deviations, the root of the mean of both arms' variances."""
    mean, one, other = (
        found.get(f"{arm}/{metric} mean"),
        found.get(f"{arm}/{metric} sd"),
        found.get(f"{BASELINE}/{metric} sd"),
    )
    base = found.get(f"{BASELINE}/{metric} mean")
    if mean is None or base is None or not one or not other:
        return ""
    return f"{(mean - base) / math.sqrt((one**2 + other**2) / 2):+.1f}"


def arms_table(found: Figures) -> str:
    lines = []
    for arm, name in ARMS.items():
        if f"{arm}/{METRICS[0]} mean" in found:
            of_c_f = [_mean(found, f"{arm} - {BASELINE}/{m}") for m in METRICS[:2]]
            in_sds = [_in_sds(found, arm, m) for m in METRICS[:2]] if arm != BASELINE else ["", ""]
            lines.append([name, *(_mean(found, f"{arm}/{m}") for m in METRICS), *of_c_f, *in_sds])
    differences = ["TR@1 - C+F", "IR@1 - C+F", "TR@1 in sd", "IR@1 in sd"]
    return table(["arm", *(m.upper() for m in METRICS), *differences], lines)


def filters_table(found: Figures) -> str:
    names = (
        "filter_precision",
        "filter_recall",
        "synth_right",
        "synth_kept",
        "synth_right/kept",
        "noise_ratio/after",
    )
    lines = []
    for arm, name in DECODING.items():
        values = {n: found.get(f"{arm}/{n} mean") for n in names}
        kept = values["synth_kept"]
        rejected = None if kept is None else 1 - kept
        lines.append([name, *(_value(v) for v in (*values.values(), rejected))])
    header = [
        "precision",
        "recall",
        "synthetic right",
        "kept",
        "kept ones right",
        "wrong texts after",
        "rejected",
    ]
    return table(["texts", *header], lines)


def page(root: str) -> str:
    store = Store(root)
    arms, num_seeds = figures_of(store, "table")
    filters, _ = figures_of(store, "filters")
    parts = [
        "# CapFilt's arms on the demo world",
        f"Written by `python benchmarks/capfilt_arms.py ROOT --write`. {machine_line(machine())}",
        f"Means over {num_seeds} seed(s), each with images of its own; all arms train for the same number of steps. In "
        "brackets: 95 % intervals by a bootstrap over seeds and held-out images, for differences the same images in both "
        "arms (`evaluate.compare`). ±: standard deviation over seeds. In sd: the difference to C+F divided by the pooled "
        "standard deviation of both arms.",
        arms_table(arms),
        "## Captions and filter",
        "By the ground truth. Precision and recall: of keeping web texts. Rejected: the share of synthetic texts below the "
        "threshold, which BLIP's Table 2 calls noise (0.19 for beam search, 0.25 for nucleus sampling).",
        filters_table(filters),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="the root of a finished run of capfilt_ablation.yaml")
    parser.add_argument("--write", action="store_true", help="write capfilt_arms.md")
    options = parser.parse_args()
    text = page(options.root)
    print(text)
    if options.write:
        (HERE / "capfilt_arms.md").write_text(text)


if __name__ == "__main__":
    main()
