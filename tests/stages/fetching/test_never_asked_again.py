"""Who said no is not asked by any later run of the root, and what was stored before can be taken out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clips import clip
from threat_server import JPEG, PLAIN
from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands
from vlpipe.pipeline.engine.records.rejects import read_rejects
from vlpipe.pipeline.inspect.on_disk import step_folders
from vlpipe.pipeline.inspect.opted_out import hash_of_url, read_hashes
from vlpipe.pipeline.parquet.text_sets import to_hex
from vlpipe.pipeline.storage.store import Store

WEB = """
name: web
steps:
  images: {use: "threat_server:LocalImages", list: LIST, ports: {threat.test: PORT}, shard_rows: 4, retries: 0}
  cleaned: {use: "filter.clean:CleanTexts", from: images}
"""
NO = {"X-Robots-Tag": "noai"}


def threat(path: str) -> str:
    return f"http://threat.test{path}"


class Runs:
    """A workflow over a list of (path, text), run again as the list grows."""

    def __init__(self, folder: Path, port: int, root: str = "") -> None:
        self.folder, self.root = folder, root or str(folder / "root")
        self.store = Store(self.root)
        self.list = folder / "list.jsonl"
        self.file = folder / "w.yaml"
        self.file.write_text(WEB.replace("LIST", str(self.list)).replace("PORT", str(port)))

    def lists(self, *paths: str) -> None:
        """The n-th row has the text `n`: the same path twice is two rows."""
        rows = [{"url": threat(path), "text": f"text {n}"} for n, path in enumerate(paths)]
        self.list.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def vlpipe(self, verb: str, *args: str, code: int = 0) -> list[str]:
        done = CliRunner().invoke(commands.app, [verb, str(self.file), *args, "--root", self.root])
        error = "" if isinstance(done.exception, SystemExit) else str(done.exception or "")
        assert done.exit_code == code, (done.output, error)
        return [line.rstrip() for line in (*done.output.splitlines(), *error.splitlines())]

    def run(self, *sets: str, code: int = 0) -> list[str]:
        return self.vlpipe("run", "--local", *(x for one in sets for x in ("--set", one)), code=code)

    def rejects(self, step: str = "images") -> set[tuple[str, str, str]]:
        return {
            (r["kind"], r["why"], r["detail"])
            for folder in step_folders(self.store)
            if folder.startswith(f"{step}-")
            for name in self.store.list(f"{folder}/_rejects")
            for r in read_rejects(self.store, folder, int(name[:6])).to_pylist()
        }

    def rows(self, step: str) -> Sequence[str]:
        """Texts of a step's rows, over all its folders."""
        folders = [folder for folder in step_folders(self.store) if folder.startswith(f"{step}-")]
        shards = [f"{f}/{n}" for f in folders for n in self.store.list(f) if n.endswith(".parquet")]
        tables = [pq.read_table(self.store.path(p)) for p in shards if "_shards" not in p]
        return sorted({texts[0]["text"] for t in tables for texts in t["texts"].to_pylist()})


@pytest.fixture
def runs(tmp_path: Path, threats: Any) -> Runs:
    return Runs(tmp_path, threats.port)


OK = [f"/ok.jpg?{n}" for n in range(8)]


@pytest.mark.slow
def test_a_longer_list_and_another_parameter_ask_nobody_again_who_said_no(runs: Runs, threats: Any) -> None:
    runs.lists("/no-ai", *OK[:4], "/no-tdm")
    runs.run()
    runs.lists("/no-ai", *OK[:4], "/no-tdm", "/no-ai", "/no-ai#part", "/no-tdm", OK[5])
    runs.run()
    assert (threats.asked["/no-ai"], threats.asked["/no-tdm"]) == (1, 1)
    runs.run("images.max_bytes=1000000")
    assert (threats.asked["/no-ai"], threats.asked["/no-tdm"], threats.asked["/ok.jpg"]) == (1, 1, 11)
    assert runs.rejects() == {
        ("filtered", "opt_out", "X-Robots-Tag: noai, noimageai"),
        ("filtered", "opt_out", "TDM-Reservation: 1"),
    }
    assert runs.rows("cleaned") == [f"text {n}" for n in (1, 2, 3, 4, 9)]


