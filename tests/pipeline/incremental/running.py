"""A project amid its case: its runs, what must be true after each, and the comparison with a fresh run."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incremental import act, held
from incremental.child import Ended, in_child, read_events
from incremental.drawn import DEEDS, Drawn
from incremental.edits import EDITS
from incremental.ledger import Ledger
from incremental.project import Project, draw_project, frozen


class Found(Exception):
    """A promise that was not kept. `kind`: in a few words, to tell one from another."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text
        super().__init__(f"{kind}: {text}")


@dataclass
class Running:
    """A project amid its case. `story`: what was done, for the reader."""

    drawn: Drawn
    folder: Path
    story: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    is_finished: bool = False  # the active workflow has run to its end, and nothing was changed since
    num_points: int = 400  # how often a whole run touches the disk, about
    seconds: float = 0.3  # what a run takes, about
    ray: bool = False

    def __post_init__(self) -> None:
        needs = Counter[str]()
        for kind, _ in self.drawn.deeds:
            needs |= Counter(EDITS[kind].needs if kind in EDITS else DEEDS[kind])
        self.project: Project = draw_project(
            random.Random(self.drawn.project), list(needs.elements()), self.drawn.leave_out
        )
        self.at = act.Where(
            self.folder,
            self.folder / "root",
            self.folder / "world.json",
            self.folder / "events",
            self.folder / "calls",
        )
        self.ledger = Ledger(self.at.root)
        self.snapshots: list[Project] = []
        self.tolerates_twins = self.was_damaged = False

    def change(self, kind: str, rng: random.Random) -> str:
        """Change the project, not the root."""
        for _ in range(5):
            said = EDITS[kind].do(self.project, rng)
            if said:
                self.story.append(f"{kind}: {said}")
                self.project.write(self.folder)
                self.is_finished = False
                return said
        return ""

    def nothing_happens(self, why: str) -> None:
        self.go()
        did = read_events(self.at.events)
        if did:
            raise Found("work for nothing", f"{why}: nothing had to be done, but {did[:3]}")

    # --- running ---

    def attempt(self, kill_after_s: float | None = None, **how: Any) -> Ended:
        """One run; what it did goes into the ledger."""
        self.at.events.unlink(missing_ok=True)
        self.is_finished = False
        self.ledger.before_run()
        began = time.monotonic()
        ended = in_child(lambda: act.run(self.at, self.project, self.ledger, **how), kill_after_s)
        self.seconds = time.monotonic() - began
        self.story.append(f"  run {how or ''}: {ended.error or 'done'}")
        wrong = self.ledger.note(read_events(self.at.events))
        if ended.killed:
            self.ledger.after_kill()
        if wrong:
            kind = "a worse shard taken over" if "faults" in wrong[0] else "work done again"
            raise Found(kind, "; ".join(wrong[:3]))
        return ended

    def go(self, mode: str = "", until: str | None = None) -> None:
        """A run to the end, and what must be true after each."""
        ended = self.attempt(mode=mode, until=until)
        self.must_end_well(ended)
        told: act.Told = ended.result
        self.num_points = max(told.num_points, 20)
        if until is None:
            not_done = [name for name, done in told.done.items() if not done]
            if not_done:
                raise Found("not done after a run", f"{not_done}\n{told.printed}")
            self.is_finished = True
            self.snapshots.append(frozen(self.project))
        if told.warning and not self.project.was_changed:
            raise Found("a warning without a cause", str(told.warning))
        self.must_verify(told, is_whole=until is None)
        self.told = told

    def must_end_well(self, ended: Ended) -> None:
        if ended.error:
            kind = ended.error.partition("\n")[0][:160]
            raise Found(f"a run fails: {re.sub('[0-9a-f]{8}', '#', kind)}", f"{ended.error}\n{ended.trace}")

    def must_verify(self, told: act.Told, is_whole: bool) -> None:
        """`verify` finds nothing wrong; but folders that the workflow left behind may be out of date."""
        code, text = told.verified
        wrong = [text] if code and not any(self._problem(line)[0] for line in text.splitlines()) else []
        for line in text.splitlines():
            kind, folder = self._problem(line)
            may_be_behind = kind == "out of date" or self.was_damaged
            behind = may_be_behind and not (is_whole and folder in told.folders)
            twins = kind == "repeated" and self.tolerates_twins
            wrong += [line] if kind and not behind and not twins else []
        if wrong:
            raise Found("verify after a run", "\n".join(wrong))

    def _problem(self, line: str) -> tuple[str, str]:
        """Kind and folder of a line of `verify` that says what is wrong; empty for others."""
        found = re.match(
            rf"(missing|damaged|out of date|repeated) +{re.escape(str(self.at.root))}/([^/\s]+)", line
        )
        return (found[1], found[2]) if found else ("", "")

    # --- comparing ---

    def looked(self, check: bool = True) -> held.Looked:
        ended = in_child(lambda: held.look(self.at, self.project))
        self.must_end_well(ended)
        if check and ended.result.wrong:
            raise Found("rows are wrong", "; ".join(ended.result.wrong[:3]))
        looked: held.Looked = ended.result
        return looked

    def compare(self, exact: bool = False) -> None:
        """With a fresh run in an empty root, to which the world gives what it gave to this one."""
        mine = self.looked()
        fresh_at = self.fresh(mine)
        ended = in_child(lambda: self._fresh_run(fresh_at))
        if ended.error:
            raise Found("the fresh run fails", f"{ended.error}\n{ended.trace}")
        for name, how in held.differences(mine, ended.result).items():
            if exact or not self.was_warned(mine, name):
                text = in_child(lambda name=name: held.example(self.at, fresh_at, self.project, name))
                said = (
                    f"after warnings {self.told.before.warning} and {self.told.warning}"
                    if self.project.was_changed
                    else ""
                )
                kind = "a strict run with rows of old code" if exact else "not what a fresh run makes"
                raise Found(kind, f"{name}: {how} {said}: {text.result or text.error}")
        shutil.rmtree(fresh_at.root)

    def fresh(self, mine: held.Looked) -> act.Where:
        world = self.folder / "world_fresh.json"
        world.write_text(json.dumps({"version": self.project.world, "replay": mine.replay}))
        root = self.folder / "fresh"
        shutil.rmtree(root, ignore_errors=True)
        return act.Where(self.folder, root, world, self.folder / "events_fresh", Path("/dev/null"))

    def _fresh_run(self, at: act.Where) -> held.Looked:
        told = act.run(at, self.project, Ledger(at.root), verify=False)
        assert not told.warning, told.warning
        assert all(told.done.values()), told.done
        return held.look(at, self.project)

    def was_warned(self, mine: held.Looked, name: str) -> bool:
        """Rows of old code may stay; but `plan` says so before and after."""
        if not self.project.was_changed:
            return False
        line = held.ancestors(mine.steps, name)
        was_done = self.told.before.done.get(name, False)
        before = not was_done or bool(line & self.told.before.warning.keys())
        return before and bool(line & self.told.warning.keys())
