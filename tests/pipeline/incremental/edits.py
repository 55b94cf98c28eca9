"""What a person changes between runs. Each edit changes a project and returns what it did, or "" when it cannot be done."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from incremental.edit_steps import (
    between,
    new_source,
    new_step,
    one_round,
    other_input,
    remove_step,
    rounds,
)
from incremental.project import (
    GATHERS,
    KEEPS_ROWS,
    MODULES,
    Project,
    Step,
    add_step,
    draw_file,
    draw_params,
    frozen,
)


@dataclass(frozen=True)
class Edit:
    """needs: kinds of stages that make it possible; is_free: a finished root stays finished."""

    do: Callable[[Project, random.Random], str]
    needs: tuple[str, ...] = ()
    is_free: bool = False


def param(project: Project, rng: random.Random) -> str:
    step = rng.choice([s for s in project.flow.steps if s.kind != "Pair"] or project.flow.steps)
    before = dict(step.params)
    step.params.update(draw_params(rng, step.kind))
    return f"parameters of {step.name}: {before} -> {step.params}" if step.params != before else ""


def swap_files(project: Project, rng: random.Random) -> str:
    """Two parameters of one step; what they held are files outside, or steps' artifacts."""
    step = _one(project, rng, "Pair")
    if step is None:
        return ""
    if step.params["teacher"] == step.params["student"]:
        step.params["student"] = (
            "files/t1.txt" if step.params["teacher"] != "files/t1.txt" else "files/t2.txt"
        )
        return f"student of {step.name} is {step.params['student']}"
    step.params["teacher"], step.params["student"] = step.params["student"], step.params["teacher"]
    return f"teacher and student of {step.name} swapped"


def swap_artifacts(project: Project, rng: random.Random) -> str:
    """The artifacts of two steps, or of one step under two names, go in each other's place."""
    flow = project.flow
    makers = [s for s in flow.steps if s.kind == "Total"]
    if not makers:
        return ""
    pairs = [s for s in flow.steps[flow.steps.index(makers[min(1, len(makers) - 1)]) :] if s.kind == "Pair"]
    step = rng.choice(pairs) if pairs else add_step(project, rng, "Pair")
    a, b = [
        *({"from": s.name, "path": "total.txt"} for s in makers),
        {"from": makers[0].name, "path": "sub/ids.txt"},
    ][:2]
    if (step.params["teacher"], step.params["student"]) == (a, b):
        a, b = b, a
    step.params["teacher"], step.params["student"] = a, b
    return f"{step.name} has teacher {a}, student {b}"


def swap_in_list(project: Project, rng: random.Random) -> str:
    step = _one(project, rng, "Pair")
    if step is None:
        return ""
    more = step.params.get("more")
    step.params["more"] = more[::-1] if more and more[0] != more[-1] else ["files/t0.txt", "files/t1.txt"]
    return f"files `more` of {step.name}: {more} -> {step.params['more']}"


def swap_steps(project: Project, rng: random.Random) -> str:
    """Of two steps, one after the other, the second becomes the first."""
    flow, pairs = project.flow, []
    for at, (a, b) in enumerate(zip(flow.steps, flow.steps[1:], strict=False)):
        if a.kind in KEEPS_ROWS and b.kind in KEEPS_ROWS and b.inputs == [a.name]:
            pairs.append((at, a, b))
    if not pairs:
        return ""
    at, a, b = rng.choice(pairs)
    for other in flow.steps:
        names = {a.name: b.name, b.name: a.name}
        other.inputs = [names.get(i, i) for i in other.inputs]
    a.inputs, b.inputs = b.inputs, a.inputs
    flow.steps[at], flow.steps[at + 1] = b, a
    flow.loop = [s.name for s in flow.steps if s.name in flow.loop]
    if flow.loop and len({a.name, b.name} & set(flow.loop)) == 1:
        flow.loop = []
    return f"{b.name} comes before {a.name}"


def rename(project: Project, rng: random.Random) -> str:
    step = rng.choice([s for s in project.flow.steps if s.kind not in GATHERS])
    old, new = step.name, project.new("n")
    project.flow.rename(old, new)
    return f"{old} is called {new}"


def rename_gather(project: Project, rng: random.Random) -> str:
    steps = [s for s in project.flow.steps if s.kind in GATHERS]
    if not steps:
        return ""
    old, new = rng.choice(steps).name, project.new("n")
    project.flow.rename(old, new)
    return f"{old} is called {new}"


