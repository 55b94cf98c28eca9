"""What a run tells other programs: its event log, metrics for Prometheus, training curves."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import call, create_autospec

import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN, planned

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.records.progress_notes import mark_running
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect import alarms as alarms_module
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.inspect.roots.state import RootReader
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.watch import curves as curves_module
from vlpipe.pipeline.watch import events as events_module
from vlpipe.pipeline.watch.curves import Curves
from vlpipe.pipeline.watch.events import FOLDER, EventLog
from vlpipe.pipeline.watch.metrics import Metrics
from vlpipe.pipeline.watch.telling import all_of


def read_events(store: Store, run_id: str | None = None) -> list[dict[str, Any]]:
    """The events of a run, of the last one by default, in order."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(store.list(FOLDER)):
        found = [json.loads(line) for line in store.read_bytes(f"{FOLDER}/{name}").splitlines()]
        key = found[0].get("run") or name.removesuffix(".jsonl").rpartition("-")[0]
        runs.setdefault(key, []).extend(found)
    if run_id is not None:
        return runs.get(run_id, [])
    return max(runs.values(), key=lambda events: events[0]["at"])


def names(events: list[dict[str, Any]]) -> list[str]:
    return [" ".join(str(e[key]) for key in ("event", "step", "shard") if key in e) for e in events]


def test_a_run_leaves_its_events(tmp_path: Path) -> None:
    go = Runs(tmp_path, CHAIN)
    go("run", "--local")
    (file,) = (go.root / "_events").glob("*.jsonl")
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert events == read_events(Store(str(go.root)))
    assert events[0]["event"] == "run_started"
    assert events[0]["workflow"] == "toy"
    assert events[0]["todo"] == events[0]["steps"]
    assert [e["shard"] for e in events if e["event"] == "shard_done" and e["step"] == "scale"] == [0, 1, 2, 3]
    done = {e["step"]: e for e in events if e["event"] == "step_done"}
    assert list(done) != []
    assert set(done) == set(events[0]["steps"])
    assert (done["scale"]["rows_in"], done["scale"]["rows_out"], done["scale"]["alarms"]) == (20, 20, [])
    assert events[-1]["event"] == "run_done"
    assert [e["at"] for e in events] == sorted(e["at"] for e in events)
    go("run", "--local")  # nothing to do: no log
    assert len(list((go.root / "_events").iterdir())) == 1
    assert vlpipe("verify", go.root)


def test_a_failed_run_says_why_and_the_next_one_has_a_log_of_its_own(tmp_path: Path) -> None:
    go = Runs(tmp_path, CHAIN.replace("by: 3", 'by: 3, calls: "/no/such/folder/calls"'))
    go("run", "--local", code=1)
    last = read_events(Store(str(go.root)))[-1]
    assert last["event"] == "run_failed"
    assert "step 'scale'" in last["error"]
    go.file.write_text(CHAIN.replace("by: 3", "by: 4"))
    go("run", "--local")
    assert len(list((go.root / "_events").iterdir())) == 2
    events = read_events(Store(str(go.root)))
    assert events[-1]["event"] == "run_done"
    assert "numbers.rows" not in events[0]["todo"]


def test_a_store_that_cannot_append_gets_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "EVERY_S", 0.0)
    store = Store("memory://events_of_a_run")
    steps, _ = planned(tmp_path, CHAIN)
    with EventLog(store, "0007", "toy", steps) as log:
        log.watcher.started(steps[0], 3)
        log.watcher.tick()
        log.watcher.started(steps[1], None)
    assert len(store.list("_events")) == 2
    assert names(read_events(store)) == [
        "run_started",
        "step_started numbers.rows",
        "step_started numbers",
        "run_done",
    ]
    assert read_events(store, "0008") == []


