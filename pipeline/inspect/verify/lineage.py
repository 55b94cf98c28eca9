"""Checks for `verify` that the inputs of a finished step exist and still have the content that the step was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlpipe.pipeline.engine.records.manifest import Manifest, digest_artifacts, digest_inputs
from vlpipe.pipeline.engine.records.receipts import Receipt, receipt_path
from vlpipe.pipeline.engine.records.step_keys import shard_key
from vlpipe.pipeline.inspect.verify.problems import Problem
from vlpipe.pipeline.inspect.verify.records import Records
from vlpipe.pipeline.inspect.verify.steps import Steps
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.digests import sha256_json
from vlpipe.pipeline.storage.file_names import SHARD_FILE

RUN_AGAIN = "`vlpipe run` recomputes it"


def lineage_problems(steps: Steps, found: Records) -> Iterator[Problem]:
    """Yields problems of a finished step: an input is missing, unfinished, or has changed since the step read it."""
    manifest = found.manifest
    if manifest is None:
        return
    above: list[str] = []
    for folder in map(steps.input_folder, manifest.inputs):
        if (yield from _is_there(steps, found, folder)):
            above.append(folder)
    made = [steps.manifest(folder) for folder in above]
    yield from _read_problems(steps, found, manifest)
    if len(above) == len(manifest.inputs) and all(made):
        digests = [one.shards_digest for one in made if one is not None]
        is_current = manifest.inputs_digest == digest_inputs(digests, digest_artifacts(manifest.read))
        if not is_current:
            names = ", ".join(above) or "its parameters"
            yield Problem(
                f"{found.folder}/manifest.json",
                "out of date",
                f"made from other content than {names} has now; {RUN_AGAIN}",
            )
        yield from _shards_problems(steps, found, manifest, above, is_current)


def _is_there(steps: Steps, found: Records, folder: str) -> Generator[Problem, None, bool]:
    """Returns True if an input step exists and is finished; else yields a problem and returns False."""
    if not steps.store.exists(folder):
        yield Problem(folder, "missing", f"{found.folder} was made from it")
    elif not steps.store.exists(f"{folder}/manifest.json"):
        text = f"made from {folder}, which is not finished; {RUN_AGAIN}"
        yield Problem(f"{found.folder}/manifest.json", "out of date", text)
    else:
        return True
    return False


def _read_problems(steps: Steps, found: Records, manifest: Manifest) -> Iterator[Problem]:
    """Yields problems with files and artifacts that the step read: their digests, and the steps that made them."""
    for name, said in manifest.files.items():
        digest = manifest.read.get(name)
        if not said.startswith("step:"):
            if digest not in (None, said):
                text = f"{name} was read with sha256 {digest}, but its key contains {said}"
                yield Problem(f"{found.folder}/manifest.json", "damaged", text)
            continue
        in_params = name.removeprefix("source.") if manifest.identity[:1] == ("rows",) else name
        source = _source(manifest.params, in_params)
        folder = steps.folder_of(said.removeprefix("step:"), str(source.get("from", "")))
        if folder is None:
            key = said.removeprefix("step:")[:16]
            text = f"its input {name} comes from a step that is not in this root (step key {key}...)"
            yield Problem(f"{found.folder}/manifest.json", "missing", text)
        elif (yield from _is_there(steps, found, folder)) and digest is not None:
            maker = steps.manifest(folder)
            if maker is not None and maker.artifact_digest(str(source.get("path") or "")) != digest:
                text = f"made from another {name} than {folder}/artifacts has now; {RUN_AGAIN}"
                yield Problem(f"{found.folder}/manifest.json", "out of date", text)


def _source(value: Any, name: str) -> Mapping[str, Any]:
    """Returns the `{from: STEP, path: NAME}` at the dotted path `name` below a parameter; empty if there is none.

    Keys of mappings may have dots themselves, such as the host in `serve.demo.test`.
    """
    if not name:
        return value if isinstance(value, Mapping) else {}
    inside: Iterable[tuple[str, Any]] = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        inside = [(str(i), item) for i, item in enumerate(value)]
    below = [_source(item, name[len(key) + 1 :]) for key, item in inside if f"{name}.".startswith(f"{key}.")]
    return next(filter(None, below), {})


def _shards_problems(
    steps: Steps, found: Records, manifest: Manifest, above: Sequence[str], is_current: bool
) -> Iterator[Problem]:
    """Compares each receipt with its input shard; for a gather step, which reads all shards at once, with the manifest.

    above: folders of the input steps. is_current: whether they are what the manifest was made from.
    """
    inputs: list[Shard] = []
    for folder in above:
        shards = steps.shards(folder)
        if shards is None:
            return
        inputs += [shards[index] for index in sorted(shards)]
    if not above or all(_is_gathered(receipt, manifest) for receipt in found.receipts.values()):
        for receipt in found.receipts.values():
            if receipt.input_digest != manifest.inputs_digest:
                yield _damaged(found, receipt, "its input digest differs from the one in manifest.json")
        return
    if len(inputs) != len(found.receipts):
        text = (
            f"it has {len(found.receipts):,} shard(s), but its inputs now have {len(inputs):,}; {RUN_AGAIN}"
        )
        yield Problem(f"{found.folder}/manifest.json", "out of date", text)
    artifacts = digest_artifacts(manifest.read)
    for receipt in found.receipts.values():
        if receipt.index < len(inputs):
            source = inputs[receipt.index]
            yield from _shard_problems(found, manifest, receipt, source, artifacts, is_current)


def _is_gathered(receipt: Receipt, manifest: Manifest) -> bool:
    """True for a shard of a gather step: its input digest is over all inputs, or its key is one of its content."""
    by_content = sha256_json("content", receipt.shard.digest)
    return receipt.input_digest == manifest.inputs_digest or receipt.shard.key == by_content


def _shard_problems(
    found: Records, manifest: Manifest, receipt: Receipt, source: Shard, artifacts: str, is_current: bool
) -> Iterator[Problem]:
    if receipt.shard.key != shard_key(manifest.stage_key, source.key):
        if is_current:
            yield _damaged(found, receipt, f"its key does not match its input {source.path}")
        else:
            yield _outdated(found, receipt, f"made from another shard than {source.path} is now")
    elif receipt.input_digest != source.digest:
        yield _outdated(found, receipt, f"made from other content than {source.path} has now")
    elif dict(receipt.input_heavy) != source.heavy_digests(receipt.input_heavy):
        names = ", ".join(sorted(receipt.input_heavy))
        yield _outdated(
            found, receipt, f"made from other content of {names} than the rows of {source.path} have now"
        )
    elif receipt.artifacts_digest != artifacts:
        yield _outdated(found, receipt, "made from other artifacts or files than the manifest lists")
    elif receipt.rows_in != source.num_rows:
        text = f"it counts {receipt.rows_in:,} input rows, but {source.path} has {source.num_rows:,}"
        yield _damaged(found, receipt, text)


def _damaged(found: Records, receipt: Receipt, text: str) -> Problem:
    return Problem(receipt_path(found.folder, receipt.index), "damaged", text)


def _outdated(found: Records, receipt: Receipt, text: str) -> Problem:
    return Problem(receipt_path(found.folder, receipt.index), "out of date", f"{text}; {RUN_AGAIN}")


def heavy_problems(steps: Steps, receipt: Receipt) -> Iterator[Problem]:
    """Yields problems with the files of a shard's heavy columns: missing, or not of the digest in the receipt."""
    for name, path, digest, _ in receipt.shard.heavy:
        folder, _, file = path.rpartition("/")
        number = SHARD_FILE.fullmatch(file)
        if path == receipt.shard.path:
            if digest != receipt.shard.digest:
                yield Problem(
                    path,
                    "damaged",
                    f"the receipt has two different digests for it, one for the heavy column {name}",
                )
        elif not number or not steps.store.exists(path):
            yield Problem(path, "missing", f"it holds {name} of {receipt.shard.path}")
        else:
            shards = steps.shards(folder) or {}
            holder = shards.get(int(number[1]))
            if holder is not None and holder.digest != digest:
                text = f"its column {name} is in {path}, which has changed since; {RUN_AGAIN}"
                yield Problem(receipt.shard.path, "out of date", text)


def mixed_code(found: Records) -> Iterator[Problem]:
    """Yields a notice if different code with the same VERSION made the shards of a step: the rows should not differ."""
    num = Counter(hash_ for r in found.receipts.values() for hash_ in r.source.split("+"))
    if len(num) > 1:
        counted = ", ".join(f"{n:,} shard(s) by {hash_}" for hash_, n in sorted(num.items()))
        yield Problem(
            found.folder, "mixed code", f"the code of the stage changed, but its VERSION did not: {counted}"
        )
