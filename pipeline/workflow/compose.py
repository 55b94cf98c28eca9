"""Builds the list of steps that run: applies profile and --set to the file, unrolls `repeat`, resolves step names."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.errors import did_you_mean, one_line, shown
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, Seq, Where, merge, parse_typed, place

STEP_NAME = re.compile(r"[a-z][a-z0-9_]*")
REFERENCE_KEYS = {"from", "path", "first"}
MAX_NAME = 100  # a step name is part of a folder name
MAX_ROUNDS = 1_000
NOT_NAMES = ("repeat", "rounds")  # reserved: --set rounds=2 and a profile's `repeat:` refer to the loop


@dataclass(kw_only=True)
class DraftStep:
    """A step that will run, before its stage class is known. base: its name in the file (`caption` for `caption@2`)."""

    name: str
    base: str
    round: int  # from 1; 0 outside the loop
    params: Map
    inputs: tuple[str, ...] = ()
    broken: bool = False  # a step name in it could not be resolved


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One `--set step.key=value`. For `rounds=2`, `step` is `rounds` and `keys` is empty."""

    step: str
    keys: tuple[str, ...]
    value: object
    where: Where


def written_steps(
    file: Map, profile: str | None, sets: Sequence[str], problems: list[Problem]
) -> list[DraftStep]:
    """Returns the steps in the order they run. file: a parsed workflow; mistakes are added to `problems`."""
    steps = _declared(file, problems)
    settings = [s for text in sets if (s := _setting(text, problems))]
    chosen = _profile(file, profile, steps, problems)
    repeat = _repeated(file, chosen, problems)
    removed = {
        name: f"profile {shown(profile)} removed this step"
        for name in steps
        if name in chosen and chosen[name] is None
    }
    added = {name: params for name, params in chosen.items() if name not in steps and _is_step(params)}
    kept: dict[str, Map] = {}
    for name, params in {**steps, **added}.items():
        if name not in removed:
            kept[name] = merge(params, chosen[name]) if name in chosen and name not in added else params
    before = len(problems)
    names = [n for n in [*steps, *added] if n not in removed or n in _loop_names(repeat)]
    loop, rounds = _repeat(repeat, [s for s in settings if s.step in NOT_NAMES], names, problems)
    loop_is_known = len(problems) == before
    unrolled = _unroll(kept, [n for n in loop if n in kept], rounds)
    for setting in settings:
        if setting.step not in NOT_NAMES:
            _apply(setting, unrolled, removed, problems)
    _inherit(unrolled, removed, problems)
    _Names(unrolled, removed, rounds, problems, loop_is_known).resolve_all()
    return unrolled


def _declared(file: Map, problems: list[Problem]) -> dict[str, Map]:
    steps, found = file.get("steps"), dict[str, Map]()
    if not isinstance(steps, Map) or not steps:
        problems.append(
            place(file, ["steps"], file.where).problem("steps: wanted a mapping NAME: {use: ..., ...}")
        )
        return found
    for name, params in steps.items():
        _check_name(name, steps.at[name], problems)
        # An empty mapping has no `use`, which is reported later.
        found[name] = params if isinstance(params, Map) else Map(steps.at[name])
        found[name].where = steps.at[name]  # missing parameters are reported on this line
    return found


def _check_name(name: str, where: Where, problems: list[Problem]) -> None:
    if not STEP_NAME.fullmatch(name) or name in NOT_NAMES or len(name) > MAX_NAME:
        why = "wanted lower-case letters, digits and _, a letter first"
        why = f"wanted at most {MAX_NAME} characters" if len(name) > MAX_NAME else why
        why = "is reserved for the loop; give the step another name" if name in NOT_NAMES else why
        problems.append(where.problem(f"step name {shown(name)}: {why}"))


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
            if _is_step(params) and step not in steps and step != "repeat":
                _check_name(step, over.at[step], problems)
                params.where = over.at[step]
            elif params is None and step in added:
                continue  # taken out of a profile that this one is merged with
            elif step != "repeat" and step not in steps:
                text = f"profiles.{name}.{step}: no such step{did_you_mean(step, steps)}"
                problems.append(over.at[step].problem(text))
            elif not isinstance(params, Map) and (params is not None or step == "repeat"):
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