def code_of(project: Project, name: str, rng: random.Random) -> str:
    code = project.code[name]
    code.mark = rng.choice([m for m in range(4) if m != code.mark])
    project.was_changed = True
    return f"code of {name}.py has MARK {code.mark}"


def code_stage(project: Project, rng: random.Random) -> str:
    return code_of(project, MODULES[rng.choice(project.flow.steps).kind][0], rng)


def code_helper(project: Project, rng: random.Random) -> str:
    return code_of(project, rng.choice(["glue", "paste"]), rng) if _one(project, rng, "Pair") else ""


def code_back(project: Project, rng: random.Random) -> str:
    """Code that was changed is as it was, and so is its VERSION."""
    changed = [name for name, code in project.code.items() if code.mark]
    if not changed:
        return code_stage(project, rng)
    name = rng.choice(changed)
    project.code[name].mark, project.code[name].version = 0, 1
    return f"code of {name}.py is as it was"


def code_comment(project: Project, rng: random.Random) -> str:
    name = rng.choice(MODULES[rng.choice(project.flow.steps).kind])
    project.code[name].noise += 1
    return f"a comment in {name}.py"


def code_version(project: Project, rng: random.Random) -> str:
    """The code and its VERSION."""
    kind = rng.choice(project.flow.steps).kind
    was_changed, name = project.was_changed, MODULES[kind][0]
    said = code_of(project, name, rng)
    project.was_changed = was_changed
    project.code[name].version += 1
    return f"{said}, VERSION {project.code[name].version}"


def version(project: Project, rng: random.Random) -> str:
    name = MODULES[rng.choice(project.flow.steps).kind][0]
    project.code[name].version += 1
    return f"VERSION {project.code[name].version} in {name}.py"


def grow(project: Project, rng: random.Random) -> str:
    file = _list(project, rng)
    rows, have = project.lists[file], {n for _, n in project.lists[file]}
    letter = rows[0][0].partition("r")[0]
    new = [
        (f"{letter}r{n}", n)
        for n in rng.sample([n for n in range(1, 99) if n not in have], rng.randint(1, 4))
    ]
    rows += new
    return f"{file} has {len(new)} more: {new}"


def shrink(project: Project, rng: random.Random) -> str:
    file = _list(project, rng)
    rows = project.lists[file]
    if len(rows) < 4:
        return ""
    gone = rows.pop() if rng.random() < 0.5 else rows.pop(rng.randrange(len(rows)))
    return f"{gone} is not in {file} any more"


def reorder(project: Project, rng: random.Random) -> str:
    file = _list(project, rng)
    rows = project.lists[file]
    a, b = rng.sample(range(len(rows)), 2)
    rows[a], rows[b] = rows[b], rows[a]
    return f"{rows[a]} and {rows[b]} swapped in {file}"


def file_content(project: Project, rng: random.Random) -> str:
    used = [f for s in project.flow.steps for _, f in s.files() if isinstance(f, str) and f in project.files]
    folder = [f for f in project.files if "folder" in f]
    name = rng.choice(used or folder)
    # as long as before: a size says nothing
    project.files[name] = project.files[name][:-1] + rng.choice(
        [c for c in "uvwxyz" if c != project.files[name][-1]]
    )
    return f"{name} holds {project.files[name]!r}"


def move_file(project: Project, rng: random.Random) -> str:
    """A file has another name; what it holds is the same."""
    uses = [
        (s, where, file)
        for s in project.flow.steps
        for where, file in s.files()
        if isinstance(file, str) and file in project.files
    ]
    if not uses:
        return ""
    step, where, file = rng.choice(uses)
    name = f"files/{project.new('moved')}.txt"
    project.files[name] = project.files[file]
    step.put_file(where, name)
    return f"{where} of {step.name} is {name}, which holds what {file} does"


def shard_rows(project: Project, rng: random.Random) -> str:
    step = rng.choice([s for s in project.flow.steps if "shard_rows" in s.engine])
    step.engine["shard_rows"] = rng.choice([n for n in range(2, 6) if n != step.engine["shard_rows"]])
    return f"shard_rows of {step.name} is {step.engine['shard_rows']}"


def reject_rate(project: Project, rng: random.Random) -> str:
    step = rng.choice(project.flow.steps)
    if step.kind in GATHERS:
        return ""
    step.engine["max_reject_rate"] = round(rng.uniform(0.9, 1), 3)
    return f"max_reject_rate of {step.name} is {step.engine['max_reject_rate']}"


