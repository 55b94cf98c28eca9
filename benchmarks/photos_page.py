"""The figures of `photos.py` as a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from record import machine_line, table

RIGHT, CONTROL = "right", "other_photo"
ALTTEXT = ("cc3m", "laion")


FROM_SCRATCH = (
    "A small BLIP (64 px) is pretrained on these and on other photos with human captions, its matcher finetuned on the "
    "latter; a text is kept at P(match) >= 0.5."
)
OVER_MOBILENET = (
    "BLIP's image encoder is MobileNetV2 (128 px) with ImageNet's weights, which stay as they are. BLIP is pretrained on "
    "these and on other photos with human captions; captioner and matcher are finetuned on the latter; a text is kept at "
    "P(match) >= 0.5. Each further arm pretrains a new model, for as many steps, on its texts of the web photos and on the "
    "same human captions. One seed."
)
ARM_NAMES = {
    "none": "no CapFilt",
    "f": "F: filtered web texts",
    "c": "C: web and synthetic texts",
    "cf": "C+F",
}
METRICS = ("itc_tr@1", "itc_ir@1", "itc_tr@10", "itc_ir@10", "tr@1", "ir@1", "tr@10", "ir@10")


def markdown(found: dict[str, Any]) -> str:
    note = "**A tiny trial: the figures mean nothing.**" if found["tiny"] else ""
    walls, ablation = found["walls_s"], found["ablation"]
    command = f"python benchmarks/photos.py{' --ablation' if ablation else ''} --write"
    parts = [
        "# BLIP's table 1 on real photos" if ablation else "# CapFilt's filter on real photos",
        f"Written by `{command}`. {machine_line(found['machine'])} "
        f"`vlpipe run` took {sum(walls):.0f} s{f' in {len(walls)} runs' if len(walls) > 1 else ''}.",
        note,
        "Flickr8k photos (160 px, small copies) are fetched over loopback HTTP with one text each: half are one of the "
        "photo's own captions, a quarter is alt-text of CC3M, a quarter of LAION. On top come captions of another photo: "
        "their style is that of right texts, so only the picture can tell them. "
        + (OVER_MOBILENET if ablation else FROM_SCRATCH),
        "## Filter",
        _filter_table(found["texts"]),
        _filter_text(found["texts"]),
        "## Retrieval, held-out photos"
        if ablation
        else "## Retrieval of the pretrained model, held-out photos",
        _arms_table(found["retrieval"]) if ablation else _retrieval_table(found["retrieval"]["retrieval"]),
        "## Steps",
        _steps_table(found["steps"]),
        "Seconds are those of the workers, summed over shards; what ran at once is counted twice. Rows per second: of a "
        "training, the samples of all its steps.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _retrieval_table(rows: list[dict[str, Any]]) -> str:
    return table(["", "value", "over"], [[r["name"], f"{r['value']:.3f}", r["num_rows"]] for r in rows])


def _arms_table(found: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, metrics in found.items():
        values = {one["name"]: one["value"] for one in metrics}
        rows.append([ARM_NAMES[name.removesuffix("_retrieval")], *(f"{values[m]:.3f}" for m in METRICS)])
    return table(["", *METRICS], rows)


def _of(texts: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [text for text in texts if text["kind"] in kinds]


def share(texts: list[dict[str, Any]], kept: bool = True) -> float:
    return sum(text["kept"] is kept for text in texts) / len(texts) if texts else float("nan")


def precision(right: list[dict[str, Any]], wrong: list[dict[str, Any]]) -> float:
    kept = [sum(text["kept"] for text in texts) for texts in (right, wrong)]
    return kept[0] / sum(kept) if sum(kept) else float("nan")


def auc(right: list[dict[str, Any]], wrong: list[dict[str, Any]]) -> float:
    """How often a right text has a higher score than a wrong one; ties count half."""
    a, b = (np.array([text["score"] for text in texts]) for texts in (right, wrong))
    return (
        float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()) if len(a) and len(b) else float("nan")
    )


def _filter_table(texts: list[dict[str, Any]]) -> str:
    right, rows = _of(texts, RIGHT), []
    for name, kinds in (
        ("alt-text, all", ALTTEXT),
        ("alt-text of CC3M", ("cc3m",)),
        ("alt-text of LAION", ("laion",)),
        ("captions of another photo", (CONTROL,)),
    ):
        wrong = _of(texts, *kinds)
        base = len(right) / max(1, len(right) + len(wrong))
        rows.append(
            [
                f"right texts against {name}",
                f"{len(right):,} + {len(wrong):,}",
                *(
                    f"{x:.2f}"
                    for x in (base, precision(right, wrong), share(wrong, kept=False), auc(right, wrong))
                ),
            ]
        )
    header = [
        "",
        "texts",
        "right before",
        "right among kept (precision)",
        "wrong ones dropped",
        "AUC of the score",
    ]
    return table(header, rows)


def _filter_text(texts: list[dict[str, Any]]) -> str:
    right, synth = _of(texts, RIGHT), _of(texts, "synth")
    return (
        f"Recall (right texts kept): {share(right):.2f}. Synthetic captions: {len(synth):,}, kept {share(synth):.2f}; "
        "nobody knows which of them are right."
    )


def _steps_table(steps: list[dict[str, Any]]) -> str:
    rows = [
        [
            one["step"],
            f"{one['rows_in']:,}",
            f"{one['rows_out']:,}",
            f"{sum(one['rejects'].values()):,}",
            ", ".join(f"{code.partition(':')[2]} {num}" for code, num in sorted(one["rejects"].items())),
            f"{one['seconds']:.1f}",
            f"{one['samples'] / one['seconds']:,.0f}" if one["seconds"] >= 0.1 else "",
        ]
        for one in steps
    ]
    return table(["step", "rows in", "rows out", "rejected", "why", "seconds", "rows/s"], rows)