@pytest.mark.slow
def test_only_hashes_evidence_and_the_first_time_are_kept(runs: Runs) -> None:
    runs.lists("/no-ai", *OK[:4], "/no-ai")
    began = int(time.time())
    runs.run()
    kept = pq.read_table(runs.folder / "root" / "opted_out" / "000000.parquet").to_pylist()
    assert [(row["hash"], row["evidence"]) for row in kept] == [
        (hash_of_url("HTTPS://Threat.test:443/no-ai"), "X-Robots-Tag: noai, noimageai")
    ]
    assert began <= kept[0]["first_seen"].timestamp() <= time.time()


@pytest.mark.slow
def test_a_page_that_a_redirect_leads_to_is_not_asked_again(
    runs: Runs, threats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAIN, "/there.jpg", (200, NO, JPEG))
    monkeypatch.setitem(PLAIN, "/here", (301, {"Location": "/there.jpg"}, b""))
    monkeypatch.setitem(PLAIN, "/over-there", (301, {"Location": "/there.jpg"}, b""))
    runs.lists("/here", *OK[:3])
    runs.run()
    runs.lists("/here", *OK[:3], "/over-there", "/there.jpg")
    runs.run()
    assert (threats.asked["/there.jpg"], threats.asked["/over-there"]) == (1, 1)
    assert runs.rejects() == {("filtered", "opt_out", "X-Robots-Tag: noai")}


@pytest.mark.slow
def test_nor_is_the_url_that_led_there(runs: Runs, threats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLAIN, "/there.jpg", (200, NO, JPEG))
    monkeypatch.setitem(PLAIN, "/here", (301, {"Location": "/there.jpg?signature=1"}, b""))
    runs.lists("/here", *OK[:3])
    runs.run()
    runs.lists("/here", *OK[:3], "/here")
    runs.run()
    assert (threats.asked["/here"], threats.asked["/there.jpg"]) == (1, 1)


@pytest.mark.slow
def test_what_a_file_says_inside_is_kept_too(runs: Runs, threats: Any) -> None:
    runs.lists("/credentials-no.jpg", *OK[:3])
    runs.run()
    runs.lists("/credentials-no.jpg", *OK[:3], "/credentials-no.jpg")
    runs.run()
    assert threats.asked["/credentials-no.jpg"] == 1
    assert runs.rejects() == {("filtered", "opt_out", "C2PA c2pa.ai_training: notAllowed")}


@pytest.mark.slow
def test_steps_that_fetch_share_it(runs: Runs, threats: Any) -> None:
    """The video of that URL is there to be had, from another server."""
    runs.lists("/no-ai", OK[0])
    runs.run()
    served = runs.folder / "served"
    served.mkdir()
    for name in ("no-ai", "film.mp4"):
        (served / name).write_bytes(clip())
    (runs.folder / "films.csv").write_text(f"url\n{threat('/no-ai')}\n{threat('/film.mp4')}\n")
    films = f'{{use: "video_files.video_urls:VideoUrls", list: {runs.folder}/films.csv, videos: {runs.folder}/videos, '
    films += f"serve: {{threat.test: {served}}}, max_reject_rate: 1.0}}"
    runs.file.write_text(f"name: films\nsteps:\n  films: {films}\n")
    runs.run()
    assert runs.rejects("films") == {("filtered", "opt_out", "X-Robots-Tag: noai, noimageai")}
    assert len(list((runs.folder / "videos").glob("*"))) == 1


@pytest.mark.slow
def test_a_root_that_is_no_folder(tmp_path: Path, threats: Any) -> None:
    runs = Runs(tmp_path, threats.port, f"memory://opted_out{tmp_path.name}")
    runs.lists("/no-ai", *OK[:4])
    runs.run()
    runs.lists("/no-ai", *OK[:4], "/no-ai")
    runs.run()
    assert threats.asked["/no-ai"] == 1
    assert to_hex(read_hashes(runs.store)).to_pylist() == [hash_of_url(threat("/no-ai"))]


@pytest.mark.slow
def test_what_a_shard_says_is_kept_before_a_kill(runs: Runs, threats: Any) -> None:
    """Killed in the second shard, whose own opt-out may be lost: it is asked again with its shard."""
    runs.lists("/no-ai", *OK[:3], "/no-tdm", "/silent", *OK[4:6])
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(runs.file), "--local"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*command, "--root", runs.root], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    ) as killed:
        until = time.monotonic() + 60
        while not threats.asked["/silent"]:
            assert time.monotonic() < until
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert hash_of_url(threat("/no-ai")) in to_hex(read_hashes(runs.store)).to_pylist()
    runs.lists("/no-ai", *OK[:3], "/no-tdm", "/no-ai", *OK[4:6])
    runs.run()
    assert threats.asked["/no-ai"] == 1
    assert threats.asked["/no-tdm"] <= 2


