"""The packages of the code: files, lines, what imports what. `make check` prints it; exit code 1 where a rule is broken.

python tools/house.py            # a line per package, then what the engine cannot run without
python tools/house.py --imports  # and which packages each one imports

Lines of code: without blank lines, comments and docstrings. An import counts wherever it stands, also in a function or
under TYPE_CHECKING. A package here is a folder below pipeline/, stages/ or models/, or a file at the top of one of them.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HERE = Path(__file__).parents[1]
TOPS = ("pipeline", "stages", "models")
MAX_FILES, MAX_LINES, MAX_ENGINE = 15, 400, 3_400
# What runs planned steps on this machine. The runner gets its steps from the plan, its executor from whoever starts it, and
# its other parts from `assembly`; BESIDE says what each of these needs in addition to it and to those before.
ENGINE = ("pipeline.engine.runner", "pipeline.engine.local_executor")
BESIDE = {
    "locks, adopted shards and what workers do around a stage": ("pipeline.engine.assembly",),
    "planning a run": ("pipeline.engine.plan", "pipeline.engine.row_bounds"),
    "running on Ray": ("pipeline.engine.on_ray.executor",),
    "reading a workflow from YAML": ("pipeline.workflow.load",),
}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class File:
    """name: dotted, without `vlpipe.`; imports: names of other files."""

    name: str
    room: str
    num_lines: int
    num_code: int
    imports: frozenset[str]


def read(root: Path) -> dict[str, File]:
    paths = {_name(p, root): p for top in TOPS for p in sorted((root / top).rglob("*.py"))}
    found = {}
    for name, path in paths.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        imports = frozenset(_imports(tree, paths) - {name})
        found[name] = File(name, _room(name, path), len(text.splitlines()), _num_code(text, tree), imports)
    return found


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(name: str, path: Path) -> str:
    return name if path.name == "__init__.py" or name.count(".") == 1 else name.rpartition(".")[0]


def _imports(tree: ast.Module, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("vlpipe.") in known else node.module)
    return {name.removeprefix("vlpipe.") for name in found} & set(known)


def _num_code(text: str, tree: ast.Module) -> int:
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def between_rooms(files: dict[str, File]) -> dict[str, set[str]]:
    """Package -> packages it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in files.values():
        found[file.room] |= {files[name].room for name in file.imports} - {file.room}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(files: dict[str, File]) -> int:
    """Files on the longest chain of imports; 0 where there is a circle."""
    graph = {file.name: set(file.imports) for file in files.values()}
    if circle(graph):
        return 0
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[below] for below in graph[name]), default=0)
    return max(height.values())


def needed_by(starts: tuple[str, ...], files: dict[str, File]) -> list[File]:
    """The files that these import, and all that those import."""
    todo, found = list(starts), set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += files[name].imports
    return [files[name] for name in sorted(found)]


def report(files: dict[str, File], *, with_imports: bool) -> list[str]:
    """Prints the table; returns which rules are broken."""
    rooms: dict[str, list[File]] = defaultdict(list)
    for file in files.values():
        rooms[file.room].append(file)
    imports = between_rooms(files)
    broken = []
    print(f"{'package':32}{'files':>6}{'lines':>8}{'code':>8}")
    for room in sorted(rooms):
        inside = rooms[room]
        num_lines, num_code = sum(f.num_lines for f in inside), sum(f.num_code for f in inside)
        print(f"{room:32}{len(inside):>6}{num_lines:>8,}{num_code:>8,}")
        if with_imports and imports[room]:
            print(f"    imports {', '.join(sorted(imports[room]))}")
        if len(inside) > MAX_FILES:
            broken.append(f"{room} has {len(inside)} files, at most {MAX_FILES} wanted")
    for file in files.values():
        if file.num_lines > MAX_LINES:
            broken.append(f"{file.name} has {file.num_lines} lines, at most {MAX_LINES} wanted")
    graph = {file.name: set(file.imports) for file in files.values()}
    for what, found in (("files", circle(graph)), ("packages", circle(imports))):
        if found:
            broken.append(f"{what} import each other: {' -> '.join(found)}")
    mutual = sum(a in imports[b] for a in imports for b in imports[a]) // 2
    pipeline = {n: f for n, f in files.items() if n.startswith("pipeline.")}
    engine = {file.name: file for file in needed_by(ENGINE, files)}
    print(
        f"packages that import each other: {mutual}; floors of imports in pipeline/: {_floors(pipeline)}, "
        f"of the engine: {_floors(engine)}"
    )
    return [*broken, *_report_engine(files)]


def _report_engine(files: dict[str, File]) -> list[str]:
    """Prints what the engine cannot run without, and what runs need beside it; returns which rules are broken."""
    counted: set[File] = set()
    starts: tuple[str, ...] = ()
    for what, more in {"what the engine cannot run without": ENGINE, **BESIDE}.items():
        starts += tuple(name for name in more if name in files)  # another checkout may lack some
        added = set(needed_by(starts, files)) - counted
        counted |= added
        print(f"{what}: {_size(added)}\n    {_by_room(added)}")
    print(f"all of these: {_size(counted)}")
    num = _num_lines(needed_by(ENGINE, files))
    return (
        []
        if num <= MAX_ENGINE
        else [f"the engine needs {num:,} lines of code, at most {MAX_ENGINE:,} wanted"]
    )


def _size(files: Collection[File]) -> str:
    return f"{len(files)} files, {_num_lines(files):,} lines of code"


def _num_lines(files: Collection[File]) -> int:
    return sum(file.num_code for file in files)


def _by_room(files: Collection[File]) -> str:
    """Returns lines of code per package, the largest first."""
    found: dict[str, int] = defaultdict(int)
    for file in files:
        found[file.room] += file.num_code
    return ", ".join(
        f"{room} {num:,}" for room, num in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    )


def _floors(files: dict[str, File]) -> int:
    inside = {
        name: File(f.name, f.room, f.num_lines, f.num_code, frozenset(i for i in f.imports if i in files))
        for name, f in files.items()
    }
    return floors(inside)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=HERE, help="another checkout")
    parser.add_argument("--imports", action="store_true")
    args = parser.parse_args()
    broken = report(read(args.root), with_imports=args.imports)
    for text in broken:
        print(f"error: {text}", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
