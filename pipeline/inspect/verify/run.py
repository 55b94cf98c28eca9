"""`verify`: reads all files of a step and compares them with its records. Damage is returned as problems, never raised."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import Receipt, receipt_path, shard_path
from vlpipe.pipeline.engine.records.rejects import read_rejects, rejects_path
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.inspect.verify.ids import Ids, repeated
from vlpipe.pipeline.inspect.verify.keys import key_problems
from vlpipe.pipeline.inspect.verify.lineage import heavy_problems, lineage_problems, mixed_code
from vlpipe.pipeline.inspect.verify.problems import Kind, Problem, read_or_problem
from vlpipe.pipeline.inspect.verify.records import Records, read_records
from vlpipe.pipeline.inspect.verify.steps import Steps
from vlpipe.pipeline.storage.file_names import SHARD_FILE, is_part
from vlpipe.pipeline.storage.store import Store

MAX_NAMED = 5  # max number of shards listed for a repeated id


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked in a step or shard, and its problems. An empty `folder` stands for the root's own files."""

    folder: str
    num_shards: int
    num_artifacts: int
    problems: list[Problem]


def verify_step(store: Store, folder: str, steps: Steps | None = None) -> VerifyReport:
    """Checks a step: re-hashes its shards and artifacts, and compares its inputs with what it was made from.

    steps: cache of the root's records, to share between several calls.
    """
    steps = steps or Steps(store)
    found = read_records(steps, folder)
    problems = [*found.problems, *_state(found)]
    ids, whole = Ids(), list[Receipt]()
    for receipt in found.receipts.values():
        problems += _one_shard(steps, folder, receipt, ids, whole)
    problems += _repeated(store, ids, whole)
    artifacts = found.manifest.artifacts if found.manifest else {}
    for name, digest in artifacts.items():
        problems += _file_problems(store, f"{folder}/artifacts/{name}", digest)
    problems += [*lineage_problems(steps, found), *key_problems(steps, found), *mixed_code(found)]
    problems += [*log_problems(store, folder), *left_over(store, found.record)]
    return VerifyReport(folder, len(found.receipts), len(artifacts), _once(problems))