def _repeated(file: Map, chosen: Map, problems: list[Problem]) -> Map | None:
    """Returns the file's `repeat:` with the profile's overrides applied; None if neither has one."""
    repeat = file.get("repeat")
    if not isinstance(repeat, Map | None):
        problems.append(file.at["repeat"].problem("repeat: wanted {rounds: N, steps: [...]}"))
        return None
    if "repeat" not in chosen:
        return repeat
    merged: Map = merge(repeat or Map(chosen.where), chosen["repeat"])
    return merged


def _repeat(
    repeat: Map | None, settings: Sequence[Setting], steps: list[str], problems: list[Problem]
) -> tuple[list[str], int]:
    """Returns (names of the steps in the loop, in file order; number of rounds); without `repeat`, ([], 1).

    settings: those for the rounds, such as `--set rounds=2`; steps: names of all steps of the file, in its order.
    """
    if repeat is None:
        problems += [
            s.where.problem("the workflow has no `repeat`, so there are no rounds to set") for s in settings
        ]
        return [], 1
    for key in repeat.keys() - {"rounds", "steps"}:
        problems.append(
            repeat.at[key].problem(f"repeat.{key}: unknown{did_you_mean(key, ('rounds', 'steps'))}")
        )
    rounds, where = repeat.get("rounds", 1), place(repeat, ["rounds"], repeat.where)
    for setting in settings:
        if setting.keys not in ((), ("rounds",)):
            problems.append(
                setting.where.problem("--set changes only `rounds` of `repeat`, as in --set rounds=2")
            )
        else:
            rounds, where = setting.value, setting.where
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= MAX_ROUNDS:
        wanted = "wanted a whole number from 1" + (f" to {MAX_ROUNDS:,}" if rounds else "")
        problems.append(where.problem(f"repeat.rounds: {wanted}, got {shown(rounds)}"))
        rounds = 1
    return _loop(repeat, steps, problems), rounds


def _loop(repeat: Map, steps: list[str], problems: list[Problem]) -> list[str]:
    names, where = repeat.get("steps"), place(repeat, ["steps"], repeat.where)
    if not isinstance(names, Seq) or not names:
        problems.append(where.problem("repeat.steps: wanted a list of step names"))
        return []
    for i, name in enumerate(names):
        if name not in steps:
            problems.append(
                names.at[i].problem(f"repeat.steps: no step {shown(name)}{did_you_mean(str(name), steps)}")
            )
    inside = [i for i, name in enumerate(steps) if name in names]
    between = [steps[i] for i in range(inside[0], inside[-1]) if i not in inside] if inside else []
    if between:
        text = f"repeat.steps: {', '.join(between)} is between these steps; add it, or move it above or below"
        problems.append(where.problem(text))
    return [steps[i] for i in inside]


def _unroll(steps: Mapping[str, Map], loop: Sequence[str], rounds: int) -> list[DraftStep]:
    made: list[DraftStep] = []
    for name, params in steps.items():
        if name not in loop:
            made.append(DraftStep(name=name, base=name, round=0, params=copy.deepcopy(params)))
        elif name == loop[0]:
            made += [
                DraftStep(name=f"{inner}@{k}", base=inner, round=k, params=copy.deepcopy(steps[inner]))
                for k in range(1, rounds + 1)
                for inner in loop
            ]
    return made


def _apply(
    setting: Setting, steps: Sequence[DraftStep], removed: Mapping[str, str], problems: list[Problem]
) -> None:
    """Applies one --set to each step it names: `caption.top_p=0.8` to all rounds of `caption`, `caption@2.top_p=0.8` to one.

    removed: name of a step that the profile removed -> text that says so.
    """
    targets = [s for s in steps if setting.step in (s.name, s.base)]
    if not targets:
        known = list(dict.fromkeys(n for s in steps for n in (s.base, s.name)))
        why = (
            removed.get(setting.step)
            or f"there is no step {shown(setting.step)}{did_you_mean(setting.step, known)}"
        )
        problems.append(setting.where.problem(why))
    *outer, last = setting.keys
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
        above = {n: s for s in steps[:at] if s.round in (0, step.round) for n in (s.name, s.base)}
        if isinstance(name, str) and name in above:
            step.params = merge(copy.deepcopy(above[name].params), own)
            continue
        step.broken = True
        known = [s.base for s in steps[:at] if s.round in (0, step.round)]
        why = removed.get(name) if isinstance(name, str) else None
        why = why or f"wanted a step above, got {shown(name)}{did_you_mean(str(name), known)}"
        problems.append(where.problem(f"{step.base}.same_as: {why}"))


