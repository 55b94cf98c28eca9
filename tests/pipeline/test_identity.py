"""What may be used again: by what it was made from, never by names, and never by half of a key."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import yaml
from helpers import planned, rejects, rows, run

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep, resolve_stage
from vlpipe.pipeline.engine.records import file_digests, root_format
from vlpipe.pipeline.engine.records.receipts import Receipt, receipt_numbers, shard_path, write_receipt
from vlpipe.pipeline.errors import VlpipeError, VlpipeWarning
from vlpipe.pipeline.inspect.verify.run import verify_step
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.checksummed_json import sealed, unsealed
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORDS = [f"w{n:02d}" for n in range(20)]


def fetch(folder: Path, name: str = "fetch", below: str = "", more: str = "") -> str:
    return (
        f'name: t\nsteps:\n  {name}: {{use: "identity_toys:Fetch", list: {folder}/list, shard_rows: 4, '
        f"world: {folder}/world, bad: {folder}/bad, calls: {folder}/calls{more}}}\n{below}"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "list").write_text(" ".join(WORDS[:10]))
    for name, text in (("world", "old"), ("bad", ""), ("calls", "")):
        (tmp_path / name).write_text(text)
    return tmp_path


def calls(folder: Path) -> int:
    """Rows worked on since the last look."""
    file = folder / "calls"
    num = file.stat().st_size
    file.write_text("")
    return num


def grow(folder: Path, num: int) -> None:
    (folder / "list").write_text(" ".join(WORDS[:num]))


def check(folder: Path, steps: dict[str, PlannedStep]) -> None:
    """Every step of the root is as its records say."""
    store = Store(str(folder / "root"))
    for one in steps.values():
        assert verify_step(store, one.folder).problems == []


def test_two_files_that_swap_places_are_another_input(folder: Path) -> None:
    text = fetch(
        folder,
        below='  big: {use: "identity_toys:Write", text: BIG}\n  small: {use: "identity_toys:Write", text: small}\n'
        '  pair: {use: "identity_toys:Pair", from: fetch, teacher: {from: big}, student: {from: small}}\n',
    )
    assert rows(folder, run(folder, text)["pair"])["pair"][0].as_py() == "teacher=BIG student=small"
    swapped = text.replace(
        "teacher: {from: big}, student: {from: small}", "teacher: {from: small}, student: {from: big}"
    )
    assert rows(folder, run(folder, swapped)["pair"])["pair"][0].as_py() == "teacher=small student=BIG"


def test_rows_are_made_again_when_their_heavy_column_was(folder: Path) -> None:
    text = fetch(
        folder,
        below='  light: {use: "identity_toys:Light", from: fetch}\n'
        '  lighter: {use: "identity_toys:Light", from: light}\n'
        '  said: {use: "identity_toys:Describe", from: lighter}\n',
    )
    steps = run(folder, text)
    root = folder / "root" / steps["fetch"].folder
    for name in (
        "manifest.json",
        "_receipts/000001.json",
        "000001.parquet",
    ):  # as `verify` advises for a damaged shard
        (root / name).unlink()
    (folder / "world").write_text("new")
    again = run(folder, text)
    said = rows(folder, again["said"], ("picture",)).to_pylist()
    assert [r["said"] for r in said] == [r["picture"] for r in said]
    assert [r["said"].split()[0] for r in said] == ["old"] * 4 + ["new"] * 4 + ["old"] * 2
    check(folder, again)


def test_mended_rows_stay_when_the_list_grows(folder: Path) -> None:
    """Shards of several folders are made from the same things: the one with the fewest faults is taken."""
    from vlpipe.pipeline.change.retry import retry

    (folder / "bad").write_text("w01 w06")
    run(folder, fetch(folder))
    for num in (11, 12, 13, 14):
        grow(folder, num)
        run(folder, fetch(folder))
    (folder / "bad").write_text("")
    steps, store = planned(folder, fetch(folder))
    with locked(store):
        retry(steps, store, "fetch", ["gone"], local_executor())
    for num in (15, 16, 17, 18):
        grow(folder, num)
        last = run(folder, fetch(folder))
        assert rows(folder, last["fetch"])["id"].to_pylist() == WORDS[:num]
        assert rejects(folder, last["fetch"]) == []
    check(folder, last)


class Stop(Exception):
    pass


def interrupted(folder: Path, text: str, num_shards: int) -> None:
    """A run that ends after so many shards of `fetch`."""
    steps, store = planned(folder, text)
    done = 0

    def shard(one: PlannedStep, receipt: Receipt, reused: bool) -> None:
        nonlocal done
        done += one.name == "fetch"
        if done == num_shards:
            raise Stop

    with locked(store), pytest.raises(Stop):
        new_run(steps, store, local_executor(), Watcher(shard=shard)).go()


def test_a_list_that_grows_amid_a_fetch_costs_only_its_new_rows(folder: Path) -> None:
    grow(folder, 12)
    interrupted(folder, fetch(folder), 2)
    assert calls(folder) == 8
    grow(folder, 16)
    steps = run(folder, fetch(folder))
    assert calls(folder) == 8
    assert rows(folder, steps["fetch"], ("picture",))["id"].to_pylist() == WORDS[:16]
    check(folder, steps)


def test_a_renamed_step_and_one_put_into_a_loop_cost_nothing(folder: Path) -> None:
    below = '  copy: {{use: "identity_toys:Write", from: {0}, text: a, calls: {1}/calls}}\n'
    run(folder, fetch(folder, below=below.format("fetch", folder)))
    assert calls(folder) == 11
    for name, more in (("images", ""), ("b", "repeat: {rounds: 1, steps: [b, copy]}\n")):
        text = fetch(folder, name, below.format(name, folder)) + more
        steps = run(folder, text)
        assert calls(folder) == 0
        check(folder, steps)
    run(folder, fetch(folder, "images", below.format("images", folder).replace("copy:", "export:")))
    assert calls(folder) == 0


def test_a_reordered_list_costs_nothing_and_keeps_each_row_whole(folder: Path) -> None:
    grow(folder, 8)
    run(folder, fetch(folder))
    calls(folder)
    (folder / "list").write_text(" ".join([*WORDS[4:8], *WORDS[:4]]))
    steps = run(folder, fetch(folder))
    assert calls(folder) == 0
    found = rows(folder, steps["fetch"], ("picture",)).to_pylist()
    assert [r["id"] for r in found] == [*WORDS[4:8], *WORDS[:4]]
    assert all(r["picture"] == f"old of {r['id']}" for r in found)


def test_full_keys_decide_not_the_digits_in_a_name(folder: Path) -> None:
    text = fetch(folder, below='  light: {use: "identity_toys:Light", from: fetch}\n')
    one = run(folder, text)["light"]
    said = folder / "root" / one.folder / "_step.json"
    for path in (said, said.with_name("manifest.json")):  # another step whose key begins with the same digits
        value = unsealed(path.read_bytes())
        path.write_bytes(sealed({**value, "step_key": value["step_key"][:8] + "f" * 56}))
    again = run(folder, text)["light"]
    assert again.folder == f"light-{one.keyed.step_key[:16]}"
    assert rows(folder, again)["length"].to_pylist() == [3] * 10
    assert json.loads(said.read_text())["step_key"].endswith("f" * 56)
    assert planned(folder, text)[0][-1].is_done


def test_a_name_outlives_a_move_and_is_not_inherited(folder: Path) -> None:
    def light(use: str) -> dict[str, PlannedStep]:
        below = f'  light: {{use: "identity_toys:{use}", from: fetch, calls: {folder}/calls}}\n'
        return run(folder, fetch(folder, below=below))

    light("Named")
    assert calls(folder) == 20
    light("Moved")
    assert calls(folder) == 0
    light("Child")
    assert calls(folder) == 10


def test_parameters_of_any_plain_type(folder: Path) -> None:
    text = fetch(folder, below='  odd: {use: "identity_toys:Odd", from: fetch}\n')
    said = json.loads((folder / "root" / run(folder, text)["odd"].folder / "manifest.json").read_text())[
        "params"
    ]
    assert said == {"color": "red", "day": "2026-01-02", "folder": "a/b", "limit": "inf", "names": ["a", "b"]}
    again = planned(folder, text)[0][-1]
    assert again.is_done


def test_the_order_of_a_mapping_counts_where_a_stage_says_so(folder: Path) -> None:
    """A reordered mapping gave the rows of the old order; `verify` recomputes the key from the records."""
    for shares in (
        "{web: {b: 1, a: 2}, alt: {}}",
        "{alt: {}, web: {b: 1, a: 2}}",
        "{alt: {}, web: {a: 2, b: 1}}",
    ):
        text = fetch(
            folder, below=f'  named: {{use: "identity_toys:Names", from: fetch, shares: {shares}}}\n'
        )
        one, _ = planned(folder, text)
        done = run(folder, text)
        said = rows(folder, done["named"])["said"][0].as_py()
        wanted = yaml.safe_load(shares)
        assert said == " ".join(f"{name}:{'+'.join(more)}" for name, more in wanted.items())
        check(folder, done)
    assert "parameter shares.web changed {'in order':" in one[-1].reason


def test_the_version_of_a_source_counts_for_its_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import identity_toys

    before = run(folder, fetch(folder))
    monkeypatch.setattr(identity_toys.Fetch, "VERSION", 2)
    after, _ = planned(folder, fetch(folder))
    assert after[0].keyed.step_key != before["fetch.rows"].keyed.step_key
    assert "VERSION of identity_toys:Fetch changed 1 -> 2" in after[0].reason or not after[0].is_done


def test_a_relative_path_means_the_drivers_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "vocab.txt").write_text("the one that was meant")
    text = fetch(
        folder,
        below='  pair: {use: "identity_toys:Pair", from: fetch, teacher: ./vocab.txt, student: vocab.txt}\n',
    )
    steps, store = planned(folder, text)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vocab.txt").write_text("another file of that name")
    monkeypatch.chdir(elsewhere)
    stage = resolve_stage(steps[-1], store)
    assert stage.teacher.path == stage.student.path == str(folder / "vocab.txt")


def test_a_worker_refuses_a_file_that_the_plan_has_not_seen(folder: Path) -> None:
    (folder / "vocab.txt").write_text("seen")
    text = fetch(
        folder,
        below=f'  pair: {{use: "identity_toys:Pair", from: fetch, teacher: {folder}/vocab.txt, '
        f"student: {folder}/vocab.txt}}\n",
    )
    steps, store = planned(folder, text)
    file = resolve_stage(steps[-1], store).teacher
    file_digests.check_unchanged(file)
    os.utime(folder / "vocab.txt", ns=(1, 1))
    file_digests.check_unchanged(file)  # another time, the same bytes
    (folder / "vocab.txt").write_text("another")
    with pytest.raises(VlpipeError, match=r"vocab.txt on .* is not what the plan was made with"):
        file_digests.check_unchanged(file)
    (folder / "vocab.txt").unlink()
    with pytest.raises(VlpipeError, match=r"there is no .*vocab.txt on "):
        file_digests.check_unchanged(file)


def test_a_root_of_another_format_is_refused_whole(folder: Path) -> None:
    run(folder, fetch(folder))
    said = folder / "root" / root_format.FORMAT_FILE
    for value, text in (
        (None, "has format 1"),
        ('{"format": 3}', "has format 3"),
        ("{", "_format.json is damaged"),
    ):
        said.unlink() if value is None else said.write_text(value)
        with pytest.raises(VlpipeError, match=text):
            planned(folder, fetch(folder))
    said.write_text('{"format": 2}')
    assert all(one.is_done for one in planned(folder, fetch(folder))[0])


def test_damaged_caches_are_made_anew_with_a_warning(folder: Path) -> None:
    os.utime(folder / "list", ns=(1, 1))
    run(folder, fetch(folder))
    planned(folder, fetch(folder))
    for name in ("_cache/digests.json", "_steps.json"):
        path = folder / "root" / name
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        for data in (b"", b"[]", b"{", b"null", good[: len(good) // 2], bytes(flipped)):
            path.write_bytes(data)
            if name == "_steps.json" and data == bytes(flipped):  # reasons only: it may still be read
                assert all(one.is_done for one in planned(folder, fetch(folder))[0])
                continue
            with pytest.warns(VlpipeWarning, match=f"{path.name} is damaged"):
                assert all(one.is_done for one in planned(folder, fetch(folder))[0])
        path.write_bytes(good)


def test_a_damaged_record_is_named(folder: Path) -> None:
    one = run(folder, fetch(folder))["fetch"]
    for name in ("manifest.json", "_step.json"):
        path = folder / "root" / one.folder / name
        good = path.read_bytes()
        for data in (b"", b"[]", b"{", b"null", good.replace(b'"step_key"', b'"step_kez"')):
            path.write_bytes(data)
            with pytest.raises(VlpipeError, match=f"{name} is damaged"):
                planned(folder, fetch(folder))
        path.write_bytes(good)


def test_more_than_a_million_shards_keep_their_numbers(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for index in (7, 999_999, 1_000_000, 12_345_678):
        shard = Shard(path=shard_path("s-00000000", index), num_rows=0, digest="")
        write_receipt(store, "s-00000000", Receipt(index=index, shard=shard, bytes=0, rows_in=0))
    assert receipt_numbers(store, "s-00000000") == [7, 999_999, 1_000_000, 12_345_678]


def test_equal_rows_have_equal_keys_wherever_a_root_lies(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "list").write_text(" ".join(WORDS))
        text = (
            f'name: t\nsteps:\n  fetch: {{use: "identity_toys:Fetch", list: {folder}/list, shard_rows: 4}}\n'
        )
        found.append(
            {
                one.name: (one.folder, [dataclasses.asdict(s) for s in one.shards])
                for one in run(folder, text).values()
            }
        )
    assert found[0] == found[1]


def test_a_plan_reads_manifests_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, fetch(folder, below='  light: {use: "identity_toys:Light", from: fetch}\n'))
    (folder / "root" / planned(folder, fetch(folder))[0][-1].folder / "_shards.parquet").unlink()
    assert all(one.is_done for one in planned(folder, fetch(folder))[0])
    assert plan(Workflow.load(str(folder / "w.yaml"), root=str(folder / "root")), Store(str(folder / "root")))


def test_a_table_by_names_of_steps_is_made_again_when_they_swap(tmp_path: Path) -> None:
    says = '{use: "identity_toys:Says", text: TEXT}'
    rows_of = {}
    for first, second in (("good", "bad"), ("bad", "good")):
        steps = {first: says.replace("TEXT", "right"), second: says.replace("TEXT", "wrong")}
        steps["named"] = f'{{use: "identity_toys:ByName", from: [{first}, {second}]}}'
        text = "name: t\nsteps:\n" + "".join(f"  {name}: {step}\n" for name, step in steps.items())
        done = run(tmp_path, text)
        rows_of[first] = {row["name"]: row["text"] for row in rows(tmp_path, done["named"]).to_pylist()}
        check(tmp_path, done)
    assert rows_of == {"good": {"good": "right", "bad": "wrong"}, "bad": {"bad": "right", "good": "wrong"}}
