"""`verify`: read everything again and compare it with what its records say; what is damaged is named, never raised."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import Receipt, receipt_path, shard_path
from vlpipe.pipeline.engine.records.rejects import read_rejects, rejects_path
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.inspect.verify.ids import Ids, repeated
from vlpipe.pipeline.inspect.verify.keys import key_problems
from vlpipe.pipeline.inspect.verify.lineage import Steps, heavy_problems, lineage_problems, mixed_code
from vlpipe.pipeline.inspect.verify.problems import Kind, Problem, read_or_problem
from vlpipe.pipeline.inspect.verify.records import Records, read_records
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.file_names import SHARD_FILE, is_part
from vlpipe.pipeline.storage.store import Store

MAX_NAMED = 5  # shards of an id that comes more than once


@dataclass(frozen=True, slots=True)
class VerifyReport:
    folder: str
    num_shards: int
    num_artifacts: int
    problems: list[Problem]


def verify_step(
    store: Store, folder: str, seen: Callable[[], None] = lambda: None, steps: Steps | None = None
) -> VerifyReport:
    """Re-hash every shard and artifact of a step, and follow what it was made from; `seen` is called after each.

    steps: of the root, where several of its steps are looked at.
    """
    steps = steps or Steps(store)
    found = read_records(store, folder)
    problems = [*found.problems, *_state(found)]
    ids, whole = Ids(), list[Receipt]()
    for receipt in found.receipts.values():
        problems += _one_shard(steps, folder, receipt, ids, whole)
        seen()
    problems += _repeated(store, ids, whole)
    artifacts = found.manifest.artifacts if found.manifest else {}
    for name, digest in artifacts.items():
        problems += _file_problems(store, f"{folder}/artifacts/{name}", digest)
        seen()
    problems += [*lineage_problems(steps, found), *key_problems(store, found), *mixed_code(found)]
    problems += [*log_problems(store, folder), *left_over(store, found.record)]
    return VerifyReport(folder, len(found.receipts), len(artifacts), _once(problems))


def verify_shard(store: Store, folder: str, index: int) -> VerifyReport:
    found = read_records(store, folder)
    receipt = found.receipts.get(index)
    mine = {receipt_path(folder, index), f"{folder}/_shards.parquet", f"{folder}/manifest.json"}
    problems = [problem for problem in found.problems if problem.path in mine]
    if receipt is None:
        if not problems:
            problems = [Problem(shard_path(folder, index), "left over", "there is no receipt for it")]
        return VerifyReport(folder, 0, 0, problems)
    return VerifyReport(
        folder, 1, 0, _once([*problems, *_one_shard(Steps(store), folder, receipt, Ids(), [])])
    )


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Each file and kind once: what is said first."""
    found: dict[tuple[str, Kind], Problem] = {}
    for problem in problems:
        found.setdefault((problem.path, problem.kind), problem)
    return list(found.values())


def _one_shard(
    steps: Steps, folder: str, receipt: Receipt, ids: Ids, whole: list[Receipt]
) -> Iterator[Problem]:
    """All that is wrong with a shard; the ids of one whose bytes are right go into `ids`, it itself into `whole`."""
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
    """A shard and its rejects against its receipt."""
    return [
        *_file_problems(store, receipt.shard.path, receipt.shard.digest),
        *_reject_problems(store, folder, receipt),
    ]


def _file_problems(store: Store, path: str, digest: str) -> Iterator[Problem]:
    found = read_or_problem(path, lambda: _sha256(store, path))
    if isinstance(found, Problem):
        yield found
    elif found != digest:
        yield Problem(path, "damaged", f"sha256 is {found[:16]}..., the receipt says {digest[:16]}...")


