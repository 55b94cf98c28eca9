"""What a finished step was made from, for `verify`: the steps it names are there, and hold the bytes it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vlpipe.pipeline.engine.records.keys import shard_key
from vlpipe.pipeline.engine.records.manifest import (
    Manifest,
    digest_artifacts,
    digest_inputs,
    read_manifest,
    read_step_file,
)
from vlpipe.pipeline.engine.records.receipts import Receipt, read_unfinished, receipt_path
from vlpipe.pipeline.inspect.on_disk import folder_now, step_folders
from vlpipe.pipeline.inspect.verify.problems import BROKEN, Problem
from vlpipe.pipeline.inspect.verify.records import Records, listed_receipts
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.file_names import SHARD_FILE
from vlpipe.pipeline.storage.store import Store

MAX_KEPT = 3  # steps whose shards are in memory
RUN_AGAIN = "`vlpipe run` makes it again"


@dataclass
class Steps:
    """The steps of a root, as they are asked for. What cannot be read is as if not there: its own folder's problem."""

    store: Store
    _shards: dict[str, dict[int, Shard] | None] = field(default_factory=dict)

    @cached_property
    def folders(self) -> Sequence[str]:
        return step_folders(self.store)

    @cached_property
    def folder_of(self) -> Mapping[str, str]:
        """Full step key -> folder; one that is finished, if there is one."""
        found: dict[str, str] = {}
        for folder in self.folders:
            said = _or_none(lambda folder=folder: read_step_file(self.store, folder))
            if said and (said["step_key"] not in found or self.manifest(folder)):
                found[said["step_key"]] = folder
        return found

    def manifest(self, folder: str) -> Manifest | None:
        found: Manifest | None = _or_none(lambda: read_manifest(self.store, folder))
        return found

    def shards(self, folder: str) -> dict[int, Shard] | None:
        """By number; None when they cannot be read."""
        if folder not in self._shards:
            while len(self._shards) >= MAX_KEPT:
                del self._shards[next(iter(self._shards))]
            self._shards[folder] = _or_none(lambda: self._read(folder))
        return self._shards[folder]

    def _read(self, folder: str) -> dict[int, Shard]:
        if self.store.exists(f"{folder}/manifest.json"):
            return {r.index: r.shard for r in listed_receipts(self.store, folder)}
        return {index: r.shard for index, r in read_unfinished(self.store, folder).items()}


def _or_none(read: Any) -> Any:
    try:
        return read()
    except BROKEN:
        return None


def lineage_problems(steps: Steps, found: Records) -> Iterator[Problem]:
    """Of a finished step: what it was made from is gone, or is not what it was made from."""
    manifest = found.manifest
    if manifest is None:
        return
    above: list[str] = []
    for folder in (folder_now(name, steps.folders) for name in manifest.inputs):
        if (yield from _is_there(steps, found, folder)):
            above.append(folder)
    made = [steps.manifest(folder) for folder in above]
    yield from _read_problems(steps, found, manifest)
    if len(above) == len(manifest.inputs) and all(made):
        digests = [one.shards_digest for one in made if one is not None]
        if manifest.inputs_digest != digest_inputs(digests, digest_artifacts(manifest.read)):
            names = ", ".join(above) or "its parameters"
            yield Problem(
                f"{found.folder}/manifest.json",
                "out of date",
                f"made from other bytes than now lie in {names}; {RUN_AGAIN}",
            )
        yield from _shards_problems(steps, found, manifest, above)


def _is_there(steps: Steps, found: Records, folder: str) -> Generator[Problem, None, bool]:
    """True when a step above is there and finished."""
    if not steps.store.exists(folder):
        yield Problem(folder, "missing", f"{found.folder} was made from it")
    elif not steps.store.exists(f"{folder}/manifest.json"):
        text = f"made from {folder}, which is not finished; {RUN_AGAIN}"
        yield Problem(f"{found.folder}/manifest.json", "out of date", text)
    else:
        return True
    return False


def _read_problems(steps: Steps, found: Records, manifest: Manifest) -> Iterator[Problem]:
    """Files and artifacts that the step read, against what it says of them."""
    for name, said in manifest.files.items():
        digest = manifest.read.get(name)
        if not said.startswith("step:"):
            if digest not in (None, said):
                text = f"{name} was read with sha256 {digest}, its key says {said}"
                yield Problem(f"{found.folder}/manifest.json", "damaged", text)
            continue
        folder = steps.folder_of.get(said.removeprefix("step:"))
        if folder is None:
            text = (
                f"its {name} comes from a step that is gone (step key {said.removeprefix('step:')[:16]}...)"
            )
            yield Problem(f"{found.folder}/manifest.json", "missing", text)
        elif (yield from _is_there(steps, found, folder)) and digest is not None:
            maker = steps.manifest(folder)
            if maker is not None and maker.artifact_digest(_artifact_path(manifest.params, name)) != digest:
                text = f"made from another {name} than now lies in {folder}/artifacts; {RUN_AGAIN}"
                yield Problem(f"{found.folder}/manifest.json", "out of date", text)


