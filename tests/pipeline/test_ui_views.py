"""What the page of `vlpipe ui` is told: steps and progress, rejects with their rows, lineage, curves, comparisons, media."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Runs, vlpipe
from look_at import HOSTILE, PAGES, caption, picture, row_id
from ui_client import Client, serving

from vlpipe.pipeline.inspect.roots.said import figures, read_said
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.ui.drawn import asked_bytes, webvtt
from vlpipe.pipeline.ui.pictures import as_png, kind_of
from vlpipe.pipeline.ui.shapes import plain
from vlpipe.pipeline.ui.site import Missing


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("views"), PAGES)
    runs("run", "--local")
    runs("run", "--local", "--set", "training.better=0.5", "--set", "results.value=0.5")
    return runs


@pytest.fixture(scope="module")
def client(runs: Runs) -> Iterator[Client]:
    with serving(runs.root) as found:
        yield found


def by_name(client: Client) -> dict[str, Any]:
    return {one["name"]: one for one in client.get("run")["steps"] if one["current"]}


def test_steps_with_their_counts(client: Client) -> None:
    steps = by_name(client)
    assert [*steps][:2] == ["pictures.rows", "pictures"]  # inputs first
    assert {one["state"] for one in steps.values()} == {"done"}
    scored = steps["scored"]
    assert (scored["rows_in"], scored["rows_out"], scored["shards"], scored["total"]) == (54, 51, 4, 4)
    assert scored["rejects"] == {"filtered:no_text_kept": 3}
    assert scored["inputs"] == [steps["pictures"]["folder"]]
    assert {name: one["kind"] for name, one in steps.items() if one["kind"] != "rows"} == {
        "twins": "decisions",
        "training": "losses",
        "results": "results",
    }
    assert {one["name"] for one in steps.values() if one["gather"]} == {
        "pictures.rows",
        "twins",
        "training",
        "results",
    }
    earlier = [one["name"] for one in client.get("run")["steps"] if not one["current"]]
    assert sorted(earlier) == ["results", "training"]


def test_one_step(client: Client) -> None:
    found = client.get("step", step=client.folder("scored"))
    assert found["params"] == {"threshold": 0.3}
    columns = {one["name"]: one for one in found["columns"]}
    assert columns["image"]["held_by"] == client.folder("pictures")
    assert (columns["width"]["min"], columns["width"]["nulls"]) == (10, 0)
    assert [shard["rows_in"] for shard in found["per_shard"]] == [15, 14, 15, 10]


def test_rejects_come_with_the_row_as_it_was(client: Client) -> None:
    found = client.get("rows", step=client.folder("scored"), part="rejects", n=3, c="why=no_text_kept")
    assert (found["total"], len(found["rows"])) == (3, 3)
    for item in found["rows"]:
        before = item["before"]
        assert before["step"] == client.folder("pictures")
        assert before["row"]["id"] == item["row"]["id"]
        assert before["heavy"] == ["image"]
        status, headers, body = client.raw(
            f"/{client.server.token}/api/0/picture?step={before['step']}&at={before['at']}"
        )
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert body == picture(int(item["row"]["id"][3:]))
    faults = client.get("rows", step=client.folder("pictures"), part="rejects", n=50)
    assert faults["total"] == 6
    assert all(item["before"]["step"] == client.folder("pictures.rows") for item in faults["rows"])
    assert faults["rows"][0]["row"]["detail"] == r"\x1b[2J\x1b[31mred"  # as the engine stores it


def test_texts_arrive_as_they_are(client: Client) -> None:
    found = client.get("rows", step=client.folder("pictures"), n=10)
    assert [item["row"]["texts"][0]["text"] for item in found["rows"]][:7] == list(HOSTILE)


def test_a_row_with_its_boxes(client: Client) -> None:
    found = client.get("row", step=client.folder("pictures"), at=8)
    assert found["row"]["texts"][0]["text"] == caption(8)
    assert found["boxes"] == [{"box": [2, 2, 14, 12], "label": HOSTILE[0], "score": None, "from": "objects"}]
    assert client.get("row", step=client.folder("pictures"), id=row_id(10))["at"] == 9
    assert (
        "no row with this id"
        in client.get("row", status=400, step=client.folder("pictures"), id="x")["error"]
    )


def test_the_lineage_of_kept_dropped_and_failed_rows(client: Client) -> None:
    def way(n: int) -> list[tuple[str, str]]:
        passed = client.get("lineage", id=row_id(n))["passed"]
        return [(one["folder"].rpartition("-")[0], one["what"]) for one in passed]

    kept = [("pictures.rows", "new"), ("pictures", "changed"), ("scored", "changed"), ("twins", "decided")]
    assert sorted(way(2)) == sorted([*kept, ("training", "read"), ("results", "read")])
    assert sorted(way(3)) == sorted([*kept[:2], ("scored", "dropped"), ("twins", "decided")])
    assert way(19) == [("pictures.rows", "new"), ("pictures", "dropped")]
    assert client.get("lineage", id="nobody")["passed"] == []
    dropped = client.get("lineage", id=row_id(19))["passed"][-1]
    assert dropped["lines"][0] == "fault: truncated"


def test_a_row_is_found_by_url(client: Client) -> None:
    found = client.get("find", text="http://x.test/12.jpg?<script>12")["found"]
    assert found[0]["row"]["id"] == row_id(12)
    assert found[0]["step"] == client.folder("scored")  # the last step that has its picture
    assert client.get("row", step=found[0]["step"], at=found[0]["at"])["row"]["id"] == row_id(12)
    assert client.get("find", text="nowhere") == {"found": []}


def test_thresholds_and_which_rows_change(client: Client) -> None:
    found = client.get("moved", step=client.folder("scored"), column="texts.score", at=0.6, **{"from": 0.3})
    assert found["moved"] == found["rows_below"]
    assert found["moved"] == client.get("rows", step=client.folder("scored"), c=found["c"])["total"]
    values = client.get("values", step=client.folder("scored"), column="texts.source")["values"]
    assert values == [["web", 51], ["synth", 51]]
    assert client.get("values", step=client.folder("scored"), column="id")["values"][0][1] == 1


def test_duplicates_side_by_side(client: Client) -> None:
    found = client.get("duplicates", step=client.folder("twins"), n=4)
    assert (found["total"], len(found["pairs"])) == (10, 4)
    similar = [pair["decision"]["similarity"] for pair in found["pairs"]]
    assert similar == sorted(similar, reverse=True)
    for pair in found["pairs"]:
        assert pair["row"]["row"]["id"] == pair["decision"]["id"]
        assert pair["witness"]["row"]["id"] == pair["decision"]["witness"]
        assert pair["row"]["step"] == client.folder("pictures")
    assert "no decisions" in client.get("duplicates", status=400, step=client.folder("scored"))["error"]


def test_curves_results_and_comparison(client: Client) -> None:
    curves = {c["name"]: c for c in client.get("losses")["curves"]}
    assert curves["loss"]["y"][:2] == [1.5, 0.5]
    assert curves["samples/s"]["y"][0] == 101.0
    assert not curves["loss"]["live"]
    results = client.get("results")["results"]
    assert [(r["name"], r["value"]) for r in results] == [("tr@1", 0.5), ("odd", None)]
    assert len(client.get("results", all=1)["results"]) == 4
    steps = client.get("run")["steps"]
    a, b = sorted((s for s in steps if s["name"] == "training"), key=lambda s: s["current"])
    found = client.get("compare", step=a["folder"], **{"with": b["folder"]}, rows=1)
    assert ["parameter better", "0", "0.5"] in found["facts"]
    assert found["rows"]["changed"] == 10
    assert [len(side) for side in found["curves"]] == [2, 2]


def test_a_run_that_stopped_shows_what_it_said(tmp_path: Path) -> None:
    runs = Runs(tmp_path, PAGES)
    runs("run", "--local", "--set", "training.stop=true", code=1)
    with serving(runs.root) as client:
        steps = by_name(client)
        assert steps["training"]["state"] in ("waiting", "unfinished")
        assert steps["training"]["inputs"] == [steps["scored"]["folder"]]
        curves = {c["name"]: c for c in client.get("losses")["curves"]}
        assert curves["loss"]["y"] == [2.0, 1.0, 0.6667, 0.5, 0.4]
        assert curves["loss"]["live"]


def test_a_damaged_step_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    runs = Runs(tmp_path, PAGES)
    runs("run", "--local", "--until", "scored")
    (runs.step("scored") / "manifest.json").write_text("{")
    with serving(runs.root) as client:
        steps = by_name(client)
        assert "is damaged" in steps["scored"]["warning"]
        assert steps["pictures"]["rows_out"] == 54


def test_several_roots(runs: Runs, client: Client) -> None:
    with serving(runs.root, runs.root) as both:
        assert len(json.loads(both.raw(f"/{both.server.token}/about")[2])["roots"]) == 2
        folder = both.folder("scored", root=1)
        found = both.get("compare", step=folder, **{"with": folder}, other=1)
        assert found["facts"] == []


def test_what_a_training_says() -> None:
    line = (
        "loss 9.763  itc_i2t 5.0e-2  MFU 3.1%  temp nan  195 samples/s (loader 3,568, waited 4%)  25 s left"
    )
    found = dict(figures(line))
    assert math.isnan(found.pop("temp"))
    assert found == {"loss": 9.763, "itc_i2t": 0.05}


def test_nothing_said(tmp_path: Path) -> None:
    assert read_said(Store(str(tmp_path)), "x-01234567").last == ""


def test_subtitles_are_text_and_nothing_else() -> None:
    said = webvtt(
        [(0.0, 1.5, "a --> b <c>\n\nNOTE x"), (3661.25, 3662.0, HOSTILE[0]), (2.0, 1.0, "backwards")]
    )
    assert said == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na --&gt; b &lt;c&gt;\\n\\nNOTE x\n"
        "\n01:01:01.250 --> 01:01:02.000\n&lt;script&gt;document.title='owned'&lt;/script&gt;\n"
    )


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", (0, 1000)),
        ("bytes=0-", (0, 1000)),
        ("bytes=10-19", (10, 20)),
        ("bytes=-5", (995, 1000)),
        ("bytes=999-5", (999, 1000)),
    ],
)
def test_ranges(header: str, wanted: tuple[int, int]) -> None:
    assert asked_bytes(header, 1000) == wanted


def test_a_range_behind_the_end() -> None:
    with pytest.raises(Missing):
        asked_bytes("bytes=1000-", 1000)


def test_only_pictures_are_served_as_pictures() -> None:
    assert kind_of(picture(3)) == "image/jpeg"
    assert kind_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == ""
    assert kind_of(b"<html>") == ""
    with pytest.raises(Exception, match="no picture that can be drawn"):
        as_png(b"<svg/>")


def test_values_become_json() -> None:
    assert plain(float("nan")) is None
    assert plain(b"abc") == {"bytes": 3}
    assert plain("x" * 5, max_chars=3) == {"cut": "xxx", "of": 5}
    assert plain([1, 2, 3], max_items=2) == {"cut": [1, 2], "of": 3}
    assert json.dumps(plain({"a": ["\ud800"]})) == '{"a": ["?"]}'


def test_the_command_wants_a_root(tmp_path: Path) -> None:
    assert "is not an output root" in vlpipe("ui", tmp_path, code=1)[-1]
    os.mkdir(tmp_path / "runs")
    (tmp_path / "w.yaml").write_text(f"name: w\nroot: {tmp_path}/runs\nsteps: {{}}\n")
    assert f"{tmp_path}/runs is not an output root" in vlpipe("ui", tmp_path / "w.yaml", code=1)[-1]
