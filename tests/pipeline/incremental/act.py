"""What is done to a root in a child: run it, retry rows, ask for its plan. Everything goes through the command line's own
functions; only what they tell the person watching is written down as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incremental.child import command, elsewhere, enter, log_event, verified
from incremental.ledger import Ledger, Units
from incremental.project import Project


@dataclass(frozen=True)
class Where:
    """A root, and what stands in for the world beside it."""

    folder: Path
    root: Path
    world: Path
    events: Path
    calls: Path


@dataclass
class Told:
    """A plan: step -> done, warning; and the steps' folders."""

    done: dict[str, bool] = field(default_factory=dict)
    warning: dict[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    printed: str = ""
    num_points: int = 0  # how often the disk was touched
    before: Any = None  # the plan before the run
    verified: tuple[int, str] = (0, "")  # exit code and text of `vlpipe verify` after it


def run(
    at: Where,
    project: Project,
    ledger: Ledger,
    *,
    mode: str = "",
    until: str | None = None,
    kill_at: int | None = None,
    retry: tuple[str, str] | None = None,
    verify: bool = True,
) -> Told:
    """`vlpipe run` (or `retry` of a step for a reason). mode: strict, elsewhere, ray, or as ever; verify: do so after it."""
    enter(at.folder, at.world, at.calls)
    before = plan(at, project) if project.was_changed else Told()
    count = _counted(kill_at)
    with _noted(at, project, Units(ledger), bool(retry)), _moved(at, mode):
        printed = _call(at, project, mode, until, retry)
    num_points = count[0]
    after = plan(at, project)
    after.printed, after.num_points, after.before = printed, num_points, before
    if verify:
        after.verified = verified(at.root)
    return after


def _file(at: Where, project: Project) -> Path:
    return at.folder / f"{project.active}.yaml"


def _call(at: Where, project: Project, mode: str, until: str | None, retry: tuple[str, str] | None) -> str:
    from vlpipe.pipeline.cli import app, commands

    options: dict[str, Any] = {"root": str(at.root), "profile": project.flow.profile, "local": mode != "ray"}
    if retry:
        return command(commands.retry_command, str(_file(at, project)), retry[0], [retry[1]], **options)
    load = app.load

    def loaded(*args: Any) -> Any:
        found = load(*args)
        _loaded[str(_file(at, project)), str(at.root)] = found[0]  # for the plan after the run
        return found

    app.load = loaded
    return command(app.run, str(_file(at, project)), **options, until=until, strict=mode == "strict")


def _moved(at: Where, mode: str) -> contextlib.AbstractContextManager[None]:
    return elsewhere(at.folder / "elsewhere") if mode == "elsewhere" else contextlib.nullcontext()


def _counted(kill_at: int | None) -> list[int]:
    from kill_points import kill_at as kill

    return kill(kill_at or 0)


_loaded: dict[tuple[str, str], Any] = {}


def steps_of(at: Where, project: Project) -> Any:
    from vlpipe.pipeline.engine.plan import plan as plan_
    from vlpipe.pipeline.storage.store import Store
    from vlpipe.pipeline.workflow.load import Workflow

    key = (str(_file(at, project)), str(at.root))
    if key not in _loaded:  # a child is there for one state of a project
        _loaded[key] = Workflow.load(key[0], profile=project.flow.profile, root=key[1])
    return plan_(_loaded[key], Store(str(at.root)))


def plan(at: Where, project: Project) -> Told:
    steps = steps_of(at, project)
    warnings = {s.name: s.warning for s in steps if s.warning}
    return Told({s.name: s.is_done for s in steps}, warnings, frozenset(s.folder for s in steps))


@contextlib.contextmanager
def _noted(at: Where, project: Project, units: Units, is_retry: bool) -> Iterator[None]:
    """Write down each shard and each gather step that a run of the command line finishes."""
    from vlpipe.pipeline.engine import runner

    def shard_done(self: Any, state: Any, receipt: Any, *, reused: bool) -> None:
        stage = _resolved(state.one, self.store)
        path, kind = receipt.shard.path, type(stage).__name__
        units.here[path] = units.of_map(stage, state.one.keyed.step.params, state.inputs[receipt.index])
        event = {
            "what": "shard",
            "step": state.one.name,
            "path": path,
            "unit": units.here[path],
            "reused": reused,
        }
        event |= {"digest": receipt.shard.digest, "faults": receipt.num_faults, "rows": receipt.rows_in}
        log_event(at.events, event | {"code": project.code_of(kind), "retry": is_retry})
        old_done(self, state, receipt, reused=reused)

    def commit(self: Any, state: Any, receipts: Any, *more: Any) -> None:
        from vlpipe.pipeline.engine.list_rows import ListRows
        from vlpipe.pipeline.stage import GatherStage

        stage = _resolved(state.one, self.store)
        was_made = bool(state.attempts)  # else it was taken over
        if was_made and isinstance(stage, GatherStage) and not isinstance(stage, ListRows):
            inputs = [p.dataset(self.store) for p in state.one.above]
            unit = units.of_gather(stage, state.one.keyed.step, inputs)
            event = {"what": "gather", "step": state.one.name, "folder": state.one.folder, "unit": unit}
            log_event(at.events, event | {"code": project.code_of(type(stage).__name__)})
        old_commit(self, state, receipts, *more)

    old_done, old_commit = runner.Run._shard_done, runner.Run._commit
    runner.Run._shard_done, runner.Run._commit = shard_done, commit  # type: ignore[method-assign]
    yield


def _resolved(one: Any, store: Any) -> Any:
    from vlpipe.pipeline.engine.planned import resolve_stage

    return resolve_stage(one, store)


def prune(at: Where, flows: list[Path]) -> str:
    from vlpipe.pipeline.cli import commands

    enter(at.folder, at.world, at.calls)
    return command(commands.prune_command, [str(f) for f in flows], root=str(at.root), yes=True)
