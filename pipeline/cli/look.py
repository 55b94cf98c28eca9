"""The commands that only look: `show` prints what is stored, `ui` serves a page over roots."""

from __future__ import annotations

import os
import webbrowser
from typing import Annotated

import typer

from vlpipe.pipeline.cli.app import app
from vlpipe.pipeline.cli.commands import say
from vlpipe.pipeline.engine.records.forget_journal import refuse_half_done
from vlpipe.pipeline.engine.records.manifest import check_format
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.on_disk import step_folders
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import resolve_workflow, root_of


@app.command("ui")
def ui_command(
    roots: Annotated[
        list[str],
        typer.Argument(metavar="ROOT...", help="output folders, or workflows whose folders are meant"),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
) -> None:
    """Serve a page over one or more roots on this machine, until Ctrl-C: steps, rows, scores, rejects, losses, lineage.

    It reads only, listens on 127.0.0.1 only, and wants the random token of the printed URL. From another machine: ssh -L.
    """
    from vlpipe.pipeline.ui.views import make_server

    stores = [root_store(path) for path in dict.fromkeys(roots)]
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
        raise VlpipeError(f"{store.url} is no output root, or nothing was run there yet")
    check_format(store, old=bool(folders))
    refuse_half_done(store)
    return store
