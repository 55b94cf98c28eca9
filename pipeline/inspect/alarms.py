"""What deserves a look at a finished step: it kept nothing, a filter dropped nothing, a model waited for its input, or it
said a warning.
"""

from __future__ import annotations

from collections import Counter

from vlpipe.pipeline.engine.plan import PlannedStep
from vlpipe.pipeline.engine.records.manifest import Manifest
from vlpipe.pipeline.stage import TIMED, MapStage
from vlpipe.pipeline.storage.store import Store

MANY_ROWS = 1_000  # min input rows for the alarm that a filter dropped nothing
STARVED = 0.5  # share of its models' seconds that a step waited for input
LONG_S = 60.0  # of such a step at least
MAX_BYTES = 4 << 20  # a log that is longer is read from its end


def alarms(one: PlannedStep, store: Store) -> list[str]:
    """Returns a sentence for each alarm of a finished step, without its name; [] for a step that is not finished."""
    if one.manifest is None:
        return []
    return [*_keep_rate(one, one.manifest), *_starved(one), *_warnings_said(store, one.folder)]


def _keep_rate(one: PlannedStep, m: Manifest) -> list[str]:
    stage = one.keyed.step.stage
    if m.rows_in and not m.rows_out and m.rejects:
        return [f"kept 0 % of its {m.rows_in:,} rows"]
    if isinstance(stage, MapStage) and stage.FILTERS and m.rows_in >= MANY_ROWS and dropped_nothing(m):
        return [f"kept 100 % of its {m.rows_in:,} rows: it is a filter, and every row passed"]
    return []


def dropped_nothing(m: Manifest) -> bool:
    """True if the step rejected no row as filtered and its own counts are all 0: text filters drop texts of a row, not the
    row, and report it only in their counts."""
    return not any(code.startswith("filtered:") for code in m.rejects) and not any(m.counts.values())


def _starved(one: PlannedStep) -> list[str]:
    spent: Counter[str] = Counter()
    for receipt in one.receipts:
        spent.update({kind: receipt.run[kind] for kind in TIMED if kind in receipt.run})
    busy_s = sum(spent.values())
    waiting = spent[TIMED[0]] / busy_s if busy_s else 0.0
    if busy_s < LONG_S or waiting < STARVED:
        return []
    return [
        f"its model waited for input {waiting:.0%} of the time: give the step more `cpus` or `decode_workers`"
    ]


def _warnings_said(store: Store, folder: str) -> list[str]:
    """Returns the lines that the step said and that begin with `warning:`, without that word, or are an ALARM."""
    try:
        data = store.read_bytes(f"{folder}/_log/said.txt")[-MAX_BYTES:]
    except FileNotFoundError:
        return []
    lines = data.decode(errors="replace").splitlines()
    said = [line.partition(":")[2].strip() for line in lines if line.startswith("warning:")]
    return said + [line for line in lines if " ALARM " in line[:40]]
