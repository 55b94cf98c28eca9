"""Serve folders on a loopback port while a stage runs: local files are fetched over real HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.ingest.loop import running_loop

if TYPE_CHECKING:
    from aiohttp import web

LOOPBACK = "127.0.0.1"


@contextmanager
def serving(folders: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Host name -> folder; yields host name -> port on 127.0.0.1. A URL's path is that of a file in there."""
    if not folders:
        yield {}
        return
    missing = [f"{host}: {folder}" for host, folder in folders.items() if not os.path.isdir(folder)]
    if missing:
        raise VlpipeError(f"`serve` wants folders; there is none at {', '.join(missing)}")
    with running_loop() as loop:
        runner, port = loop.run(_start(folders))
        try:
            yield dict.fromkeys(folders, port)
        finally:
            loop.run(runner.cleanup())


async def _start(folders: Mapping[str, str]) -> tuple[web.AppRunner, int]:
    from aiohttp import web

    roots = {host.lower(): os.path.realpath(folder) for host, folder in folders.items()}

    async def answer(request: web.Request) -> web.StreamResponse:
        root = roots.get((request.url.host or "").lower())
        path = inside(root, request.path) if root else None
        if path is None or not os.path.isfile(path):
            raise web.HTTPNotFound
        return web.FileResponse(path)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    return runner, runner.addresses[0][1]


def inside(root: str, relative: str) -> str | None:
    """The real path of `relative` below `root`, or None when it leads out (`..`, or a link)."""
    if "\x00" in relative:
        return None
    names = relative.lstrip("/").split("/")
    path = os.path.join(root, *names)
    steps = accumulate(names, os.path.join, initial=root)
    if not {"..", ".", ""} & set(names) and not any(os.path.islink(step) for step in steps):
        return path  # as nearly always; resolving asks the system about each folder above, too
    path = os.path.realpath(path)
    return path if path.startswith(os.path.join(os.path.realpath(root), "")) else None
