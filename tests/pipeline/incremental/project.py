"""A small project as a person would have it: workflows, lists, files and code; drawn at random, and written to a folder."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "mine"
MODULES = {  # of each kind of stage: what its code is made of, the helpers last
    "Fetch": ("fetch",),
    "Tag": ("tag",),
    "Fancy": ("fancy",),
    "Every": ("every",),
    "Look": ("look",),
    "Split": ("split",),
    "Pair": ("pair", "glue", "paste"),
    "Total": ("total",),
    "Rank": ("rank",),
}
KEEPS_ROWS = ("Tag", "Fancy", "Every", "Look", "Pair")  # map stages: rows out have the columns of rows in
GATHERS = ("Total", "Rank")
ROWS_OF = {"Fetch": "full", "Split": "parts", "Rank": "light", "Total": ""}
ARTIFACTS = ("total.txt", "sub", "sub/ids.txt", "")


@dataclass
class Step:
    name: str
    kind: str
    inputs: list[str]
    params: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    def files(self) -> Iterator[tuple[str, Any]]:
        """Its file parameters: name, or name and place in a list; and what is written there."""
        for name in ("list", "teacher", "student"):
            if name in self.params:
                yield name, self.params[name]
        yield from ((f"more.{at}", file) for at, file in enumerate(self.params.get("more", ())))

    def put_file(self, name: str, file: Any) -> None:
        name, _, at = name.partition(".")
        if at:
            self.params[name][int(at)] = file
        else:
            self.params[name] = file


@dataclass
class Flow:
    """A workflow file."""

    steps: list[Step] = field(default_factory=list)
    loop: list[str] = field(default_factory=list)  # steps of `repeat`
    rounds: int = 1
    profiles: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    profile: str | None = None

    def step(self, name: str) -> Step:
        return next(s for s in self.steps if s.name == name)

    def columns(self, name: str) -> str:
        """Which columns a step's rows have: full, parts, light; empty when no step can work on them."""
        step = self.step(name)
        return ROWS_OF[step.kind] if step.kind in ROWS_OF else self.columns(step.inputs[0])

    def below(self, name: str) -> list[Step]:
        """Steps that read its rows or artifacts."""
        return [s for s in self.steps if name in s.inputs or name in artifact_steps(s)]

    def rename(self, old: str, new: str) -> None:
        for step in self.steps:
            step.name = new if step.name == old else step.name
            step.inputs = [new if i == old else i for i in step.inputs]
            for where, file in list(step.files()):
                if isinstance(file, dict) and file["from"] == old:
                    step.put_file(where, {**file, "from": new})
        self.loop = [new if n == old else n for n in self.loop]
        for over in self.profiles.values():
            if old in over:
                over[new] = over.pop(old)

    def as_yaml(self) -> dict[str, Any]:
        steps = {}
        for step in self.steps:
            inputs: list[Any] = list(step.inputs)
            if self.loop and step.name == self.loop[0]:  # what one round makes, the next one takes
                inputs = [{"from": f"{self.loop[-1]}@previous", "first": inputs[0]}]
            use = {"use": f"mine.{MODULES[step.kind][0]}:{step.kind}"}
            steps[step.name] = {**use, **({"from": inputs} if inputs else {}), **step.engine, **step.params}
        repeat = {"repeat": {"rounds": self.rounds, "steps": self.loop}} if self.loop else {}
        profiles = {"profiles": self.profiles} if self.profiles else {}
        return {"name": "w", "steps": steps, **repeat, **profiles}


def artifact_steps(step: Step) -> list[str]:
    return [file["from"] for _, file in step.files() if isinstance(file, dict)]


@dataclass
class Code:
    """One module. `mark` is in what it makes, `noise` in a comment only."""

    mark: int = 0
    version: int = 1
    noise: int = 0

    def write(self, text: str) -> str:
        text = text.replace('MARK = "0"', f'MARK = "{self.mark}"')
        text = re.sub(r"VERSION: ClassVar\[int\] = 1", f"VERSION: ClassVar[int] = {self.version}", text)
        return f"# {self.noise} lines were looked at\n" + "\n" * self.noise + text if self.noise else text


@dataclass
class Project:
    flows: dict[str, Flow]
    active: str
    lists: dict[str, list[tuple[str, int]]]  # file -> (id, n)
    files: dict[str, str]  # path -> text
    code: dict[str, Code]
    world: int = 1
    absolute: bool = False
    was_changed: bool = False  # code was changed, its VERSION was not
    num_names: int = 0

    @property
    def flow(self) -> Flow:
        return self.flows[self.active]

    def new(self, prefix: str) -> str:
        """A name that was not there before."""
        self.num_names += 1
        return f"{prefix}{self.num_names}"

    def code_of(self, kind: str) -> str:
        return ",".join(f"{name}:{self.code[name].mark}" for name in MODULES[kind])

    def write(self, folder: Path) -> None:
        """Everything but the roots. In `elsewhere` lies a file of each name with other contents."""
        for name, rows in self.lists.items():
            put(folder / name, "".join(f"{id_} {n}\n" for id_, n in rows))
            put(folder / "elsewhere" / name, "other0 900\nother1 901\n")
        for name, text in self.files.items():
            put(folder / name, text)
            put(folder / "elsewhere" / name, "ANOTHER FILE OF THIS NAME")
        put(folder / "code/mine/__init__.py", "")
        for template in sorted(TEMPLATES.glob("*.py")):
            put(
                folder / "code/mine" / template.name,
                self.code.get(template.stem, Code()).write(template.read_text()),
            )
        for name, flow in self.flows.items():
            text = json.dumps(flow.as_yaml(), indent=1)
            for file in (*self.lists, *self.files, "files/folder") if self.absolute else ():
                text = text.replace(f'"{file}"', f'"{folder / file}"')
            put(folder / f"{name}.yaml", text)
        put(folder / "world.json", json.dumps({"version": self.world}))


