"""The commands that help to write a workflow: `stages`, `schema`, `init`."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vlpipe.pipeline.cli.app import app, out
from vlpipe.pipeline.describe.catalogue import Described, describe, entries
from vlpipe.pipeline.describe.schema import workflow_schema
from vlpipe.pipeline.describe.starter import GOALS, SOURCES, guess_columns, guess_source, starter
from vlpipe.pipeline.errors import VlpipeError

JsonOpt = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command("stages")
def stages_command(
    use: Annotated[
        str | None, typer.Argument(metavar="USE", help="a stage, or a part of its name such as `dedup`")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """List the stages that workflows are made of, or show one with its parameters."""
    if use is not None and ":" in use:
        try:
            found = describe(use)
        except ValueError as error:
            raise VlpipeError(str(error)) from error
        _show(found, as_json)
        return
    listed = [entry for entry in entries() if use is None or use.lower() in entry.use.lower()]
    if not listed:
        raise VlpipeError(f"no stage has {use!r} in its name; `vlpipe stages` lists all")
    if as_json:
        print(json.dumps([{"use": e.use, "summary": e.summary} for e in listed], ensure_ascii=False))
        return
    for room, inside in groupby(listed, key=lambda entry: entry.room):
        out.print(f"\n[bold]{room}[/bold]", highlight=False)
        for entry in inside:
            out.print(f"  {entry.use}  [dim]{escape(entry.summary)}[/dim]", highlight=False, soft_wrap=True)


def _show(found: Described, as_json: bool) -> None:
    if as_json:
        parameters = [
            {"name": p.name, "type": p.type, "required": p.required, "default": p.default, "about": p.about}
            for p in found.parameters
        ]
        about = {"use": found.use, "kind": found.kind, "version": found.version, "about": found.about}
        print(json.dumps({**about, "parameters": parameters}, ensure_ascii=False))
        return
    out.print(f"[bold]{found.use}[/bold]  {found.kind} stage, version {found.version}\n", highlight=False)
    out.print(found.about + "\n", markup=False, highlight=False)
    table = Table("parameter", "type", "default", "what it says", box=None, pad_edge=False)
    for p in found.parameters:
        default = "required" if p.required else json.dumps(p.default, ensure_ascii=False)
        table.add_row(p.name, escape(p.type), escape(default), escape(p.about))
    out.print(table)


@app.command("schema")
def schema_command() -> None:
    """Print a JSON Schema of workflow files, with which editors complete and check them."""
    print(json.dumps(workflow_schema(), indent=1, ensure_ascii=False))


@app.command("init")
def init_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the workflow to write")] = Path(
        "workflow.yaml"
    ),
    data: Annotated[
        str | None, typer.Option("--data", help="a list of image URLs, or a folder of tars")
    ] = None,
    goal: Annotated[str | None, typer.Option("--goal", help=", ".join(GOALS))] = None,
) -> None:
    """Write a commented workflow from two answers: where the images come from, and what is to be made of them."""
    if file.exists():
        raise VlpipeError(f"{file} exists; choose another name, or remove it")
    if data is None:
        data = str(
            typer.prompt("A list of image URLs with texts (parquet, tsv, csv, jsonl), or a folder of tars")
        )
    source = guess_source(data)
    out.print(f"{data}: {SOURCES[source]}", highlight=False, markup=False)
    if goal is None:
        for name, what in GOALS.items():
            out.print(f"  {name:8} {what}", highlight=False, markup=False)
        goal = str(typer.prompt("Goal", default="clean"))
    if goal not in GOALS:
        raise VlpipeError(f"no goal {goal!r}; there are {', '.join(GOALS)}")
    url, text = guess_columns(data) if source == "list" else ("url", "text")
    file.write_text(starter(str(file), source, data, goal, url, text), encoding="utf-8")
    out.print(f"{file} is written; next: vlpipe plan {file}", highlight=False, markup=False)
    sys.stdout.flush()
