"""The small server: HTTP/1.1 in one asyncio loop. Each request is a line of its log when it comes, and another when it is
answered, so that a test can prove what was asked twice."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event, Thread
from typing import IO, Any, Self

from vlpipe.stages.chat_server.settings import DIED, ONCE, Settings

PATH = b"/v1/chat/completions"
MAX_HEAD = 1 << 16
PIECE = 1 << 16
HUGE_BYTES = 1 << 30
MISBEHAVIOURS = ("hang", "endless", "huge", "cut", "wrong_json", "html", "redirect", "500", "deep")
PRIVATE = "http://169.254.169.254/latest/meta-data/"  # where clouds tell secrets to who is redirected to it
Captioner = Callable[[str, str, int], str]  # (sha256 of the image, prompt, seed) -> caption
Judge = Callable[[str, str], Mapping[str, float]]  # (sha256 of the image, question) -> token -> probability


def any_caption(sha256: str, prompt: str, seed: int) -> str:
    """Returns a caption that depends on image, prompt and seed alone."""
    digest = hashlib.sha256(f"{sha256} {prompt} {seed}".encode()).hexdigest()
    return f"a picture that was never seen before, with the number {digest[:8]} on it"


def any_judge(sha256: str, question: str) -> dict[str, float]:
    """Returns probabilities of Yes and No that depend on image and question alone."""
    yes = int(hashlib.sha256(f"{sha256} {question}".encode()).hexdigest()[:8], 16) / 2**32
    return {"Yes": yes, "No": 1 - yes}


class ChatServer:
    """The server, in the running loop. captioner: what it says; log: a file for the lines, or None; judge: how probable its
    first tokens are, where log-probabilities are asked for.

    asked, answered: digest of a request -> how often; most_at_once: requests under way.
    """

    def __init__(
        self,
        settings: Settings,
        captioner: Captioner = any_caption,
        log: IO[bytes] | None = None,
        judge: Judge = any_judge,
    ) -> None:
        self.settings, self.captioner, self._log, self.judge = settings, captioner, log, judge
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.under_way = self.most_at_once = self.num_answers = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._tokens, self._filled_at = float(settings.burst), time.monotonic()
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def start(self, port: int = 0) -> int:
        """Listens on 127.0.0.1 and returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=1024)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for one in [*self.connections]:
            one.abort()

    def note(self, what: str, request: str, **more: Any) -> None:
        (self.asked if what == "asked" else self.answered)[request] += 1
        if self._log is not None:
            line = {"what": what, "request": request, "at": round(time.time(), 6), **more}
            self._log.write(json.dumps(line).encode() + b"\n")

    def lets_in(self) -> bool:
        """Takes from the token bucket; returns False if it is empty."""
        if not self.settings.rate:
            return True
        now = time.monotonic()
        more = (now - self._filled_at) * self.settings.rate
        self._tokens, self._filled_at = min(self._tokens + more, float(self.settings.burst)), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def begin(self, work: Callable[[], None]) -> bool:
        """Calls `work` when a slot is free; returns False if none is and requests do not wait."""
        if self.under_way < self.settings.slots:
            self._occupy()
            work()
        elif self.settings.too_many == "429":
            return False
        else:
            self._waiting.append(work)
        return True

    def _occupy(self) -> None:
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)

    def end(self) -> None:
        """Frees a slot."""
        self.under_way -= 1
        if self._waiting:
            self._occupy()
            self._waiting.popleft()()