def _sha256(store: Store, path: str) -> str:
    with store.open(path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _content_problems(store: Store, receipt: Receipt, ids: Ids, whole: list[Receipt]) -> Iterator[Problem]:
    """What the file of a shard holds against what its receipt says of it; its ids go into `ids`."""
    path = receipt.shard.path
    found = read_or_problem(path, lambda: (_num_rows(store, path), ids.add(store, receipt)))
    if isinstance(found, Problem):
        yield found
        return
    whole.append(receipt)
    num_rows, num_without = found
    size = store.size(path)
    if size != receipt.bytes:
        yield Problem(path, "damaged", f"it has {size:,} bytes, the receipt says {receipt.bytes:,}")
    if num_rows != receipt.shard.num_rows:
        yield Problem(
            path, "damaged", f"it has {num_rows:,} rows, the receipt says {receipt.shard.num_rows:,}"
        )
    if num_without:
        yield Problem(path, "damaged", f"{num_without:,} of its rows have no id")


def _num_rows(store: Store, path: str) -> int:
    with open_parquet(store, path) as file:
        return int(file.metadata.num_rows)


def _repeated(store: Store, ids: Ids, receipts: list[Receipt]) -> Iterator[Problem]:
    hashes = ids.twice()
    for id_, paths in repeated(store, receipts, hashes) if len(hashes) else ():
        places = list(dict.fromkeys(paths))
        named = ", ".join(places[1 : MAX_NAMED + 1]) + (", ..." if len(places) > MAX_NAMED + 1 else "")
        also = f", also in {named}" if named else ""
        yield Problem(places[0], "repeated", f"id {id_} comes {len(paths)} times{also}")


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
        said = f"it has {codes.total()} rejects, the receipt {sum(receipt.rejects.values())}"
        yield Problem(path, "damaged", said)


def _codes(table: pa.Table) -> Counter[str]:
    return Counter(f"{r['kind']}:{r['why']}" for r in table.to_pylist())


def log_problems(store: Store, folder: str) -> Iterator[Problem]:
    """Logs are for the reader, and `why` reads them; no key and no receipt knows what they say."""
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
    """Files a killed run left, and shards and rejects without a receipt."""
    folder, known = record.folder, {r.index for r in record.receipts}
    rejected = {r.index for r in record.receipts if r.rejects}
    for sub, expected in (("", known), ("/_rejects", rejected), ("/_receipts", known), ("/_log", known)):
        for name in store.list(folder + sub):
            path = f"{folder}{sub}/{name}"
            number = SHARD_FILE.fullmatch(name)
            if is_part(name):
                yield Problem(path, "left over", "of a write that did not end")
            elif number and int(number[1]) not in expected:
                yield Problem(path, "left over", "there is no receipt for it")
    if record.manifest is not None and store.exists(f"{folder}/artifacts"):
        for path in sorted(store.fs.find(store.path(f"{folder}/artifacts"))):
            name = str(path).partition(f"{folder}/artifacts/")[2]
            if name not in record.manifest.artifacts:
                yield Problem(f"{folder}/artifacts/{name}", "left over", "the manifest does not have it")


def summary(found: Sequence[VerifyReport]) -> str:
    """What was read, and how it is."""
    steps = [one for one in found if one.folder]
    num_shards, num_artifacts = sum(one.num_shards for one in steps), sum(one.num_artifacts for one in steps)
    kinds = Counter(problem.kind for one in found for problem in one.problems)
    half = f", {kinds['unfinished']} of them unfinished" if kinds["unfinished"] else ""
    checked = f"{num_shards:,} shard(s) and {num_artifacts:,} artifact(s) of {len(steps)} step(s){half}"
    num_wrong = sum(problem.is_wrong for one in found for problem in one.problems)
    if num_wrong:
        return f"{checked}: {num_wrong} thing(s) are wrong"
    return f"{checked}: " + (
        "all as their receipts say" if num_shards + num_artifacts else "there is nothing to read yet"
    )


ADVICE: dict[Kind, str] = {
    "damaged": "What is missing or damaged is made again by `vlpipe run` once the step's manifest.json and the receipts of "
    "the shards named (`_receipts/NUMBER.json`) are removed.",
    "out of date": "What is out of date is made again by `vlpipe run`; what no workflow reaches goes with `vlpipe prune`.",
    "repeated": "An id must be that of one row: what lists or makes these rows must give each an id of its own.",
}


def advice(problems: Sequence[Problem]) -> str:
    """What to do, a line for each kind of thing that is wrong."""
    kinds = {"damaged" if problem.kind == "missing" else problem.kind for problem in problems}
    return "\n".join(text for kind, text in ADVICE.items() if kind in kinds)
