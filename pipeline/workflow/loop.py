"""`repeat:` of a workflow: steps that run once per round."""

from __future__ import annotations

from collections.abc import Sequence

from vlpipe.pipeline.errors import did_you_mean, shown
from vlpipe.pipeline.workflow.draft import Setting
from vlpipe.pipeline.workflow.yaml_lines import Map, Problem, Seq, merge, place

MAX_ROUNDS = 1_000


def repeated(file: Map, chosen: Map, problems: list[Problem]) -> Map | None:
    """Returns the file's `repeat:` with the profile's overrides applied; None if neither has one."""
    repeat = file.get("repeat")
    if not isinstance(repeat, Map | None):
        problems.append(file.at["repeat"].problem("repeat: wanted {rounds: N, steps: [...]}"))
        return None
    if "repeat" not in chosen:
        return repeat
    merged: Map = merge(repeat or Map(chosen.where), chosen["repeat"])
    return merged


def loop_and_rounds(
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
