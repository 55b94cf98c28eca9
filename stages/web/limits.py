"""Limits of a fetcher: timeouts, sizes, concurrency, retries, and which opt-outs it obeys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlpipe.stages.web.politeness import Politeness


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a fetcher. `fetching.images:Fetching` has parameters of the same names, with defaults."""

    connect_timeout_s: float  # including TLS
    read_timeout_s: float  # max time without a byte
    timeout_s: float  # one attempt, with all redirects and the whole body
    max_bytes: int
    max_redirects: int
    concurrency: int
    per_host: int
    host_interval_s: float
    max_wait_s: float
    retries: int
    backoff_s: float
    user_agent: str
    bot: str
    opt_out: tuple[str, ...]
    robots: Literal["ignore", "obey"]
    tdmrep: Literal["ignore", "obey"]

    @property
    def product(self) -> str:
        """Returns the bot name to look up in robots.txt and similar rules: `bot`, else `user_agent` up to its `/`."""
        return self.bot or self.user_agent.partition("/")[0].strip()

    @property
    def politeness(self) -> Politeness:
        """Returns the limits per host, which the HostGate enforces."""
        return Politeness(
            per_host=self.per_host,
            host_interval_s=self.host_interval_s,
            max_wait_s=self.max_wait_s,
            backoff_s=self.backoff_s,
            # A turn lasts one request; all requests of an attempt (redirects) together may take `timeout_s`.
            lease_s=2 * self.timeout_s,
        )
