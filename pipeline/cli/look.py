"""The commands that only look: `show` prints what is stored, `ui` serves a page over roots."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from vlpipe.pipeline.cli.app import app, out
from vlpipe.pipeline.cli.commands import draw, say
from vlpipe.pipeline.cli.thumbnails import Way, best_way, drawn
from vlpipe.pipeline.engine.records.forget_journal import refuse_half_done
from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.engine.records.root_format import check_format
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect import on_disk, show
from vlpipe.pipeline.inspect.on_disk import step_folders
from vlpipe.pipeline.inspect.rows.heavy import HeavyReader
from vlpipe.pipeline.inspect.rows.sql import query
from vlpipe.pipeline.inspect.rows.table import RowTable, open_files, open_rows
from vlpipe.pipeline.storage.printable import size
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.ui.shapes import plain
from vlpipe.pipeline.workflow.load import resolve_workflow, root_of


@app.command("show")
def show_command(
    path: Annotated[
        str,
        typer.Argument(help="ROOT/STEP or a step's folder, a shard, a _rejects folder, or a Parquet file"),
    ],
    num_rows: Annotated[int, typer.Option("-n", min=0, help="number of rows")] = 5,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help='only rows that match: "score < 0.5 and source = \'web\'", "why = \'timeout\'", or SQL: "len(texts) > 1"',
        ),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option("--sql", metavar="SELECT", help="a query over the view `rows`, heavy columns included"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print only the rows, one JSON object a line")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images", help="draw the column `image` of each row, in a terminal")
    ] = False,
    draw_as: Annotated[
        Way | None,
        typer.Option("--draw-as", help="how --images draws; default: the best that the terminal knows"),
    ] = None,
) -> None:
    """Show the content of a step or a shard: schema, counts, rejects by reason, first rows."""
    if sql is not None and (where is not None or images):
        raise typer.BadParameter("--sql excludes --where and --images: the query has its own WHERE")
    place = on_disk.find_place(path)
    if sql is not None:
        found, is_more = query(table_of(place, path), sql, num_rows)
        if not as_json:
            draw(show.rows_view(found.to_pylist(), found.schema))
            say(f"the first {num_rows:,} rows; -n gives more" if is_more else f"{found.num_rows:,} row(s)")
        else:
            json_lines(found.to_pylist())
        return
    shown = show.show(place, path, num_rows, where)
    if as_json:
        json_lines(shown.rows)
    elif images:
        draw(show.render(replace(shown, rows=[])))
        draw_rows(shown.rows, shown.schema, table_of(place, path), draw_as)
    else:
        draw(show.render(shown))


def table_of(place: on_disk.StepFolder, path: str) -> RowTable:
    """Returns the rows of the step, shard, rejects or file that a path stands for. Raises VlpipeError if it is a root."""
    if place.file:
        return open_files(place.store, [place.file])
    if place.rejects:
        record = on_disk.read_step(place.store, place.folder)
        indexes = [r.index for r in record.receipts if r.rejects and place.index in (None, r.index)]
        return open_files(place.store, [rejects_path(place.folder, index) for index in indexes])
    folder = place.folder if place.index is not None else on_disk.need_step(place, path)
    record = on_disk.read_step(place.store, folder)
    return open_rows(place.store, folder, [r for r in record.receipts if place.index in (None, r.index)])


def json_lines(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints each row as one line of ASCII JSON; bytes as their number."""
    for row in rows:
        say(json.dumps(plain(row, max_chars=sys.maxsize, max_items=sys.maxsize)))


def draw_rows(
    rows: Sequence[Mapping[str, Any]], schema: pa.Schema, table: RowTable, way: Way | None = None
) -> None:
    """Prints rows, each below its picture. Without a terminal no picture is drawn."""
    heavy = HeavyReader()
    way = way or (best_way() if out.is_terminal else None)
    found = table.find([str(row["id"]) for row in rows if "id" in row])
    for row in rows:
        at = found.get(str(row.get("id")))
        if at is not None and "image" in table.heavy and way and out.is_terminal:
            data = heavy.value(table, at, "image")
            for line in drawn(data, way) if data else ():
                out.file.write(line + "\n")
        draw(show.rows_view([row], schema))


@app.command("ui")
def ui_command(
    roots: Annotated[
        list[str],
        typer.Argument(metavar="ROOT...", help="output folders, or workflows whose folders are meant"),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", metavar="DIR", help="write the page as static files for a web server instead"
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option("--sample", min=1, help="rows of each source that the files of --bundle have, about"),
    ] = 300,
) -> None:
    """Serve a page over one or more roots on this machine, until Ctrl-C: steps, rows, scores, rejects, losses, lineage.

    It reads only, listens on 127.0.0.1 only, and wants the random token of the printed URL. From another machine: ssh -L.
    """
    from vlpipe.pipeline.ui.memory import return_freed_memory
    from vlpipe.pipeline.ui.views import make_server, make_site

    stores = [root_store(path) for path in dict.fromkeys(roots)]
    if bundle is not None:
        from vlpipe.pipeline.ui.bundle.write import write_bundle

        made = write_bundle(make_site(stores), bundle, sample)
        about = f"{made.num_files:,} files, {size(made.num_bytes)}, {made.num_rows:,} rows"
        say(f"{bundle}: {about}; put the folder on any web server")
        return
    return_freed_memory()
    with make_server(stores, port) as server:
        say(f"{server.url}  (Ctrl-C ends it)")
        if open_:
            webbrowser.open(server.url)
        server.serve_forever()


def root_store(path: str) -> Store:
    """Returns the root that is meant: a folder or URL, or a workflow's. Raises VlpipeError if nothing was run there."""
    is_url = "://" in path
    url = path if is_url or os.path.isdir(path) else root_of(resolve_workflow(path))
    store = Store(url if "://" in url else os.path.abspath(url))
    folders = step_folders(store)
    if not folders and not store.exists("_steps.json"):
        raise VlpipeError(f"{store.url} is not an output root, or nothing was run there yet")
    check_format(store, old=bool(folders))
    refuse_half_done(store)
    return store
