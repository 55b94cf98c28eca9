"""Rules of an origin, fetched once and cached: robots.txt (RFC 9309) and /.well-known/tdmrep.json. Both are optional.

The files are fetched with the same checks as images. If robots.txt returns a 4xx status (except 429), all URLs are allowed;
if it returns 429 or 5xx, or does not answer, none are (RFC 9309, 2.3.1.3 and 2.3.1.4). Without a readable tdmrep.json, no
rights are reserved; one that is too large to be read reserves all. A URL is checked in time linear in the size of the rules.
https://www.rfc-editor.org/rfc/rfc9309, https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.web.url import KEPT

ROBOTS_PATH, TDMREP_PATH = "/robots.txt", "/.well-known/tdmrep.json"
MAX_RULES_BYTES = 500 * 1024  # of a file; what follows is not read (RFC 9309, 2.5)
MANY_BYTES = 1 << 14  # larger files are read and looked up in a thread, while the loop goes on
MAX_ORIGINS, MAX_KEPT_BYTES = 10_000, 1 << 24  # kept per worker; parsed rules take up to 30 times their bytes
USER_AGENT = re.compile(r"(\s*user[-\s]*agent\s*[:\s]\s*)(.*)", re.IGNORECASE)
OTHER_AGENT = "\x00"  # in no bot's name
ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
T = TypeVar("T")

Read = Callable[[str], Awaitable["tuple[int, bytes] | RowFault"]]  # URL -> (status, body)


def need_protego() -> Any:
    """Returns the parser of protego, as used by Scrapy. Raises VlpipeError if it is not installed."""
    try:
        from protego import Protego
    except ImportError as error:
        raise VlpipeError("`robots: obey` needs protego: pip install 'vlpipe[web]'") from error
    return Protego


class Origins:
    """The rules of all origins requested so far; each file is fetched once for all callers.

    bot: name to look up in robots.txt. robots, tdmrep: which of the two files to obey.
    """

    def __init__(self, read: Read, bot: str, *, robots: bool, tdmrep: bool) -> None:
        self._read, self._bot = read, bot
        self._parser: Any = need_protego() if robots else None
        self._tdmrep = tdmrep
        self._rules: dict[str, asyncio.Task[_Rules | RowFault]] = {}
        self._num_bytes = 0  # of the files in `_rules`
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rules")

    async def check(self, url: str) -> None:
        """Raises RowFault if the URL (from `sendable`) must not be requested: opt_out, or robots_unreadable."""
        origin, path = split_origin(url)
        shown = path.partition("?")[0][:200]  # a query may contain a signature
        if self._parser:
            rules = await self._of(origin + ROBOTS_PATH, self._robots)
            if isinstance(rules, RowFault):
                raise RowFault(
                    "robots_unreadable",
                    f"{origin}{ROBOTS_PATH} cannot be read ({rules.why}), so no URL of this origin may be fetched",
                )
            if not await self._timely(rules.num_bytes, rules.parsed.can_fetch, url, self._bot):
                raise RowFault("opt_out", f"{origin}{ROBOTS_PATH} disallows {shown} for {self._bot}")
        if self._tdmrep:
            rules = await self._of(origin + TDMREP_PATH, self._reserved)
            reserved = isinstance(rules, _Rules) and await self._timely(
                rules.num_bytes, is_reserved, rules.parsed, path
            )
            if reserved:
                raise RowFault("opt_out", f"{origin}{TDMREP_PATH} reserves {shown}")

    async def _timely(self, num_bytes: int, work: Callable[..., T], *args: Any) -> T:
        """Returns work(*args); calls it in a thread if there are more than MANY_BYTES of rules, as it may take long."""
        if num_bytes <= MANY_BYTES:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _of(self, url: str, ask: Callable[[str], Awaitable[_Rules | RowFault]]) -> _Rules | RowFault:
        if url not in self._rules:
            self._rules[url] = asyncio.ensure_future(ask(url))
            self._rules[url].add_done_callback(self._forget_oldest)
        return await asyncio.shield(
            self._rules[url]
        )  # shielded: a cancelled caller does not cancel it for others

    def _forget_oldest(self, done: asyncio.Task[_Rules | RowFault]) -> None:
        """Removes the oldest rules while there are too many; they are fetched again when they are needed.

        done: the rules that were just read.
        """
        self._num_bytes += _num_bytes(done)
        while len(self._rules) > MAX_ORIGINS or self._num_bytes > MAX_KEPT_BYTES:
            oldest = next((url for url, task in self._rules.items() if task.done()), None)
            if oldest is None:
                break
            self._num_bytes -= _num_bytes(self._rules.pop(oldest))

    async def _robots(self, url: str) -> _Rules | RowFault:
        got = await self._read(url)
        if isinstance(got, RowFault):
            nothing_there = re.fullmatch(r"http_4(?!29)\d\d", got.why)
            return _Rules(self._parser.parse(""), 0) if nothing_there else got
        body = got[1][:MAX_RULES_BYTES]
        parsed = await self._timely(
            len(body), lambda: self._parser.parse(only_rules_for(self._bot, _text(body)))
        )
        return _Rules(parsed, len(body))

    async def _reserved(self, url: str) -> _Rules | RowFault:
        got = await self._read(url)
        if isinstance(got, RowFault):
            return got
        return _Rules(await self._timely(len(got[1]), tdm_rules, got[1]), len(got[1]))

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Rules(NamedTuple):
    """Rules of an origin: a parser of protego, or a list of TdmRule, and the number of bytes that they were read from."""

    parsed: Any
    num_bytes: int


def _num_bytes(done: asyncio.Task[_Rules | RowFault]) -> int:
    if done.cancelled() or done.exception() is not None:
        return 0
    rules = done.result()
    return rules.num_bytes if isinstance(rules, _Rules) else 0


def _text(body: bytes) -> str:
    """Returns a file of rules as text, without the byte order marks that editors put before it."""
    is_utf_16 = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return body.decode("utf-16" if is_utf_16 else "utf-8", "replace").replace("\ufeff", "")


def only_rules_for(bot: str, text: str) -> str:
    """Returns a robots.txt in which OTHER_AGENT stands for all bots but `bot` and `*`.

    A parser stores the rules of a group once per name, which is quadratic in the size of the file.
    """
    lines = text.splitlines()
    for k, line in enumerate(lines):
        found = USER_AGENT.match(line)
        if found:
            name = found[2].partition("#")[0].replace("*", "").strip().lower()
            if name and name not in bot.lower():
                lines[k] = found[1] + OTHER_AGENT
    return "\n".join(lines)


def split_origin(url: str) -> tuple[str, str]:
    """Returns (origin, path with query): `https://a.test:8080/x?y` -> (`https://a.test:8080`, `/x?y`)."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}", slash + path


