"""One case: a project is drawn, run, changed, run again, ...; at the end it must be what a fresh run makes of it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from incremental import act, held
from incremental.child import in_child, read_events, verified
from incremental.drawn import WORK, Drawn
from incremental.edits import EDITS, code_helper, code_of, code_stage
from incremental.project import MODULES, frozen, sources
from incremental.running import Found, Running


class Case(Running):
    """What a case does, one deed after the other."""

    def play(self) -> None:
        """Raises Found."""
        self.project.write(self.folder)
        self.story.append(json.dumps(self.project.flow.as_yaml()))
        self.go()
        for kind, seed in self.drawn.deeds:
            rng = random.Random(seed)
            deed = getattr(self, f"do_{kind}", None)
            done = deed(rng) if deed else self.edit(kind, rng)
            self.counts[kind] += bool(done)
        if self.ray:
            rng = random.Random(self.drawn.project)
            self.change("grow", rng)
            self.change("param", rng)
            self.go(mode="ray")
        for name in list(self.project.flows):
            self.is_finished &= self.project.active == name
            self.project.active = name
            if not self.is_finished:
                self.go()
            self.compare()

    def edit(self, kind: str, rng: random.Random) -> bool:
        was_finished = self.is_finished
        if not self.change(kind, rng):
            return False
        if EDITS[kind].is_free and was_finished:
            self.nothing_happens(kind)
        elif rng.random() < 0.7:  # else a second edit comes before the next run
            self.go()
        return True

    # --- what is done to the root ---

    def do_kill(self, rng: random.Random, work: Sequence[str] = WORK) -> bool:
        """At a point where the disk is touched; what comes next finds a root that is half done."""
        return self.killed(rng, work, lambda: {"kill_at": rng.randint(1, self.num_points)})

    def do_kill_later(self, rng: random.Random) -> bool:
        """At a moment."""
        return self.killed(rng, WORK, lambda: {"kill_after_s": rng.uniform(0.01, self.seconds)})

    def killed(self, rng: random.Random, work: Sequence[str], how: Callable[[], dict[str, Any]]) -> bool:
        """A change that makes work, and a run of it that is killed; a few times, if it ends before."""
        for _ in range(4):
            if self.change(rng.choice(work), rng):
                ended = self.attempt(**how())
                if ended.killed:
                    return True
                self.must_end_well(ended)
        return False

    def do_kill_grow(self, rng: random.Random) -> bool:
        """A list grows amid a fetch that was killed."""
        if not self.do_kill(rng, ("grow", "reorder")):
            return False
        self.change("grow", rng)
        self.go()
        return True

    def do_kill_code(self, rng: random.Random) -> bool:
        """Code is changed between a kill and the run that goes on."""
        if not self.do_kill(rng, ("param", "version", "new_step")):
            return False
        half_done = sorted(
            {event["step"] for event in read_events(self.at.events) if event["what"] == "shard"}
        )
        kinds = {s.name: s.kind for s in self.project.flow.steps}
        kind = kinds.get(rng.choice(half_done or sorted(kinds)).partition("@")[0], "Fetch")
        self.story.append(f"kill_code: {code_of(self.project, rng.choice(MODULES[kind]), rng)}")
        self.project.write(self.folder)
        self.go()
        self.compare()
        return True

    def do_retry_grow(self, rng: random.Random) -> bool:
        """A list grows, rows are mended, the list grows again."""
        self.change("grow", rng)
        if not self.do_retry(rng):
            return False
        self.change("grow", rng)
        self.go()
        return True

    def do_retry(self, rng: random.Random, kill_at: int | None = None) -> bool:
        """The world gives other rows now; those that failed are asked for again, and none that was there is lost."""
        if not self.is_finished:
            self.go()
        before = self.looked()
        can = [s.name for s in self.project.flow.steps if before.gone.get(s.name)]
        if not can:
            return False
        step, why = rng.choice(can), "gone"
        self.change("world", rng)
        self.at.calls.unlink(missing_ok=True)
        ended = self.attempt(retry=(step, why), kill_at=kill_at)
        if not ended.killed:
            self.must_end_well(ended)
            self.only_rejected_were_called(before, step)
        self.go()
        self.nothing_was_lost(before)
        return ended.killed == (kill_at is not None)

    def do_retry_killed(self, rng: random.Random) -> bool:
        return self.do_retry(rng, kill_at=rng.randint(1, max(self.num_points // 3, 20)))

    def only_rejected_were_called(self, before: held.Looked, step: str) -> None:
        site = self.project.flow.step(step).params["site"]
        called = {id_ for _, ids in read_events(self.at.calls) for id_ in ids}
        more = {id_ for id_ in called if before.replay.get(f"{site}/{id_}") is not None}
        if more:
            raise Found("retry asks for rows that were there", f"{step}: {sorted(more)}")

    def nothing_was_lost(self, before: held.Looked) -> None:
        now = self.looked().replay
        sites = {s.params["site"] for s in self.project.flow.steps if isinstance(s.params.get("list"), str)}
        kept = {k: v for k, v in before.replay.items() if v is not None and k.partition("/")[0] in sites}
        lost = {k: (v, now.get(k)) for k, v in kept.items() if now.get(k) != v}
        if lost:
            raise Found("rows that were there are lost or fetched again", str(lost))

    def do_damage(self, rng: random.Random) -> bool:
        files = [p for p in self.at.root.glob("*/**/*") if p.is_file() and self._is_result(p)]
        return self.damaged(rng.choice(sorted(files)), rng)

    @staticmethod
    def _is_result(path: Path) -> bool:
        """Whether a record of the step has its digest; a run that failed leaves others."""
        if re.fullmatch(r"\d{6}\.parquet", path.name):
            folder = path.parent.parent if path.parent.name == "_rejects" else path.parent
            return (folder / f"_receipts/{path.stem}.json").exists()
        step, _, rest = str(path).partition("/artifacts/")
        return bool(rest) and Path(step, "manifest.json").exists()

    def do_remade(self, rng: random.Random) -> bool:
        """A source's shard is lost, the world gives other bytes, the shard is made anew."""
        if not self.is_finished:
            self.go()
        flow = self.project.flow
        looks = [s.name for s in flow.steps if s.kind in ("Look", "Split", "Total")]
        read = {name for look in looks for name in sources(flow, look)} or {flow.steps[0].name}
        step = rng.choice(sorted(read))
        files = sorted(self.at.root.glob(f"{step}-*/??????.parquet"))
        self.change("world", rng)
        return self.damaged(rng.choice(files), rng)

    def damaged(self, file: Path, rng: random.Random) -> bool:
        """A file is damaged or gone; `verify` says so, and what it advises mends it."""
        how, self.was_damaged = rng.choice(["another byte", "cut", "gone"]), True
        self.story.append(f"damage: {file.relative_to(self.at.root)}: {how}")
        data = file.read_bytes()
        if how == "gone":
            file.unlink()
        else:
            at = rng.randrange(len(data))
            file.write_bytes(
                data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            )
        code, text = in_child(lambda: verified(self.at.root)).result
        rel = str(file.relative_to(self.at.root))
        if not code or rel not in text:
            raise Found("verify does not see damage", f"{rel}: {how}: {text}")
        self.follow_advice(text)
        self.go()
        return True

    def follow_advice(self, text: str) -> None:
        """Remove the manifest of each step, and the receipt of each shard, that `verify` names."""
        for line in text.splitlines():
            found = re.match(rf"(missing|damaged)\s+{re.escape(str(self.at.root))}/([^/\s]+)/(\S+)", line)
            if found:
                step, rest = self.at.root / found[2], found[3]
                (step / "manifest.json").unlink(missing_ok=True)
                number = re.fullmatch(r"(?:_rejects/)?(\d{6})\.parquet", rest)
                if number:
                    (step / f"_receipts/{number[1]}.json").unlink(missing_ok=True)
                    self.ledger.drop({f"{step.name}/{number[1]}.parquet"})

    def do_swap_artifacts(self, rng: random.Random) -> bool:
        """One way round, and the other."""
        for _ in range(2):
            if not self.change("swap_artifacts", rng):
                return False
            self.go()
        return True

    def do_prune(self, rng: random.Random) -> bool:
        was_finished = self.is_finished
        flows = [self.folder / f"{name}.yaml" for name in self.project.flows]
        ended = in_child(lambda: act.prune(self.at, flows))
        self.story.append(f"prune: {ended.error or ended.result.strip().splitlines()[-1:]}")
        self.must_end_well(ended)
        if was_finished:
            self.nothing_happens("prune")
        return True

    def do_elsewhere(self, rng: random.Random) -> bool:
        if not self.change(rng.choice([*WORK, "file_content"]), rng):
            return False
        self.go(mode="elsewhere")
        return True

    def do_until(self, rng: random.Random) -> bool:
        if not self.change(rng.choice(WORK), rng):
            return False
        self.go(until=rng.choice(self.project.flow.steps).name)
        return True

    def do_back(self, rng: random.Random) -> bool:
        """Workflows, lists and files are what they were some runs ago."""
        if len(self.snapshots) < 2:
            return False
        old = rng.choice(self.snapshots[:-1])
        for what in ("flows", "active", "lists", "files"):
            setattr(self.project, what, getattr(frozen(old), what))
        self.story.append(f"back: {json.dumps(self.project.flow.as_yaml())}")
        self.project.write(self.folder)
        self.go()
        return True

    def do_strict(self, rng: random.Random) -> bool:
        """Code is changed; a strict run refuses, or has no row of the old code."""
        fn = rng.choice([code_stage, code_helper])
        self.story.append(f"strict: {fn(self.project, rng) or code_stage(self.project, rng)}")
        if rng.random() < 0.5:
            self.change(rng.choice(["grow", "rename", "between"]), rng)
        self.project.write(self.folder)
        ended = self.attempt(mode="strict")
        if ended.error and "--strict" not in ended.error:
            self.must_end_well(ended)
        if not ended.error:
            self.told = ended.result
            if self.told.warning:
                raise Found("strict, and a warning after it", str(self.told.warning))
            self.compare(exact=True)
        self.go()
        return True

    def do_duplicate(self, rng: random.Random) -> bool:
        """An id comes twice. It is refused; or each row has what is its own."""
        lists = {n: list(rows) for n, rows in self.project.lists.items()}
        name = rng.choice(sorted(lists))
        rows = self.project.lists[name]
        at = rng.randrange(len(rows))
        rows.insert(max(at + rng.choice([0, 1, 1]), 0), (rows[at][0], 99))
        self.story.append(f"duplicate: {rows[at][0]} twice in {name}")
        self.project.write(self.folder)
        ended = self.attempt()
        self.tolerates_twins = True
        if ended.error:
            if not re.search(r"id '.*' (occurs \d+ times|more than once)", ended.error):
                self.must_end_well(ended)
        else:
            strange = [w for w in self.looked(check=False).wrong if "another's" in w]
            if strange:
                raise Found("a row with another row's bytes", strange[0])
        self.project.lists = lists
        self.project.write(self.folder)
        self.go()
        return True


def play(drawn: Drawn, folder: Path, ray: bool = False) -> tuple[Case, Found | None]:
    """Play a case in an empty folder."""
    case = Case(drawn, folder, ray=ray)
    try:
        case.play()
    except Found as found:
        return case, found
    return case, None
