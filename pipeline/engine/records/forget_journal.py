"""`<root>/_forget.json` marks a `vlpipe forget` that is running or was killed.

Nothing may read the root until the forget is complete.
"""

from __future__ import annotations

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store

JOURNAL = "_forget.json"
BEFORE = "_forget"  # folder beside it: the receipts and rows from before


def is_half_done(store: Store) -> bool:
    return store.exists(JOURNAL)


def has_traces(store: Store) -> bool:
    """Whether a forget was killed, at any point: one that was killed before it wrote the journal leaves files as well."""
    return bool({JOURNAL, BEFORE} & {*store.list()})


def refuse_half_done(store: Store) -> None:
    """Raises VlpipeError if a `vlpipe forget` was killed: parts of the root are in the old state, parts in the new one."""
    if is_half_done(store):
        raise VlpipeError(f"`vlpipe forget` was interrupted in {store.url}; `vlpipe run` completes it")