def verify_shard(store: Store, folder: str, index: int) -> VerifyReport:
    """Checks one shard: its receipt, its file, its rejects, and the files of its heavy columns."""
    steps = Steps(store)
    found = read_records(steps, folder)
    receipt = found.receipts.get(index)
    mine = {receipt_path(folder, index), f"{folder}/_shards.parquet", f"{folder}/manifest.json"}
    problems = [problem for problem in found.problems if problem.path in mine]
    if receipt is None:
        if not problems:
            problems = [Problem(shard_path(folder, index), "left over", "no receipt lists this shard")]
        return VerifyReport(folder, 0, 0, problems)
    return VerifyReport(folder, 1, 0, _once([*problems, *_one_shard(steps, folder, receipt, Ids(), [])]))


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Returns the first problem of each (path, kind)."""
    found: dict[tuple[str, Kind], Problem] = {}
    for problem in problems:
        found.setdefault((problem.path, problem.kind), problem)
    return list(found.values())


def _one_shard(
    steps: Steps, folder: str, receipt: Receipt, ids: Ids, whole: list[Receipt]
) -> Iterator[Problem]:
    """Yields the problems of a shard. If its file is readable and has the right digest, adds its ids to `ids` and its
    receipt to `whole`."""
    problems = shard_problems(steps.store, folder, receipt)
    yield from problems
    if not any(problem.path == receipt.shard.path for problem in problems):
        yield from _content_problems(steps.store, receipt, ids, whole)
    yield from heavy_problems(steps, receipt)


def _state(found: Records) -> Iterator[Problem]:
    if not found.is_finished:
        num = len(found.receipts)
        said = f"{num:,} shard(s) so far" if num else "nothing in it is finished"
        yield Problem(found.folder, "unfinished", f"{said}; it has no manifest.json")


def shard_problems(store: Store, folder: str, receipt: Receipt) -> list[Problem]:
    """Returns the problems of the files of a shard and its rejects, compared with the receipt."""
    return [
        *_file_problems(store, receipt.shard.path, receipt.shard.digest),
        *_reject_problems(store, folder, receipt),
    ]


def _file_problems(store: Store, path: str, digest: str) -> Iterator[Problem]:
    found = read_or_problem(path, lambda: _sha256(store, path))
    if isinstance(found, Problem):
        yield found
    elif found != digest:
        yield Problem(path, "damaged", f"sha256 is {found[:16]}..., the recorded one is {digest[:16]}...")


def _sha256(store: Store, path: str) -> str:
    with store.open(path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _content_problems(store: Store, receipt: Receipt, ids: Ids, whole: list[Receipt]) -> Iterator[Problem]:
    """Compares the size and rows of a shard's file with its receipt. If the file is readable, adds its ids to `ids` and the
    receipt to `whole`."""
    path = receipt.shard.path
    found = read_or_problem(path, lambda: ids.add(store, receipt))
    if isinstance(found, Problem):
        yield found
        return
    whole.append(receipt)
    num_rows, num_without = found
    size = store.size(path)
    if size != receipt.bytes:
        yield Problem(path, "damaged", f"it has {size:,} bytes, the receipt has {receipt.bytes:,}")
    if num_rows != receipt.shard.num_rows:
        yield Problem(
            path, "damaged", f"it has {num_rows:,} rows, the receipt has {receipt.shard.num_rows:,}"
        )
    if num_without:
        yield Problem(path, "damaged", f"{num_without:,} of its rows have no id")


def _repeated(store: Store, ids: Ids, receipts: list[Receipt]) -> Iterator[Problem]:
    hashes = ids.twice()
    for id_, paths in repeated(store, receipts, hashes) if len(hashes) else ():
        places = list(dict.fromkeys(paths))
        named = ", ".join(places[1 : MAX_NAMED + 1]) + (", ..." if len(places) > MAX_NAMED + 1 else "")
        also = f", also in {named}" if named else ""
        yield Problem(places[0], "repeated", f"id {id_} occurs {len(paths)} times{also}")


def _reject_problems(store: Store, folder: str, receipt: Receipt) -> Iterator[Problem]:
    path = rejects_path(folder, receipt.index)
    if not receipt.rejects:
        return
    if not store.exists(path):
        yield Problem(path, "missing", f"the receipt counts {sum(receipt.rejects.values())} rejects")
        return
    problems = list(_file_problems(store, path, receipt.rejects_digest))
    yield from problems
    codes = (
        Counter()
        if problems
        else read_or_problem(path, lambda: _codes(read_rejects(store, folder, receipt.index)))
    )
    if isinstance(codes, Problem):
        yield codes
    elif not problems and codes != Counter(receipt.rejects):
        said = f"its counts by code differ from the receipt's: {codes.total()} and {sum(receipt.rejects.values())} rejects"
        yield Problem(path, "damaged", said)


def _codes(table: pa.Table) -> Counter[str]:
    return Counter(f"{r['kind']}:{r['why']}" for r in table.to_pylist())


def log_problems(store: Store, folder: str) -> Iterator[Problem]:
    """Yields damaged logs. Only users and `why` read logs; no key or receipt depends on them."""
    for name in store.list(f"{folder}/_log"):
        path = f"{folder}/_log/{name}"
        if name.endswith((".jsonl", ".json")):
            found = read_or_problem(path, lambda path=path: _read_log(store, path))  # type: ignore[misc]
            if isinstance(found, Problem):
                yield found


def _read_log(store: Store, path: str) -> None:

    data = store.read_bytes(path)
    lines = data.splitlines() if path.endswith(".jsonl") else [data]
    for number, line in enumerate(lines, 1):
        if not isinstance(json.loads(line), dict):
            raise ValueError(f"line {number} is not a JSON object")


def left_over(store: Store, record: StepRecord) -> Iterator[Problem]:
    """Yields temporary files of killed runs; shards and rejects that no receipt lists; artifacts not in the manifest."""
    folder, known = record.folder, {r.index for r in record.receipts}
    rejected = {r.index for r in record.receipts if r.rejects}
    for sub, expected in (("", known), ("/_rejects", rejected), ("/_receipts", known), ("/_log", known)):
        for name in store.list(folder + sub):
            path = f"{folder}{sub}/{name}"
            number = SHARD_FILE.fullmatch(name)
            if is_part(name):
                yield Problem(path, "left over", "a temporary file of an interrupted write")
            elif number and int(number[1]) not in expected:
                yield Problem(path, "left over", "no receipt lists it")
    if record.manifest is not None and store.exists(f"{folder}/artifacts"):
        for path in sorted(store.fs.find(store.path(f"{folder}/artifacts"))):
            name = str(path).partition(f"{folder}/artifacts/")[2]
            if name not in record.manifest.artifacts:
                yield Problem(f"{folder}/artifacts/{name}", "left over", "the manifest does not list it")


def summary(found: Sequence[VerifyReport]) -> str:
    """Returns one line, such as `12 shard(s) and 3 artifact(s) of 4 step(s): all match their records`."""
    steps = [one for one in found if one.folder]
    num_shards, num_artifacts = sum(one.num_shards for one in steps), sum(one.num_artifacts for one in steps)
    kinds = Counter(problem.kind for one in found for problem in one.problems)
    half = f", {kinds['unfinished']} of them unfinished" if kinds["unfinished"] else ""
    checked = f"{num_shards:,} shard(s) and {num_artifacts:,} artifact(s) of {len(steps)} step(s){half}"
    num_wrong = sum(problem.is_wrong for one in found for problem in one.problems)
    if num_wrong:
        return f"{checked}: {num_wrong} error(s)"
    return f"{checked}: " + (
        "all match their records" if num_shards + num_artifacts else "there is nothing to read yet"
    )


ADVICE: dict[Kind, str] = {
    "damaged": "To repair what is missing or damaged, remove the step's manifest.json and the receipts of the listed shards "
    "(`_receipts/NUMBER.json`), then `vlpipe run`.",
    "out of date": "What is out of date is recomputed by `vlpipe run`; `vlpipe prune` removes unused folders.",
    "repeated": "Ids must be unique within a step: change the list or the stage that these rows come from.",
}


def advice(problems: Sequence[Problem]) -> str:
    """Returns a line of instructions for each kind of error that occurs; `missing` and `damaged` share one."""
    kinds = {"damaged" if problem.kind == "missing" else problem.kind for problem in problems}
    return "\n".join(text for kind, text in ADVICE.items() if kind in kinds)
