"""The application, its options, and the commands that run a workflow or plan it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vlpipe.pipeline.change import retry
from vlpipe.pipeline.cli.progress import ProgressWatcher, results_table
from vlpipe.pipeline.engine.executor import Executor, Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.locking.signals import Interrupted, heeding_interrupts
from vlpipe.pipeline.engine.plan import PlannedStep, plan, remember
from vlpipe.pipeline.engine.row_bounds import estimates
from vlpipe.pipeline.engine.runner import Run
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forget import apply
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow, resolve_workflow

HELP = """The command line. Every knob belongs to the YAML. Exit codes: 0 done, 1 a clear error, 2 wrong usage; after a
signal 128 + its number: 130 after Ctrl-C, 143 after SIGTERM, 129 when the terminal was closed."""
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
WIDTH = None if sys.stdout.isatty() else 160  # of tables in files and pipes
out = Console(width=WIDTH)
err = Console(stderr=True)

GRACE_S = 10.0

WorkflowArg = Annotated[
    str, typer.Argument(metavar="WORKFLOW", help="a YAML file, or the name of a packaged workflow")
]
RootOpt = Annotated[
    str | None, typer.Option("--root", help="where the steps lie; default: `root:` of the workflow")
]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="STEP.KEY=VALUE", help="override a parameter; repeatable")
]
ProfileOpt = Annotated[str | None, typer.Option("--profile", help="one of the workflow's profiles")]


def load(
    workflow: str, root: str | None, sets: list[str] | None, profile: str | None
) -> tuple[Workflow, Store]:
    found = Workflow.load(resolve_workflow(workflow), profile=profile, sets=sets or (), root=root)
    url = found.root if "://" in found.root else os.path.abspath(os.path.expanduser(found.root))
    return found, _store(url)


def _store(url: str) -> Store:
    store = Store(url)
    try:
        is_file = store.is_local and os.path.exists(url) and not os.path.isdir(url)
    except (ValueError, ImportError) as error:  # no such protocol, or the package for it is not there
        raise VlpipeError(f"root {url}: {error}") from error
    if is_file:
        raise VlpipeError(f"root {url}: it is a file; wanted a folder, or the name of one to be made")
    return store


@app.command()
def run(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    local: Annotated[bool, typer.Option("--local", help="no Ray: everything in this process")] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", help="join a Ray cluster: HOST:PORT, [IPv6]:PORT, ray://HOST:PORT or auto"),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STEP", help="stop after this step")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse a step whose source changed without a new VERSION")
    ] = False,
) -> None:
    """Run what is not done yet. A second run does no work; a run after a kill goes on."""
    if local and address:
        raise typer.BadParameter("--local and --address exclude each other")
    began = time.monotonic()
    found, store = load(workflow, root, set_, profile)
    with locked(store) as run_id:
        finish_forget(store)
        steps = plan(found, store, until)
        warn(steps, strict)
        todo = [one for one in steps if not one.is_done]
        if todo:
            remember(steps, store)
            execute(steps, store, run_id, local=local, address=address, strict=strict)
            warn(todo, strict=False)  # of what was taken over in this run
        retry.clean(steps, store)
    if not todo:
        out.print(
            f"{found.name}: all {len(steps)} steps are done, nothing to do ({time.monotonic() - began:.1f} s)",
            highlight=False,
        )
    else:
        out.print(
            f"{found.name}: done in {time.monotonic() - began:.1f} s; results lie in {store.url}",
            highlight=False,
            soft_wrap=True,
        )
    table = results_table(steps, store)
    if table is not None:
        out.print(table)


def finish_forget(store: Store) -> None:
    """Nothing may read a root in which a forget was killed half way. Needs the root's lock."""
    if apply.finish(store):
        out.print(f"finished a forget that was interrupted in {store.url}", highlight=False, soft_wrap=True)


def execute(
    steps: list[PlannedStep],
    store: Store,
    run_id: str,
    *,
    local: bool,
    address: str | None,
    strict: bool = False,
) -> None:
    """Run the plan on an executor. After an interrupt or a failed step, what still runs has a grace to finish."""
    with executing(store, run_id, local=local, address=address) as (executor, watcher, check):
        Run(steps, store, executor, watcher, strict).go(check, GRACE_S)


@contextmanager
def executing(
    store: Store, run_id: str, *, local: bool, address: str | None
) -> Iterator[tuple[Executor, Watcher, Callable[[], None]]]:
    """An executor, what draws its run, and what asks whether a signal came. Exits with 128 + the signal."""
    with heeding_interrupts() as check, exiting_by_signal():
        executor = make_executor(run_id, local=local, address=address)
        try:
            with ProgressWatcher(out, store) as progress:
                yield executor, replace(progress.watcher, stopping=_stopping), check
        finally:
            executor.close()


@contextmanager
def exiting_by_signal() -> Iterator[None]:
    try:
        yield
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.code) from interrupted


def _stopping(error: BaseException, num_running: int) -> None:
    what = "interrupted" if isinstance(error, KeyboardInterrupt) else "a step failed"
    err.print(
        f"{what}; what still runs ({num_running}) has {GRACE_S:.0f} s to finish, what is finished stays",
        highlight=False,
        soft_wrap=True,
    )


def make_executor(run_id: str, *, local: bool, address: str | None) -> Executor:
    """`address`: as `--address`; without it what RAY_ADDRESS says, as for Ray itself."""
    if local:
        from vlpipe.pipeline.engine.local_executor import LocalExecutor

        return LocalExecutor()
    from vlpipe.pipeline.engine.on_ray.executor import RayExecutor

    def say(line: str) -> None:
        err.print(f"[yellow]warning[/yellow]: {escape(line)}", highlight=False, soft_wrap=True)

    return RayExecutor(run_id, address or os.environ.get("RAY_ADDRESS") or None, say)


def warn(steps: list[PlannedStep], strict: bool) -> None:
    stale = [one for one in steps if one.warning]
    for one in stale:
        err.print(
            f"[yellow]warning[/yellow]: step {one.name!r}: {one.warning}", highlight=False, soft_wrap=True
        )
    if stale and strict:
        raise VlpipeError(f"--strict: {len(stale)} step(s) have a changed source and the same VERSION")


@app.command("plan")
def plan_command(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STEP")] = None,
    strict: Annotated[bool, typer.Option("--strict")] = False,
) -> None:
    """What would run, and why. Touches nothing."""
    found, store = load(workflow, root, set_, profile)
    steps = plan(found, store, until)
    todo = [one for one in steps if not one.is_done]
    if todo:
        out.print(f"first reason: {todo[0].name}: {todo[0].reason}", highlight=False, soft_wrap=True)
    said = estimates(steps, store)
    for one in steps:
        mark, text = (
            ("[green]done[/green]", "") if one.is_done else ("[yellow]runs[/yellow]", escape(one.reason))
        )
        out.print(f"  {mark}  {escape(one.name):24} {text}", highlight=False, soft_wrap=True)
        if said.get(one.name):
            out.print(f"        {escape(said[one.name])}", highlight=False, soft_wrap=True, style="dim")
    out.print(f"{len(todo)} of {len(steps)} steps would run", highlight=False)
    warn(steps, strict)
