"""Rules of an origin, asked for once and kept: robots.txt (RFC 9309) and /.well-known/tdmrep.json. Both are options.

The files come through the same guards as images do. robots.txt: 4xx, nothing is forbidden; no answer or 5xx,
everything is (RFC 9309, 2.3.1.3 and 2.3.1.4). tdmrep.json: without a readable file nothing is reserved.
https://www.rfc-editor.org/rfc/rfc9309, https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from vlpipe.pipeline.errors import RowFault, VlpipeError

ROBOTS_PATH, TDMREP_PATH = "/robots.txt", "/.well-known/tdmrep.json"
MAX_RULES_BYTES = 500 * 1024  # RFC 9309, 2.5
MAX_ORIGINS = 10_000  # kept per worker

Read = Callable[[str], Awaitable["tuple[int, bytes] | RowFault"]]  # URL -> status and body


def need_protego() -> Any:
    """protego's parser, the one Scrapy uses. VlpipeError when it is not installed."""
    try:
        from protego import Protego
    except ImportError as error:
        raise VlpipeError("`robots: obey` needs protego: pip install 'vlpipe[web]'") from error
    return Protego


class Origins:
    """What the origins we met say; one question to each, whoever waits for the answer."""

    def __init__(self, read: Read, bot: str, *, robots: bool, tdmrep: bool) -> None:
        self._read, self._bot = read, bot
        self._parser: Any = need_protego() if robots else None
        self._tdmrep = tdmrep
        self._rules: dict[str, asyncio.Task[Any]] = {}

    async def check(self, url: str) -> None:
        """RowFault opt_out when the URL (as it is sent) is not to be asked for; rules_unreadable when we cannot know."""
        origin, path = split_origin(url)
        shown = path.partition("?")[0][:200]  # a query may hold a signature
        if self._parser:
            rules = await self._of(origin + ROBOTS_PATH, self._robots)
            if isinstance(rules, RowFault):
                raise RowFault(
                    "robots_unreadable", f"{origin}{ROBOTS_PATH}: {rules.why}; all is forbidden then"
                )
            if not rules.can_fetch(url, self._bot):
                raise RowFault("opt_out", f"{origin}{ROBOTS_PATH} disallows {shown} for {self._bot}")
        if self._tdmrep:
            for pattern in await self._of(origin + TDMREP_PATH, self._reserved):
                if pattern.match(path):
                    raise RowFault("opt_out", f"{origin}{TDMREP_PATH} reserves {shown}")

    async def _of(self, url: str, ask: Callable[[str], Awaitable[Any]]) -> Any:
        if url not in self._rules:
            if len(self._rules) >= MAX_ORIGINS:  # the oldest goes; to ask again is polite enough
                self._rules.pop(next(iter(self._rules)))
            self._rules[url] = asyncio.ensure_future(ask(url))
        return await asyncio.shield(self._rules[url])  # one who gives up does not take it from the others

    async def _robots(self, url: str) -> Any:
        got = await self._read(url)
        if isinstance(got, RowFault):
            nothing_there = re.fullmatch(r"http_4(?!29)\d\d", got.why)
            return self._parser.parse("") if nothing_there else got
        return self._parser.parse(got[1][:MAX_RULES_BYTES].decode("utf-8", "replace"))

    async def _reserved(self, url: str) -> list[re.Pattern[str]]:
        got = await self._read(url)
        return [] if isinstance(got, RowFault) else reserved_paths(got[1])


def split_origin(url: str) -> tuple[str, str]:
    """`https://a.test:8080/x?y` -> (`https://a.test:8080`, `/x?y`)."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}", slash + path


def reserved_paths(body: bytes) -> list[re.Pattern[str]]:
    """Patterns of the locations that tdmrep.json reserves. The first rule that fits a path decides, as a later
    one may not take back what an earlier one says; so rules that free a path are put in front as exceptions."""
    try:
        rules = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return []
    found, freed = [], ""
    for rule in rules if isinstance(rules, list) else ():
        if not (isinstance(rule, dict) and isinstance(rule.get("location"), str)):
            continue
        pattern = _pattern(rule["location"])
        if str(rule.get("tdm-reservation")) == "1":
            found.append(re.compile(freed + pattern, re.DOTALL))
        else:
            freed += f"(?!{pattern})"
    return found


def _pattern(location: str) -> str:
    """As robots.txt: a prefix, `*` stands for anything, `$` for the end."""
    text, end = (location[:-1], "$") if location.endswith("$") else (location, "")
    return "/?" + ".*".join(re.escape(piece) for piece in text.lstrip("/").split("*")) + end
