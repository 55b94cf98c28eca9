"""Writes a bundle: the page's own files, and what the server would answer, as JSON files that `static/bundle.js` reads.

data/about.json: the roots. data/ROOT/run.json, losses.json, results.json: these views. data/ROOT/steps/FOLDER.json: the view
`step`, sampled rows and rejects, pairs of duplicates, histograms of all rows. data/ROOT/ids.json, ways/NUMBER.json: where
each sampled row is, and its way. data/ROOT/compare.json, compare/NUMBER.json: comparisons. pictures/, videos/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.roots.curves import curves, results
from vlpipe.pipeline.inspect.roots.lineage import lineage
from vlpipe.pipeline.inspect.roots.state import RootState, StepState
from vlpipe.pipeline.inspect.rows.columns import find_leaf
from vlpipe.pipeline.inspect.rows.conditions import Condition
from vlpipe.pipeline.inspect.rows.histograms import histogram
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.storage.printable import without_secrets
from vlpipe.pipeline.ui.bundle.media import Media
from vlpipe.pipeline.ui.bundle.sample import Sample, take_sample
from vlpipe.pipeline.ui.compare_views import compare_view
from vlpipe.pipeline.ui.drawn import boxes_of, cues_of, has_media, media_path, webvtt
from vlpipe.pipeline.ui.guard import HEADERS
from vlpipe.pipeline.ui.row_sources import filterable, rows_of
from vlpipe.pipeline.ui.run_views import kind_of_rows, passed_json, run_view, step_view
from vlpipe.pipeline.ui.shapes import plain
from vlpipe.pipeline.ui.site import Query, Root, Site

WAYS = 50  # rows in a file of ways
BINS, FINE = 50, 400  # those that scores.js asks for
COMPARED = 3  # earlier runs of a step
COMPARED_ROWS = 100_000  # of a step whose rows are compared, too
NUMBER_KINDS = ("losses", "results")  # steps whose numbers are no scores


@dataclass(frozen=True, slots=True)
class Written:
    num_files: int
    num_bytes: int
    num_rows: int  # sampled ids


def write_bundle(site: Site, folder: Path, num_rows: int) -> Written:
    """Writes the page over the site's roots, with about `num_rows` rows of each step where rows enter.

    Paths of this machine, hosts, and what a URL has behind its path are left out, since a bundle is there to be published.
    Raises VlpipeError if the folder is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VlpipeError(f"{folder} is there already; give a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    media, total = Media(folder), 0
    for root in site.roots:
        total += _write_root(site, root, folder / "data" / str(root.number), media, num_rows)
    _json(folder / "data/about.json", {"roots": [{"title": r.title, "url": ""} for r in site.roots]})
    (folder / "static").mkdir()
    for name, answer in site.static.items():
        if name != "index.html":
            (folder / "static" / name).write_bytes(answer.body)
    (folder / "index.html").write_text(index_page(site.static["index.html"].body.decode()), encoding="utf-8")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Written(len(files), sum(path.stat().st_size for path in files), total)


def index_page(text: str) -> str:
    """Returns the page's first file for a bundle: it says that it is one, and has the server's policy in itself."""
    policy = HEADERS["Content-Security-Policy"].replace(
        "; frame-ancestors 'none'", ""
    )  # only headers have that
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    text = text.replace('<html lang="en">', '<html lang="en" data-bundle>')
    text = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}')
    return text.replace("from this machine only", "from where this page is only")


def _write_root(site: Site, root: Root, folder: Path, media: Media, num_rows: int) -> int:
    state = root.reader.state()
    sample = take_sample(site, root, state, num_rows)
    run = run_view(site, root, Query({})) | {"url": "", "holder": {"text": "", "running": False}}
    _json(folder / "run.json", run)
    _json(folder / "losses.json", {"curves": [asdict(one) for one in curves(root.store, state.steps)]})
    _json(folder / "results.json", {"results": [asdict(one) for one in results(root.store, state.steps)]})
    for one in state.steps:
        _json(folder / "steps" / f"{one.folder}.json", _step(site, root, one, sample, media))
    _write_ways(folder, state, sample)
    _write_comparisons(site, root, folder)
    return len(sample.ids())


def _step(site: Site, root: Root, one: StepState, sample: Sample, media: Media) -> dict[str, Any]:
    """Returns all that is known of a step; of one of earlier parameters without rows."""
    about = step_view(site, root, Query({"step": [one.folder]}))
    about["per_shard"] = [{**shard, "host": None} for shard in about["per_shard"]]
    if not one.is_current:
        return {"step": about, "rows": None}
    table, mine = rows_of(root, one.folder), sample.steps[one.folder]
    rejects = rows_of(root, one.folder, "rejects")
    return {
        "step": about,
        "all": table.num_rows,
        "heavy": list(table.heavy),
        "columns": _columns(table),
        "rows": [_row(site, root, one, table, at, row, media) for at, row in mine.listed()],
        "all_rejects": rejects.num_rows,
        "reject_columns": _columns(rejects),
        "rejects": [
            {"at": at, "row": plain(reject), "before": _before(sample, one, str(reject["id"]))}
            for at, reject in mine.rejects.items()
        ],
        "pairs": mine.pairs,
        "dropped": _num_dropped(site, one, table),
        "histograms": dict(_histograms(site, one, table)),
    }