def test_metrics_are_served_while_it_runs(tmp_path: Path) -> None:
    steps, store = planned(tmp_path, CHAIN)
    with locked(store) as run_id, Metrics(store, "0") as metrics:
        url = f"http://127.0.0.1:{metrics.port}"
        seen: list[str] = []

        def look(*_: Any) -> None:
            seen.append(urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode())

        watcher = all_of([metrics.watcher, Watcher(shard=look)])
        new_run(steps, store, local_executor(), watcher).go()
        look()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url, timeout=5)
        assert run_id
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/metrics", timeout=5)
    assert any('vlpipe_step_running{step="scale"} 1' in text for text in seen)
    last = seen[-1].splitlines()
    for line in (
        'vlpipe_rows_in_total{step="scale"} 20',
        'vlpipe_shards_done_total{step="scale"} 4',
        'vlpipe_shards{step="scale"} 4',
        'vlpipe_step_running{step="scale"} 0',
        "# TYPE vlpipe_rows_in_total counter",
        "# TYPE vlpipe_shards gauge",
    ):
        assert line in last, line
    rejected = [line for line in last if line.startswith('vlpipe_rejected_rows_total{step="every"')]
    assert all('kind="' in line and 'why="' in line for line in rejected)


@pytest.mark.parametrize("where", ["x", "127.0.0.1:", "99999", "host:99999"])
def test_a_wrong_port_is_an_error(where: str, tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match="--metrics: wanted PORT or HOST:PORT"):
        Metrics(Store(str(tmp_path)), where)


def test_training_curves_are_sent_once_per_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, store = planned(tmp_path, CHAIN)
    one = next(step for step in steps if step.name == "sum")
    said = Path(store.path(f"{one.folder}/_log/said.txt"))
    said.parent.mkdir(parents=True)
    got: list[tuple[str, int, dict[str, float]]] = []
    closed: list[bool] = []
    told: list[tuple[str, str]] = []

    def make(target: str, run_id: str) -> Any:
        assert (target, run_id) == ("here", "0001")
        return (
            lambda step, at, found: got.append((step, at, dict(found))),
            lambda step, text: told.append((step, text)),
            lambda: closed.append(True),
        )

    monkeypatch.setattr(curves_module, "tensorboard", make)
    monkeypatch.setattr(curves_module, "EVERY_S", 0.0)
    with Curves(store, "0001", "tensorboard:here") as curves:
        curves.watcher.started(one, 1)
        said.write_text("step 50/200  loss 9.5  itm 0.5  100 samples/s  3 s left\nother\n")
        curves.watcher.tick()
        curves.watcher.tick()
        with said.open("a") as file:
            file.write("step 100/200  loss 8.5  100 samples/s  3 s left\nwarning: it is odd\n")
        curves.watcher.finished(one)
    assert got == [("sum", 50, {"loss": 9.5, "itm": 0.5}), ("sum", 100, {"loss": 8.5})]
    assert closed == [True]
    assert told == [("sum", "it is odd")]
    with pytest.raises(VlpipeError, match="--curves: wanted tensorboard:FOLDER or wandb:PROJECT"):
        Curves(store, "0001", "mlflow:x")


def test_tensorboards_files(tmp_path: Path) -> None:
    log, tell, close = curves_module.tensorboard(str(tmp_path), "0001")
    log("pretrain", 50, {"loss": 9.5})
    tell("pretrain", "COLLAPSE ALARM")
    close()
    (file,) = (tmp_path / "0001").iterdir()
    for text in (b"pretrain/loss", b"pretrain/alarms", b"COLLAPSE ALARM"):
        assert text in file.read_bytes()


@pytest.mark.slow
def test_figures_are_logged_by_wandbs_own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is a stand-in that takes what wandb's own takes."""
    wandb = pytest.importorskip("wandb")
    run = create_autospec(wandb.Run, instance=True)
    monkeypatch.setattr(wandb, "init", create_autospec(wandb.init, return_value=run))
    log, tell, close = curves_module.wandb("a project", "0001")
    log("pretrain", 50, {"loss": 9.5})
    log("pretrain", 100, {"loss": 8.5})
    tell("pretrain", "COLLAPSE ALARM")
    close()
    wandb.init.assert_called_once_with(project="a project", name="0001")
    assert run.define_metric.call_args_list == [
        call("pretrain/step"),
        call("pretrain/*", step_metric="pretrain/step"),
    ]
    assert run.log.call_args_list == [
        call({"pretrain/step": 50, "pretrain/loss": 9.5}),
        call({"pretrain/step": 100, "pretrain/loss": 8.5}),
    ]
    run.alert.assert_called_once_with(title="vlpipe: pretrain", text="COLLAPSE ALARM")
    run.finish.assert_called_once_with()


