"""The commands that inspect or change the outputs of a run. The library does the work; this module prints the results."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from vlpipe.pipeline.change import export, prune, retry
from vlpipe.pipeline.cli.app import (
    GRACE_S,
    AddressOpt,
    LocalOpt,
    ProfileOpt,
    RootOpt,
    SetOpt,
    WorkflowArg,
    app,
    err,
    executing,
    finish_forget,
    load,
    need_one_place,
    out,
)
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records import answers
from vlpipe.pipeline.engine.records.forget_journal import refuse_half_done
from vlpipe.pipeline.errors import VlpipeError, printable
from vlpipe.pipeline.forget import apply, scan, summary
from vlpipe.pipeline.forget import wanted as forget_list
from vlpipe.pipeline.inspect import diff, diff_rows, on_disk, report, status, tune
from vlpipe.pipeline.inspect import why as history
from vlpipe.pipeline.inspect.opted_out import read_hashes
from vlpipe.pipeline.inspect.verify import root as verify_root
from vlpipe.pipeline.inspect.verify import run as verify
from vlpipe.pipeline.inspect.verify.steps import Steps
from vlpipe.pipeline.steps.checked import find_step
from vlpipe.pipeline.storage.printable import size
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.criteria import criteria_of

PLAIN_WIDTH = 200  # characters, for tables in files and pipes

StepArg = Annotated[str, typer.Argument(metavar="STEP", help="a step of the workflow")]
Yes = Annotated[bool, typer.Option("--yes", help="remove; default: only print what would be removed")]
Whys = Annotated[list[str], typer.Option("--why", metavar="CODE", help="reject code to retry; repeatable")]


def say(line: str, style: str | None = None) -> None:
    """Prints one line unchanged: no markup, no wrapping."""
    out.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True, style=style)


def draw(what: RenderableType) -> None:
    """Prints a table or another Rich object."""
    out.print(what, width=None if out.is_terminal else PLAIN_WIDTH)


def planned(
    workflow: str, root: str | None, sets: list[str] | None, profile: str | None
) -> tuple[str, list[PlannedStep], Store]:
    """Returns the workflow's name, its planned steps and its root. Raises VlpipeError if a forget is unfinished there."""
    found, store = load(workflow, root, sets, profile)
    refuse_half_done(store)
    return found.name, plan(found, store), store


@app.command("status")
def status_command(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=0.1, help="draw it again until all steps are done"),
    ] = None,
) -> None:
    """Show the state of each step: shards, rows, rejects by reason, seconds and size."""
    if watch is None:
        draw(Group(*_status(workflow, root, set_, profile)[0]))
        return
    with Live(console=out, auto_refresh=False) as live:
        while True:
            parts, is_over = _status(workflow, root, set_, profile)
            live.update(Group(*parts), refresh=True)
            if is_over:
                return
            time.sleep(watch)


def _status(
    workflow: str, root: str | None, sets: list[str] | None, profile: str | None
) -> tuple[list[RenderableType], bool]:
    """Returns the table and the lines below it, and whether all steps are done."""
    name, steps, store = planned(workflow, root, sets, profile)
    found = status.status(steps, store)
    num_done = sum(one.state == "done" for one in found)
    total = size(sum(one.bytes for one in found))
    lines = [f"{name}: {num_done} of {len(found)} steps are done, {total} in {store.url}"]
    lines += [text] if (text := status.lock_holder(store).text) else []
    return [status.status_table(found), *(Text(line, overflow="fold") for line in lines)], num_done == len(
        found
    )


