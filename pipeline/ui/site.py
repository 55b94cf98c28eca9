"""Answers requests: the page's files, and the views as JSON. A pure function of path, query and the roots' files.

Paths below the token: `/` the page; `/static/NAME` one of its files, looked up in a table that is made at start, so no path
reaches the file system; `/api/ROOT/VIEW` data of the root with that number; `/about` the roots.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vlpipe.pipeline.errors import VlpipeError, explain, printable
from vlpipe.pipeline.inspect.roots.state import RootReader
from vlpipe.pipeline.inspect.rows.conditions import Queries
from vlpipe.pipeline.inspect.rows.heavy import HeavyReader
from vlpipe.pipeline.storage.store import Store

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
GZIP_BYTES = 4_000  # JSON from this size on is compressed
GZIP_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class BadRequest(VlpipeError):
    """A parameter is missing, or is not what was expected."""


class Missing(VlpipeError):
    """There is no such thing as asked for."""


@dataclass(frozen=True)
class Query:
    """The parameters of a request: name -> values."""

    values: Mapping[str, Sequence[str]]
    headers: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str | None = None) -> str:
        """Returns a parameter. Raises BadRequest if it is missing and has no default."""
        found = self.values.get(name)
        if found:
            return found[-1]
        if default is None:
            raise BadRequest(f"the parameter {name!r} is missing")
        return default

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a parameter as a finite number. Raises BadRequest if it is missing without a default, or none."""
        text = self.text(name, None if default is None else str(default))
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not abs(value) < 1e15:  # also NaN
            raise BadRequest(f"{name}: wanted a number, got {printable(text[:40])}")
        return value

    def whole(self, name: str, default: int | None = None, most: int = 1 << 40) -> int:
        """Returns a parameter as an integer from 0 to `most`. Raises BadRequest if it is none."""
        value = self.number(name, default)
        if not (0 <= value <= most and value == int(value)):
            raise BadRequest(f"{name}: wanted a whole number from 0 to {most:,}, got {value:g}")
        return int(value)

    def all(self, name: str) -> Sequence[str]:
        return self.values.get(name, ())


@dataclass(frozen=True)
class Root:
    """A root that is shown. number: its place in the command line."""

    number: int
    store: Store
    reader: RootReader

    @property
    def title(self) -> str:
        return self.store.url.rstrip("/").rpartition("/")[2]


View = Callable[["Site", Root, Query], Any]  # returns what is sent as JSON, or an Answer


class Site:
    """The roots, and the caches that all requests share. views: name -> function."""

    def __init__(self, stores: Sequence[Store], views: Mapping[str, View]) -> None:
        self.roots = [Root(n, store, RootReader(store)) for n, store in enumerate(stores)]
        self.views = views
        self.queries = Queries()
        self.heavy = HeavyReader()

    @cached_property
    def static(self) -> dict[str, Answer]:
        """File name -> answer, for all files of the page."""
        found = {}
        for file in files("vlpipe.pipeline.ui").joinpath("static").iterdir():
            kind = KINDS.get(file.name.rpartition(".")[2])
            if kind is not None and file.is_file():
                body = file.read_bytes()
                tag = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"', "Cache-Control": "no-cache"}
                found[file.name] = Answer(200, body, kind, tag)
        return found

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        """Returns the answer to a request. target: path and query below the token; headers: names in lower case."""
        url = urlsplit(target)
        parts = [unquote(part) for part in url.path.split("/")]
        try:
            if parts == ["", ""]:
                return self.static["index.html"]
            if len(parts) == 3 and parts[1] == "static":
                return self._file(parts[2], headers)
            query = Query(parse_qs(url.query, keep_blank_values=True, max_num_fields=64), headers)
            if parts == ["", "about"]:
                return _json({"roots": [{"title": r.title, "url": r.store.url} for r in self.roots]}, headers)
            if len(parts) == 4 and parts[1] == "api":
                return self._view(parts[2], parts[3], query)
            raise Missing("there is no such page")
        except Missing as error:
            return error_answer(404, str(error))
        except (VlpipeError, ValueError) as error:
            return error_answer(400, explain(error))
        except FileNotFoundError as error:  # a step that a run or `vlpipe prune` removed meanwhile
            return error_answer(404, explain(error))
        except Exception as error:
            return error_answer(500, explain(error))

    def _file(self, name: str, headers: Mapping[str, str]) -> Answer:
        found = self.static.get(name)
        if found is None:
            raise Missing("the page has no such file")
        if headers.get("if-none-match") == found.headers["ETag"]:
            return Answer(304, b"", found.kind, found.headers)
        return found

    def _view(self, number: str, name: str, query: Query) -> Answer:
        if name not in self.views:
            raise Missing("there is no such view")
        found = self.views[name](self, self.root(number), query)
        return found if isinstance(found, Answer) else _json(found, query.headers)

    def root(self, number: str) -> Root:
        """Returns the root with this number. Raises Missing if there is none."""
        if not number.isascii() or not number.isdigit() or int(number) >= len(self.roots):
            raise Missing("there is no such root")
        return self.roots[int(number)]


def _json(value: Any, headers: Mapping[str, str]) -> Answer:
    body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    if len(body) >= GZIP_BYTES and "gzip" in headers.get("accept-encoding", ""):
        packed = gzip.compress(body, GZIP_LEVEL)
        return Answer(200, packed, JSON, {"Cache-Control": "no-store", "Content-Encoding": "gzip"})
    return Answer(200, body, JSON, {"Cache-Control": "no-store"})


def error_answer(status: int, text: str) -> Answer:
    """Returns an error as JSON with one sentence."""
    body = json.dumps({"error": printable(text)}).encode()
    return Answer(status, body, JSON, {"Cache-Control": "no-store"})


def text_answer(status: int, text: str) -> Answer:
    return Answer(status, f"{text}\n".encode(), TEXT, {"Cache-Control": "no-store"})