def test_alarms_stand_out_in_status_and_events(tmp_path: Path) -> None:
    go = Runs(tmp_path, CHAIN)
    go("run", "--local")
    folder = go.step("sum")
    (folder / "_log").mkdir(exist_ok=True)
    (folder / "_log/said.txt").write_text("warning: it is odd\nCOLLAPSE ALARM at step 4: all equal\nfine\n")
    steps, store = planned(tmp_path, CHAIN)
    one = next(step for step in steps if step.name == "sum")
    assert alarms(one, store) == ["it is odd", "COLLAPSE ALARM at step 4: all equal"]
    assert any("warning: it is odd" in line for line in go("status"))
    assert any(
        "steps are done" in line for line in go("status", "--watch", "0.1")
    )  # ends at once: all are done


WORDS = "warning: it is odd\nCOLLAPSE ALARM at step 4: all equal\nfine\n"


def test_alarms_stand_in_everything_that_looks(tmp_path: Path) -> None:
    """In status, events, metrics, the page, the report; of a step that is under way, too."""
    go = Runs(tmp_path, CHAIN)
    go("run", "--local")
    folder = go.step("sum")
    (folder / "_log").mkdir(exist_ok=True)
    (folder / "_log/said.txt").write_text(WORDS)
    found = ["it is odd", "COLLAPSE ALARM at step 4: all equal"]
    steps, store = planned(tmp_path, CHAIN)
    one = next(step for step in steps if step.name == "sum")
    with EventLog(store, "0009", "toy", steps) as log:
        log.watcher.finished(one)
    assert [e["alarms"] for e in read_events(store, "0009") if e["event"] == "step_done"] == [found]
    with Metrics(store, "0") as metrics:
        metrics.watcher.finished(one)
        assert 'vlpipe_alarms{step="sum"} 2' in metrics.text().splitlines()
    state = {step.name: step for step in RootReader(store).state().steps}
    assert state["sum"].warning == "; ".join(found)
    assert state["scale"].warning == ""
    go("report", "--out", tmp_path / "page.html")
    assert "<b>sum</b>: COLLAPSE ALARM at step 4: all equal" in (tmp_path / "page.html").read_text()
    (folder / "manifest.json").unlink()  # as if it were under way
    with locked(store) as run_id:
        assert run_id
        mark_running(store, folder.name)
        state = {step.name: step for step in RootReader(store).state().steps}
        assert state["sum"].warning == "; ".join(found)
        assert sum("warning: COLLAPSE ALARM" in line for line in go("status")) == 1


def test_a_host_that_refuses_everything_is_an_alarm() -> None:
    counts = {"refused_all:b.test": 60, "refused_all:a.test": 900, "other": 3}
    assert alarms_module._refusing(SimpleNamespace(counts=counts)) == [  # type: ignore[arg-type]
        "host a.test refused all of 900 URLs in a row",
        "host b.test refused all of 60 URLs in a row",
    ]
    many = {f"refused_all:{k}.test": 100 - k for k in range(9)}
    assert alarms_module._refusing(SimpleNamespace(counts=many))[-1] == "4 more hosts did"  # type: ignore[arg-type]
    assert alarms_module._refusing(SimpleNamespace(counts={"other": 3})) == []  # type: ignore[arg-type]


def test_a_model_that_waits_is_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = Runs(tmp_path, CHAIN)
    go("run", "--local")
    steps, _ = planned(tmp_path, CHAIN)
    one = next(step for step in steps if step.name == "scale")
    for receipt in one.receipts:
        receipt.run.update({"waiting": 30.0, "computing": 10.0})  # type: ignore[attr-defined]
    assert alarms(one, Store(str(go.root))) == [
        "its model waited for input 75% of the time: give the step more `cpus` or `decode_workers`"
    ]
    monkeypatch.setattr(alarms_module, "LONG_S", 1e9)
    assert alarms(one, Store(str(go.root))) == []
