"""Two runs of a step: equal, other values, other shards, no ids, other columns."""

from pathlib import Path

from cli_helpers import Runs, vlpipe

from vlpipe.pipeline.inspect import diff_rows
from vlpipe.pipeline.inspect.on_disk import read_step
from vlpipe.pipeline.storage.store import Store

PAGES = """
name: pages
steps:
  pages: {use: "verb_toys:Pages", num_rows: NUM, shard_rows: SHARD}
  judge: {use: "verb_toys:Judge", from: pages}
  every: {use: "verb_toys:Split", from: judge, last: page00000001-b}
  losses: {use: "verb_toys:Losses", from: pages}
"""


def pages(folder: Path, num: int, shard_rows: int) -> Runs:
    folder.mkdir()
    runs = Runs(folder, PAGES.replace("NUM", str(num)).replace("SHARD", str(shard_rows)))
    runs("run", "--local")
    return runs


def cells(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_the_same_step_in_two_roots(tmp_path: Path) -> None:
    a, b = (pages(tmp_path / name, 8, 4) for name in "ab")
    said = vlpipe("diff", a.step("judge"), b.step("judge"))
    assert said[-1] == "no difference"
    assert cells(said)[1:3] == [["rows", "8", "8"], ["rows", "only", "here", "0", "0"]]


def test_other_shard_sizes_and_a_longer_list(tmp_path: Path) -> None:
    """Rows are matched by id wherever they lie, and read shard by shard."""
    a, b = pages(tmp_path / "a", 9, 2), pages(tmp_path / "b", 8, 3)
    said = vlpipe("diff", a.step("judge"), b.step("judge"))
    assert ["rows", "only", "here", "1", "0"] in cells(said)
    assert said[-2:] == ["only in A: page00000004-a", "the rows that both have are equal"]


def test_values_are_counted_by_column_with_examples(tmp_path: Path) -> None:
    a = pages(tmp_path / "a", 8, 3)
    a("run", "--local", "--set", "judge.threshold=0.8")
    one, two = sorted(a.root.glob("judge-*"), key=lambda p: p.stat().st_mtime_ns)
    said = vlpipe("diff", one, two, "-n", "1")
    assert ["parameter", "threshold", "0.5", "0.8"] in cells(said)
    assert said[-3:] == [
        "8 row(s) that both have differ: texts in 8",
        "page00000000-a",
        "    texts: ~ 'text 0': kept true -> false",
    ]


def test_rejects_stand_side_by_side(tmp_path: Path) -> None:
    a = pages(tmp_path / "a", 8, 3)
    a("run", "--local", "--set", "every.last=nobody")
    one, two = sorted(a.root.glob("every-*"), key=lambda p: p.stat().st_mtime_ns)
    said = vlpipe("diff", one, two)
    assert ["filtered:no_scene", "1", "0"] in cells(said)
    assert "only in B: page00000001-b/x, page00000001-b/y" in said


def test_rows_without_an_id_are_compared_by_their_place(tmp_path: Path) -> None:
    """A value that is not a number is equal to itself."""
    a = pages(tmp_path / "a", 8, 3)
    a("run", "--local", "--set", "losses.better=0.125")
    one, two = sorted(a.root.glob("losses-*"), key=lambda p: p.stat().st_mtime_ns)
    assert vlpipe("diff", one, two)[-3:] == [
        "1 row(s) that both have differ: value in 1",
        "row 2 (loss)",
        "    ~ value: 0.5 -> 0.375",
    ]


def test_steps_with_nothing_in_common(tmp_path: Path) -> None:
    a = pages(tmp_path / "a", 8, 3)
    said = vlpipe("diff", a.step("judge"), a.step("losses"))
    assert ["use", "verb_toys:Judge", "verb_toys:Losses"] in cells(said)
    assert said[-1] == "they have no column in common, so no row can be compared"


def test_what_is_no_step_is_an_error(tmp_path: Path) -> None:
    a = pages(tmp_path / "a", 8, 3)
    (error,) = vlpipe("diff", a.root, a.step("judge"), code=1)
    assert error.startswith(f"{a.root} is not a step's folder; this root has every-")
    (error,) = vlpipe("diff", a.root / "judg-12345678", a.step("judge"), code=1)
    assert error.startswith(f"there is no file or folder {a.root}/judg-12345678; there are: every-")


def given(folder: Path, ids: list[str], said: str, shard_rows: int, values: list[int] | None = None) -> Runs:
    folder.mkdir()
    (folder / "world").write_text(said)
    n = f", values: {values}" if values else ""
    n += f", world: {folder / 'world'}" if said else ""
    text = (
        "name: given\nsteps:\n"
        f'  given: {{use: "look_toys:Given", ids: {ids}, shard_rows: {shard_rows}{n}}}\n'
        '  same: {use: "look_toys:Same", from: given}\n'
    )
    runs = Runs(folder, text)
    runs("run", "--local")
    return runs


def test_heavy_columns_are_compared_wherever_they_lie(tmp_path: Path) -> None:
    """The light shards of `same` have the same bytes; the pictures of the step above do not."""
    a, b = (given(tmp_path / n, ["x", "y", "z"], said, 2) for n, said in (("a", "old"), ("b", "new")))
    for step in ("given-*", "same-*"):
        said = vlpipe("diff", *(next(runs.root.glob(step)) for runs in (a, b)), "-n", "1")
        assert (
            "compared in rows that both have: id, n, picture (heavy, by value in 2 pair(s) of shards)" in said
        )
        assert "3 row(s) that both have differ: picture in 3" in said
        assert said[-1].startswith("    ~ picture: 6 bytes, sha256 ")


def test_equal_pictures_are_not_read(tmp_path: Path) -> None:
    a, b = (given(tmp_path / n, ["x", "y", "z"], "", 2) for n in "ab")
    said = vlpipe("diff", a.step("same"), b.step("same"))
    assert said[-2:] == [
        "compared in rows that both have: id, n, picture (heavy, by digest)",
        "no difference",
    ]


def test_pictures_in_other_shards_are_compared_by_value(tmp_path: Path) -> None:
    ids = ["x", "y", "z"]
    a, b = given(tmp_path / "a", ids, "old", 1), given(tmp_path / "b", ids[::-1], "old", 2, [2, 1, 0])
    said = vlpipe("diff", a.step("same"), b.step("same"))
    assert said[-1] == "the rows that both have are equal"  # the parameters differ
    c = given(tmp_path / "c", ids[::-1], "new", 2, [2, 1, 0])
    assert "3 row(s) that both have differ: picture in 3" in vlpipe("diff", a.step("same"), c.step("same"))


def test_an_id_that_one_has_once_and_the_other_three_times(tmp_path: Path) -> None:
    a = given(tmp_path / "a", ["x", "y"], "old", 1, [0, 1])
    b = given(tmp_path / "b", ["y", "x", "z", "x", "x"], "old", 1, [1, 0, 2, 0, 0])
    said = vlpipe("diff", a.step("same"), b.step("same"))
    assert ["rows", "2", "5"] in cells(said)
    assert ["rows", "only", "here", "0", "3"] in cells(said)
    assert said[-2:] == ["only in B: z, x, x", "the rows that both have are equal"]
    said = vlpipe("diff", b.step("same"), a.step("same"), "-n", "1")
    assert "only in A: z, ..." in said


def test_nothing_on_one_side(tmp_path: Path) -> None:
    a = given(tmp_path / "a", ["x", "y"], "old", 1)
    b = given(tmp_path / "b", ["p", "q"], "old", 1)
    said = vlpipe("diff", a.step("same"), b.step("same"))
    assert said[-3:] == ["only in A: x, y", "only in B: p, q", "they have no row in common"]


def test_the_same_rows_in_another_order(tmp_path: Path) -> None:
    ids = ["x", "y", "z"]
    a, b = given(tmp_path / "a", ids, "old", 3), given(tmp_path / "b", ids, "old backwards", 3)
    sides = [
        diff_rows.Side(Store(str(r.root)), read_step(Store(str(r.root)), r.step("same").name)) for r in (a, b)
    ]
    found = diff_rows.compare_rows(*sides)
    assert (found.is_moved, dict(found.columns)) == (True, {"picture": 3})


def test_artifacts_are_facts(tmp_path: Path) -> None:
    text = 'name: toy\nsteps:\n  numbers: {use: "toys:Numbers", num_rows: 4}\n  sum: {use: "toys:Sum", from: numbers}\n'
    roots = []
    for name, num in (("a", 4), ("b", 5)):
        (tmp_path / name).mkdir()
        roots.append(Runs(tmp_path / name, text.replace("4", str(num))))
        roots[-1]("run", "--local")
    said = vlpipe("diff", *(runs.step("sum") for runs in roots))
    assert any(line.startswith("artifact sum.json") for line in said)