@app.command("why")
def why_command(
    workflow: WorkflowArg,
    row: Annotated[
        str, typer.Argument(metavar="ROW", help="an id, its first 8 or more characters, or a url")
    ],
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Trace one row through all steps: fetch time, changes, duplicates, reason if dropped, training sets."""
    _, steps, store = planned(workflow, root, set_, profile)
    found = history.history(steps, store, row)
    if as_json:
        say(history.as_json(found))
        return
    say(f"row {printable(found.id)}", style="bold")
    for event, text in history.tell(found):
        say(text, style={"dropped": "red", "lost": "red", "not run": "yellow"}.get(event.what))


@app.command("diff")
def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="a step's folder")],
    b: Annotated[str, typer.Argument(metavar="B", help="the folder of another run of that step")],
    num_rows: Annotated[int, typer.Option("-n", min=0, help="number of examples")] = 5,
) -> None:
    """Compare two runs of a step: parameters, versions, rejects, and the rows and columns that differ."""
    left, right = _side(a), _side(b)
    names = (f"A {left.record.folder}", f"B {right.record.folder}")
    draw(diff.render(diff.diff(left, right, num_examples=num_rows), names))


def _side(path: str) -> diff_rows.Side:
    place = on_disk.find_place(path)
    folder = on_disk.need_step(place, path)
    return diff_rows.Side(place.store, on_disk.read_step(place.store, folder))


@app.command("retry")
def retry_command(
    workflow: WorkflowArg,
    step: StepArg,
    why: Whys,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    local: LocalOpt = False,
    address: AddressOpt = None,
) -> None:
    """Retry only the rows that a step rejected with the given codes. The next `vlpipe run` updates downstream steps."""
    need_one_place(local, address)
    found, store = load(workflow, root, set_, profile)
    with locked(store) as run_id:
        finish_forget(store)
        steps = plan(found, store)
        one, *_ = retry.wanted(steps, store, step, why)
        with executing(store, run_id, local=local, address=address) as (executor, watcher, interrupted):
            result = retry.retry(steps, store, step, why, executor, watcher, interrupted, GRACE_S)
    say(f"{one.name}: {result}")
    if result.num_changed:
        say(f"`vlpipe run {workflow}` now recomputes what depends on those shards, and nothing else")


@app.command("prune")
def prune_command(
    workflows: Annotated[
        list[str], typer.Argument(metavar="WORKFLOW...", help="workflows whose folders are kept")
    ],
    root: RootOpt = None,
    set_: SetOpt = None,
    only_set: Annotated[
        bool, typer.Option("--only-set", help="do not keep the folders used without the values of --set")
    ] = False,
    drop_profile: Annotated[
        list[str] | None,
        typer.Option("--drop-profile", help="profile whose folders are not kept; repeatable"),
    ] = None,
    answers_too: Annotated[
        bool,
        typer.Option(
            "--answers", help="also remove the recorded answers of servers, which are then asked again"
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove step folders that none of the given workflows uses. Without --yes, only print what would be removed.

    A workflow uses the folders of its steps, with no profile and with each of its profiles. Folders made with other
    parameters are removed; to keep some, give their values with --set. If a profile cannot be loaded, nothing is removed.
    """
    if only_set and not set_:
        raise typer.BadParameter("--only-set has no effect alone; add --set STEP.KEY=VALUE")
    loaded = [load(workflow, root, set_, None) for workflow in workflows]
    for url in dict.fromkeys(store.url for _, store in loaded):
        store, paths = Store(url), [found.path for found, at in loaded if at.url == url]
        prune.check_dropped([found.path for found, _ in loaded], drop_profile or ())
        with locked(store) if yes else nullcontext():
            refuse_half_done(store)
            plans = [
                steps
                for path in paths
                for steps in prune.reaching(
                    path, store, root, set_ or (), only_set=only_set, dropped=drop_profile or ()
                )
            ]
            _prune(store, prune.unreached(store, plans), yes)
            if answers_too:
                _prune_answers(store, yes)


def _prune(store: Store, found: list[prune.UnreachedFolder], yes: bool) -> None:
    for one in found:
        about = f"kept: {one.kept_for}" if one.kept_for else printable(one.what)
        say(f"  {size(one.bytes):>9}  {one.folder}" + (f"  {about}" if about else ""))
    going = [one for one in found if not one.kept_for]
    total = f"{len(going)} folder(s), {size(sum(one.bytes for one in going))}, in {store.url}"
    if not going:
        say(f"nothing to remove in {store.url}")
    elif yes:
        prune.remove(store, going)
        say(f"removed {total}")
    else:
        say(f"would remove {total}; add --yes to remove them")


def _prune_answers(store: Store, yes: bool) -> None:
    num_bytes = answers.num_bytes(store)
    if yes:
        answers.drop(store)
    say(f"{'removed' if yes else 'would remove'} {size(num_bytes)} of recorded answers, in {store.url}")


@app.command("forget")
def forget_command(
    workflow: WorkflowArg,
    list_: Annotated[
        str | None,
        typer.Argument(
            metavar="[LIST]",
            help="txt (id:... url:... domain:... sha256:...), or csv or parquet with such columns",
        ),
    ] = None,
    opted_out_: Annotated[
        bool,
        typer.Option(
            "--opted-out", help="rows whose url or final_url opted out in a fetch after they were stored"
        ),
    ] = False,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    yes: Yes = False,
) -> None:
    """Delete rows permanently from every step of the root. Without --yes, only print what would be deleted.

    Lists the models that were trained on these rows. Copies outside the root, such as those of `vlpipe export`, are not
    changed: export them again.
    """
    if not (list_ or opted_out_):
        raise VlpipeError("nothing to forget: give a LIST, or --opted-out")
    wanted = forget_list.read_wanted(list_) if list_ else forget_list.ForgetList()
    loaded, store = load(workflow, root, set_, profile)
    with locked(store) if yes else nullcontext():
        if yes:
            finish_forget(store)
            answers.recover(store)
        refuse_half_done(store)
        if opted_out_:
            opted_out_urls = read_hashes(store)
            wanted = wanted.with_opted_out(opted_out_urls)
            say(f"{len(opted_out_urls):,} URL(s) opted out of fetches into {store.url}")
        steps = plan(loaded, store)
        reads = {one.folder: [p.folder for p in (*one.above, *one.artifact_steps)] for one in steps}
        found = scan.find(store, wanted, reads)
        for line in summary.tell(found):
            say(line)
        if yes:
            apply.forget(store, found)
    folders = {one.folder for one in found.folders} | {one.folder for one in found.models if one.copies}
    num = f"{found.num_rows:,} row(s) in {len(folders)} folder(s) of {store.url}"
    say(f"forgot {num}" if yes else f"would forget {num}; add --yes to forget them")
    for line in summary.advice(found, workflow):
        say(line)


@app.command("export")
def export_command(
    workflow: WorkflowArg,
    step: StepArg,
    to: Annotated[str, typer.Argument(metavar="OUT_DIR", help="a new or empty folder")],
    columns: Annotated[str | None, typer.Option("--columns", metavar="A,B", help="export only these")] = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            "--pictures", metavar="COLUMN", help="image files, as `datasets` shows them; repeatable"
        ),
    ] = None,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
) -> None:
    """Write a step's rows with images and features joined in, as Parquet for other tools."""
    _, steps, store = planned(workflow, root, set_, profile)
    names = [name.strip() for name in columns.split(",")] if columns else None
    one = find_step(steps, step)
    written = export.export(one, store, Store(to), names, pictures=pictures or ())
    total = sum(Store(to).size(shard.path) for shard in written)
    rows = sum(shard.num_rows for shard in written)
    say(f"{one.name}: {rows:,} rows in {len(written)} files, {size(total)}, in {to}")


