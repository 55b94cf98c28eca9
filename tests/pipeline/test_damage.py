"""Every file of a root damaged in every way: `verify` names it; the other commands work, or name it in one sentence."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands as verbs
from vlpipe.pipeline.cli.app import app
from vlpipe.pipeline.engine.records.forgotten import add_forgotten
from vlpipe.pipeline.engine.records.receipts import Receipt, receipts_in
from vlpipe.pipeline.errors import VlpipeError, explain
from vlpipe.pipeline.inspect.opted_out import REL as OPTED_OUT
from vlpipe.pipeline.inspect.opted_out import hash_of_url
from vlpipe.pipeline.storage.checksummed_json import sealed, unsealed
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.web.opted_out import OptedOut

assert verbs.app is app
# Heavy columns, rejects of rules and of faults, artifacts that a step reads, logs, children, a step without a shard.
FIRST = """
name: first
steps:
  numbers: {use: "toys:Numbers", num_rows: 9, shard_rows: 5}
  ask: {use: "look_toys:Ask", from: numbers, up: UP}
  every: {use: "toys:Every", from: ask, k: 2}
  sum: {use: "toys:Sum", from: every}
  add: {use: "toys:AddSum", from: every, total: {from: sum, path: sum.json}}
  payload: {use: "toys:Payload", from: add}
"""
SECOND = """
name: second
steps:
  pages: {use: "verb_toys:Pages", num_rows: 4, shard_rows: 2}
  split: {use: "verb_toys:Split", from: pages, last: page00000001-b}
  only: {use: "toys:OnlyArtifact", from: pages}
"""
MADE_ANEW = ("_steps.json", "_cache/digests.json")
# Read by nobody but the person who follows a run, or free text: a flip in it may leave good text.
FREE_TEXT = ("said.txt", "run.json", ".jsonl")


class Two:
    """Two workflows in one root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "up").write_text("0 1 2 3 5 6 7 8")
        self.first = Runs(folder, FIRST.replace("UP", str(folder / "up")))
        self.root = self.first.root
        self.second = folder / "second.yaml"
        self.second.write_text(SECOND)

    def run(self) -> None:
        for file in (self.first.file, self.second):
            code, said = call("run", file, "--root", self.root, "--local")
            assert code == 0, said
        store = Store(str(self.root))
        add_forgotten(store, id=["somebody"], url=["x.test/1"], domain=["y.test"])
        opted = OptedOut(store)
        opted.load()
        opted._put([(hash_of_url("http://x.test/9"), "x-robots-tag: noai", 1)])


