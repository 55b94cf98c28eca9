"""The figures of `gpu.py` as a page."""

from __future__ import annotations

from typing import Any

from record import table

TITLES = {
    "step": "A step of BLIP's pretraining (ViT-B/16, 224 px; ITC, ITM, LM)",
    "loader": "The loader, with BLIP's augmentation",
    "inference": "Captions of 20 tokens at 384 px, and the filter",
    "dedup": "Pairs at cosine 0.9",
    "resume": "The same bytes after a kill",
    "compiled": "The step, compiled",
}


def markdown(found: dict[str, Any]) -> str:
    at = found["machine"]
    load = ", ".join(f"{x:.2f}" for x in at["load_average"])
    parts = [
        "# On one GPU",
        "Written by `python benchmarks/gpu.py`. `of matrix rate` is the share of the bf16 matrix rate of the same run; "
        "FLOPs are counted by `models/flops.py`.",
        f"{at['date']}: {at['card']}; driver {at['driver']}, CUDA {at['cuda']}, torch {at['torch']}, transformers "
        f"{at['transformers']}, Python {at['python']}; {at['cores']} cores, load average when it began {load}; JPEGs "
        f"decoded by {at['jpeg']}. It took {found['seconds']:.0f} s.",
    ]
    if found["small"]:
        parts.append("**A trial at a tiny size on the CPU: the figures mean nothing.**")
    for name, rows in found["sections"].items():
        parts += [f"## {TITLES[name]}", *_blocks(rows)]
    return "\n\n".join(parts) + "\n"


def _blocks(rows: list[dict[str, Any]]) -> list[str]:
    """Tables of the rows that have the same columns, in the order of the first of them."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    return [_table(names, same) for names, same in kinds.items()]


def _table(names: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    header = ["", *(name.replace("_", " ") for name in names[1:])]
    return table(header, [[_cell(row[name]) for name in names] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} x {num}" for name, num in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")
