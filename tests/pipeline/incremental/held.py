"""What a root holds, read without the engine where that can be: digests of every file of every step, and its rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from incremental.act import Where, steps_of
from incremental.child import enter
from incremental.ledger import sha
from incremental.project import Project


@dataclass
class Held:
    """One step: `shards` (rows, heavy columns joined to it, rejects: all as sha256) and artifacts."""

    above: tuple[str, ...]  # rows and artifacts it reads come from these
    shards: list[tuple[str, dict[str, str], str]]
    artifacts: dict[str, str]
    schema: str
    warning: str
    folder: str


@dataclass
class Looked:
    steps: dict[str, Held] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    replay: dict[str, int | None] = field(
        default_factory=dict
    )  # site/id -> version of the world; None: a fault


def look(at: Where, project: Project) -> Looked:
    """Every step of the active workflow, all of which are done."""
    enter(at.folder, at.world, at.calls)
    found = Looked()
    for one in steps_of(at, project):
        folder = at.root / one.folder
        artifacts = {
            str(p.relative_to(folder / "artifacts")): sha(p)
            for p in sorted((folder / "artifacts").rglob("*"))
            if p.is_file()
        }
        above = tuple(p.name for p in (*one.above, *one.artifact_steps))
        shards = [_shard(at.root, s) for s in one.shards]
        found.steps[one.name] = Held(above, shards, artifacts, str(one.schema_out), one.warning, one.folder)
        found.wrong += _wrong(at.root, one)
        found.replay |= _replay(at.root, one)
    return found


def _shard(root: Path, shard: Any) -> tuple[str, dict[str, str], str]:
    heavy = {name: sha(root / path) for name, path, *_ in shard.heavy}
    return sha(root / shard.path), heavy, str(rejects(root, [shard]))


def _rejects(root: Path, shard: Any) -> Path:
    folder, _, name = shard.path.rpartition("/")
    return root / folder / "_rejects" / name


def rows(root: Path, shards: Any) -> list[dict[str, Any]]:
    return [row for s in shards for row in pq.read_table(root / s.path).to_pylist()]


def rejects(root: Path, shards: Any) -> list[dict[str, Any]]:
    """The rows of the rejects. In which line the function raised is left out: comments move it."""
    files = [_rejects(root, s) for s in shards]
    found = [row for f in files if f.exists() for row in pq.read_table(f).to_pylist()]
    return [{**row, "detail": re.sub(r" \(\w+\.py:\d+\)$", "", row["detail"] or "")} for row in found]


def _wrong(root: Path, one: Any) -> list[str]:
    """Rows lost or made up, and rows that hold what belongs to another."""
    if "id" not in one.schema_out.names:
        return []
    out, gone = rows(root, one.shards), Counter(r["id"] for r in rejects(root, one.shards))
    wrong = [
        f"{one.name}: row {r['id']} holds what is another's: {r['trace']}" for r in out if not _is_its_own(r)
    ]
    if not one.above:
        return wrong
    came = Counter(r["id"] for p in one.above for r in rows(root, p.shards))
    went = Counter(r["parent"] if _is_split(one) else r["id"] for r in out)
    if _is_split(one):
        went = Counter(dict.fromkeys(went, 1))
    if came != went + gone:
        wrong.append(f"{one.name}: rows lost {came - went - gone}, rows made up {went + gone - came}")
    return wrong


def _is_split(one: Any) -> bool:
    return type(one.keyed.step.stage).__name__ == "Split"


def _is_its_own(row: dict[str, Any]) -> bool:
    """All it looked at begins with what its own trace begins with; so do the bytes it holds."""
    first = row["trace"].partition("|")[0] + "/v"
    said = re.findall(r"\|L\[([^\]]*)\]", row["trace"])
    said += [row[c].decode() for c in ("payload", "crop") if c in row]
    return all(text.startswith(first[: len(text)]) for text in said)


def _replay(root: Path, one: Any) -> dict[str, int | None]:
    stage = one.keyed.step.stage
    if type(stage).__name__ != "Fetch":
        return {}
    found: dict[str, int | None] = {f"{stage.site}/{r['id']}": _version(r) for r in rows(root, one.shards)}
    return found | {f"{stage.site}/{r['id']}": None for r in rejects(root, one.shards)}


def _version(row: dict[str, Any]) -> int:
    """The version of the world that a fetched row's bytes tell."""
    return int(row["payload"].split(b"/v")[1].split(b"/")[0])


def differences(mine: Looked, fresh: Looked) -> dict[str, str]:
    """Step -> how it differs from the step of a fresh run."""
    found = {}
    for name, a in mine.steps.items():
        b = fresh.steps[name]
        how = [
            f"{what} differ"
            for what, x, y in (
                ("columns", a.schema, b.schema),
                ("numbers of shards", len(a.shards), len(b.shards)),
                ("rows", [s[0] for s in a.shards], [s[0] for s in b.shards]),
                ("heavy columns", [s[1] for s in a.shards], [s[1] for s in b.shards]),
                ("rejects", [s[2] for s in a.shards], [s[2] for s in b.shards]),
                ("artifacts", a.artifacts, b.artifacts),
            )
            if x != y
        ]
        if how:
            found[name] = ", ".join(how)
    return found


def example(at: Where, fresh: Where, project: Project, name: str) -> str:
    """The first row of a step that differs, for the reader."""
    enter(at.folder, at.world, at.calls)
    sides = []
    for where in (at, fresh):
        one = next(s for s in steps_of(where, project) if s.name == name)
        sides.append((rows(where.root, one.shards), rejects(where.root, one.shards)))
    for what, a, b in (("row", sides[0][0], sides[1][0]), ("reject", sides[0][1], sides[1][1])):
        for x, y in zip(a, b, strict=False):
            if x != y:
                return f"{what} {x} here, {y} fresh"
        if len(a) != len(b):
            return f"{len(a)} {what}s here, {len(b)} fresh"
    return "no row differs"


def ancestors(steps: dict[str, Held], name: str) -> set[str]:
    found = {name}
    for above in steps[name].above:
        found |= ancestors(steps, above)
    return found