def call(*args: str | Path) -> tuple[int, str]:
    """Exit code and what is printed; an error as the command line prints it."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    error = done.exception
    text = "" if error is None or isinstance(error, SystemExit) else explain(error)
    return done.exit_code, done.output + text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Two:
    two = Two(tmp_path_factory.mktemp("whole"))
    two.run()
    code, said = call("verify", two.root)
    assert (code, said.splitlines()[-1].endswith("all match their records")) == (0, True), said
    return two


def flips(data: bytes, rng: random.Random, num: int = 6) -> Iterator[tuple[str, bytes]]:
    for _ in range(min(num, len(data))):
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def damages(path: Path, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    data = path.read_bytes()
    yield from flips(data, rng)
    yield "cut", data[: len(data) // 2]
    yield "its last byte lost", data[:-1]
    yield "empty", b""
    yield "removed", None
    for other in ([], {}, "text", 7, None):
        yield f"replaced by {other!r}", json.dumps(other).encode()


def means_the_same(path: Path, before: bytes, after: bytes) -> bool:
    """A flip may hit what means nothing: white space in JSON, padding or statistics in Parquet."""
    try:
        if path.suffix == ".json":
            return bool(json.loads(before) == json.loads(after))
        if path.name == "_shards.parquet":
            return bool(_receipts_in(path, before) == _receipts_in(path, after))
        if path.suffix == ".parquet":
            tables = [
                pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
                for data in (before, after)
            ]
            return bool(tables[0].equals(tables[1], check_metadata=True))
    except Exception:  # whatever a reader says of damaged bytes, they do not mean the same
        return False
    return False


def _receipts_in(path: Path, data: bytes) -> list[Receipt]:
    path.write_bytes(data)
    return receipts_in(Store(str(path.parent)), path.name)


def is_silent(rel: str, how: str) -> bool:
    """Damage that nothing can see: text for the reader with other letters, a file that need not be there."""
    if rel.endswith(FREE_TEXT) or (rel.startswith("_lock/") and ("flipped" in how or how == "removed")):
        return True
    return how == "removed" and (rel in (*MADE_ANEW, "forgotten.parquet") or rel.startswith(OPTED_OUT))


def files(two: Two) -> list[Path]:
    return sorted(p for p in two.root.rglob("*") if p.is_file())


def each_damage(two: Two, seed: int, choose: Callable[[int], bool]) -> Iterator[tuple[str, str, Path]]:
    """(file, what was done to it, its path) of each damage; afterwards it is as it was."""
    rng, number = random.Random(seed), 0
    for path in files(two):
        before = path.read_bytes()
        for how, after in damages(path, rng):
            number += 1
            if not choose(number):
                continue
            try:
                if after is not None and means_the_same(path, before, after):
                    continue
                path.unlink() if after is None else path.write_bytes(after)
                yield str(path.relative_to(two.root)), how, path
            finally:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(before)


def check_verify(two: Two, rel: str, how: str) -> str:
    code, said = call("verify", two.root)
    if "internal error" in said:
        return f"{rel} {how}: {said}"
    if is_silent(rel, how):
        return ""
    names_it = rel in said
    if rel in MADE_ANEW:
        return "" if names_it and "made anew" in said else f"{rel} {how} is not told: {said}"
    if rel.endswith("/manifest.json") and how == "removed":  # a step that goes on
        return (
            ""
            if f"unfinished  {two.root}/{rel.removesuffix('/manifest.json')}" in said
            else f"{rel} {how}: {said}"
        )
    if rel == "_format.json" and how == "removed":
        return "" if code == 1 and "has format 1" in said else f"{rel} {how}: {said}"
    return "" if code == 1 and names_it else f"{rel} {how}: exit code {code}, {said}"


@pytest.mark.slow
def test_verify_names_damage(whole: Two) -> None:
    """Each file in one of the 15 ways, the next one in another: one in 14 of all."""
    wrong = [check_verify(whole, rel, how) for rel, how, _ in each_damage(whole, 1, lambda n: n % 14 == 0)]
    assert len(wrong) >= 60
    assert not [text for text in wrong if text]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_damage_is_named(whole: Two) -> None:
    """One in 4 of all; all with VLPIPE_EVERY_DAMAGE=1, which takes minutes."""
    every = 1 if os.environ.get("VLPIPE_EVERY_DAMAGE") else 4
    wrong = [check_verify(whole, rel, how) for rel, how, _ in each_damage(whole, 2, lambda n: n % every == 0)]
    assert len(wrong) >= 840 // every
    assert not [text for text in wrong if text]


def commands(two: Two) -> Iterator[tuple[str | Path, ...]]:
    root = ("--root", two.root)
    for file, row in ((two.first.file, "id3"), (two.second, "page00000000-a")):
        yield ("plan", file, *root)
        yield ("status", file, *root)
        yield ("why", file, row, *root)
    for step in ("every", "split", "sum"):
        (folder,) = two.root.glob(f"{step}-*")
        yield ("show", folder)
        yield ("diff", folder, folder)
    (folder,) = two.root.glob("every-*")
    yield ("show", folder / "_rejects")
    yield ("run", two.first.file, *root, "--local")
    yield ("run", two.second, *root, "--local")


@pytest.mark.slow
def test_no_command_ends_in_an_internal_error(whole: Two, tmp_path: Path) -> None:
    """It works (what is damaged may be of no concern to it), or says in one sentence which file is damaged."""
    wrong, num = [], 0
    for rel, how, _ in each_damage(whole, 3, lambda n: n % 127 == 0):
        num += 1
        folder = tmp_path / str(num)
        shutil.copytree(whole.root, folder)
        here = Two.__new__(Two)
        here.folder, here.first, here.root, here.second = whole.folder, whole.first, folder, whole.second
        for args in commands(here):
            code, said = call(*args)
            last = said.strip().splitlines()[-1] if said.strip() else ""
            if "internal error" in said:
                wrong.append(f"{rel} {how}: {args[0]}: {last}")
            elif code and Path(rel).name not in said and rel.split("/")[0] not in said:
                wrong.append(f"{rel} {how}: {args[0]} does not name it: {last}")
        shutil.rmtree(folder)
    assert num >= 8
    assert not wrong


def test_a_record_of_another_type_is_named(whole: Two) -> None:
    """JSON that is whole and sealed, and holds what no record holds."""
    (step,) = whole.root.glob("every-*")
    for rel, name, value in (
        ("manifest.json", "rows_in", "nine"),
        ("manifest.json", "artifacts", []),
        ("_receipts/000000.json", "rejects", {"filtered:not_kth": "many"}),
        ("_receipts/000000.json", "rajects", {}),
        ("_step.json", "inputs", 3),
    ):
        path = step / rel
        before = path.read_bytes()
        path.write_bytes(sealed({**unsealed(before), name: value}))
        code, said = call("verify", step)
        path.write_bytes(before)
        assert (code, f"damaged    {path}" in said) == (1, True), (rel, name, said)


def forge(path: Path, **values: object) -> bytes:
    before = path.read_bytes()
    path.write_bytes(sealed({**unsealed(before), **values}))
    return before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows_out", 3),
        ("rows_in", 3),
        ("num_shards", 1),
        ("bytes", 3),
        ("rejects", {"filtered:other": 1}),
        ("counts", {"made": 3}),
        ("params", {"k": 3}),
        ("identity", ["toys:Every", 2]),
        ("stage_key", "0" * 64),
        ("step_key", "0" * 64),
        ("shards_digest", "0" * 64),
        ("inputs_digest", "0" * 64),
        ("inputs", []),
        ("sources", ["0" * 16]),
        ("schema", ["id: string"]),
    ],
)
def test_a_forged_manifest_is_named(whole: Two, name: str, value: object) -> None:
    (step,) = whole.root.glob("every-*")
    before = forge(step / "manifest.json", **{name: value})
    code, said = call("verify", step)
    (step / "manifest.json").write_bytes(before)
    assert (code, f"{step}/manifest.json" in said) == (1, True), said


def test_parameters_forged_in_both_records_do_not_give_their_key(whole: Two) -> None:
    (step,) = whole.root.glob("every-*")
    before = {name: forge(step / name, params={"k": 3}) for name in ("manifest.json", "_step.json")}
    code, said = call("verify", step)
    for name, data in before.items():
        (step / name).write_bytes(data)
    assert (code, "its step_key does not match its parameters" in said) == (1, True), said


def test_an_error_of_ours_is_seen_as_one() -> None:
    """What the other tests look for."""
    assert explain(KeyError("x")).startswith("internal error")
    assert not explain(VlpipeError("x")).startswith("internal error")
