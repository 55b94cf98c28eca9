from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import scored
from vlpipe.stages.selection.best import BestOfN
from vlpipe.stages.selection.choose import BetterSource, DrawSource

SCHEMA = pa.schema([("id", pa.string()), ("texts", TEXTS), scored("a", pa.list_(pa.float32()), "judge a")])


def judged(rows: list[list[tuple[dict[str, Any], float | None]]]) -> pa.Table:
    columns = [[[entry[k] for entry in row] for row in rows] for k in range(2)]
    return pa.table([[f"r{i}" for i in range(len(rows))], *columns], schema=SCHEMA)


def left(table: pa.Table) -> list[list[str]]:
    return [[t["text"] for t in ts or () if t["kept"] is not False] for ts in table["texts"].to_pylist()]


def random_rows(num_rows: int) -> list[list[tuple[dict[str, Any], float | None]]]:
    rng = np.random.default_rng(5)

    def entry(at: int) -> tuple[dict[str, Any], float | None]:
        fate = {"kept": False, "why": "junk"} if rng.random() < 0.1 else {}
        one = text(
            f"t{at}", str(rng.choice(["web", "synth", "human"])), model=str(rng.choice(["x", "y"])), **fate
        )
        return one, None if rng.random() < 0.1 else float(rng.integers(0, 4))

    return [[entry(at) for at in range(int(rng.integers(0, 7)))] for _ in range(num_rows)]


@pytest.mark.parametrize("per", ["image", "source", "model"])
@pytest.mark.parametrize("num", [1, 2])
def test_the_best_of_n_is_what_a_plain_loop_finds(per: str, num: int) -> None:
    rows = random_rows(200)
    stage = BestOfN(column="a", encoder="judge a", num=num, sources=("synth", "web"), per=per)  # type: ignore[arg-type]
    out = run_map(stage, judged(rows))
    for row, found in zip(rows, out.table["texts"].to_pylist(), strict=True):
        groups: dict[Any, list[tuple[float, int]]] = {}
        for at, (one, score) in enumerate(row):
            if one["source"] != "human" and one["kept"] is None and score is not None:
                groups.setdefault(None if per == "image" else one[per], []).append((-score, at))
        best = {at for group in groups.values() for _, at in sorted(group)[:num]}
        for at, ((one, score), now) in enumerate(zip(row, found, strict=True)):
            if one["source"] == "human" or one["kept"] is False or at in best:
                assert (now["kept"], now["why"]) == (one["kept"], one["why"])
            else:
                assert (now["kept"], now["why"]) == (False, "no_score" if score is None else "not_best")
    whys = [t["why"] for ts in out.table["texts"].to_pylist() for t in ts or ()]
    assert out.counts["drops:not_best"] == whys.count("not_best") > 20
    assert out.counts["drops:no_score"] == whys.count("no_score") > 5


def test_scores_of_another_judge_are_refused() -> None:
    with pytest.raises(SchemaError, match="'a' has scores of judge a"):
        BestOfN(column="a", encoder="judge b").schema(SCHEMA)
    with pytest.raises(SchemaError, match="one value per row"):
        BestOfN(column="n").schema(SCHEMA.append(pa.field("n", pa.float32())))
    assert BestOfN(column="a").schema(SCHEMA) == SCHEMA


WEB, SYNTH, HUMAN = text("w", "web"), text("s", "synth"), text("h", "human")


def test_the_better_source_stays_and_both_where_neither_is_clearly_better() -> None:
    rows = [
        [(WEB, 0.9), (SYNTH, 0.2), (HUMAN, 0.0)],
        [(WEB, 0.2), (SYNTH, 0.1), (SYNTH, 0.9)],
        [(WEB, 0.5), (SYNTH, 0.6)],
        [(WEB, 0.1)],
        [(WEB, None), (SYNTH, 0.1)],
        [(WEB, None), (SYNTH, None)],
        [],
    ]
    out = run_map(BetterSource(column="a", margin=0.15), judged(rows))
    assert left(out.table) == [["w", "h"], ["s", "s"], ["w", "s"], ["w"], ["s"], ["w", "s"], []]
    assert out.counts == {"chose:web": 2, "chose:synth": 2, "chose:web+synth": 2}
    assert run_map(BetterSource(column="a"), judged(rows)).counts["chose:web+synth"] == 1
    assert BetterSource(column="a", sources=("web",)).preflight() == [
        "wanted two or more different sources, got web"
    ]


def test_sources_are_drawn_by_their_shares_and_a_lone_one_stays() -> None:
    rows = [[(WEB, 0.1), (SYNTH, 0.1)] for _ in range(3000)] + [[(WEB, 0.1)]] * 50
    stage = DrawSource(shares={"web": 1, "synth": 2, "both": 1})
    table = judged(rows)
    out = run_map(stage, table)
    found = [tuple(ts) for ts in left(out.table)]
    assert set(found[3000:]) == {("w",)}
    counts = [found[:3000].count(kind) for kind in (("w",), ("s",), ("w", "s"))]
    for count, wanted in zip(counts, (750, 1500, 750), strict=True):
        assert abs(count - wanted) < 110  # four standard deviations
    backwards = run_map(stage, table.take(list(range(3049, -1, -1)))).table
    assert [tuple(ts) for ts in left(backwards)][::-1] == found
    assert found != [tuple(ts) for ts in left(run_map(DrawSource(shares=stage.shares, seed=1), table).table)]
    assert DrawSource(shares={"web": 0, "synth": 0}).preflight() == ["shares: every share is 0"]
