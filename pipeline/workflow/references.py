"""Resolves the step names in `from:` and in file parameters: rounds of `repeat`, cells of `matrix`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlpipe.pipeline.errors import did_you_mean, one_line, shown
from vlpipe.pipeline.workflow.draft import DraftStep
from vlpipe.pipeline.workflow.matrix import Axes, label_of, name_in
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, RefusedScalar, Seq, Where

REFERENCE_KEYS = {"from", "path", "first"}


@dataclass
class References:
    """Resolves step names: what a name means depends on the step, the round and the cell that use it."""

    steps: Sequence[DraftStep]
    removed: Mapping[str, str]  # step that the profile removed -> text that says so
    rounds: int
    axes: Axes
    problems: list[Problem]
    loop_is_known: bool  # False if `repeat` itself has a mistake, which is already reported
    _at: int = 0  # index of the step being resolved
    _path: str = ""  # dotted path inside that step, for error texts
    _above: dict[str, list[DraftStep]] = field(
        default_factory=lambda: defaultdict(list)
    )  # name or base -> steps

    def resolve_all(self) -> None:
        """Sets `inputs` of all steps, and puts the full step name into each file parameter."""
        self._loop = frozenset(s.base for s in self.steps if s.round)
        for at, step in enumerate(self.steps):
            self._at, before = at, len(self.problems)
            if "from" in step.params:
                self._path = f"{step.base}.from"
                step.inputs = self._inputs(step.params["from"], step.params.at["from"])
                step.params = step.params.without("from")
            self._files(step.params, step.base)
            step.broken = step.broken or len(self.problems) > before
            for name in {step.name, step.base, name_in(step.base, step.cell)}:
                self._above[name].append(step)

    def _inputs(self, value: object, where: Where) -> tuple[str, ...]:
        if isinstance(value, Seq):
            items = list(zip(value, value.at, strict=True))
        else:
            items = [] if value is None else [(value, where)]
        found: list[str] = []
        for item, at in items:
            for name in self._resolve(item, at):
                if name in found:
                    self._report(at, f"{shown(name)} is listed twice")
                else:
                    found.append(name)
        return tuple(found)

    def _files(self, node: object, path: str) -> None:
        """Resolves each {from: STEP, path: NAME} below `node`, in place."""
        if (
            isinstance(node, Map)
            and isinstance(node.get("from"), str)
            and not set(node) - REFERENCE_KEYS - set(self.axes)
        ):
            self._path = path
            names = self._resolve(node.without("path"), node.at["from"])
            if len(names) > 1:
                self._report(node.at["from"], self._many(names))
            node["from"] = names[0] if names else node["from"]
            for key in ("first", *self.axes):
                node.pop(key, None)
            return
        inside = node if isinstance(node, Map) else dict(enumerate(node)) if isinstance(node, Seq) else {}
        for inner, item in inside.items():
            self._files(item, f"{path}.{inner}")

    def _resolve(self, item: object, where: Where) -> list[str]:
        """Returns the steps that NAME or {from: NAME, AXIS: LABEL} or {from: NAME@previous, first: NAME} refers to.

        A name whose matrix has an axis that the referring step lacks, and that is not fixed by AXIS, means several steps.
        Returns [] if it has a mistake.
        """
        text, first, labels = item, None, dict[str, list[str]]()
        if isinstance(item, Map):
            text, first = item.get("from"), item.get("first")
            labels = {axis: _labels(item[axis]) for axis in self.axes if axis in item}
        if isinstance(text, RefusedScalar):
            self.steps[self._at].broken = True
            return []
        known_keys = {"from", "first", *self.axes}
        if not isinstance(text, str) or (isinstance(item, Map) and not set(item) <= known_keys):
            of_axes = ", {from: NAME, AXIS: LABEL}" if self.axes else ""
            wanted = f"the name of a step, a list of names{of_axes}, or {{from: NAME@previous, first: NAME}}"
            self._report(where, f"wanted {wanted}, got {shown(item)}")
            return []
        base, _, which = text.partition("@")
        if which == "previous":
            return self._previous(base, first, labels, where)
        if first is not None:
            self._report(where, f"first: is only for {base}@previous, not for {shown(text)}")
            return []
        return self._named(text, labels, where)

    def _previous(
        self, base: str, first: object, labels: Mapping[str, Sequence[str]], where: Where
    ) -> list[str]:
        step = self.steps[self._at]
        if not self.loop_is_known:
            step.broken = True
            return []
        for who, inside in ((step.base, step.round), (base, base in self._loop)):
            if not inside:
                self._report(where, f"@previous is only for steps of repeat, and {shown(who)} is not one")
                return []
        if not isinstance(first, str):
            self._report(
                where, f"the input of round 1 is missing: wanted {{from: {base}@previous, first: NAME}}"
            )
            return []
        if step.round == 1:
            return self._named(first, labels, where)
        before = [one for one in self._above[base] if one.round == step.round - 1]
        return self._in_cells(base, before, labels, where)

    def _named(self, text: str, labels: Mapping[str, Sequence[str]], where: Where) -> list[str]:
        step = self.steps[self._at]
        wanted_round = (step.round or self.rounds) if text.partition("@")[0] in self._loop else 0
        found = [one for one in self._above[text] if text == one.name or one.round == wanted_round]
        if found:
            return self._in_cells(text, found, labels, where)
        above = self.steps[: self._at]
        known = list(dict.fromkeys(s.base for s in above if s.round in (0, step.round or s.round)))
        name = f"{text}@{wanted_round}" if wanted_round else text
        self._report(where, self._why_not(text, name, known))
        return []

    def _in_cells(
        self, text: str, found: Sequence[DraftStep], labels: Mapping[str, Sequence[str]], where: Where
    ) -> list[str]:
        """Returns those of the steps that have the labels asked for; else, the labels of the step that asks."""
        own = {} if "@" in text else self.steps[self._at].cell
        for axis, wanted in labels.items():
            there = dict.fromkeys(one.cell.get(axis) for one in found)
            missing = [label for label in wanted if label not in there]
            if not wanted:
                self._report(
                    where, f"{axis}: wanted a label of {shown(text)}: {', '.join(filter(None, there))}"
                )
                return []
            if None in there:
                self._report(where, f"{shown(text)} has no axis {axis}")
                return []
            if missing:
                known = did_you_mean(missing[0], [label for label in there if label])
                self._report(where, f"{shown(text)} has no {axis} {shown(missing[0])}{known}")
                return []
        asked = {**{axis: [label] for axis, label in own.items()}, **labels}
        return [
            one.name
            for one in found
            if all(label in asked.get(axis, [label]) for axis, label in one.cell.items())
        ]

    def _many(self, names: Sequence[str]) -> str:
        """Returns the problem of a reference that means several steps where one is wanted. names: of these steps."""
        step = self.steps[self._at]
        (found,) = self._above[names[0]]
        axes = [axis for axis in found.cell if axis not in step.cell] or list(found.cell)
        fix = "".join(f", {axis}: LABEL" for axis in axes)
        own = [*step.cell, *(axis for axis in axes if axis not in step.cell)]
        return (
            f"{shown(found.base)} is one step for each {' and '.join(axes)}; write {{from: {found.base}{fix}}}, "
            f"or matrix: [{', '.join(own)}] for this step"
        )

    def _why_not(self, text: str, name: str, above: list[str]) -> str:
        listed = f"steps above: {', '.join(above)}" if above else "there is no step above"
        if text in self.removed:
            return f"{self.removed[text]}: {shown(text)}; {listed}"
        step = self.steps[self._at]
        if text == step.base or name == step.name:
            return f"{shown(text)} is this step itself; {listed}"
        if any(name in (s.name, s.base) for s in self.steps):
            return f"{shown(text)} is below this step, and a step reads only steps above it; {listed}"
        near = did_you_mean(text, above)
        return f"no step {shown(text)} above{f'{near} ({listed})' if near.endswith('?') else f'; {listed}'}"

    def _report(self, where: Where, text: str) -> None:
        self.problems.append(where.problem(f"{one_line(self._path, 120)}: {text}"))


def _labels(value: object) -> list[str]:
    many = value if isinstance(value, Seq) else [value]
    return [str(label_of(one)) for one in many]