def _artifact_path(params: Mapping[str, Any], name: str) -> str:
    """`path` of `{from: STEP, path: NAME}` at a dotted name; of a listed source the name begins with `source`."""
    value: Any = params
    for part in name.split("."):
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
    return str(value.get("path") or "") if isinstance(value, Mapping) else ""


def _shards_problems(
    steps: Steps, found: Records, manifest: Manifest, above: Sequence[str]
) -> Iterator[Problem]:
    """Each receipt against the input shard it speaks of. A gather step read all of them at once."""
    inputs: list[Shard] = []
    for folder in above:
        shards = steps.shards(folder)
        if shards is None:
            return
        inputs += [shards[index] for index in sorted(shards)]
    if not above or not _is_mapped(found, manifest, inputs):
        for receipt in found.receipts.values():
            if receipt.input_digest != manifest.inputs_digest:
                yield _damaged(found, receipt, "its inputs are not those of the manifest")
        return
    if len(inputs) != len(found.receipts):
        text = f"it has {len(found.receipts):,} shard(s), made from {len(inputs):,} that now lie above it; {RUN_AGAIN}"
        yield Problem(f"{found.folder}/manifest.json", "out of date", text)
    artifacts = digest_artifacts(manifest.read)
    for receipt in found.receipts.values():
        if receipt.index < len(inputs):
            yield from _shard_problems(found, manifest, receipt, inputs[receipt.index], artifacts)


def _is_mapped(found: Records, manifest: Manifest, inputs: Sequence[Shard]) -> bool:
    """Shard k comes from shard k."""
    return any(
        r.shard.key == shard_key(manifest.stage_key, inputs[r.index].key)
        for r in found.receipts.values()
        if r.index < len(inputs)
    )


def _shard_problems(
    found: Records, manifest: Manifest, receipt: Receipt, source: Shard, artifacts: str
) -> Iterator[Problem]:
    if receipt.shard.key != shard_key(manifest.stage_key, source.key):
        yield _damaged(found, receipt, f"its key is not that of a shard made from {source.path}")
    elif receipt.input_digest != source.digest:
        yield _outdated(found, receipt, f"made from other bytes than now lie in {source.path}")
    elif dict(receipt.input_heavy) != source.heavy_digests(receipt.input_heavy):
        names = ", ".join(sorted(receipt.input_heavy))
        yield _outdated(
            found, receipt, f"made from other bytes of {names} than the rows of {source.path} have now"
        )
    elif receipt.artifacts_digest != artifacts:
        yield _outdated(found, receipt, "made from other artifacts or files than the manifest says")
    elif receipt.rows_in != source.num_rows:
        text = f"it counts {receipt.rows_in:,} rows in, {source.path} has {source.num_rows:,}"
        yield _damaged(found, receipt, text)


def _damaged(found: Records, receipt: Receipt, text: str) -> Problem:
    return Problem(receipt_path(found.folder, receipt.index), "damaged", text)


def _outdated(found: Records, receipt: Receipt, text: str) -> Problem:
    return Problem(receipt_path(found.folder, receipt.index), "out of date", f"{text}; {RUN_AGAIN}")


def heavy_problems(steps: Steps, receipt: Receipt) -> Iterator[Problem]:
    """Shards that hold heavy columns of a shard's rows: they are there, with the bytes that the receipt names."""
    for name, path, digest, _ in receipt.shard.heavy:
        folder, _, file = path.rpartition("/")
        number = SHARD_FILE.fullmatch(file)
        if path == receipt.shard.path:
            if digest != receipt.shard.digest:
                yield Problem(path, "damaged", f"the receipt has two digests for it, one as {name}")
        elif not number or not steps.store.exists(path):
            yield Problem(path, "missing", f"it holds {name} of {receipt.shard.path}")
        else:
            shards = steps.shards(folder) or {}
            holder = shards.get(int(number[1]))
            if holder is not None and holder.digest != digest:
                text = f"{name} of its rows lies in {path}, which has other bytes now; {RUN_AGAIN}"
                yield Problem(receipt.shard.path, "out of date", text)


def mixed_code(found: Records) -> Iterator[Problem]:
    """Shards of one step that different code made. Its VERSION says that the rows are the same; that is for the reader."""
    num = Counter(hash_ for r in found.receipts.values() for hash_ in r.source.split("+"))
    if len(num) > 1:
        counted = ", ".join(f"{n:,} shard(s) by {hash_}" for hash_, n in sorted(num.items()))
        yield Problem(found.folder, "mixed code", f"of one VERSION: {counted}")
