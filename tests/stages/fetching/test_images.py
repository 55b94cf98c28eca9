"""The stage as a workflow uses it: its parameters from YAML, a list in, folders served over real HTTP."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import heavy_names
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.loopback import inside, serving
from vlpipe.stages.fetching.images import FETCHED, FetchImages


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    made = tmp_path / "images"
    (made / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(picture())
    for n in range(5):
        (made / f"{n}.jpg").write_bytes(picture(seed=n))
    (made / "sub" / "a b.png").write_bytes(picture("PNG"))
    (made / "page.jpg").write_text("<html>not here</html>")
    (made / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    return made


@pytest.mark.slow
def test_from_a_list_and_a_served_folder_to_rows(tmp_path: Path, folder: Path) -> None:
    names = [
        "0.jpg",
        "gone.jpg",
        "1.jpg",
        "page.jpg",
        "sub/a%20b.png",
        "out.jpg",
        "%2e%2e/secret.jpg",
        "",
        "0.jpg",
    ]
    lines = [f"http://demo.test/{name}\ttext {n % 8}\n" for n, name in enumerate(names)]
    (tmp_path / "list.tsv").write_text("".join(lines) + "\tno url\n")
    stage = TypeAdapter(FetchImages).validate_json(
        json.dumps(
            {
                "list": str(tmp_path / "list.tsv"),
                "columns": ["url", "text"],
                "serve": {"demo.test": str(folder)},
            }
        ),
        strict=True,
    )
    assert stage.preflight() == []
    rows = pa.concat_tables(stage.rows())
    out = run_map(stage, rows)
    assert stage.schema(stage.row_schema()) is FETCHED
    assert heavy_names(FETCHED) == ["image"]
    ids = rows["id"].to_pylist()
    assert out.table["id"].to_pylist() == [ids[n] for n in (0, 2, 4, 8)]
    assert [(ids.index(reject.id), reject.why) for reject in out.rejects] == [
        (1, "http_404"),
        (3, "not_an_image"),
        (5, "http_404"),
        (6, "http_404"),
        (7, "http_404"),
        (9, "no_url"),
    ]
    assert out.table["texts"].to_pylist()[1][0]["text"] == "text 2"
    assert out.table["image"][0].as_py() == (folder / "0.jpg").read_bytes()
    again = run_map(stage, rows)
    assert again.table.equals(out.table)
    assert again.rejects == out.rejects


def test_a_batch_of_none_keeps_its_columns(folder: Path) -> None:
    stage = FetchImages(list=ListFile(), serve={"demo.test": File(path=str(folder))})
    out = run_map(stage, stage.row_schema().empty_table())
    assert out.table.schema.equals(FETCHED)


def test_a_list_with_other_columns_is_known_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("link,words\n")
    stage = FetchImages(list=ListFile(path=str(tmp_path / "list.csv")))
    with pytest.raises(VlpipeError, match="line 1 has no columns 'url', 'text'; there are: link, words"):
        stage.preflight()
    assert FetchImages(list=ListFile(step="world", path="list.csv")).preflight() == []


def test_a_served_folder_that_is_not_there(tmp_path: Path) -> None:
    stage = FetchImages(list=ListFile(), serve={"demo.test": File(path=str(tmp_path / "none"))})
    with (
        pytest.raises(VlpipeError, match=r"`serve`: these folders do not exist: demo.test: .*/none$"),
        stage.open(),
    ):
        pass


def test_what_is_opened_is_closed(folder: Path) -> None:
    before = set(threading.enumerate())
    stage = FetchImages(list=ListFile(), serve={"demo.test": File(path=str(folder))})
    for _ in range(2):
        run_map(stage, stage.row_schema().empty_table())
    assert not {t for t in threading.enumerate() if "loop" in t.name} - before


def ask(port: int, path: str, host: str) -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, "", b""


def test_an_answer_is_sent_at_once(folder: Path) -> None:
    """Headers and body as two small packets took 44 ms: the second waited for an acknowledgement."""
    with (
        serving({"demo.test": str(folder)}) as ports,
        socket.create_connection(("127.0.0.1", ports["demo.test"])) as one,
    ):
        for n in range(20):
            one.sendall(f"GET /{n % 5}.jpg HTTP/1.1\r\nHost: demo.test\r\n\r\n".encode())
            assert one.recv(1 << 20).endswith((folder / f"{n % 5}.jpg").read_bytes())


def test_serving(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.jpg").write_bytes(b"other")
    with serving({"demo.test": str(folder), "Other.test": str(other)}) as ports:
        port = ports["demo.test"]
        assert ask(port, "/0.jpg?size=3", "demo.test")[:2] == (200, "image/jpeg")
        assert ask(port, "/sub/a%20b.png", "demo.test")[:2] == (200, "image/png")
        assert ask(ports["Other.test"], "/0.jpg", "other.test")[2] == b"other"
        for path in (
            "/",
            "/sub",
            "/none.jpg",
            "/../secret.jpg",
            "/%2e%2e/secret.jpg",
            "/out.jpg",
            "/0.jpg%00",
        ):
            assert ask(port, path, "demo.test")[0] in (400, 404)
        assert ask(port, "/0.jpg", "third.test")[0] == 404
    with pytest.raises(urllib.error.URLError):
        ask(port, "/0.jpg", "demo.test")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "x\x00", ".", "", "out.jpg"])
def test_paths_that_lead_out(folder: Path, name: str) -> None:
    assert inside(str(folder), name) is None


def test_paths_that_stay(folder: Path) -> None:
    for name in ("0.jpg", "/0.jpg", "sub/../0.jpg", "sub/a b.png"):
        found: Any = inside(str(folder), name)
        assert Path(found).is_file()