@pytest.mark.slow
def test_what_was_stored_before_can_be_taken_out(
    runs: Runs, threats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own URL, or by the one that a redirect led to; with what was made from it."""
    monkeypatch.setitem(PLAIN, "/later.jpg", (200, {}, JPEG))
    monkeypatch.setitem(PLAIN, "/moved-to-later", (301, {"Location": "/later.jpg"}, b""))
    runs.lists("/later.jpg", "/moved-to-later", *OK[:3], "/no-ai")
    runs.run()
    monkeypatch.setitem(PLAIN, "/later.jpg", (200, NO, JPEG))
    runs.lists("/later.jpg", "/moved-to-later", *OK[:3], "/no-ai", "/later.jpg")
    runs.run()
    assert runs.rows("cleaned") == [f"text {n}" for n in range(5)]

    said = runs.vlpipe("forget", "--opted-out")
    assert said[0] == f"2 URL(s) opted out of fetches into {runs.root}"
    touched = sorted(line.split("-")[0].strip() for line in said[1:-1])
    assert touched == ["cleaned"] * 2 + ["images"] * 2 + ["images.rows"] * 2
    assert said[-1] == f"would forget 2 row(s) in 6 folder(s) of {runs.root}; add --yes to forget them"
    assert runs.rows("cleaned") == [f"text {n}" for n in range(5)]

    said = runs.vlpipe("forget", "--opted-out", "--yes")
    assert said[-1] == f"forgot 2 row(s) in 6 folder(s) of {runs.root}"
    assert runs.rows("images") == runs.rows("cleaned") == ["text 2", "text 3", "text 4"]
    assert ("filtered", "opt_out", "X-Robots-Tag: noai") in runs.rejects()  # of the row that had no bytes
    asked = dict(threats.asked)
    assert runs.run()[0].startswith("web: all 3 steps are done, nothing to do")
    assert threats.asked == asked
    assert runs.vlpipe("forget", "--opted-out")[-1] == (
        f"would forget 0 row(s) in 0 folder(s) of {runs.root}; add --yes to forget them"
    )


def test_forget_wants_to_know_what(runs: Runs) -> None:
    assert runs.vlpipe("forget", code=1)[-1] == "nothing to forget: give a LIST, or --opted-out"


def test_with_a_list_both_go(runs: Runs) -> None:
    runs.lists(*OK[:4])
    runs.run()
    entries = runs.folder / "entries.txt"
    entries.write_text(f"url:{threat(OK[0])}\nurl:{threat('/never')}\n")
    said = runs.vlpipe("forget", str(entries), "--opted-out")
    assert said[0].startswith("0 URL(s) opted out of fetches into ")
    assert said[-2].startswith("1 of the entries match no row here")
    assert said[-1].startswith("would forget 1 row(s) in 3 folder(s)")


@pytest.mark.slow
def test_without_the_folder_all_are_asked_again(runs: Runs, threats: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(PLAIN, "/maybe.jpg", (200, NO, JPEG))
    runs.lists("/maybe.jpg", *OK[:3])
    runs.run()
    monkeypatch.setitem(PLAIN, "/maybe.jpg", (200, {}, JPEG))
    shutil.rmtree(runs.folder / "root" / "opted_out")
    assert runs.run()[0].startswith("web: all 3 steps are done, nothing to do")  # what is finished stays
    runs.lists("/maybe.jpg", *OK[:3], "/maybe.jpg")
    runs.run()
    assert threats.asked["/maybe.jpg"] == 2
    assert runs.rows("cleaned") == [f"text {n}" for n in (1, 2, 3, 4)]


@pytest.mark.slow
def test_a_step_judges_by_its_own_rules_what_others_were_told(runs: Runs, threats: Any) -> None:
    runs.lists("/no-ai", OK[0])
    runs.run()
    runs.run("images.opt_out=[tdm-reservation]")
    assert threats.asked["/no-ai"] == 2
    assert "text 0" in runs.rows("cleaned")


def test_a_root_that_cannot_be_written_fails_the_step(runs: Runs, threats: Any) -> None:
    """No shard may say what the root does not remember."""
    (runs.folder / "root").mkdir()
    (runs.folder / "root" / "opted_out").write_text("")
    runs.lists("/no-ai", *OK[:3])
    said = runs.run(code=1)
    assert "an opt-out could not be written into the root: " in said[-1]
    assert not list((runs.folder / "root").glob("images-*/_receipts/*"))
