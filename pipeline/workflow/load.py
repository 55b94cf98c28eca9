"""Loads and checks a workflow file. `Workflow.load` reports all mistakes at once, each with its line.

Steps run in file order and `from` names a step above, so there are no cycles. Loading reads only the workflow file and
what the stages read in `schema` and `preflight`; it processes no rows.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vlpipe.pipeline.errors import VlpipeError, WorkflowError, did_you_mean, one_line, shown
from vlpipe.pipeline.files import File, Weights, files_of
from vlpipe.pipeline.stage import SHARD_ROWS, GatherStage, MapStage, SourceStage, Stage
from vlpipe.pipeline.steps.canonical import recorded
from vlpipe.pipeline.steps.checked import CheckedWorkflow, base_name
from vlpipe.pipeline.steps.columns import error_text, schemas_of
from vlpipe.pipeline.steps.step import Step
from vlpipe.pipeline.storage.hf_hub import HUB_ID
from vlpipe.pipeline.storage.store import canonical_json
from vlpipe.pipeline.workflow.compose import written_steps
from vlpipe.pipeline.workflow.draft import DraftStep
from vlpipe.pipeline.workflow.packaged import packaged_workflows
from vlpipe.pipeline.workflow.params import find, stray_references, validate
from vlpipe.pipeline.workflow.stage_checks import class_problems, idle_keys
from vlpipe.pipeline.workflow.step_keys import ENGINE_KEYS, STEP_KEYS, EngineKeys
from vlpipe.pipeline.workflow.weights_check import file_problems
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, parse, place

MAX_CHARS = 1_000_000  # max length of a workflow file
STAGES = "vlpipe.stages"
TOP_KEYS = ("name", "root", "matrix", "steps", "repeat", "profiles")


class Workflow(CheckedWorkflow):
    """A checked workflow that comes from a file."""

    __slots__ = ()

    @classmethod
    def load(
        cls, path: str, *, profile: str | None = None, sets: Sequence[str] = (), root: str | None = None
    ) -> Workflow:
        """Loads a workflow from a file path or the name of a packaged workflow.

        sets: `STEP.KEY=VALUE` overrides; root: replaces the file's `root:`. Raises WorkflowError with all mistakes, or
        VlpipeError if there is no such workflow.
        """
        path = resolve_workflow(path)
        problems: list[Problem] = []
        text = _read(path)
        file = parse(text, problems)
        if not isinstance(file, Map):
            raise WorkflowError(path, problems or [(1, f"wanted a mapping with {', '.join(TOP_KEYS)}")])
        _check_top(file, problems)
        steps = _build_all(written_steps(file, profile, sets, problems), problems)
        schemas_of(steps, problems)
        _preflight(steps, problems)
        if problems:
            raise WorkflowError(path, problems)
        name = file.get("name") or os.path.splitext(os.path.basename(path))[0]
        where = os.path.expanduser(root or file.get("root") or f"runs/{name}")
        return cls(path=path, name=name, description=_description(text), root=where, steps=tuple(steps))


def resolve_workflow(name_or_path: str) -> str:
    """Returns the path of a workflow, given an existing file or the name of a packaged workflow.

    Raises VlpipeError if it is neither.
    """
    if os.path.isfile(name_or_path):
        return name_or_path
    own = packaged_workflows()
    name = name_or_path.removesuffix(".yaml")
    if name in own:
        return own[name]
    near = did_you_mean(name, own)
    listed = f"; packaged workflows: {', '.join(sorted(own)) or 'none'}"
    what = (
        "is a folder, not a workflow file"
        if os.path.isdir(name_or_path)
        else "is neither a file nor a packaged workflow"
    )
    raise VlpipeError(f"{shown(name_or_path, 400)} {what}{near if near.endswith('?') else ''}{listed}")


def root_of(path: str) -> str:
    """Returns the root of a workflow file, without loading its stages."""
    file = parse(_read(path), [])
    name = (isinstance(file, Map) and file.get("name")) or os.path.splitext(os.path.basename(path))[0]
    return os.path.expanduser((isinstance(file, Map) and file.get("root")) or f"runs/{name}")


def profiles_of(path: str) -> list[str]:
    """Returns the names of the profiles in a workflow file; mistakes in its YAML are ignored."""
    file = parse(_read(path), [])
    found = file.get("profiles") if isinstance(file, Map) else None
    return list(found) if isinstance(found, Map) else []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARS + 1)
    except UnicodeDecodeError as error:
        raise WorkflowError(
            path, [(error.object.count(b"\n", 0, error.start) + 1, "the file is not UTF-8 text")]
        ) from None
    if len(text) > MAX_CHARS:
        problem = f"longer than {MAX_CHARS:,} characters; move long lists into files and name the files in parameters"
        raise WorkflowError(path, [(1, problem)])
    return text


def _description(text: str) -> str:
    lines = text.lstrip().splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").removeprefix(" ").rstrip() for line in lines[:end])


def _check_top(file: Map, problems: list[Problem]) -> None:
    for key, value in file.items():
        if key.startswith("x-"):  # ignored: a place to define anchors
            continue
        if key not in TOP_KEYS:
            problems.append(file.at[key].problem(f"unknown key {shown(key)}{did_you_mean(key, TOP_KEYS)}"))
        elif key in ("name", "root") and not (isinstance(value, str) and value):
            problems.append(file.at[key].problem(f"{key}: wanted text, got {shown(value)}"))


def _build_all(written: Sequence[DraftStep], problems: list[Problem]) -> list[Step]:
    """Returns the steps without a mistake of their own; mistakes are added to `problems`."""
    stages: dict[str, type[Stage]] = {}
    wrong: dict[type[Stage], list[str]] = {}
    steps: list[Step] = []
    for each in written:
        cls = _stage_class(each, wrong, problems)
        if cls is not None:
            stages[each.name] = cls
            step = _build(each, cls, stages, problems)
            if step is not None:
                steps.append(step)
    return steps


def _stage_class(
    written: DraftStep, wrong: dict[type[Stage], list[str]], problems: list[Problem]
) -> type[Stage] | None:
    """Returns the class that `use` names; None if it has a mistake. wrong: mistakes of the classes checked so far."""
    where, use = place(written.params, ["use"], written.params.where), written.params.get("use")
    if not isinstance(use, str):
        if not written.broken:  # `use` may be that of the step it wanted to be the same as
            problems.append(where.problem(f"{written.base}: wanted a mapping with use: MODULE:CLASS"))
        return None
    try:
        cls = find(use, STAGES)
    except ValueError as error:
        problems.append(where.problem(f"{written.base}.use: {error}"))
        return None
    if cls not in wrong:
        wrong[cls] = class_problems(cls, STEP_KEYS)
    problems += [where.problem(f"{written.base}.use: {text}") for text in wrong[cls]]
    return None if wrong[cls] else cls


def _build(
    written: DraftStep, cls: type[Stage], stages: Mapping[str, type[Stage]], problems: list[Problem]
) -> Step | None:
    before, params = len(problems), written.params
    engine = validate(
        EngineKeys, params.without(*(k for k in params if k not in ENGINE_KEYS)), written.base, problems
    )
    stage = validate(cls, params.without(*STEP_KEYS), written.base, problems, also=STEP_KEYS)
    if stage is not None and engine is not None:
        stage = _completed(
            written, stage.with_resources(engine.resources.cpus, engine.resources.gpus), problems
        )
    for key, text in idle_keys(cls, params):
        problems.append(params.at[key].problem(f"{written.base}: {text}"))
    _check_inputs(written, cls, problems)
    own = None if stage is None else _as_json(written, stage, problems)
    _check_timeout(written, cls, problems)
    if stage is not None and not written.broken:
        _check_files(written, stage, stages, problems)
    if stage is None or own is None or engine is None or len(problems) > before or written.broken:
        return None
    return Step(
        name=written.name,
        use=params["use"],
        stage=stage,
        inputs=written.inputs,
        params=own,
        line=params.where.line,
        in_cell=bool(written.cell),
        shard_rows=engine.shard_rows or getattr(cls, "SHARD_ROWS", SHARD_ROWS),
        **{key: getattr(engine, key) for key in ENGINE_KEYS if key != "shard_rows"},
    )


def _completed(written: DraftStep, stage: Stage, problems: list[Problem]) -> Stage | None:
    """Returns the stage with the parameters that follow from the names of its inputs; None if these do not fit."""
    if written.broken:  # its inputs may be incomplete, which is reported
        return stage
    try:
        return stage.with_inputs(written.inputs)
    except VlpipeError as error:
        problems.append(written.params.where.problem(f"{written.base}: {error}"))
        return None


def _as_json(written: DraftStep, stage: Stage, problems: list[Problem]) -> dict[str, Any] | None:
    """Returns the stage's parameters as a dict of JSON values. If a value has no JSON form, adds this to `problems` and
    returns None."""
    found, before = {}, len(problems)
    for field in dataclasses.fields(stage):  # type: ignore[arg-type]  # every stage is a dataclass
        try:
            found[field.name] = recorded(stage, field.name)
            canonical_json(found[field.name])
        except (VlpipeError, TypeError, ValueError) as error:
            where = place(written.params, [field.name], written.params.where)
            problems.append(where.problem(f"{written.base}.{field.name}: {error}"))
    return found if len(problems) == before else None


def _check_inputs(written: DraftStep, cls: type[Stage], problems: list[Problem]) -> None:
    if issubclass(cls, SourceStage) and written.inputs:
        text = f"{cls.__name__} lists its own rows, so it cannot have from:"
    elif (
        issubclass(cls, MapStage)
        and not issubclass(cls, SourceStage)
        and not (written.inputs or written.broken)
    ):
        text = f"{cls.__name__} needs rows of a step above; add from: STEP"
    else:
        return
    problems.append(written.params.where.problem(f"{written.base}: {text}"))


def _check_timeout(written: DraftStep, cls: type[Stage], problems: list[Problem]) -> None:
    if written.params.get("row_group_timeout_s") is None:
        return
    if not issubclass(cls, MapStage):
        text = "gathers all rows; only map stages have a deadline per row group"
    elif cls.OBSERVES_WORLD:
        text = "has its own deadlines; to find the slow row the engine would have to request its rows again"
    else:
        return
    where = place(written.params, ["row_group_timeout_s"], written.params.where)
    problems.append(where.problem(f"{written.base}.row_group_timeout_s: {cls.__name__} {text}"))


def _check_files(
    written: DraftStep, stage: Stage, stages: Mapping[str, type[Stage]], problems: list[Problem]
) -> None:
    """Checks that file parameters exist and that `{from: STEP}` names a step that makes artifacts."""

    def say(path: str, text: str) -> None:
        keys = [int(k) if k.isdigit() else k for k in path.split(".")]
        problems.append(
            place(written.params, keys, written.params.where).problem(
                f"{one_line(f'{written.base}.{path}', 120)}: {text}"
            )
        )

    for path, file in files_of(stage):
        target = stages.get(file.step) if file.step else None
        if target is not None and not issubclass(target, GatherStage):
            say(
                path, f"step {shown(base_name(str(file.step)))} ({target.__name__}) makes rows, not artifacts"
            )
        elif file.step is None and file.path and not _is_there(file):
            hub = "; a hub id looks like ORG/NAME" if isinstance(file, Weights) else ""
            say(path, f"there is no file or folder {shown(file.path, 400)} (from {os.getcwd()}){hub}")
        elif file.step is None and file.path:
            for text in file_problems(file):
                say(path, text)
    for path, name in stray_references(stage):
        say(
            path,
            f"{{from: {base_name(name)}}} is only for file parameters; this one is plain data",
        )


def _is_there(file: File) -> bool:
    return os.path.exists(file.path) or (isinstance(file, Weights) and bool(HUB_ID.fullmatch(file.path)))


def _preflight(steps: Sequence[Step], problems: list[Problem]) -> None:
    stages = {step.name: step.stage for step in steps}
    for step in steps:
        try:
            texts = step.stage.preflight() or step.stage.preflight_after(stages)
        except Exception as error:
            texts = [error_text(error, step, "preflight") + _set_options(error, step)]
        problems += [(step.line, f"{base_name(step.name)}: {text}") for text in texts]


def _set_options(error: Exception, step: Step) -> str:
    """Returns `; use --set STEP.KEY=VALUE ...` if the error says which parameters would avoid it; else empty."""
    settings = error.settings if isinstance(error, VlpipeError) else ()
    options = [shlex.quote(f"{base_name(step.name)}.{key}={value}") for key, value in settings]
    return f"; use {' '.join(f'--set {one}' for one in options)}" if options else ""
