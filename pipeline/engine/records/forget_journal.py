"""`<root>/_forget.json`: a `vlpipe forget` is under way, or was killed. Until it is finished nothing may read the root."""

from __future__ import annotations

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store

JOURNAL = "_forget.json"


def is_half_done(store: Store) -> bool:
    return store.exists(JOURNAL)


def refuse_half_done(store: Store) -> None:
    """VlpipeError when a forget was killed here: what lies on disk is half before and half after it."""
    if is_half_done(store):
        raise VlpipeError(f"a forget in {store.url} was interrupted; `vlpipe run` finishes it first")
