"""Kill a forget at every point where it touches the disk, finish it, compare. Started by test_forget.py."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

from forget_toys import CHAIN, EXPORT, row_id, url
from helpers import planned, run
from kill_points import forked, kill_at

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.records.forget_journal import is_half_done
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forget.apply import finish, forget
from vlpipe.pipeline.forget.scan import find
from vlpipe.pipeline.forget.wanted import read_wanted
from vlpipe.pipeline.storage.store import Store, sha256_file


def left(root: Path) -> dict[str, str]:
    """Every byte below the root; a plan keeps its own cache of digests, and locks are counted."""
    paths = [p for p in root.rglob("*") if p.is_file() and not {"_cache", "_lock", "_events"} & {*p.parts}]
    return {str(p.relative_to(root)): sha256_file(p) for p in paths}


def do(folder: Path, point: int = 0) -> int:
    entries = folder.parent / "entries.txt"
    store = Store(str(folder / "root"))
    with locked(store):
        found = find(store, read_wanted(str(entries)), {})
        if point:
            kill_at(point)
        forget(store, found)
    return 0


def again(folder: Path, text: str) -> int:
    """A half-done one is finished, and nothing runs before; one that had not begun is begun."""
    store = Store(str(folder / "root"))
    if not is_half_done(store):
        return do(folder)
    try:
        new_run(planned(folder, text)[0], store, local_executor(), Watcher())
    except VlpipeError:
        with locked(store):
            finish(store)
        return 0
    return 1


def main(folder: Path, step: int) -> None:
    leave_pandas_alone()
    (folder / "num.txt").write_text("20")
    text = (CHAIN + EXPORT).replace("LIST", str(folder / "num.txt"))
    (folder / "entries.txt").write_text(f"id:{row_id(2)}\nurl:{url(4)}\ndomain:host17.test\n")
    before = folder / "before"
    before.mkdir()
    assert forked(lambda: int(not run(before, text))) == 0
    shutil.copytree(before, folder / "undisturbed")
    assert forked(lambda: do(folder / "undisturbed")) == 0
    wanted = left(folder / "undisturbed" / "root")
    point = 1
    while True:
        one = folder / str(point)
        shutil.copytree(before, one)
        status = forked(lambda one=one, point=point: do(one, point))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        assert forked(lambda one=one: again(one, text)) == 0, point
        found = left(one / "root")
        if found != wanted:
            print(f"point {point}: {sorted(set(found.items()) ^ set(wanted.items()))}")
            sys.exit(1)
        shutil.rmtree(one)
        point += step
    print(f"{(point - 1) // step} points")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
