"""The Typer application, its common options, and the commands `run` and `plan`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vlpipe.pipeline.change import before_retry
from vlpipe.pipeline.cli.progress import ProgressWatcher, results_table
from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Executor, Watcher, unasked_gpus
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.locking.signals import Interrupted, heeding_interrupts
from vlpipe.pipeline.engine.plan import plan, remember
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.forget_journal import has_traces
from vlpipe.pipeline.engine.row_bounds import estimates
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.forecast import (
    Cost,
    forecast,
    forecast_table,
    read_forecast,
    totals,
    write_forecast,
)
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.watch.curves import Curves
from vlpipe.pipeline.watch.events import EventLog
from vlpipe.pipeline.watch.metrics import Metrics
from vlpipe.pipeline.watch.telling import Telling, all_of
from vlpipe.pipeline.workflow.load import Workflow, resolve_workflow

HELP = """Run and inspect workflows. All parameters are in the YAML. Exit codes: 0 success, 1 error, 2 wrong usage; after a
signal 128 + its number: 130 after Ctrl-C, 143 after SIGTERM, 129 if the terminal was closed."""
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
WIDTH = None if sys.stdout.isatty() else 160  # characters, for tables in files and pipes
out = Console(width=WIDTH)
err = Console(stderr=True)

GRACE_S = 10.0  # seconds that running tasks get to finish after an interrupt or a failed step

WorkflowArg = Annotated[
    str, typer.Argument(metavar="WORKFLOW", help="a YAML file, or the name of a packaged workflow")
]
RootOpt = Annotated[
    str | None, typer.Option("--root", help="folder or URL of the outputs; default: `root:` of the workflow")
]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="STEP.KEY=VALUE", help="override a parameter; repeatable")
]
LocalOpt = Annotated[bool, typer.Option("--local", help="run everything in this process, without Ray")]
AddressOpt = Annotated[
    str | None,
    typer.Option("--address", help="join a Ray cluster: HOST:PORT, [IPv6]:PORT, ray://HOST:PORT or auto"),
]
ProfileOpt = Annotated[str | None, typer.Option("--profile", help="one of the workflow's profiles")]


def load(
    workflow: str, root: str | None, sets: list[str] | None, profile: str | None
) -> tuple[Workflow, Store]:
    """Returns the checked workflow and its root. Raises WorkflowError for mistakes in the file or in `sets`, VlpipeError if
    there is no such workflow or the root cannot be opened."""
    found = Workflow.load(resolve_workflow(workflow), profile=profile, sets=sets or (), root=root)
    url = found.root if "://" in found.root else os.path.abspath(os.path.expanduser(found.root))
    return found, _store(url)


def _store(url: str) -> Store:
    store = Store(url)
    try:
        is_file = store.is_local and os.path.exists(url) and not os.path.isdir(url)
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
        raise VlpipeError(f"cannot open the output root {url}: {error}") from error
    if is_file:
        raise VlpipeError(f"the output root {url} is a file; wanted a folder, existing or new")
    return store


@app.command()
def run(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    local: LocalOpt = False,
    address: AddressOpt = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STEP", help="stop after this step")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse a step whose source changed without a new VERSION")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="PORT", help="serve metrics for Prometheus while it runs: PORT or HOST:PORT"
        ),
    ] = None,
    curves: Annotated[
        str | None,
        typer.Option(
            "--curves", metavar="WHERE", help="training curves to tensorboard:FOLDER or wandb:PROJECT"
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="K",
            min=1,
            help="only the first K shards of each source; forecasts the full run",
        ),
    ] = None,
) -> None:
    """Run all steps that are not done yet. A run after a kill continues; a run with nothing left to do changes no rows."""
    need_one_place(local, address)
    began = time.monotonic()
    found, store = load(workflow, root, set_, profile)
    with locked(store) as run_id:
        finish_forget(store)
        steps = plan(found, store, until, sample)
        warn(steps, strict)
        todo = [one for one in steps if not one.is_done]
        if sample is None:  # the next plan compares with the last full run
            remember(steps, store)
        if todo:
            telling = _telling(found, store, run_id, steps, metrics, curves)
            execute(steps, store, run_id, local=local, address=address, strict=strict, telling=telling)
            warn(todo, strict=False)  # about shards that this run reused
        before_retry.clean(steps, store)
        if sample is not None:
            costs = forecast(steps, {step.name: step.stage for step in found.steps}, store)
            write_forecast(store, found.name, sample, costs)
    seconds = time.monotonic() - began
    done = f"done in {seconds:.1f} s; results are in {store.url}"
    text = done if todo else f"all {len(steps)} steps are done, nothing to do ({seconds:.1f} s)"
    out.print(f"{found.name}: {text}", highlight=False, soft_wrap=True)
    if (table := results_table(steps, store)) is not None:
        out.print(table)
    if sample is not None:
        _print_forecast(f"a sample of {sample} shard(s) per source; the full run is expected to take:", costs)


def _telling(
    found: Workflow,
    store: Store,
    run_id: str,
    steps: list[PlannedStep],
    metrics: str | None,
    curves: str | None,
) -> list[Telling]:
    """Returns what tells other programs of a run."""
    telling: list[Telling] = [EventLog(store, run_id, found.name, steps)]
    telling += [Metrics(store, metrics)] if metrics is not None else []
    telling += [Curves(store, run_id, curves)] if curves is not None else []
    return telling


def _print_forecast(title: str, costs: Sequence[Cost]) -> None:
    out.print(title, highlight=False)
    out.print(forecast_table(costs))
    out.print(totals(costs), highlight=False, soft_wrap=True)


def need_one_place(local: bool, address: str | None) -> None:
    """Raises typer.BadParameter if both --local and --address are given."""
    if local and address:
        raise typer.BadParameter("--local and --address exclude each other")


def finish_forget(store: Store) -> None:
    """Finishes a forget that was killed, because its root must not be read before. The caller holds the root's lock."""
    if not has_traces(store):
        return
    from vlpipe.pipeline.forget import apply

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
    telling: Sequence[Telling] = (),
) -> None:
    """Runs the plan on an executor. After an interrupt or a failed step, running tasks get `GRACE_S` to finish."""
    with executing(store, run_id, local=local, address=address, telling=telling) as (
        executor,
        watcher,
        check,
    ):
        new_run(steps, store, executor, watcher, strict).go(check, GRACE_S)


