"""Builds the list of steps that run: applies profile and --set to the file, unrolls `repeat` and `matrix`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from vlpipe.pipeline.errors import did_you_mean, shown
from vlpipe.pipeline.workflow.draft import NOT_NAMES, DraftStep, Setting, check_name
from vlpipe.pipeline.workflow.loop import loop_and_rounds, repeated
from vlpipe.pipeline.workflow.matrix import cells, fill, matrix_axes, name_in
from vlpipe.pipeline.workflow.references import References
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, Seq, Where, merge, parse_typed, place

MAX_STEPS = 10_000  # after `repeat` and `matrix`


def written_steps(
    file: Map, profile: str | None, sets: Sequence[str], problems: list[Problem]
) -> list[DraftStep]:
    """Returns the steps in the order they run. file: a parsed workflow; mistakes are added to `problems`."""
    steps = _declared(file, problems)
    settings = [s for text in sets if (s := _setting(text, problems))]
    chosen = _profile(file, profile, steps, problems)
    repeat = repeated(file, chosen, problems)
    removed = {
        name: f"profile {shown(profile)} removed this step"
        for name in steps
        if name in chosen and chosen[name] is None
    }
    added = {name: params for name, params in chosen.items() if name not in steps and _is_step(params)}
    kept: dict[str, Map] = {}
    placed = _placed(steps, added, problems)
    for name, params in placed.items():
        if name not in removed:
            kept[name] = merge(params, chosen[name]) if name in chosen and name not in added else params
    axes = matrix_axes(file, chosen, [s for s in settings if s.step == "matrix"], problems)
    before = len(problems)
    names = [n for n in placed if n not in removed or n in _loop_names(repeat)]
    of_loop = [s for s in settings if s.step in ("repeat", "rounds")]
    loop, rounds = loop_and_rounds(repeat, of_loop, names, problems)
    loop_is_known = len(problems) == before
    in_cells = {name: (params, cells(name, params, axes, problems)) for name, params in kept.items()}
    num = sum(max(1, len(found)) * (rounds if name in loop else 1) for name, (_, found) in in_cells.items())
    if num > MAX_STEPS:
        text = f"{num:,} steps by rounds and matrix, at most {MAX_STEPS:,} are allowed"
        problems.append(place(file, ["steps"], file.where).problem(text))
        return []
    unrolled = _unroll(in_cells, [n for n in loop if n in kept], rounds)
    for setting in settings:
        if setting.step not in NOT_NAMES:
            _apply(setting, unrolled, removed, problems)
    if axes:
        for step in unrolled:
            fill(step, axes, problems)
    _inherit(unrolled, removed, problems)
    References(unrolled, removed, rounds, axes, problems, loop_is_known).resolve_all()
    return unrolled


def _declared(file: Map, problems: list[Problem]) -> dict[str, Map]:
    steps, found = file.get("steps"), dict[str, Map]()
    if not isinstance(steps, Map) or not steps:
        problems.append(
            place(file, ["steps"], file.where).problem("steps: wanted a mapping NAME: {use: ..., ...}")
        )
        return found
    for name, params in steps.items():
        check_name(name, steps.at[name], problems)
        # An empty mapping has no `use`, which is reported later.
        found[name] = params if isinstance(params, Map) else Map(steps.at[name])
        found[name].where = steps.at[name]  # missing parameters are reported on this line
    return found


def _placed(steps: Mapping[str, Map], added: Mapping[str, Map], problems: list[Problem]) -> dict[str, Map]:
    """Returns the steps of the file and those that a profile adds: each directly above the step that its `above` names, in
    the order of the profile; without `above`, below all of the file."""
    placed: dict[str, Map] = {}
    above: dict[str, dict[str, Map]] = {name: {} for name in steps}
    last: dict[str, Map] = {}
    for name, params in added.items():
        target = params.get("above")
        if "above" in params and (not isinstance(target, str) or target not in steps):
            near = did_you_mean(str(target), steps)
            problems.append(
                params.at["above"].problem(f"{name}.above: no step {shown(target)} in the file{near}")
            )
        place_in = above[target] if isinstance(target, str) and target in steps else last
        place_in[name] = params.without("above")
    for name, params in steps.items():
        placed |= {**above[name], name: params}
    return {**placed, **last}


def _loop_names(repeat: Map | None) -> Sequence[object]:
    """Returns what stands in `repeat.steps`, if it is a list."""
    names = repeat.get("steps") if repeat is not None else None
    return names if isinstance(names, Seq) else ()


def _is_step(params: object) -> bool:
    """Whether a profile's mapping is a step of its own, which it adds below those of the file."""
    return isinstance(params, Map) and ("use" in params or "same_as" in params)


