"""Counts hosts that refuse all that is asked of them, for an alarm of the step: else they look like a list of dead rows."""

from __future__ import annotations

from urllib.parse import urlsplit

from vlpipe.pipeline.stage import REFUSED_ALL

# The host answers, and says no: not allowed, too many requests, for legal reasons, a pause that is too long.
CODES = frozenset({"http_401", "http_403", "http_406", "http_429", "http_451", "http_503", "host_busy"})
MIN_URLS = 50  # of a host, in a batch
MAX_HOSTS = 4  # counted per batch


class Refusals:
    """What the hosts of a batch answered."""

    def __init__(self) -> None:
        self._refused: dict[str, int] = {}
        self._others: set[str] = set()  # hosts with another answer

    def add(self, url: str | None, why: str = "") -> None:
        """Counts the answer to a URL. why: the code of its reject; empty: it was an image, or might be one."""
        try:
            host = urlsplit(url or "").hostname or ""
        except ValueError:
            return
        if why in CODES:
            self._refused[host] = self._refused.get(host, 0) + 1
        else:
            self._others.add(host)

    def counts(self) -> dict[str, int]:
        """Returns `refused_all:HOST` -> URLs, of the hosts with MIN_URLS or more of which none was answered otherwise."""
        found = {
            host: num
            for host, num in self._refused.items()
            if num >= MIN_URLS and host and host not in self._others
        }
        worst = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MAX_HOSTS]
        return {f"{REFUSED_ALL}{host}": num for host, num in worst}
