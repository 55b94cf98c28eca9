"""Max number of rows of steps that have not run yet, for the estimates that `vlpipe plan` prints.

A list is read for this only if a downstream stage makes an estimate and no cheaper bound is known, and then only once.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlpipe.pipeline.engine.list_rows import ListRows
from vlpipe.pipeline.engine.planned import PlannedStep, fans_out, is_gather
from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.storage.private_folder import private_folder
from vlpipe.pipeline.storage.store import Store

MAX_COUNTS = 10_000


def estimates(steps: Sequence[PlannedStep], store: Store) -> dict[str, str]:
    """Returns step name -> its stage's estimate of the cost, for steps that will run and whose stage makes an estimate."""
    asked = [one for one in steps if not one.is_done and _makes_estimates(one.keyed.step.stage)]
    if not asked:
        return {}
    counts = RowCounts(store)
    bounds = {one.name: sum(bound(p, counts) or 0 for p in one.above) for one in asked}
    counts.save()
    return {one.name: one.keyed.step.stage.estimate(bounds[one.name]) for one in asked}


def _makes_estimates(stage: Stage) -> bool:
    return type(stage).estimate is not Stage.estimate


def bound(one: PlannedStep, counts: RowCounts) -> int | None:
    """Returns the max number of rows the step can produce; None if that is unknown before it runs."""
    stage = one.keyed.step.stage
    if one.manifest is not None:
        return one.manifest.rows_out
    if isinstance(stage, ListRows):
        return None if one.artifact_steps else counts.of(one)
    if is_gather(one) or fans_out(one):
        return None
    above = [bound(p, counts) for p in one.above]
    return None if None in above else sum(n or 0 for n in above)


class RowCounts:
    """Numbers of rows of lists, by the key of the step that lists them, which covers a list's content.

    Cached in the root, or in the user's cache folder if there is no root yet.
    """

    REL = "_cache/rows.json"

    def __init__(self, store: Store) -> None:
        self._store, self._in_root = store, store.exists("")  # planning never creates a root
        self._counts = dict(self._kept())
        self._changed = False

    def of(self, one: PlannedStep) -> int:
        """Returns the number of rows that a ListRows step lists, or the source's `max_rows` if it has one."""
        key, stage = one.keyed.step_key, one.keyed.step.stage
        assert isinstance(stage, ListRows)
        if stage.max_rows is not None:
            return stage.max_rows
        if key not in self._counts:
            cheap = stage.source.max_rows()
            if cheap is not None:
                return cheap
            self._counts[key] = sum(table.num_rows for table in stage.source.rows())
            self._changed = True
        return self._counts[key]

    def _kept(self) -> Iterator[tuple[str, int]]:
        try:
            text = self._store.read_bytes(self.REL) if self._in_root else _user_cache().read_bytes()
            kept = json.loads(text)
            if not all(isinstance(k, str) and type(n) is int for k, n in kept.items()):
                raise ValueError("wanted a JSON object {step key: number of rows}")
            yield from kept.items()
        except FileNotFoundError:
            return
        except (OSError, RuntimeError, ValueError, AttributeError, RecursionError) as error:
            _warn(f"the cached row counts of lists cannot be read, so the rows are counted again: {error!r}")

    def save(self) -> None:
        if not self._changed:
            return
        newest = json.dumps(dict(list(self._counts.items())[-MAX_COUNTS:])).encode()
        try:
            own = None if self._in_root else Store(str(private_folder()))
            (own or self._store).write_bytes(_user_cache().name if own else self.REL, newest)
        except (OSError, RuntimeError) as error:
            _warn(f"cannot cache the row counts of lists: {error}")


def _user_cache() -> Path:
    return private_folder() / "rows.json"


def _warn(text: str) -> None:
    warnings.warn(text, VlpipeWarning, stacklevel=3)