@dataclass
class _Names:
    """Resolves step names: what a name means depends on the step and round that use it."""

    steps: list[DraftStep]
    removed: Mapping[str, str]
    rounds: int
    problems: list[Problem]
    loop_is_known: bool  # False if `repeat` itself has a mistake, which is already reported
    _at: int = 0  # index of the step being resolved
    _path: str = ""  # dotted path inside that step, for error texts

    def resolve_all(self) -> None:
        for at, step in enumerate(self.steps):
            self._at, before = at, len(self.problems)
            if "from" in step.params:
                self._path = f"{step.base}.from"
                step.inputs = self._inputs(step.params["from"], step.params.at["from"])
                step.params = step.params.without("from")
            self._files(step.params, step.base)
            step.broken = step.broken or len(self.problems) > before

    def _inputs(self, value: object, where: Where) -> tuple[str, ...]:
        if isinstance(value, Seq):
            items = list(zip(value, value.at, strict=True))
        else:
            items = [] if value is None else [(value, where)]
        found: list[str] = []
        for item, at in items:
            name = self._resolve(item, at)
            if name in found:
                self._report(at, f"{shown(name)} is listed twice")
            elif name is not None:
                found.append(name)
        return tuple(found)

    def _files(self, node: object, path: str) -> None:
        """Resolves each {from: STEP, path: NAME} below `node`, in place."""
        if isinstance(node, Map) and isinstance(node.get("from"), str) and not set(node) - REFERENCE_KEYS:
            self._path = path
            node["from"] = self._resolve(node.without("path"), node.at["from"]) or node["from"]
            node.pop("first", None)
            return
        inside = node.items() if isinstance(node, Map) else enumerate(node) if isinstance(node, Seq) else ()
        for key, item in inside:
            self._files(item, f"{path}.{key}")

    def _resolve(self, item: object, where: Where) -> str | None:
        """Returns the step that NAME or {from: NAME@previous, first: NAME} refers to; None if it has a mistake."""
        text, first = (item.get("from"), item.get("first")) if isinstance(item, Map) else (item, None)
        if not isinstance(text, str) or (isinstance(item, Map) and not set(item) <= {"from", "first"}):
            wanted = "the name of a step, a list of names, or {from: NAME@previous, first: NAME}"
            self._report(where, f"wanted {wanted}, got {shown(item)}")
            return None
        base, _, which = text.partition("@")
        if which == "previous":
            return self._previous(base, first, where)
        if first is not None:
            self._report(where, f"first: is only for {base}@previous, not for {shown(text)}")
            return None
        return self._above(text, where)

    def _previous(self, base: str, first: object, where: Where) -> str | None:
        step = self.steps[self._at]
        if not self.loop_is_known:
            step.broken = True
            return None
        for who, inside in ((step.base, step.round), (base, base in self._loop)):
            if not inside:
                self._report(where, f"@previous is only for steps of repeat, and {shown(who)} is not one")
                return None
        if not isinstance(first, str):
            self._report(
                where, f"the input of round 1 is missing: wanted {{from: {base}@previous, first: NAME}}"
            )
            return None
        return self._above(first, where) if step.round == 1 else f"{base}@{step.round - 1}"

    def _above(self, text: str, where: Where) -> str | None:
        step, above = self.steps[self._at], self.steps[: self._at]
        name = f"{text}@{step.round or self.rounds}" if text in self._loop else text
        if name in (s.name for s in above):
            return name
        known = list(dict.fromkeys(s.base for s in above if s.round in (0, step.round or s.round)))
        self._report(where, self._why_not(text, name, known))
        return None

    def _why_not(self, text: str, name: str, above: list[str]) -> str:
        listed = f"steps above: {', '.join(above)}" if above else "there is no step above"
        if text in self.removed:
            return f"{self.removed[text]}: {shown(text)}; {listed}"
        if name == self.steps[self._at].name:
            return f"{shown(text)} is this step itself; {listed}"
        if name in (s.name for s in self.steps):
            return f"{shown(text)} is below this step, and a step reads only steps above it; {listed}"
        near = did_you_mean(text, above)
        return f"no step {shown(text)} above{f'{near} ({listed})' if near.endswith('?') else f'; {listed}'}"

    @property
    def _loop(self) -> set[str]:
        return {s.base for s in self.steps if s.round}

    def _report(self, where: Where, text: str) -> None:
        self.problems.append(where.problem(f"{one_line(self._path, 120)}: {text}"))