def _profile(file: Map, profile: str | None, steps: Mapping[str, Map], problems: list[Problem]) -> Map:
    """Returns the overrides of the chosen profile, STEP -> parameters or None for a removed step; empty without a profile.

    A mapping with `use` or `same_as` under a name that the file does not have is a step that the profile adds.

    Mistakes in the other profiles are reported too.
    """
    profiles = file.get("profiles", Map(file.where))
    nothing = Map(file.where)
    if not isinstance(profiles, Map):
        problems.append(file.at["profiles"].problem("profiles: wanted a mapping PROFILE: {STEP: {...}}"))
        return nothing
    every = [over for over in profiles.values() if isinstance(over, Map)]
    added = {step for over in every for step, params in over.items() if _is_step(params)}
    for name, over in profiles.items():
        where = profiles.at[name]
        if not isinstance(over, Map):
            problems.append(
                where.problem(f"profiles.{name}: wanted a mapping STEP: {{...}}, or STEP: null to remove it")
            )
            profiles[name] = nothing
            continue
        for step, params in list(over.items()):
            if _is_step(params) and step not in steps and step not in NOT_NAMES:
                check_name(step, over.at[step], problems)
                params.where = over.at[step]
            elif params is None and step in added:
                continue  # taken out of a profile that this one is merged with
            elif step not in ("repeat", "matrix") and step not in steps:
                text = f"profiles.{name}.{step}: no such step{did_you_mean(step, steps)}"
                problems.append(over.at[step].problem(text))
            elif not isinstance(params, Map) and (params is not None or step in NOT_NAMES):
                problems.append(over.at[step].problem(f"profiles.{name}.{step}: wanted a mapping or null"))
                del over[step]
    if profile is not None and profile not in profiles:
        text = f"there is no such profile{did_you_mean(profile, profiles) or '; the file has none'}"
        problems.append(Where(0, f"--profile {profile}").problem(text))
    chosen = profiles.get(profile, nothing) if profile is not None else nothing
    assert isinstance(chosen, Map)
    return chosen


def _setting(text: str, problems: list[Problem]) -> Setting | None:
    where = Where(0, f"--set {text}")
    left, equals, value = text.partition("=")
    step, *keys = left.strip().split(".")
    if not equals or not step or not all(keys) or (not keys and step != "rounds"):
        problems.append(where.problem("wanted STEP.KEY=VALUE, or rounds=N"))
        return None
    before = len(problems)
    parsed = parse_typed(value, problems, where.said)
    return (
        Setting(step=step, keys=tuple(keys), value=parsed, where=where) if len(problems) == before else None
    )


def _unroll(
    steps: Mapping[str, tuple[Map, list[dict[str, str]]]], loop: Sequence[str], rounds: int
) -> list[DraftStep]:
    """Returns one step per round and cell. steps: name -> (parameters, cells of the matrix)."""
    made: list[DraftStep] = []

    def add(base: str, of_round: int) -> None:
        params, in_cells = steps[base]
        for cell in in_cells or [{}]:
            name = name_in(base, cell) + (f"@{of_round}" if of_round else "")
            own = copy.deepcopy(params.without("matrix"))
            made.append(
                DraftStep(name=name, base=base, round=of_round, params=own, cell=cell, broken=not in_cells)
            )

    for name in steps:
        if name not in loop:
            add(name, 0)
        elif name == loop[0]:
            for k in range(1, rounds + 1):
                for inner in loop:
                    add(inner, k)
    return made


def _apply(
    setting: Setting, steps: Sequence[DraftStep], removed: Mapping[str, str], problems: list[Problem]
) -> None:
    """Applies one --set to each step it names: `caption.top_p=0.8` to all of `caption`, `caption@2.top_p=0.8` to a round.

    With a matrix, `caption@cf-0.top_p=0.8` to one cell.

    removed: name of a step that the profile removed -> text that says so.
    """
    targets = [s for s in steps if setting.step in (s.name, s.base, name_in(s.base, s.cell))]
    if not targets:
        known = list(dict.fromkeys(n for s in steps for n in (s.base, s.name)))
        why = (
            removed.get(setting.step)
            or f"there is no step {shown(setting.step)}{did_you_mean(setting.step, known)}"
        )
        problems.append(setting.where.problem(why))
    *outer, last = setting.keys
    if setting.keys[0] == "matrix":
        text = "--set cannot change the axes of a step; a profile can, and --set matrix.AXIS=[...] the values of an axis"
        problems.append(setting.where.problem(text))
        return
    for step in targets:
        at = step.params
        for depth, key in enumerate(outer, 1):
            if at.get(key) is None:
                at.put(key, Map(setting.where), setting.where)
            if not isinstance(at[key], Map):
                path = ".".join((step.base, *outer[:depth]))
                problems.append(setting.where.problem(f"{path} is {shown(at[key])}, which has no keys"))
                return
            at = at[key]
        at.put(last, copy.deepcopy(setting.value), setting.where)


def _inherit(steps: Sequence[DraftStep], removed: Mapping[str, str], problems: list[Problem]) -> None:
    """Gives each step with `same_as: STEP` the keys of that step, profile and --set included; its own keys replace them."""
    for at, step in enumerate(steps):
        if "same_as" not in step.params:
            continue
        name, where = step.params["same_as"], step.params.at["same_as"]
        own = step.params = step.params.without("same_as")
        above = [s for s in steps[:at] if s.round in (0, step.round) and name in (s.name, s.base)]
        if found := [s for s in above if s.name == name or _fits(s, step)]:
            step.params = merge(copy.deepcopy(found[-1].params), own)
            continue
        if above:
            axes = [axis for axis in above[-1].cell if axis not in step.cell]
            text = (
                f"{shown(name)} is one step for each {' and '.join(axes)}; name one, such as {above[-1].name}"
            )
            problems.append(where.problem(f"{step.base}.same_as: {text}"))
            step.broken = True
            continue
        step.broken = True
        known = [s.base for s in steps[:at] if s.round in (0, step.round)]
        why = removed.get(name) if isinstance(name, str) else None
        why = why or f"wanted a step above, got {shown(name)}{did_you_mean(str(name), known)}"
        problems.append(where.problem(f"{step.base}.same_as: {why}"))


def _fits(one: DraftStep, step: DraftStep) -> bool:
    """Whether `step` has all axes of `one`, with the same labels."""
    return all(step.cell.get(axis) == label for axis, label in one.cell.items())
