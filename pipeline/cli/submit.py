"""The commands `submit`, `jobs`, `logs` and `stop`: runs on a cluster as Ray jobs, with their driver on the cluster."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vlpipe.pipeline.cli.app import (
    ProfileOpt,
    RootOpt,
    SetOpt,
    WorkflowArg,
    app,
    err,
    exiting_by_signal,
    load,
    out,
)
from vlpipe.pipeline.engine.locking.signals import heeding_interrupts
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow, resolve_workflow

DASHBOARD = "auto"
COMMANDS = ("run", "plan", "status")

JobsAddressOpt = Annotated[
    str,
    typer.Option(
        "--address",
        help="the cluster: http://HOST:8265, HOST:PORT of its head, or auto",
        envvar="RAY_ADDRESS",
    ),
]
JobArg = Annotated[str, typer.Argument(metavar="JOB", help="the id that `submit` printed")]


@app.command("submit")
def submit_command(
    workflow: WorkflowArg,
    root: RootOpt = None,
    set_: SetOpt = None,
    profile: ProfileOpt = None,
    address: JobsAddressOpt = DASHBOARD,
    until: Annotated[str | None, typer.Option("--until", metavar="STEP", help="stop after this step")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="as `run --strict`")] = False,
    command: Annotated[
        str, typer.Option("--command", help=f"what the cluster calls: {', '.join(COMMANDS)}")
    ] = "run",
    detach: Annotated[bool, typer.Option("--detach", help="print the job's id and leave")] = False,
) -> None:
    """Run a workflow on a cluster as a Ray job, and follow its output. The exit code is that of the run.

    vlpipe, this folder and the stages' modules are copied to the cluster. After Ctrl-C the job goes on.
    """
    if command not in COMMANDS:
        raise typer.BadParameter(f"--command: wanted one of {', '.join(COMMANDS)}, got {command!r}")
    where = _in_this_folder(workflow)
    found, store = load(workflow, root, set_, profile)
    args = [command, where, "--root", store.url]
    args += [part for one in set_ or () for part in ("--set", one)]
    args += ["--profile", profile] if profile else []
    if command != "status":
        args += ["--until", until] if until else []
        args += ["--strict"] if strict else []
    args += ["--address", "auto"] if command != "status" else []
    jobs = _jobs(address)
    with tempfile.TemporaryDirectory() as folder:
        env = _runtime_env(found, store, folder, where)
        id = jobs.submit(args, env, found.name, {"workflow": found.name, "root": store.url})
    _say(f"submitted {id} to {jobs.address}; its root is {store.url}")
    if detach:
        _say(f"`vlpipe logs {id} --follow` follows it, `vlpipe stop {id}` stops it")
    else:
        _follow(jobs, id)


@app.command("jobs")
def jobs_command(address: JobsAddressOpt = DASHBOARD) -> None:
    """List the jobs of a cluster: id, state, workflow, root, begin."""
    table = Table("job", "state", "began", "workflow", "root", box=None)
    for one in _jobs(address).all():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.began_s)) if one.began_s else ""
        meta = one.metadata
        table.add_row(one.id, one.state, began, meta.get("workflow", ""), meta.get("root", ""))
    out.print(table)


@app.command("logs")
def logs_command(
    job: JobArg,
    address: JobsAddressOpt = DASHBOARD,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="until it ends; then exit with its code")
    ] = False,
) -> None:
    """Print what a job has written."""
    jobs = _jobs(address)
    jobs.job(job)
    if follow:
        _follow(jobs, job)
    else:
        _write(jobs.output(job))


@app.command("stop")
def stop_command(job: JobArg, address: JobsAddressOpt = DASHBOARD) -> None:
    """Stop a job. Finished shards are kept; the next run continues from them."""
    jobs = _jobs(address)
    jobs.job(job)
    jobs.stop(job)
    _say(f"stopping {job}")


def _jobs(address: str) -> Any:
    """Returns the jobs of the cluster. Raises VlpipeError without the package that speaks to it."""
    try:
        import aiohttp  # noqa: F401
        import requests  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError as error:
        raise VlpipeError(f"jobs need {error.name}: pip install 'vlpipe[cluster]'") from error
    from vlpipe.pipeline.engine.on_ray.jobs import Jobs

    return Jobs(address)


def _follow(jobs: Any, id: str) -> None:
    from vlpipe.pipeline.engine.on_ray.jobs import exit_code

    with exiting_by_signal(), heeding_interrupts() as check:
        try:
            job = jobs.follow(id, _write, check)
        except KeyboardInterrupt:
            _say(f"\n{id} goes on; `vlpipe logs {id} --follow` follows it, `vlpipe stop {id}` stops it")
            raise
    code = exit_code(job)
    if code:
        how = job.message.strip().partition("\n")[0] if job.code is None else f"exit code {job.code}"
        text = f"job {id}: {job.state}, {how}"
        err.print(text, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _in_this_folder(workflow: str) -> str:
    """Returns the workflow as the cluster finds it: its path below this folder, or its name if it is packaged.

    Raises VlpipeError for a file elsewhere, as only this folder is copied.
    """
    if not os.path.isfile(workflow):
        resolve_workflow(workflow)
        return workflow
    rel = os.path.relpath(os.path.abspath(workflow), os.getcwd())
    if rel.startswith(os.pardir):
        raise VlpipeError(
            f"{workflow} is outside of {os.getcwd()}, which is copied to the cluster; call vlpipe there"
        )
    return rel


def _runtime_env(found: Workflow, store: Store, folder: str, where: str) -> dict[str, Any]:
    """Returns Ray's `runtime_env`: this folder, vlpipe, and modules of stages that are installed elsewhere.

    folder: a temporary folder for the copy of vlpipe. Raises VlpipeError if this folder is too large.
    """
    from vlpipe.pipeline.engine.on_ray.packing import (
        NOT_SHIPPED,
        OWN,
        check_size,
        modules_of,
        own_source,
        place,
        root_below,
    )

    here = os.getcwd()
    names = {name for step in found.steps for name in modules_of(step.stage)} - {OWN, "builtins"}
    elsewhere = [name for name in sorted(names) if not Path(place(name)).is_relative_to(here)]
    leave_out: Sequence[str] = [*NOT_SHIPPED, *root_below(store)]
    check_size(here, leave_out, [where])
    os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # lists and weights are often git-ignored
    return {
        "working_dir": here,
        "excludes": [*leave_out, "*.pyc", ".*_cache"],
        "py_modules": [own_source(folder), *(place(name) for name in elsewhere)],
    }


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
