"""The table of systems, generated: what each is composed of, what checks it, what its small run showed.

python tools/systems.py                     # write docs/systems.md from the code and from the figures of earlier runs
python tools/systems.py --run               # first run each workflow that has `x-criteria`, at seed 0; reuses finished steps
python tools/systems.py --run --seeds 5     # five seeds
python tools/systems.py --run --only clip mae downstream/vqa

A system is a module of a room of models/systems; its workflow names it in `x-system`, or has its name, and runs with its
profile `smoke`, if it has one.
Downstream tasks are the workflows of workflows/downstream.
`x-criteria` in a workflow lists what a run must show, each {figure: STEP.NAME, above: STEP.NAME or number}, or `below`, with
`standard_errors: k` or `by: difference`; or with `pooled_deviations: k`, over all seeds: the difference of the means is
more than k times the root of the mean of both variances. `x-seeds` lists the parameters that a seed sets. Figures of runs
are kept in docs/systems.json.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

HERE = Path(__file__).resolve().parents[1]
SYSTEMS, WORKFLOWS, TESTS = HERE / "models/systems", HERE / "workflows", HERE / "tests/models"
PAGE, RUNS, ROOTS = HERE / "docs/systems.md", HERE / "docs/systems.json", HERE / "runs/systems"
BLOCK = re.compile(r"vlpipe\.models\.(?:blocks|codebooks)\.(?!base)(\w+)")
Figures = Mapping[str, tuple[float, int]]  # "step.name" -> (value, number of items)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something with a workflow. workflow: None without one."""

    name: str
    title: str
    workflow: Path | None

    @property
    def declared(self) -> Mapping[str, Any]:
        return _content(self.workflow) if self.workflow else {}


@dataclass(frozen=True, kw_only=True)
class System(Task):
    """A system and its files. lines: of the model's file."""

    paper: str
    file: Path
    lines: int
    blocks: list[str]
    parity: list[str]


def tasks() -> list[Task]:
    """Returns the downstream tasks by name."""
    files = sorted(WORKFLOWS.joinpath("downstream").glob("*.yaml"))
    return [Task(name=f"downstream/{f.stem}", title=f.stem.replace("_", " "), workflow=f) for f in files]


def systems() -> list[System]:
    """Returns the systems by name."""
    workflows = {_system_of(path): path for path in sorted(WORKFLOWS.glob("*.yaml"))}
    found = []
    for path in sorted(
        (path for room in SYSTEMS.iterdir() if room.is_dir() for path in room.iterdir()), key=_name
    ):
        if path.name.startswith("_") or not (path.suffix == ".py" or (path / "model.py").is_file()):
            continue
        file, name = (path if path.is_file() else path / "model.py"), path.stem
        text = file.read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(text)) or ""
        paper = re.search(r"https://\S+\w", doc)
        imports = sorted(set(BLOCK.findall(text + (_texts(path) if path.is_dir() else ""))))
        found.append(
            System(
                name=name,
                title=doc.partition(":")[0],
                paper=paper[0] if paper else "",
                file=file,
                lines=len(text.splitlines()),
                blocks=imports,
                parity=_parity_tests(name),
                workflow=workflows.get(name),
            )
        )
    return found


def _name(path: Path) -> str:
    return path.name


def _texts(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))


def _system_of(workflow: Path) -> str:
    return str(_content(workflow).get("x-system", workflow.stem))


