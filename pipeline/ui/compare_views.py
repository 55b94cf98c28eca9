"""Comparison of two runs: of two steps, and of the results of two roots."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlpipe.pipeline.inspect.diff import fact_changes, rejects_beside
from vlpipe.pipeline.inspect.diff_rows import Side, compare_rows
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.inspect.roots.curves import curves, results
from vlpipe.pipeline.inspect.roots.state import StepState
from vlpipe.pipeline.ui.shapes import plain
from vlpipe.pipeline.ui.site import Query, Root, Site

MAX_EXAMPLES = 12


def compare_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns what differs between two runs of a step: parameters, versions, rejects, results and curves; with `rows=1` also
    the rows, which reads both. step: a folder of the root; with: another one, in the root with the number `other`."""
    other = site.root(query.text("other", str(root.number)))
    a = root.reader.state().step(query.text("step"))
    b = other.reader.state().step(query.text("with"))
    left, right = (Side(r.store, _record(one)) for r, one in ((root, a), (other, b)))
    found: dict[str, Any] = {
        "facts": [[plain(text, 400) for text in fact] for fact in fact_changes(left.record, right.record)],
        "rejects": rejects_beside(left.record, right.record),
        "sides": [_side(one) for one in (a, b)],
        "results": [[asdict(x) for x in results(r.store, [one])] for r, one in ((root, a), (other, b))],
        "curves": [[asdict(x) for x in curves(r.store, [one])] for r, one in ((root, a), (other, b))],
    }
    if query.text("rows", "") == "1":
        rows = compare_rows(left, right, MAX_EXAMPLES)
        found["rows"] = {
            "both": rows.num_both,
            "only": [rows.num_only_a, rows.num_only_b],
            "changed": rows.num_changed,
            "columns": dict(rows.columns),
            "only_ids": [rows.only_a, rows.only_b],
            "examples": [[plain(label), [plain(line) for line in lines]] for label, lines in rows.examples],
        }
    return found


def _record(one: StepState) -> StepRecord:
    return StepRecord(folder=one.folder, manifest=one.manifest, receipts=list(one.receipts))


def _side(one: StepState) -> dict[str, Any]:
    return {
        "folder": one.folder,
        "state": one.state,
        "rows_in": one.rows_in,
        "rows_out": one.rows_out,
        "seconds": one.seconds,
        "bytes": one.num_bytes,
    }