@app.command("verify")
def verify_command(
    path: Annotated[str, typer.Argument(help="a root, a step's folder, or a shard")],
) -> None:
    """Read every shard and artifact and compare it with its receipt. Exit code 1 if something is wrong."""
    place = on_disk.find_place(path)
    if place.file or place.rejects:
        raise VlpipeError(f"{path} cannot be verified alone: give a root, a step's folder, or a shard")
    found = _verify(place)
    problems = [problem for one in found for problem in one.problems]
    for problem in problems:
        color = "red" if problem.is_wrong else "yellow"
        text = f"  {printable(problem.text)}" if problem.text else ""
        say(f"{problem.kind:9}  {place.store.path(problem.path)}{text}", style=color)
    say(verify.summary(found))
    if any(problem.is_wrong for problem in problems):
        err.print(verify.advice(problems), highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def _verify(place: on_disk.StepFolder) -> list[verify.VerifyReport]:
    if place.index is not None:
        return [verify.verify_shard(place.store, place.folder, place.index)]
    began, steps = time.monotonic(), Steps(place.store)
    found = []
    for folder in [place.folder] if place.folder else on_disk.step_folders(place.store):
        with out.status(f"{folder} ({time.monotonic() - began:.0f} s)"):
            found.append(verify.verify_step(place.store, folder, steps=steps))
    if not place.folder:
        found.append(verify.VerifyReport("", 0, 0, [*verify_root.root_problems(place.store)]))
    return found


@app.command("tune")
def tune_command(
    workflow: WorkflowArg,
    step: StepArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    most: Annotated[int, typer.Option("--most", min=tune.SMALLEST, help="the largest size to try")] = 1024,
) -> None:
    """Measure a step's model with batches of 16, 32, 64, ... samples, on made-up input. Changes nothing."""
    _, steps, store = planned(workflow, root, set_, profile)
    one, found = find_step(steps, step), []
    for trial in tune.tune(one, store, most):
        found.append(trial)
        figures = trial.why or f"{trial.per_s:10,.1f} samples/s   {size(trial.bytes)}"
        say(f"batch_size {trial.batch_size:6,}   {figures}")
    say(tune.advice(one.name.partition("@")[0], found))


@app.command("report")
def report_command(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    to: Annotated[str, typer.Option("--out", metavar="FILE", help="output file")] = "report.html",
) -> None:
    """Write one self-contained HTML page of at most 10 MB: what came out, funnel, images with texts, results, losses."""
    from vlpipe.stages.report.page import RunView, StepView, render

    found, store = load(workflow, root, set_, profile)
    refuse_half_done(store)
    steps = plan(found, store)
    values = report.step_values(steps, store, running=status.lock_holder(store).is_running)
    views = [StepView(**one) for one in values]
    criteria = criteria_of(found.path)
    text = render(RunView(title=found.name, description=found.description, steps=views, criteria=criteria))
    Path(to).write_text(text, encoding="utf-8")
    say(f"{found.name}: {to}, {size(len(text.encode()))}")
