"""What a workflow says that its run must show: the key `x-criteria`, which means nothing to the engine."""

from __future__ import annotations

from pathlib import Path

from vlpipe.pipeline.workflow.yaml_lines import Map, parse

Criterion = tuple[str, str, str | float]  # figure, `above` or `below`, another figure or a number


def criteria_of(path: str) -> list[Criterion]:
    """Returns the criteria of a workflow file; those that are written otherwise are left out."""
    file = parse(Path(path).read_text(encoding="utf-8"), [])
    found = file.get("x-criteria") if isinstance(file, Map) else None
    criteria: list[Criterion] = []
    for one in found if isinstance(found, list) else []:
        way = next((way for way in ("above", "below") if isinstance(one, Map) and way in one), None)
        if way and isinstance(one.get("figure"), str) and isinstance(one[way], (str, int, float)):
            criteria.append((one["figure"], way, one[way]))
    return criteria