class _Connection(asyncio.Protocol):
    def __init__(self, server: ChatServer) -> None:
        self._server = server
        self._data = bytearray()
        self._need = -1  # bytes of head and body; -1: the head is not complete
        self._head_bytes = 0
        self._transport: Any = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._may_write.set()
        for task in self._tasks:
            task.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._need < 0:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > MAX_HEAD:
                    self._transport.abort()
                return
            self._head = bytes(self._data[: end + 4])
            self._head_bytes = end + 4
            length = next(
                (
                    int(line.partition(b":")[2])
                    for line in self._head.split(b"\r\n")
                    if line[:15].lower() == b"content-length:"
                ),
                0,
            )
            self._need = self._head_bytes + length
        if len(self._data) >= self._need:
            body = bytes(self._data[self._head_bytes : self._need])
            del self._data[: self._need]
            self._need = -1
            self._request(self._head, body)

    def _request(self, head: bytes, body: bytes) -> None:
        method, path, *_ = head.split(b" ", 2)
        if method == b"GET" and path in (b"/health", b"/v1/models"):
            self._json(200, {"object": "list", "data": [{"id": "demo", "object": "model"}]})
            return
        server, settings = self._server, self._server.settings
        if method != b"POST" or path != PATH:
            self._error(404, f"there is no {path.decode('latin-1')}")
            return
        if settings.key and f"authorization: bearer {settings.key}\r\n".lower().encode() not in head.lower():
            self._error(401, "Incorrect API key provided")
            return
        digest = hashlib.blake2b(body, digest_size=16).hexdigest()
        fault = settings.fault_of(digest) if settings.faults else ""
        if fault in ONCE and not settings.always and server.asked[digest]:
            fault = ""
        try:
            asked = {} if settings.blind else json.loads(body)
            sha256, prompt = _read(asked) if asked else ("", "")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self._error(400, f"invalid request: {type(error).__name__}: {error}")
            return
        server.note("asked", digest, fault=fault, image=sha256)
        if not server.lets_in() or fault == "429":
            self._error(429, "rate limit reached", f"Retry-After: {settings.retry_after}\r\n")
            return

        def finish() -> None:
            server.end()
            if self._transport.is_closing():
                return
            if fault == "tell_tale":
                self._tell_tale(head)
            elif fault in MISBEHAVIOURS:
                self._misbehave(fault)
            elif fault in ("bad_request", "bad_image"):
                what = "cannot identify image file" if fault == "bad_image" else "the prompt is too long"
                self._error(400, what)
                server.note("answered", digest)
            else:
                text, more = self._answer(head, asked, sha256, prompt, fault)
                server.num_answers += 1
                self._json(200, _completion(text, **more))
                server.note("answered", digest)
                if server.num_answers == settings.die_after:
                    os._exit(DIED)

        def work() -> None:
            asyncio.get_running_loop().call_later(settings.latency_s, finish)

        if not server.begin(work):
            self._error(429, "all slots are in use", f"Retry-After: {settings.retry_after}\r\n")

    def _answer(
        self, head: bytes, asked: Mapping[str, Any], sha256: str, prompt: str, fault: str
    ) -> tuple[str, dict[str, Any]]:
        if not asked:
            return "a picture that nobody looked at", {}
        if asked.get("logprobs"):
            found = self._server.judge(sha256, prompt)
            likely = max(found, key=lambda token: found[token])
            is_kept = fault != "no_logprobs"
            return likely, {"logprobs": _logprobs(found, int(asked["top_logprobs"]))} if is_kept else {}
        caption = self._server.captioner(sha256, prompt, int(asked.get("seed") or 0))
        if asked.get("response_format"):
            schema = asked["response_format"]["json_schema"]["schema"]
            caption = json.dumps({name: _filler(one, caption) for name, one in schema["properties"].items()})
        said: dict[str, tuple[str, dict[str, Any]]] = {
            "refusal": ("I'm sorry, but I can't describe this image.", {}),
            "length": (caption[: len(caption) // 2], {"finish": "length"}),
            "empty": ("", {}),
            "loop": ("a cat on a mat and " * 30, {}),
            "control": (f"\x1b[31m{caption}\x00\x07\u202e\ud800", {}),
            "foreign": ("ein Bild von einem kleinen roten Haus auf einer gr\u00fcnen Wiese", {}),
            "echo": (f"a picture of {head.decode('latin-1')}", {}),
        }
        return said.get(fault, (caption, {}))

    def _misbehave(self, fault: str) -> None:
        if fault == "500":
            self._error(500, "internal error")
        elif fault == "redirect":
            self._raw(302, b"", f"Location: {PRIVATE}\r\n")
        elif fault == "html":
            self._raw(200, b"<html><body>Welcome to the proxy</body></html>", "Content-Type: text/html\r\n")
        elif fault == "wrong_json":
            self._raw(200, b'{"choices": [{"message": {"content": {"a": 1}}}]}')
        elif fault == "deep":
            self._raw(200, b"[" * 200_000)
        elif fault == "cut":
            self._transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [')
            self._transport.close()
        elif fault == "endless":
            self._transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._stream(b"%x\r\n%b\r\n" % (PIECE, b" " * PIECE), None)
        elif fault == "huge":
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % HUGE_BYTES)
            self._stream(b" " * PIECE, HUGE_BYTES // PIECE)

    def _stream(self, piece: bytes, num: int | None) -> None:
        async def send() -> None:
            sent = 0
            with suppress(ConnectionError):
                while not self._transport.is_closing() and (num is None or sent < num):
                    await self._may_write.wait()
                    self._transport.write(piece)
                    sent += 1
                    await asyncio.sleep(0)

        task = asyncio.get_running_loop().create_task(send())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _error(self, status: int, message: str, headers: str = "") -> None:
        self._json(status, {"error": {"message": message, "type": "error", "code": status}}, headers)

    def _tell_tale(self, head: bytes) -> None:
        """Sends back what came, in other letters: JSON may spell any of them as \\uXXXX."""
        spelled = "".join(f"\\u{ord(c):04x}" for c in head.decode("latin-1")[-120:])
        self._raw(502, f'{{"error": {{"message": "{spelled}"}}}}'.encode())

    def _json(self, status: int, value: Any, headers: str = "") -> None:
        self._raw(status, json.dumps(value).encode(), f"Content-Type: application/json\r\n{headers}")

    def _raw(self, status: int, body: bytes, headers: str = "") -> None:
        self._server.statuses[status] += 1
        head = f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _read(asked: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (sha256 of the image, prompt) of a request's body. Raises ValueError for an image that is no data URI."""
    parts = asked["messages"][-1]["content"]
    if isinstance(parts, str):
        return "", parts
    uri = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    prompt = " ".join(part["text"] for part in parts if part["type"] == "text")
    head, _, data = uri.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise ValueError(f"the image is not a data URI but {uri[:40]!r}")
    try:
        return hashlib.sha256(base64.b64decode(data, validate=True)).hexdigest(), prompt
    except binascii.Error as error:
        raise ValueError("the image is not base64") from error


def _filler(spec: Mapping[str, Any], caption: str) -> Any:
    kind = spec.get("type")
    if kind == "array":
        return [_filler(spec["items"], caption)]
    return {"string": caption, "number": 0.5, "integer": 1, "boolean": True}.get(str(kind))


def _logprobs(found: Mapping[str, float], num: int) -> dict[str, Any]:
    """Returns `logprobs` of a completion of one token, the likeliest."""
    likely = sorted(found, key=lambda token: -found[token])[:num]
    each = [{"token": token, "logprob": math.log(max(found[token], 1e-30))} for token in likely]
    return {"content": [{**each[0], "top_logprobs": each}]}


def _completion(text: str, finish: str = "stop", logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": "demo",
        "choices": [{**choice, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 300, "completion_tokens": len(text.split()), "total_tokens": 0},
    }


class Running:
    """The server in a thread of this process, as a context manager: for tests. url: what `base_url` should be."""

    def __init__(
        self,
        settings: Settings,
        captioner: Captioner = any_caption,
        log: IO[bytes] | None = None,
        judge: Judge = any_judge,
    ) -> None:
        self._make = lambda: ChatServer(settings, captioner, log, judge)
        self._ready, self._over = Event(), Event()

    def __enter__(self) -> Self:
        self._thread = Thread(target=lambda: asyncio.run(self._run()), name="chat-server", daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    async def _run(self) -> None:
        self.server = self._make()
        self.port = await self.server.start()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._ready.set()
        while not self._over.is_set():
            await asyncio.sleep(0.02)
        self.server.close()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
