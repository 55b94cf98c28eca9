"""Rules of an origin, fetched once and cached: robots.txt (RFC 9309) and /.well-known/tdmrep.json. Both are optional.

The files are fetched with the same checks as images. If robots.txt returns a 4xx status (except 429), all URLs are allowed;
if it returns 429 or 5xx, or does not answer, none are (RFC 9309, 2.3.1.3 and 2.3.1.4). Without a readable tdmrep.json, no
rights are reserved.
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
        self._rules: dict[str, asyncio.Task[Any]] = {}

    async def check(self, url: str) -> None:
        """Raises RowFault if the URL (as sent) must not be requested: opt_out, or robots_unreadable."""
        origin, path = split_origin(url)
        shown = path.partition("?")[0][:200]  # a query may contain a signature
        if self._parser:
            rules = await self._of(origin + ROBOTS_PATH, self._robots)
            if isinstance(rules, RowFault):
                raise RowFault(
                    "robots_unreadable",
                    f"{origin}{ROBOTS_PATH} cannot be read ({rules.why}), so no URL of this origin may be fetched",
                )
            if not rules.can_fetch(url, self._bot):
                raise RowFault("opt_out", f"{origin}{ROBOTS_PATH} disallows {shown} for {self._bot}")
        if self._tdmrep:
            for pattern in await self._of(origin + TDMREP_PATH, self._reserved):
                if pattern.match(path):
                    raise RowFault("opt_out", f"{origin}{TDMREP_PATH} reserves {shown}")

    async def _of(self, url: str, ask: Callable[[str], Awaitable[Any]]) -> Any:
        if url not in self._rules:
            if len(self._rules) >= MAX_ORIGINS:  # drop the oldest; it is fetched anew when needed
                self._rules.pop(next(iter(self._rules)))
            self._rules[url] = asyncio.ensure_future(ask(url))
        return await asyncio.shield(
            self._rules[url]
        )  # shielded: a cancelled caller does not cancel it for others

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
    """Returns (origin, path with query): `https://a.test:8080/x?y` -> (`https://a.test:8080`, `/x?y`)."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}", slash + path


def reserved_paths(body: bytes) -> list[re.Pattern[str]]:
    """Returns regexes of the paths for which tdmrep.json reserves rights. The first rule that matches a path decides, so
    rules that permit a path become negative lookaheads of the patterns after them."""
    try:
        rules = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
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
    """Returns the regex of a path prefix, in which `*` matches anything and a final `$` the end, as in robots.txt."""
    text, end = (location[:-1], "$") if location.endswith("$") else (location, "")
    return "/?" + ".*".join(re.escape(piece) for piece in text.lstrip("/").split("*")) + end
