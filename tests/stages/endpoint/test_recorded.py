"""Recorded answers: what is stored is found again, by whoever asks, and forgotten with its row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_toys import answer
from endpoint_toys import Serve
from typer.testing import CliRunner

from vlpipe.pipeline.cli.app import app
from vlpipe.pipeline.engine.records import answers as record
from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.chat_server.server import Running
from vlpipe.stages.endpoint.book import KeyIndex
from vlpipe.stages.endpoint.columns import response_format
from vlpipe.stages.endpoint.prompts import HASH_CHARS, Builder

WORKFLOW = """
name: recorded
steps:
  pictures: {{use: "picture_toys:Pictures", num: {num}, shard_rows: 20}}
  captions:
    use: "caption.endpoint:CaptionEndpoint"
    from: pictures
    base_url: {url}
    model: demo
    prompt: "Describe it."
    price: {{input: 1.0, output: 10.0}}
    {more}
"""


def command(*args: str) -> str:
    import vlpipe.pipeline.cli.commands  # noqa: F401  # defines the commands

    done = CliRunner().invoke(app, [*args])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return tmp_path / "root"


def run(root: Path, server: Running, num: int = 40, more: str = "max_tokens: 64") -> None:
    file = root.parent / "w.yaml"
    file.write_text(WORKFLOW.format(url=server.url, num=num, more=more))
    command("run", str(file), "--root", str(root), "--local")


def captions(root: Path) -> dict[str, list[str]]:
    """Returns id -> captions, of the step that was made last."""
    step = max(root.glob("captions-*"), key=lambda path: path.stat().st_mtime)
    rows = [row for path in step.glob("0*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["id"]: [one["text"] for one in row["texts"] if one["source"] == "synth"] for row in rows}


def test_lines_and_what_a_kill_leaves_of_them() -> None:
    lines = [record.line_of(answer(n, text="caf\u00e9 \U0001f600 \n")) for n in range(3)]
    assert record.answers_in(b"".join(lines)) == [answer(n, text="caf\u00e9 \U0001f600 \n") for n in range(3)]
    assert record.answers_in(b"".join(lines)[:-5]) == [
        answer(n, text="caf\u00e9 \U0001f600 \n") for n in range(2)
    ]
    torn = lines[0][:20] + b"\0" * 30 + b"\n" + lines[1]
    assert [one.id for one in record.answers_in(torn)] == [answer(1).id]


def test_segments_of_a_killed_run_become_a_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(
        f"{record.OPEN}/{'a' * 12}.jsonl", b"".join(record.line_of(answer(n)) for n in (2, 1, 2))
    )
    store.write_bytes(f"{record.OPEN}/{'b' * 12}-000000.jsonl", record.line_of(answer(5)))
    store.write_bytes(f"{record.OPEN}/{'b' * 12}-000001.jsonl", record.line_of(answer(6)))
    assert record.recover(store) == 5
    assert record.recover(store) == 0
    assert record.part_names(store) == ["000000.parquet", "000001.parquet"]
    assert [key[0] for key in record.read_part(store, 0)] == [answer(1).id, answer(2).id]
    assert record.read_part(store, 1)[answer(6).id, "r"] == answer(6)
    assert store.list(record.OPEN) == []


def test_the_index_finds_files_by_key() -> None:
    index = KeyIndex()
    import numpy as np

    rng = np.random.default_rng(0)
    files = {n: rng.integers(-(2**63), 2**63 - 1, 50 + n, np.int64) for n in range(40)}
    for number, keys in files.items():
        index.add(keys, number)
    assert index.files(np.array([files[7][3], files[31][0]])) == [7, 31]
    assert index.files(rng.integers(-(2**63), 2**63 - 1, 1000, np.int64)) == []
    assert len(index._runs) < 12


def test_an_answer_is_asked_once_whatever_changes_around_it(root: Path, serve: Serve) -> None:
    server = serve()
    run(root, server)
    first = captions(root)
    assert server.server.asked.total() == 40
    run(root, server, more="max_tokens: 64\n    max_words: 3")  # another decision about the same answers
    assert server.server.asked.total() == 40
    assert captions(root) == first
    run(root, server, num=60)  # more shards
    assert server.server.asked.total() == 60
    assert {id_: captions(root)[id_] for id_ in first} == first
    run(root, server, num=60, more="max_tokens: 65")  # another question
    assert server.server.asked.total() == 120
    assert [*(root / "answers" / "_open").iterdir()] == []


def test_the_receipt_has_tokens_and_cost(root: Path, serve: Serve) -> None:
    run(root, serve(), num=20)
    (receipt,) = root.glob("captions-*/_receipts/*.json")
    found = json.loads(receipt.read_text())
    assert found["counts"] == {"captions_good": 20, "tokens_in": 6000, "tokens_out": 260}
    assert found["run"]["asked"] == 20
    assert found["run"]["cost_per_1000_rows"] == pytest.approx(1000 * (300 * 1.0 + 13 * 10.0) / 1e6)


def test_a_sample_tells_what_the_full_run_will_cost_and_is_not_asked_again(root: Path, serve: Serve) -> None:
    server = serve()
    file = root.parent / "w.yaml"
    file.write_text(WORKFLOW.format(url=server.url, num=80, more="max_tokens: 64"))
    said = command("run", str(file), "--root", str(root), "--local", "--sample", "2")
    assert server.server.asked.total() == 40
    price = 80 * (300 * 1.0 + 13 * 10.0) / 1e6
    assert f"tokens in: 24,000, tokens out: 1,040, price: {price:.2g}" in " ".join(said.split())
    assert f"price: {price:.2g}" in " ".join(command("plan", str(file), "--root", str(root)).split())
    run(root, server, num=80)
    assert set(server.server.asked.values()) == {1}
    assert server.server.asked.total() == 80


def listed(root: Path, entry: str) -> str:
    file = root.parent / "list.txt"
    file.write_text(f"{entry}\n")
    return str(file)


@pytest.mark.parametrize("pruned", [False, True], ids=["steps", "answers alone"])
@pytest.mark.parametrize("kind", ["id", "url", "domain", "sha256"])
def test_forget_reaches_the_answers(root: Path, serve: Serve, kind: str, pruned: bool) -> None:
    run(root, serve(), num=12)
    store = Store(str(root))
    before = [
        one
        for name in record.part_names(store)
        for one in record.read_part(store, record.number_of(name)).values()
    ]
    one = before[3]
    host = (one.url or "").split("/")[2]
    entry = {"id": one.id, "url": one.url, "domain": host, "sha256": one.sha256}[kind]
    gone = {a.id for a in before if (host in (a.url or "") if kind == "domain" else a.id == one.id)}
    if pruned:
        for folder in root.glob("*-*"):
            store.remove(folder.name)
    file = str(root.parent / "w.yaml")
    dry = command("forget", file, listed(root, f"{kind}:{entry}"), "--root", str(root))
    assert f"{len(gone)} recorded answer(s)" in dry
    assert len([*record.with_rows(store, ids_of(before))]) == 1
    command("forget", file, listed(root, f"{kind}:{entry}"), "--root", str(root), "--yes")
    left = [
        a.id
        for name in record.part_names(store)
        for a in record.read_part(store, record.number_of(name)).values()
    ]
    assert sorted(left) == sorted({a.id for a in before} - gone)
    assert gone


def ids_of(answers: list[Answer]) -> Any:
    from vlpipe.pipeline.parquet.text_sets import TextSet

    return TextSet.of("id", [one.id for one in answers])


def test_forget_reaches_what_a_killed_run_left(root: Path, serve: Serve) -> None:
    run(root, serve(), num=4)
    store = Store(str(root))
    segment = f"{record.OPEN}/{'c' * 12}.jsonl"
    store.write_bytes(segment, record.line_of(answer(1, "other")) + record.line_of(answer(9)))
    command(
        "forget",
        str(root.parent / "w.yaml"),
        listed(root, f"id:{answer(1).id}"),
        "--root",
        str(root),
        "--yes",
    )
    assert not store.exists(segment)
    left = {
        key for name in record.part_names(store) for key in record.read_part(store, record.number_of(name))
    }
    assert answer(1).id not in {id_ for id_, _ in left}
    assert (answer(9).id, "r") in left


def test_prune_drops_the_answers_where_it_is_told_to(root: Path, serve: Serve) -> None:
    server = serve()
    run(root, server, num=4)
    file = str(root.parent / "w.yaml")
    command("prune", file, "--root", str(root), "--yes")
    assert len(record.part_names(Store(str(root)))) == 1
    assert "would remove" in command("prune", file, "--root", str(root), "--answers")
    assert "of recorded answers" in command("prune", file, "--root", str(root), "--answers", "--yes")
    assert not (root / "answers").exists()
    run(root, server, num=4)
    assert server.server.asked.total() == 4  # its shards are finished


def test_verify_finds_damage(root: Path, serve: Serve) -> None:
    run(root, serve(), num=4)
    assert "damaged" not in command("verify", str(root))
    path = root / "answers" / "000000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    import vlpipe.pipeline.cli.commands  # noqa: F401

    done = CliRunner().invoke(app, ["verify", str(root)])
    assert done.exit_code == 1
    assert "answers/000000.parquet" in done.output.replace("\n", "")


def test_nothing_in_the_root_holds_the_key(root: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-0123456789-abcdef"
    monkeypatch.setenv("DEMO_KEY", key)
    faults: Mapping[str, float] = {"echo": 0.5, "500": 0.2, "wrong_json": 0.1}
    run(root, serve(key=key, faults=faults), more="api_key_env: DEMO_KEY")
    files = [path for path in root.rglob("*") if path.is_file()]
    holding = [path for path in files if key.encode() in path.read_bytes()]
    tables = [pq.read_table(path).to_pylist() for path in files if path.suffix == ".parquet"]
    assert len(tables) > 5
    assert holding == []
    assert key not in repr(tables)
    assert "Bearer (hidden)" in repr(tables)


def test_the_schema_holds_every_field() -> None:
    assert ["key", *Answer._fields] == record.SCHEMA.names
    assert record.SCHEMA.field("key").type == pa.int64()


def test_the_order_of_a_schemas_properties_is_in_the_hash_and_no_other_order() -> None:
    """A server writes an object in the order of its schema; other keys mean the same in any order."""

    def hashed(**sampling: Any) -> str:
        return Builder({"model": "m", **sampling}, "", None, "").hash("prompt", 1, "", 0)

    def schema(*names: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}}

    def asked(*names: str) -> str:
        return hashed(response_format=response_format(schema(*names)))

    assert asked("caption", "objects") != asked("objects", "caption")
    assert hashed(guided={"any": [schema("a", "b")]}) != hashed(guided={"any": [schema("b", "a")]})
    assert hashed(top_p=1, extra={"a": 1, "b": 2}) == hashed(extra={"b": 2, "a": 1}, top_p=1)
    # answers to requests without a schema, or with sorted names, are found as before
    fields = [{"model": "m", "response_format": response_format(schema("a", "b"))}, "", None, ""]
    static = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    found = hashlib.sha256(static + b"\0\0" + b"1\0" + b"0\0" + b"prompt").hexdigest()
    assert asked("a", "b") == found[:HASH_CHARS]
