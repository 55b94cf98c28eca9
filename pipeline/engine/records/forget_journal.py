"""`<root>/_forget.json` marks a `vlpipe forget` that is running or was killed.

Nothing may read the root until the forget is complete.
"""

from __future__ import annotations

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store

JOURNAL = "_forget.json"


def is_half_done(store: Store) -> bool:
    return store.exists(JOURNAL)


def refuse_half_done(store: Store) -> None:
    """Raises VlpipeError if a `vlpipe forget` was killed: parts of the root are in the old state, parts in the new one."""
    if is_half_done(store):
        raise VlpipeError(f"`vlpipe forget` was interrupted in {store.url}; `vlpipe run` completes it")
