"""Views of a whole run: steps and their progress, one step, losses, results, the lineage of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlpipe.pipeline.inspect.roots.curves import LOSS_COLUMNS, RESULT_COLUMNS, curves, results
from vlpipe.pipeline.inspect.roots.lineage import OnDisk, Passed, lineage
from vlpipe.pipeline.inspect.roots.state import RootState, StepState
from vlpipe.pipeline.inspect.show import merge_columns
from vlpipe.pipeline.ui.row_sources import rows_of
from vlpipe.pipeline.ui.shapes import on_page, plain
from vlpipe.pipeline.ui.site import Query, Root, Site

MAX_SHARDS = 2_000  # shards listed one by one in the view of a step
DECISION_COLUMNS = frozenset({"id: string", "keep: bool", "witness: string"})


def run_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns all steps with their counts, and who runs in the root."""
    state = root.reader.state()
    holder = {"text": state.holder.text, "running": state.holder.is_running}
    return {"title": root.title, "url": root.store.url, "holder": holder, "steps": [*map(_step, state.steps)]}


def _step(one: StepState) -> dict[str, Any]:
    return {
        "name": one.name,
        "folder": one.folder,
        "use": one.use,
        "state": one.state,
        "current": one.is_current,
        "gather": one.is_gather,
        "inputs": one.inputs,
        "reads": one.reads,
        "shards": len(one.receipts),
        "total": one.total,
        "part_rows": one.part_rows,
        "rows_in": one.rows_in,
        "rows_out": one.rows_out,
        "rejects": one.rejects,
        "seconds": one.seconds,
        "bytes": one.num_bytes,
        "rate": one.rate,
        "spent": one.spent,
        "said": plain(one.said.last, 300),
        "train": [one.said.done, one.said.total],
        "warning": one.warning,
        "kind": kind_of_rows(one),
        "pictures": "image: binary" in one.columns,
    }


def kind_of_rows(one: StepState) -> str:
    """Returns what the step's rows are: losses, results, decisions, rows; or nothing."""
    if one.columns in (LOSS_COLUMNS, RESULT_COLUMNS):
        return "losses" if one.columns == LOSS_COLUMNS else "results"
    if set(one.columns) >= DECISION_COLUMNS:
        return "decisions"
    return "rows" if one.rows_out else ""


def step_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns one step: parameters, columns with their statistics, counts, and its shards with their speed."""
    one = root.reader.state().step(query.text("step"))
    manifest = one.manifest
    shards = [
        {
            "index": r.index,
            "rows_in": r.rows_in,
            "rows": r.shard.num_rows,
            "rejects": sum(r.rejects.values()),
            "seconds": r.run.get("seconds"),
            "bytes": r.bytes,
            "host": r.run.get("host"),
            "attempts": r.run.get("attempts"),
        }
        for r in one.receipts[:MAX_SHARDS]
    ]
    return {
        **_step(one),
        "params": plain(dict(one.params)),
        "counts": one.counts,
        "columns": [_column(line, one) for line in one.columns],
        "versions": dict(manifest.versions) if manifest else {},
        "artifacts": list(manifest.artifacts)[:200] if manifest else [],
        "num_artifacts": len(manifest.artifacts) if manifest else 0,
        "per_shard": shards,
        "said_lines": len(one.said.points),
    }


def _column(line: str, one: StepState) -> dict[str, Any]:
    name, _, dtype = line.partition(": ")
    stats = merge_columns([{name: r.columns[name]} for r in one.receipts if name in r.columns])
    heavy = {h.column: h.path for r in one.receipts[:1] for h in r.shard.heavy}
    held_by = heavy.get(name, "").rpartition("/")[0]
    return {"name": name, "type": dtype, "held_by": held_by, **plain(stats.get(name, {}))}


def losses_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns the curves of all trainings, or of those of the parameter `step`."""
    steps = _chosen(root.reader.state(), query.all("step"))
    return {"curves": [asdict(curve) for curve in curves(root.store, steps)]}


def results_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns the figures of all evaluations of the last run, or of all with `all=1`."""
    state = root.reader.state()
    steps = [one for one in state.steps if one.is_current or query.text("all", "") == "1"]
    return {"results": [asdict(one) for one in results(root.store, steps)]}


def _chosen(state: RootState, folders: Sequence[str]) -> list[StepState]:
    return [one for one in state.steps if (one.folder in folders if folders else one.is_current)]


def lineage_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns what each step did with the row of the parameter `id`. step: where the page found it, so as not to search."""
    state = root.reader.state()
    passed = lineage(OnDisk(root.store), state, query.text("id"), query.text("step", ""))
    return {"id": query.text("id"), "passed": [*map(passed_json, passed)]}


def passed_json(one: Passed) -> dict[str, Any]:
    """Returns what a step did with a row, as the page reads it."""
    return {**asdict(one), "lines": [plain(line) for line in one.lines]}


def find_view(site: Site, root: Root, query: Query) -> dict[str, Any]:
    """Returns the place of the row whose id or url is the parameter `text`: in the last step that has it with its picture,
    or else where it enters; none if no row has it. Searched are the steps where rows enter."""
    text, state = query.text("text").strip(), root.reader.state()
    for one in state.steps:
        enters = not one.inputs or "parent: string" in one.columns
        if not (enters and one.is_current and one.receipts and "id: string" in one.columns):
            continue
        table = rows_of(root, one.folder)
        at = table.find([text]).get(text, table.find([text], "url").get(text))
        if at is None:
            continue
        row: Mapping[str, Any] = table.rows([at])[0]
        way = lineage(OnDisk(root.store), state, str(row["id"]), one.folder)
        shown = [p for p in way if p.at is not None and p.row_id == row["id"] and p.what != "decided"]
        with_picture = [p for p in shown if "image" in rows_of(root, p.folder).heavy]
        last = next(iter([*with_picture[::-1], *shown]), None)
        place = {"step": last.folder, "at": last.at} if last else {"step": one.folder, "at": at}
        return {"found": [{**place, "row": on_page(row)}]}
    return {"found": []}
