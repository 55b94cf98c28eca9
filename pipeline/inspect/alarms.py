"""What deserves a look at a step: it kept nothing, a filter dropped nothing, a host refused all that it was asked, a model
waited for its input, or the step said a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.manifest import Manifest
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.stage import REFUSED_ALL, TIMED, MapStage
from vlpipe.pipeline.storage.store import Store

MANY_ROWS = 1_000  # min input rows for the alarm that a filter dropped nothing
STARVED = 0.5  # share of its models' seconds that a step waited for input
LONG_S = 60.0  # of such a step at least
MAX_HOSTS = 5  # named in an alarm
MAX_BYTES = 4 << 20  # a log that is longer is read from its end


def alarms(one: PlannedStep, store: Store) -> list[str]:
    """Returns a sentence for each alarm of a planned step, without its name: of one that is not finished, what it said."""
    if one.manifest is None:
        return said_warnings(said_lines(store, one.folder))
    stage = one.keyed.step.stage
    is_filter = isinstance(stage, MapStage) and stage.FILTERS
    return alarms_of(store, one.folder, one.manifest, one.receipts, is_filter)


def alarms_of(
    store: Store, folder: str, m: Manifest, receipts: Sequence[Receipt], is_filter: bool
) -> list[str]:
    """Returns a sentence for each alarm of a finished step. is_filter: the stage drops rows by a rule."""
    said = said_warnings(said_lines(store, folder))
    return [*_keep_rate(m, is_filter), *_refusing(m), *_starved(receipts), *said]


def said_lines(store: Store, folder: str) -> list[str]:
    """Returns the lines that a step said, `_log/said.txt`: of a long log those at its end; none if it said nothing."""
    try:
        data = store.read_bytes(f"{folder}/_log/said.txt")[-MAX_BYTES:]
    except FileNotFoundError:
        return []
    return data.decode(errors="replace").splitlines()


def said_warnings(lines: Sequence[str]) -> list[str]:
    """Returns the lines that begin with `warning:`, without that word, or are an ALARM."""
    found = (line for line in lines if line.startswith("warning:") or " ALARM " in line[:40])
    return [line.removeprefix("warning:").strip() for line in found]


def _keep_rate(m: Manifest, is_filter: bool) -> list[str]:
    if m.rows_in and not m.rows_out and m.rejects:
        return [f"kept 0 % of its {m.rows_in:,} rows"]
    if is_filter and m.rows_in >= MANY_ROWS and dropped_nothing(m):
        return [f"kept 100 % of its {m.rows_in:,} rows: it is a filter, and every row passed"]
    return []


def dropped_nothing(m: Manifest) -> bool:
    """True if the step rejected no row as filtered and its own counts are all 0: text filters drop texts of a row, not the
    row, and report it only in their counts."""
    return not any(code.startswith("filtered:") for code in m.rejects) and not any(m.counts.values())


def _refusing(m: Manifest) -> list[str]:
    found = {
        code.removeprefix(REFUSED_ALL): n for code, n in m.counts.items() if code.startswith(REFUSED_ALL)
    }
    worst = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"host {host} refused all of {num:,} URLs in a row" for host, num in worst[:MAX_HOSTS]]
    return [*lines, f"{len(worst) - MAX_HOSTS:,} more hosts did"] if len(worst) > MAX_HOSTS else lines


def _starved(receipts: Sequence[Receipt]) -> list[str]:
    spent: Counter[str] = Counter()
    for receipt in receipts:
        spent.update({kind: receipt.run[kind] for kind in TIMED if kind in receipt.run})
    busy_s = sum(spent.values())
    waiting = spent[TIMED[0]] / busy_s if busy_s else 0.0
    if busy_s < LONG_S or waiting < STARVED:
        return []
    return [
        f"its model waited for input {waiting:.0%} of the time: give the step more `cpus` or `decode_workers`"
    ]
