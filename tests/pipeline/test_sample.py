"""`vlpipe run --sample K`: the first K shards of each source, which the full run uses, and a forecast of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import Runs, vlpipe

from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts
from vlpipe.pipeline.errors import VlpipeWarning
from vlpipe.pipeline.inspect.forecast import Cost, by_rows, duration, read_forecast, totals
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.store import Store

TEXT = """
name: sampled
steps:
  numbers: {{use: "toys:Numbers", num_rows: 60, shard_rows: 6}}
  captions: {{use: "sample_toys:Caption", from: numbers, seconds: 0.01, calls: {calls}}}
  kept: {{use: "sample_toys:Half", from: captions}}
  judged: {{use: "sample_toys:Caption", from: kept, seconds: 0.02, calls: {judged}, column: judged}}
  train: {{use: "sample_toys:Steps", from: kept, {steps}}}
"""


def made(folder: Path, steps: str = "steps: 200") -> Runs:
    return Runs(folder, TEXT.format(calls=folder / "calls.txt", judged=folder / "judged.txt", steps=steps))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_full_run_uses_all_that_the_sample_made(tmp_path: Path) -> None:
    go = made(tmp_path)
    go("run", "--local", "--sample", "2")
    first = [f"id{n}" for n in range(12)]
    assert sorted(lines(tmp_path / "calls.txt")) == sorted(first)
    assert sorted(lines(tmp_path / "judged.txt")) == sorted(first[::2])
    go("run", "--local")
    assert sorted(lines(tmp_path / "calls.txt")) == sorted(f"id{n}" for n in range(60))  # each once
    assert sorted(lines(tmp_path / "judged.txt")) == sorted(f"id{n}" for n in range(0, 60, 2))
    assert go("plan")[-1] == "0 of 6 steps would run"
    fresh = made(tmp_path / "fresh") if (tmp_path / "fresh").mkdir() is None else None
    assert fresh is not None
    fresh("run", "--local")
    for step in ("numbers", "captions", "kept", "judged"):
        (own,) = [f for f in go.root.glob(f"{step}-*") if len(list(f.glob("*.parquet"))) == 11]  # and _shards
        ours = sorted(own.glob("0*.parquet"))
        assert len(ours) == 10
        assert [f.read_bytes() for f in ours] == [
            f.read_bytes() for f in sorted(fresh.step(step).glob("0*.parquet"))
        ]
    assert vlpipe("verify", go.root)


def test_a_second_sample_and_a_larger_one(tmp_path: Path) -> None:
    go = made(tmp_path)
    go("run", "--local", "--sample", "2")
    assert "nothing to do" in go("run", "--local", "--sample", "2")[0]
    go("run", "--local", "--sample", "3")
    assert sorted(lines(tmp_path / "calls.txt")) == sorted(f"id{n}" for n in range(18))
    assert go("plan")[-1].startswith("about ")  # the forecast of the last sample
    go("run", "--local", "--sample", "50")  # more shards than there are
    assert sorted(lines(tmp_path / "calls.txt")) == sorted(f"id{n}" for n in range(60))


@pytest.mark.parametrize(("steps", "num"), [("steps: 200", 200), ("epochs: 3", 90)])
def test_the_forecast_follows_from_the_sample(tmp_path: Path, steps: str, num: int) -> None:
    """How near it comes to the full run's time is measured by `benchmarks/forecast.py`."""
    go = made(tmp_path, steps)
    said = go("run", "--local", "--sample", "2")
    found = read_forecast(Store(str(go.root)), "sampled")
    assert found is not None
    assert found[0] == 2
    costs = {one.step: one for one in found[1]}
    assert {name: (one.rows_in, one.rows_out) for name, one in costs.items()} == {
        "numbers.rows": (0, 60),
        "numbers": (60, 60),
        "captions": (60, 60),
        "kept": (60, 30),
        "judged": (30, 30),
        "train": (30, 4),
    }
    assert costs["captions"].tokens == {"tokens_out": 120}
    assert said[-1].startswith("about ")
    assert said[-1].endswith("tokens out: 180")
    store = Store(str(go.root))
    for name in ("captions", "judged"):  # 2 of 10 shards were sampled
        assert costs[name].seconds == pytest.approx(5 * seconds_of(store, go.step(name).name))
        assert costs[name].seconds >= 0.6
    (run,) = [one.run for one in read_receipts(store, go.step("train").name)]
    besides = run["seconds"] - 4 * run["per_step"]
    assert costs["train"].seconds == pytest.approx(besides + num * run["per_step"])


def test_plan_shows_the_forecast_of_what_is_left(tmp_path: Path) -> None:
    go = made(tmp_path)
    go("run", "--local", "--sample", "2")
    said = go("plan")
    assert "6 of 6 steps would run" in said
    assert "from a sample of 2 shard(s) per source:" in said
    go("run", "--local")
    assert "from a sample of 2 shard(s) per source:" not in go("plan")
    vlpipe("run", go.file, "--sample", "0", code=2)


def test_a_damaged_record_costs_the_forecast_alone(tmp_path: Path) -> None:
    go = made(tmp_path)
    go("run", "--local", "--sample", "2")
    record = go.root / "_sample.json"
    record.write_bytes(record.read_bytes().replace(b"captions", b"captionz"))
    with pytest.warns(VlpipeWarning, match="_sample.json is damaged"):
        assert go("plan")[-1] == "6 of 6 steps would run"
    assert any("_sample.json" in line for line in vlpipe("verify", go.root))
    with pytest.warns(VlpipeWarning, match="a sample writes it again"):
        go("run", "--local", "--sample", "2")
    assert go("plan")[-1].startswith("about ")


def test_what_a_worker_takes_to_start_is_not_multiplied() -> None:
    """Three shards of 100 rows of a full run of 2,000; the first waits 4 s for its model. One alone tells nothing apart."""

    def receipt(seconds: float, rows: int = 100) -> Receipt:
        return Receipt(
            index=0,
            shard=Shard(path="", num_rows=0, digest=""),
            bytes=0,
            rows_in=rows,
            run={"seconds": seconds},
        )

    assert by_rows([receipt(6), receipt(2), receipt(2)], 10, 20 / 3) == pytest.approx(4 + 2 * 20)
    assert by_rows([receipt(6), receipt(1, rows=50)], 7, 2000 / 150) == pytest.approx(4 + 0.02 * 2000)
    assert by_rows([receipt(6)], 6, 20) == 120
    assert by_rows([], 3, 20) == 60


def test_totals() -> None:
    one = {"rows_in": 1, "rows_out": 1, "bytes": 5_000_000}
    costs = [
        Cost(step="a", seconds=7200, cpus=1, gpus=0, tokens={"tokens_in": 10}, **one),
        Cost(step="b", seconds=3600, cpus=2, gpus=1, tokens={"tokens_in": 5, "tokens_out": 1}, **one),
    ]
    assert totals(costs, 4) == (
        "about 60.0 min on 4 CPUs, 60.0 min of one GPU, 10.0 MB on disk, tokens in: 15, tokens out: 1"
    )
    for price, said in ((1234.5, "1,234.50"), (0.0172, "0.017")):
        dear = [*costs, Cost(step="c", seconds=0, cpus=0, gpus=0, tokens={}, price=price, **one)]
        assert totals(dear, 4).endswith(f"tokens out: 1, price: {said}")
    assert [duration(s) for s in (0.123, 12.3, 200, 36_000_000)] == [
        "0.12 s",
        "12 s",
        "3.3 min",
        "10,000.0 h",
    ]
