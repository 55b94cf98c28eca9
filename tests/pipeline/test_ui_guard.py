"""Who gets an answer from `vlpipe ui`: nobody without the token, no other page, no other name; and nothing is written."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Runs
from look_at import PAGES
from ui_client import Client, serving

from vlpipe.pipeline.ui.guard import HEADERS, new_token, refusal
from vlpipe.pipeline.ui.views import VIEWS


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    runs = Runs(tmp_path_factory.mktemp("guard"), PAGES)
    runs("run", "--local", "--until", "scored")
    (runs.folder / "secret.txt").write_text("secret")
    (runs.folder / "root" / "secret.txt").write_text("secret")
    with serving(runs.root) as found:
        yield found


GOOD = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("status", "method", "target", "headers"),
    [
        (None, "GET", "/token/", GOOD),
        (None, "HEAD", "/token/api/0/run?x=1", {"host": "localhost:8000", "origin": "http://localhost:8000"}),
        (None, "GET", "/token/", {"host": "[::1]:8000", "sec-fetch-site": "same-origin"}),
        (403, "GET", "/", GOOD),
        (403, "GET", "", GOOD),
        (403, "GET", "/toke/", GOOD),
        (403, "GET", "/token2/", GOOD),
        (403, "GET", "/?token=token", GOOD),
        (403, "GET", "//token/", GOOD),
        (403, "GET", "/static/app.js", GOOD),
        (403, "GET", "/tökén/", GOOD),
        (421, "GET", "/token/", {}),
        (421, "GET", "/token/", {"host": "127.0.0.1"}),
        (421, "GET", "/token/", {"host": "127.0.0.1:8001"}),
        (421, "GET", "/token/", {"host": "evil.example:8000"}),
        (421, "GET", "/token/", {"host": "127.0.0.1.evil.example:8000"}),
        (421, "GET", "/token/", {"host": "evil.example:8000#127.0.0.1:8000"}),
        (403, "GET", "/token/", {**GOOD, "origin": "http://evil.example"}),
        (403, "GET", "/token/", {**GOOD, "origin": "null"}),
        (403, "GET", "/token/", {**GOOD, "origin": "https://127.0.0.1:8000"}),
        (403, "GET", "/token/", {**GOOD, "origin": "http://127.0.0.1:9000"}),
        (403, "GET", "/token/", {**GOOD, "sec-fetch-site": "cross-site"}),
        (403, "GET", "/token/", {**GOOD, "sec-fetch-site": "same-site"}),
        (405, "POST", "/token/", GOOD),
        (405, "DELETE", "/token/api/0/run", GOOD),
        (414, "GET", "/token/" + "a" * 9000, GOOD),
    ],
)
def test_the_rule(status: int | None, method: str, target: str, headers: dict[str, str]) -> None:
    why = refusal(method, target, headers, 8000, "token")
    assert (None if why is None else why.status) == status


def test_tokens_are_random_and_long() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 32


def test_only_this_machine_is_listened_to(client: Client) -> None:
    assert client.server.server_address[0] == "127.0.0.1"
    own = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in (a for a in own if not a.startswith("127.")):
        with pytest.raises(OSError), socket.create_connection((address, client.server.port), timeout=2):
            pass


def test_a_foreign_page_gets_nothing_whatever_it_sends(client: Client) -> None:
    token, port = client.server.token, client.server.port
    assert client.raw(f"/{token}/api/0/run")[0] == 200
    for headers, status in (
        ({"Host": f"rebound.example:{port}"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
    ):
        for target in (f"/{token}/api/0/run", "/wrong/api/0/run", f"/{token}/"):
            found, answered, body = client.raw(target, **headers)  # type: ignore[arg-type]
            assert found == status
            assert b"steps" not in body
            assert token.encode() not in body
            assert "Access-Control-Allow-Origin" not in answered
    assert client.raw(f"/{token}/api/0/run", "OPTIONS", Origin="https://evil.example")[0] == 405
    assert client.raw("/", Cookie=f"token={token}")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "static/../../../../../../etc/passwd",
        "static/..%2f..%2f..%2fetc%2fpasswd",
        "static/%2e%2e/%2e%2e/secret.txt",
        "static//etc/passwd",
        "static/..",
        "static/",
        "static/secret.txt",
        "static/site.py",
        "static/../site.py",
        "static/app.js/",
        "static/app.js%00.txt",
        "../secret.txt",
        "api/0/../../secret.txt",
        "api/..%2f0/run",
        "api/-1/run",
        "api/1/run",
        "api/0/__class__",
        "api/0/run/..",
        "etc/passwd",
    ],
)
def test_no_path_leaves_the_page(client: Client, path: str) -> None:
    status, _, body = client.raw(f"/{client.server.token}/{path}")
    assert status == 404
    assert b"secret" not in body.replace(path.encode(), b"")
    assert b"root:" not in body


@pytest.mark.parametrize(
    "step",
    ["../secret.txt", "/etc", "..", ".", "", "scored-00000000", "scored-00000000/../..", "_lock", "a\0b"],
)
@pytest.mark.parametrize("view", ["rows", "step", "row", "picture", "histogram", "media", "cues", "compare"])
def test_no_step_is_a_path(client: Client, view: str, step: str) -> None:
    found = client.get(view, status=400, step=step, at=0, column="width", **{"with": step})
    assert set(found) == {"error"}


def test_a_mistake_is_one_sentence_and_not_a_crash(client: Client) -> None:
    scored = client.folder("scored")
    for view, params in (
        ("rows", {"c": "nonsense"}),
        ("rows", {"c": "texts.score<abc"}),
        ("rows", {"c": "absent=1"}),
        ("rows", {"start": "-1"}),
        ("rows", {"start": "1e99"}),
        ("rows", {"n": "100000"}),
        ("rows", {"sql": "1; DROP TABLE rows"}),
        ("rows", {"sql": "width > (SELECT count(*) FROM read_text('/etc/passwd'))"}),
        ("rows", {"sort": "texts.text"}),
        ("histogram", {"column": "texts.text"}),
        ("histogram", {"column": "width", "bins": "0"}),
        ("moved", {"column": "width", "at": "nan"}),
        ("row", {"at": "51"}),
        ("picture", {"at": "0", "column": "texts"}),
    ):
        found = client.get(view, status=400, step=scored, **params)
        assert set(found) == {"error"}, (view, params)
        assert "\n" not in found["error"]
    assert client.get("rows", status=404, step=scored, part="_step.json")["error"].startswith("wanted one of")


def test_every_answer_carries_the_policy(client: Client) -> None:
    scored = client.folder("scored")
    for target in (
        "",
        "static/app.js",
        "static/nope.js",
        "api/0/run",
        f"api/0/picture?step={scored}&at=0",
        "about",
    ):
        _, headers, _ = client.raw(f"/{client.server.token}/{target}")
        for name in set(HEADERS) - {"Content-Security-Policy"}:
            assert headers[name] == HEADERS[name], (target, name)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    _, refused, _ = client.raw("/")
    assert refused["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_nothing_is_written(client: Client) -> None:
    root = Path(client.server.site.roots[0].store.url)

    def files() -> dict[str, tuple[int, int]]:
        found = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in found}

    before, scored = files(), client.folder("scored")
    for view in VIEWS:
        client.raw(
            f"/{client.server.token}/api/0/{view}?step={scored}&with={scored}&rows=1&at=0&column=texts.score&id=x"
        )
    for sql in ("COPY (SELECT 1) TO 'here.csv'", "1=1); COPY (SELECT 1) TO 'here.csv'; SELECT (1=1"):
        client.get("rows", status=400, step=scored, sql=sql)
    assert files() == before
    assert not Path("here.csv").exists()


def test_the_page_asks_for_nothing_outside() -> None:
    static = Path(__file__).parents[2] / "pipeline" / "ui" / "static"
    for file in static.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, file.name
        assert "https:" not in text, file.name
        for sink in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert sink not in text, (file.name, sink)
    assert "style=" not in (static / "index.html").read_text()