def put(path: Path, text: str) -> None:
    """Write a file if that changes it; a file that stays is not touched."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def draw_project(rng: random.Random, needs: Sequence[str] = (), leave_out: Sequence[str] = ()) -> Project:
    """A project whose workflow has the kinds of stages in `needs`, and none of `leave_out`."""
    files = {f"files/t{at}.txt": f"text {at}" for at in range(3)}
    files |= {"files/folder/x.txt": "in a folder", "files/folder/below/y.txt": "further below"}
    code = {name: Code() for names in MODULES.values() for name in names}
    project = Project({"w": Flow()}, "w", {}, files, code, absolute=rng.random() < 0.3)
    add_source(project, rng)
    if "Fetch" in needs or rng.random() < 0.3:
        add_source(project, rng)
    wanted = [kind for kind in needs if kind not in ("Fetch", *leave_out)]
    have = [k for k in MODULES if k not in ("Fetch", *leave_out)]
    for kind in rng.choices(have, k=max(rng.randint(2, 4) - len(wanted), 1)):
        wanted.insert(rng.randint(0, len(wanted)), kind)
    wanted.sort(
        key=lambda kind: (kind in ("Rank", "Total", "Pair"), kind == "Pair")
    )  # they take rows of any columns
    for kind in wanted:
        add_step(project, rng, kind)
    return project


def add_source(project: Project, rng: random.Random, list_: Any = None) -> Step:
    letter = project.new("s")
    if list_ is None:
        list_ = f"lists/{letter}.txt"
        numbers = rng.sample(range(1, 60), rng.randint(5, 11))
        project.lists[list_] = [(f"{letter}r{n}", n) for n in numbers]
    step = Step(letter, "Fetch", [], {"list": list_, "site": letter, "size": rng.randint(4, 9)})
    step.engine = {"shard_rows": rng.randint(2, 4)}
    project.flow.steps.append(step)
    return step


def add_step(project: Project, rng: random.Random, kind: str) -> Step:
    """Append a step of a kind, below a step whose rows it can take."""
    flow = project.flow
    wants = ("full",) if kind in ("Look", "Split") else ("full", "parts", "light")
    can = [s.name for s in flow.steps if flow.columns(s.name) in wants]
    made = [n for n in can if flow.step(n).kind != "Fetch"]
    above = (
        can[-1] if rng.random() < 0.5 else rng.choice(made or can) if rng.random() < 0.6 else rng.choice(can)
    )
    step = Step(project.new(kind[0].lower()), kind, [above])
    others = [n for n in can if n != above and not (sources(flow, n) & sources(flow, above))]
    if kind in KEEPS_ROWS:
        others = [n for n in others if flow.columns(n) == flow.columns(above)]
    if others and kind != "Split" and rng.random() < 0.4:
        step.inputs.append(rng.choice(others))
    if kind == "Pair":
        step.params = {"teacher": draw_file(project, rng), "student": draw_file(project, rng)}
        if rng.random() < 0.4:
            step.params["more"] = [draw_file(project, rng) for _ in range(2)]
    else:
        step.params = draw_params(rng, kind)
    if kind == "Rank":
        step.engine = {"shard_rows": rng.randint(2, 4)}
    flow.steps.append(step)
    return step


def draw_params(rng: random.Random, kind: str) -> dict[str, Any]:
    if kind == "Fancy":
        inner = {"names": rng.sample(["x", "y", "z"], 2), "by": {"one": rng.choice([1, 2.5])}}
        opts = {"deep": rng.randint(0, 9), "inner": inner}
        return {"color": rng.choice(["red", "blue"]), "where": rng.choice(["here", "there/it"]), "opts": opts}
    return {
        "Fetch": {"size": rng.randint(4, 99)},
        "Tag": {
            "word": rng.choice("abcdefgh") + str(rng.randint(0, 99)),
            "weight": rng.choice([0.5, 1, 1.0, 2]),
        },
        "Every": {"k": rng.randint(2, 6)},
        "Look": {"length": rng.randint(20, 60)},
        "Split": {"parts": rng.randint(1, 3)},
        "Total": {"word": rng.choice("abcdefgh") + str(rng.randint(0, 99))},
        "Rank": {"salt": rng.choice("abcdefgh")},
        "Pair": {},
    }[kind]


def draw_file(project: Project, rng: random.Random) -> Any:
    """A file outside, or an artifact of a step above."""
    makers = [s.name for s in project.flow.steps if s.kind == "Total"]
    if makers and rng.random() < 0.6:
        path = rng.choice(ARTIFACTS)
        return {"from": rng.choice(makers), **({"path": path} if path else {})}
    return rng.choice([f for f in project.files if "folder" not in f] + ["files/folder"])


def sources(flow: Flow, name: str) -> set[str]:
    """The sources that a step's rows come from."""
    step = flow.step(name)
    if step.kind == "Fetch":  # two lists that steps made may have the same ids
        return {name} if isinstance(step.params["list"], str) else {name, "made"}
    return set().union(*(sources(flow, i) for i in step.inputs))


def frozen(project: Project) -> Project:
    return copy.deepcopy(project)