def _num_dropped(site: Site, one: StepState, table: RowTable) -> int:
    """Returns how many rows a deduplication drops; 0 for other steps."""
    if kind_of_rows(one) != "decisions":
        return 0
    found = site.queries.matching(table, [Condition("keep", "=", "false")])
    return 0 if found is None else len(found)


def _columns(table: RowTable) -> list[dict[str, Any]]:
    """Returns the columns that conditions may name; single: they hold numbers of 32 bits or fewer."""
    return [
        {**one, "single": str(find_leaf(table.light, one["path"]).dtype) in ("float", "halffloat")}
        for one in filterable(table)
    ]


def _row(
    site: Site, root: Root, one: StepState, table: RowTable, at: int, row: Mapping[str, Any], media: Media
) -> dict[str, Any]:
    found: dict[str, Any] = {"at": at, "row": plain(row), "boxes": boxes_of(site, table, at, row)}
    data = site.heavy.value(table, at, "image") if "image" in table.heavy else None
    picture = media.picture(data) if isinstance(data, bytes) else None
    if picture is not None:
        found |= {"picture": picture.name, "size": picture.size}
    if has_media(root, one.folder, row):
        path = media_path(root, one.folder, str(row["video"]))
        found["video"] = media.video(path) if path else ""
    cues = cues_of(row) if found.get("video") else []
    if cues:
        found["cues"] = f"videos/{one.folder}-{at}.vtt"
        (media.folder / found["cues"]).write_text(webvtt(cues), encoding="utf-8")
    return found


def _before(sample: Sample, one: StepState, id_: str) -> dict[str, Any] | None:
    """Returns the place of a rejected row in the step that it came from."""
    for folder in one.inputs:
        place = sample.steps[folder].rows.get(id_) if folder in sample.steps else None
        if place is not None:
            return {"step": folder, "at": place[0]}
    return None


def _histograms(site: Site, one: StepState, table: RowTable) -> Iterator[tuple[str, Any]]:
    """Yields (column, its histograms over all rows) of the columns of numbers."""
    if kind_of_rows(one) in NUMBER_KINDS:
        return
    known = {column["path"]: column["kind"] for column in filterable(table)}
    for path in (path for path, kind in known.items() if kind == "number"):
        by = f"{path.partition('.')[0]}.source" if "." in path else "source"
        if known.get(by) != "text" or not site.queries.columns.is_coded(table, find_leaf(table.light, by)):
            by = ""
        coarse = histogram(site.queries, table, path, BINS, by)
        fine = histogram(site.queries, table, path, FINE)
        yield path, {str(BINS): asdict(coarse), str(FINE): asdict(fine)}


def _write_ways(folder: Path, state: RootState, sample: Sample) -> None:
    pictured = {
        one.folder
        for one in state.steps
        if any(h.column == "image" for r in one.receipts[:1] for h in r.shard.heavy)
    }
    places: dict[str, Any] = {}
    urls: dict[str, str] = {}
    ids = sample.ids()
    for number in range(0, len(ids), WAYS):
        ways = {}
        for id_ in ids[number : number + WAYS]:
            way = lineage(sample, state, id_)
            ways[id_] = [*map(passed_json, way)]
            shown = [p for p in way if p.at is not None and p.row_id == id_ and p.what != "decided"]
            last = next(iter([*[p for p in shown if p.folder in pictured][::-1], *shown]), None)
            place = [last.folder, last.at] if last else [None, None]
            places[id_] = [*place, number // WAYS]
            if last is not None:
                url = sample.steps[last.folder].rows[id_][1].get("url")
                urls |= {url: id_} if isinstance(url, str) and url not in urls else {}
        _json(folder / "ways" / f"{number // WAYS}.json", ways)
    _json(folder / "ids.json", {"ids": places, "urls": [[plain(url), id_] for url, id_ in urls.items()]})


def _write_comparisons(site: Site, root: Root, folder: Path) -> None:
    listed: list[dict[str, str]] = []
    for a, other, b in _compared(site, root):
        few = max(a.rows_out, b.rows_out) <= COMPARED_ROWS
        asked = {"step": a.folder, "with": b.folder, "other": str(other.number), "rows": "1" if few else ""}
        found = compare_view(site, root, Query({name: [value] for name, value in asked.items()}))
        name = f"compare/{len(listed)}.json"
        _json(folder / name, found)
        listed.append({"step": a.folder, "with": b.folder, "other": str(other.number), "file": name})
    _json(folder / "compare.json", listed)


def _compared(site: Site, root: Root) -> Iterator[tuple[StepState, Root, StepState]]:
    """Yields pairs of runs of a step: of the last run with earlier ones in the same root, and with those of other roots."""
    for one in root.reader.state().steps:
        if one.is_current and one.state == "done":
            for other in site.roots:
                rest = [
                    b for b in other.reader.state().steps
                    if b.state == "done" and b.name == one.name and b.is_current != (other is root)
                ]  # fmt: skip
                for b in rest[:COMPARED]:
                    yield one, other, b
                    if other is root:
                        yield b, root, one


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_public(value), allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    path.write_text(text, encoding="ascii")


def _public(value: Any) -> Any:
    """Returns the value with URLs in texts as far as their path."""
    if isinstance(value, str):
        return without_secrets(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {str(name): _public(one) for name, one in value.items()}
    if isinstance(value, Sequence):
        return [_public(one) for one in value]
    return value