@functools.cache
def _content(workflow: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    return found


def _parity_tests(name: str) -> list[str]:
    """Returns the test files of a system that compare it with transformers, or with a second implementation."""
    files = [*TESTS.rglob(f"test_{name}.py"), *sorted(TESTS.rglob(f"test_{name}_*.py"))]
    against = ("from transformers import", "second implementation")
    return [
        str(f.relative_to(HERE)) for f in files if any(a in f.read_text(encoding="utf-8") for a in against)
    ]


def objectives(declared: Mapping[str, Any]) -> list[str]:
    """Returns the losses that the training steps of a workflow name, in order; also those in values of its matrix."""
    found = []
    axes = (axis for axis in (declared.get("matrix") or {}).values() if isinstance(axis, Mapping))
    arms = (value for axis in axes for value in axis.values() if isinstance(value, Mapping))
    for step in (*declared.get("steps", {}).values(), *arms):
        named = (step or {}).get("objectives") or []
        for one in named if isinstance(named, list) else []:
            use = one if isinstance(one, str) else one["use"]
            found.append(str(use).partition(":")[0])
    return list(dict.fromkeys(found))


def run(system: Task, seed: int) -> bool:
    """Runs the workflow of a system or task on this machine and keeps its figures. Returns whether it ended well."""
    assert system.workflow is not None
    sets = [f"--set={key}={seed}" for key in system.declared.get("x-seeds", [])]
    profile = ["--profile", "smoke"] if "smoke" in system.declared.get("profiles", {}) else []
    command = ["run", str(system.workflow), *profile, "--local", "--root", str(root_of(system, seed)), *sets]
    print("vlpipe", *command, flush=True)
    vlpipe = [sys.executable, "-m", "vlpipe.pipeline.cli.main"]
    if subprocess.run([*vlpipe, *command], cwd=HERE, check=False).returncode:
        return False
    root, known = root_of(system, seed), seen()
    day = str(date.fromtimestamp((root / "_steps.json").stat().st_mtime))
    known.setdefault(system.name, {})[str(seed)] = {"date": day, "figures": figures(root)}
    RUNS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return True


def seen() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns system -> seed -> {date, figures} of the runs so far."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(RUNS.read_text()) if RUNS.is_file() else {}
    return found


def root_of(system: Task, seed: int) -> Path:
    return ROOTS / system.name / f"seed_{seed}"


def figures(root: Path) -> dict[str, tuple[float, int]]:
    """Returns the figures of the steps of a root as they last ran."""
    found = {}
    record = root / "_steps.json"
    steps = json.loads(record.read_text()) if record.is_file() else {}
    for step, made in ((name, one) for name, one in steps.items() if isinstance(one, dict)):
        for file in sorted(root.joinpath(made["folder"]).glob("*.parquet")):
            columns = pq.read_schema(file).names
            if not {"name", "value", "num_rows"} - set(columns):
                rows = pq.read_table(file, columns=["name", "value", "num_rows"]).to_pylist()
                found |= {
                    f"{step}.{r['name']}": (r["value"], r["num_rows"]) for r in rows if r["value"] is not None
                }
    return found


def judge(criterion: Mapping[str, Any], found: Figures) -> tuple[bool | None, str]:
    """Returns (does it hold?, a text with the figures). None if a figure is not there."""
    way = "above" if "above" in criterion else "below"
    figure, other = criterion["figure"], criterion[way]
    unknown = [name for name in (figure, other) if isinstance(name, str) and name not in found]
    if unknown:
        return None, f"{figure} {way} {other}: not run"
    value, num = found[figure]
    limit, num_other = found[other] if isinstance(other, str) else (float(other), 0)
    margin, unit = float(criterion.get("by", 0)), ""
    if "standard_errors" in criterion:
        variance = _variance(value, num) + (_variance(limit, num_other) if num_other else 0.0)
        margin, unit = (
            criterion["standard_errors"] * math.sqrt(variance),
            f" ({criterion['standard_errors']} s.e.)",
        )
    gap = value - limit if way == "above" else limit - value
    said = f"{figure} {value:.3f} {way} {other}" + (f" {limit:.3f}" if isinstance(other, str) else "")
    return gap >= margin, said + (f", by at least {margin:.3f}{unit}" if margin else "")


def judge_seeds(criterion: Mapping[str, Any], found: Sequence[Figures]) -> tuple[bool | None, str]:
    """As `judge`, of a criterion with `pooled_deviations`, from the figures of each seed. None for fewer than two seeds."""
    way = "above" if "above" in criterion else "below"
    names = criterion["figure"], criterion[way]
    values = [[one[name][0] for one in found if name in one] for name in names]
    if min(map(len, values)) < 2:
        return None, f"{names[0]} {way} {names[1]}: needs runs of two seeds or more"
    means = [statistics.mean(several) for several in values]
    pooled = math.sqrt(statistics.mean(statistics.variance(several) for several in values))
    margin = criterion["pooled_deviations"] * pooled
    gap = means[0] - means[1] if way == "above" else means[1] - means[0]
    said = f"means of seeds: {names[0]} {means[0]:.3f} {way} {names[1]} {means[1]:.3f}"
    return (
        gap > margin,
        f"{said}, by more than {margin:.3f} ({criterion['pooled_deviations']} pooled deviations)",
    )


def _variance(share: float, num: int) -> float:
    """The variance of a share of `num` items; at least that of one item, so that 0 of 1,000 has an error too."""
    return max(share * (1 - share), (1 - 1 / num) / num) / num


def rows(found: list[System]) -> Iterator[str]:
    yield "| system | paper | workflow | model, lines | blocks | losses | tested against transformers or a second code |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        file = one.file.relative_to(HERE)
        parity = ", ".join(f"`{p}`" for p in one.parity) or "none"
        workflow = f"`{one.workflow.name}`" if one.workflow else "none"
        yield (
            f"| {one.title} | {one.paper} | {workflow} | `{file}`, {one.lines} | {', '.join(one.blocks)} | "
            f"{', '.join(objectives(one.declared))} | {parity} |"
        )


def task_rows(found: list[Task]) -> Iterator[str]:
    yield "| task | workflow | losses |"
    yield "|---|---|---|"
    for one in found:
        assert one.workflow is not None
        workflow = one.workflow.relative_to(WORKFLOWS)
        yield f"| {one.title} | `{workflow}` | {', '.join(objectives(one.declared))} |"


def runs(found: Sequence[Task]) -> Iterator[str]:
    yield "| system | seed | date | criterion | holds |"
    yield "|---|---|---|---|---|"
    answers = {True: "yes", False: "**no**", None: "-"}
    known = seen()
    for one in found:
        of_seeds = sorted(known.get(one.name, {"-": {"date": "-", "figures": {}}}).items())
        for criterion in one.declared.get("x-criteria", []):
            if "pooled_deviations" in criterion:
                holds, said = judge_seeds(criterion, [result["figures"] for _, result in of_seeds])
                seeds, day = ", ".join(seed for seed, _ in of_seeds), max(r["date"] for _, r in of_seeds)
                yield f"| {one.title} | {seeds} | {day} | {said} | {answers[holds]} |"
                continue
            for seed, result in of_seeds:
                holds, said = judge(criterion, result["figures"])
                yield f"| {one.title} | {seed} | {result['date']} | {said} | {answers[holds]} |"


def page(found: list[System], downstream: list[Task]) -> str:
    lines = [
        "# Systems",
        "",
        "Generated by `make systems`, which runs each workflow below on generated data and reuses what is done;",
        "`make systems-full` runs five seeds. The criteria stand in the workflows (`x-criteria`) from before the first run,",
        "but for those of BLIP.",
        "",
        *rows(found),
        "",
        "## Downstream tasks",
        "",
        *task_rows(downstream),
        "",
        "## What the runs showed",
        "",
        *runs([*found, *downstream]),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    found, downstream, failed = systems(), tasks(), []
    for one in (*found, *downstream):
        if args.run and one.declared.get("x-criteria") and (not args.only or one.name in args.only):
            failed += [f"{one.name}, seed {seed}" for seed in range(args.seeds) if not run(one, seed)]
    PAGE.write_text(page(found, downstream), encoding="utf-8")
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