def resources(project: Project, rng: random.Random) -> str:
    step = rng.choice(project.flow.steps)
    step.engine["resources"] = {"cpus": rng.choice([0.5, 1, 2]), "actors": rng.randint(1, 2)}
    return f"resources of {step.name}: {step.engine['resources']}"


def not_in_key(project: Project, rng: random.Random) -> str:
    step = rng.choice(project.flow.steps)
    step.params["note"] = project.new("note ")
    return f"note of {step.name}"


def profile_beside(project: Project, rng: random.Random) -> str:
    """A profile that is not chosen."""
    step = rng.choice(project.flow.steps)
    project.flow.profiles[project.new("beside")] = {step.name: {"note": "beside"}}
    return f"a profile for {step.name} that is not chosen"


def profile(project: Project, rng: random.Random) -> str:
    """A profile is chosen, or left."""
    flow = project.flow
    if flow.profile is not None:
        left, flow.profile = flow.profile, None
        return f"profile {left} is left"
    step = rng.choice([s for s in flow.steps if s.kind != "Pair"] or flow.steps)
    params = draw_params(rng, step.kind) or {"teacher": "files/t2.txt"}
    flow.profile = project.new("p")
    flow.profiles[flow.profile] = {step.name: params}
    return f"profile {flow.profile}: {step.name} has {params}"


def other_flow(project: Project, rng: random.Random) -> str:
    """A second workflow in the same root: a copy of the first with a change. Or the other one of two."""
    names = [n for n in project.flows if n != project.active]
    if names:
        project.active = names[0]
        return f"workflow {project.active}"
    project.flows["v"] = frozen(project).flow
    project.active = "v"
    return f"workflow v is a copy of w, and {param(project, rng) or rename(project, rng)}"


def other_file(project: Project, rng: random.Random) -> str:
    step = _one(project, rng, "Pair")
    if step is None:
        return ""
    above = frozen(project)
    above.flow.steps = above.flow.steps[: above.flow.steps.index(above.flow.step(step.name))]
    where = rng.choice(["teacher", "student"])
    before, step.params[where] = step.params[where], draw_file(above, rng)
    return f"{where} of {step.name}: {before} -> {step.params[where]}" if before != step.params[where] else ""


def world(project: Project, rng: random.Random) -> str:
    """The world gives other bytes. What is there stays."""
    project.world += 1
    return f"the world is at version {project.world}"


def _one(project: Project, rng: random.Random, kind: str) -> Step | None:
    steps = [s for s in project.flow.steps if s.kind == kind]
    return rng.choice(steps) if steps else None


def _list(project: Project, rng: random.Random) -> str:
    used = [s.params["list"] for s in project.flow.steps if s.kind == "Fetch"]
    return str(rng.choice([f for f in used if isinstance(f, str)]))


EDITS: dict[str, Edit] = {
    "param": Edit(param),
    "swap_files": Edit(swap_files, ("Pair",)),
    "swap_artifacts": Edit(swap_artifacts, ("Pair", "Total", "Total")),
    "swap_in_list": Edit(swap_in_list, ("Pair",)),
    "swap_steps": Edit(swap_steps, ("Tag", "Every")),
    "rename": Edit(rename),
    "rename_gather": Edit(rename_gather, ("Total",)),
    "code_stage": Edit(code_stage),
    "code_helper": Edit(code_helper, ("Pair",)),
    "code_back": Edit(code_back),
    "code_comment": Edit(code_comment, is_free=True),
    "code_version": Edit(code_version),
    "version": Edit(version),
    "grow": Edit(grow),
    "shrink": Edit(shrink),
    "reorder": Edit(reorder),
    "file_content": Edit(file_content, ("Pair",)),
    "move_file": Edit(move_file, ("Pair",), is_free=True),
    "shard_rows": Edit(shard_rows),
    "reject_rate": Edit(reject_rate, is_free=True),
    "resources": Edit(resources, is_free=True),
    "not_in_key": Edit(not_in_key, is_free=True),
    "profile_beside": Edit(profile_beside, is_free=True),
    "profile": Edit(profile),
    "rounds": Edit(rounds, ("Tag",)),
    "one_round": Edit(one_round, ("Tag",)),
    "other_flow": Edit(other_flow),
    "remove_step": Edit(remove_step, ("Tag", "Every")),
    "new_step": Edit(new_step),
    "between": Edit(between),
    "new_source": Edit(new_source, ("Total",)),
    "other_input": Edit(other_input, ("Fetch",)),
    "other_file": Edit(other_file, ("Pair", "Total")),
    "world": Edit(world, is_free=True),
}
