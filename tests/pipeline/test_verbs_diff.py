"""Two runs of a step: equal, other values, other shards, no ids, other columns."""

from pathlib import Path

from cli_helpers import Runs, vlpipe

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
    assert error.startswith(f"{a.root}: wanted a step's folder; in this root there are: every-")
    (error,) = vlpipe("diff", a.root / "judg-12345678", a.step("judge"), code=1)
    assert error.startswith(f"there is no {a.root}/judg-12345678; there are: every-")
