"""Edits of what steps a workflow has, in what order, and what they read."""

from __future__ import annotations

import random

from incremental.project import (
    KEEPS_ROWS,
    MODULES,
    Project,
    Step,
    add_source,
    add_step,
    artifact_steps,
    draw_params,
    sources,
)


def rounds(project: Project, rng: random.Random) -> str:
    """`repeat` around one or two steps; one round more, or one less."""
    flow = project.flow
    if flow.loop:
        flow.rounds = rng.choice([n for n in (1, 2, 3) if n != flow.rounds])
        return f"{flow.rounds} rounds of {flow.loop}"
    loops = _loops(project)
    if not loops:
        return ""
    flow.loop, flow.rounds = rng.choice(loops), rng.choice([1, 1, 2])
    return f"{flow.rounds} round(s) of {flow.loop}"


def one_round(project: Project, rng: random.Random) -> str:
    """`repeat: {rounds: 1}` around finished steps, or away again."""
    flow = project.flow
    if flow.loop:
        flow.loop, flow.rounds = [], 1
        return "no repeat"
    loops = _loops(project)
    if not loops:
        return ""
    flow.loop, flow.rounds = rng.choice(loops), 1
    return f"1 round of {flow.loop}"


def _loops(project: Project) -> list[list[str]]:
    found = []
    for at, a in enumerate(project.flow.steps):
        if a.kind in KEEPS_ROWS and len(a.inputs) == 1:
            found.append([a.name])
            b = project.flow.steps[at + 1] if at + 1 < len(project.flow.steps) else None
            if b is not None and b.kind in KEEPS_ROWS and b.inputs == [a.name]:
                found.append([a.name, b.name])
    return found


def remove_step(project: Project, rng: random.Random) -> str:
    """A step goes; what is below it takes its input, or goes too."""
    flow = project.flow
    can = [s for s in flow.steps if s.kind != "Fetch"]
    if len(can) < 2:
        return ""
    step = rng.choice(can)
    gone = _take_out(project, step)
    return f"{', '.join(gone)} removed"


def _take_out(project: Project, step: Step) -> list[str]:
    flow, gone = project.flow, [step.name]
    while below := next((s for s in flow.below(step.name) if s is not step), None):
        if step.name in artifact_steps(below) and below.kind != "Fetch":
            for where, file in list(below.files()):
                if isinstance(file, dict) and file["from"] == step.name:
                    below.put_file(where, "files/t0.txt")
        elif step.kind in KEEPS_ROWS and step.inputs[0] not in below.inputs:
            below.inputs = [step.inputs[0] if i == step.name else i for i in below.inputs]
        else:
            gone += _take_out(project, below)
    flow.steps = [s for s in flow.steps if s.name != step.name]
    if set(gone) & set(flow.loop):
        flow.loop, flow.rounds = [], 1
    flow.profiles = {p: {s: v for s, v in over.items() if s not in gone} for p, over in flow.profiles.items()}
    return gone


def new_step(project: Project, rng: random.Random) -> str:
    step = add_step(project, rng, rng.choice([k for k in MODULES if k not in ("Fetch", "Fancy")]))
    return f"{step.name}: {step.kind} of {step.inputs}, {step.params}"


def between(project: Project, rng: random.Random) -> str:
    """A new step between two others."""
    flow = project.flow
    can = [s for s in flow.steps if s.inputs and s.name not in flow.loop]
    if not can:
        return ""
    below = rng.choice(can)
    above = below.inputs[0]
    step = Step(project.new("t"), "Tag", [above], draw_params(rng, "Tag"))
    flow.steps.insert(flow.steps.index(below), step)
    below.inputs[0] = step.name
    return f"{step.name} between {above} and {below.name}"


def new_source(project: Project, rng: random.Random) -> str:
    """A source more; its list is a file, or an artifact of a step. Its rows join others where a step takes them."""
    flow = project.flow
    makers = [s.name for s in flow.steps if s.kind == "Total"]
    list_ = {"from": makers[-1], "path": "list.txt"} if makers and rng.random() < 0.6 else None
    step = add_source(project, rng, list_)
    takers = [s for s in flow.steps if s.kind in KEEPS_ROWS and flow.columns(s.name) == "full"]
    takers = [s for s in takers if s.name not in flow.loop]
    if list_ is None and takers:
        flow.steps.insert(0, flow.steps.pop())
        taker = rng.choice(takers)
        taker.inputs.insert(rng.randint(0, 1), step.name)
        return f"source {step.name}, which {taker.name} takes too"
    below = add_step(project, rng, "Tag")
    below.inputs = [step.name]
    return f"source {step.name} of {list_}, and {below.name}"


def other_input(project: Project, rng: random.Random) -> str:
    """The inputs of a step come in another order; one is left out; or there is one more."""
    flow = project.flow
    many = [s for s in flow.steps if len(s.inputs) > 1]
    if many:
        step = rng.choice(many)
        step.inputs = step.inputs[::-1] if rng.random() < 0.5 else step.inputs[1:]
        return f"{step.name} takes {step.inputs}"
    for step in rng.sample(flow.steps, len(flow.steps)):
        above = flow.steps[: flow.steps.index(step)]
        if step.kind not in (*KEEPS_ROWS, "Rank") or step.name in flow.loop:
            continue
        for other in above:
            same = flow.columns(other.name) == flow.columns(step.inputs[0])
            if same and not sources(flow, other.name) & sources(flow, step.inputs[0]):
                step.inputs.append(other.name)
                return f"{step.name} takes {step.inputs}"
    two = [s.name for s in flow.steps if s.kind == "Fetch" and isinstance(s.params["list"], str)][:2]
    step = add_step(project, rng, "Tag")
    step.inputs = two
    return f"{step.name} takes {two}"
