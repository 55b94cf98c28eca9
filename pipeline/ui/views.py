"""All views by name, and the function that makes a server of roots."""

from __future__ import annotations

from collections.abc import Sequence

from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.ui import compare_views, drawn, pictures, row_views, run_views
from vlpipe.pipeline.ui.server import UiServer
from vlpipe.pipeline.ui.site import Site, View

VIEWS: dict[str, View] = {
    "run": run_views.run_view,
    "step": run_views.step_view,
    "losses": run_views.losses_view,
    "results": run_views.results_view,
    "lineage": run_views.lineage_view,
    "find": run_views.find_view,
    "rows": row_views.rows_view,
    "row": row_views.row_view,
    "values": row_views.values_view,
    "histogram": row_views.histogram_view,
    "moved": row_views.moved_view,
    "duplicates": row_views.duplicates_view,
    "picture": pictures.picture_view,
    "cues": drawn.cues_view,
    "media": drawn.media_view,
    "compare": compare_views.compare_view,
}


def make_server(stores: Sequence[Store], port: int = 0) -> UiServer:
    """Returns a server of these roots that listens on 127.0.0.1. port: 0 for any free one."""
    return UiServer(make_site(stores), port)


def make_site(stores: Sequence[Store]) -> Site:
    """Returns what answers requests about these roots."""
    return Site(stores, VIEWS)