@contextmanager
def executing(
    store: Store, run_id: str, *, local: bool, address: str | None, telling: Sequence[Telling] = ()
) -> Iterator[tuple[Executor, Watcher, Callable[[], None]]]:
    """Yields an executor, a watcher that shows progress, and a function that raises Interrupted if a signal came.

    telling: further watchers, entered here. If Interrupted leaves the block, the process exits with 128 + the signal's
    number.
    """
    with exiting_by_signal(), heeding_interrupts() as check:
        executor = make_executor(run_id, local=local, address=address)
        try:
            with ProgressWatcher(out, store) as progress, ExitStack() as stack:
                for one in telling:
                    stack.enter_context(one)
                shown = replace(progress.watcher, stopping=_stopping)
                yield executor, all_of([shown, *(one.watcher for one in telling)]), check
        finally:
            executor.close()


@contextmanager
def exiting_by_signal() -> Iterator[None]:
    """Turns Interrupted into an exit with code 128 + the signal's number."""
    try:
        yield
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.code) from interrupted


def _stopping(error: BaseException, num_running: int) -> None:
    what = "interrupted" if isinstance(error, KeyboardInterrupt) else "a step failed"
    err.print(
        f"{what}; running tasks ({num_running}) have {GRACE_S:.0f} s to finish, finished shards are kept",
        highlight=False,
        soft_wrap=True,
    )


def make_executor(run_id: str, *, local: bool, address: str | None) -> Executor:
    """Returns the executor for `--local` or Ray. address: as `--address`; None: the variable RAY_ADDRESS, as in Ray."""
    if local:
        return local_executor()
    from vlpipe.pipeline.engine.on_ray.executor import RayExecutor

    def say(line: str) -> None:
        err.print(f"[yellow]warning[/yellow]: {escape(line)}", highlight=False, soft_wrap=True)

    return RayExecutor(run_id, address or os.environ.get("RAY_ADDRESS") or None, say)


def warn(steps: list[PlannedStep], strict: bool) -> None:
    """Prints for each step whether different code with the same VERSION made its rows. strict: this raises VlpipeError."""
    stale = [one for one in steps if one.warning]
    for one in stale:
        err.print(
            f"[yellow]warning[/yellow]: step {one.name!r}: {one.warning}", highlight=False, soft_wrap=True
        )
    if stale and strict:
        raise VlpipeError(
            f"--strict: the rows of {len(stale)} step(s) were made by different code of the stage with the same VERSION: "
            "increase VERSION to make them again, or leave out --strict to reuse them"
        )


def _check_room(steps: list[PlannedStep], address: str) -> None:
    """Raises VlpipeError if no node of the cluster has, or may have, the resources of a step."""
    executor = make_executor("plan", local=False, address=address)
    try:
        problems = [*unasked_gpus(steps), *executor.misfits(steps)]
    finally:
        executor.close()
    if problems:
        raise VlpipeError("the workflow cannot run there:\n  " + "\n  ".join(problems))


@app.command("plan")
def plan_command(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STEP", help="plan only up to this step")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 where `run --strict` would")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="also check that this cluster has what the steps need")
    ] = None,
) -> None:
    """Show which steps would run, and why. Changes nothing."""
    found, store = load(workflow, root, set_, profile)
    steps = plan(found, store, until)
    todo = [one for one in steps if not one.is_done]
    if address and todo:
        _check_room(todo, address)
    if todo:
        out.print(f"first reason: {todo[0].name}: {todo[0].reason}", highlight=False, soft_wrap=True)
    notes = estimates(steps, store)
    for one in steps:
        mark, text = (
            ("[green]done[/green]", "") if one.is_done else ("[yellow]runs[/yellow]", escape(one.reason))
        )
        out.print(f"  {mark}  {escape(one.name):24} {text}", highlight=False, soft_wrap=True)
        if notes.get(one.name):
            out.print(f"        {escape(notes[one.name])}", highlight=False, soft_wrap=True, style="dim")
    out.print(f"{len(todo)} of {len(steps)} steps would run", highlight=False)
    if todo and (known := read_forecast(store, found.name)):
        num_shards, costs = known
        names = {one.name for one in todo}
        left = [one for one in costs if one.step in names]
        _print_forecast(f"from a sample of {num_shards} shard(s) per source:", left)
    warn(steps, strict)