class TdmRule(NamedTuple):
    """A rule of tdmrep.json. parts: of its path pattern, between `*`, without the first `/`. at_end: the pattern
    ends with `$`, so the path must end there. reserves: whether it reserves rights."""

    parts: tuple[str, ...]
    at_end: bool
    reserves: bool

    def matches(self, path: str) -> bool:
        """Returns whether the pattern, which may or may not begin with a `/`, matches a path, in linear time."""
        first, *others = self.parts
        if first or not others:  # an initial `*` also matches the first `/`
            path = path.removeprefix("/")
        if not path.startswith(first):
            return False
        if not others:
            return not self.at_end or path == first
        at, last = len(first), others.pop() if self.at_end else ""
        for part in others:
            found = path.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        return not self.at_end or (len(path) - len(last) >= at and path.endswith(last))


EVERYTHING = [TdmRule(("",), False, True)]


def tdm_rules(body: bytes) -> list[TdmRule]:
    """Returns the rules of a tdmrep.json in their order; none if it is unreadable, EVERYTHING from MAX_RULES_BYTES on."""
    if len(body) >= MAX_RULES_BYTES:
        return EVERYTHING
    try:
        listed = json.loads(_text(body))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return []
    return [*_tdm_rules(listed)]


def _tdm_rules(listed: Any) -> Iterator[TdmRule]:
    for rule in listed if isinstance(listed, list) else ():
        if isinstance(rule, dict) and isinstance(location := rule.get("location"), str):
            # `*` matches anything and a final `$` the end, as in robots.txt.
            at_end = location.endswith("$")
            parts = _as_sent(location.removesuffix("$")).lstrip("/").split("*")
            yield TdmRule(tuple(parts), at_end, rule.get("tdm-reservation") in (1, "1"))


def _as_sent(path: str) -> str:
    """Returns a path or pattern in one spelling: percent-encoded as in `url.sendable`, escapes in upper case."""
    return ESCAPE.sub(lambda found: found[0].upper(), quote(path, KEPT, errors="replace"))


def is_reserved(rules: Sequence[TdmRule], path: str) -> bool:
    """Returns whether rights are reserved for a path (as sent), by the first rule that matches it; False if none does."""
    path = _as_sent(path)
    return next((rule.reserves for rule in rules if rule.matches(path)), False)
